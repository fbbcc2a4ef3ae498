//! What `shifterimg lookup --json` answers, for the adaptors of all batch systems alike.

use serde::Deserialize;
use shifter_core::exit::ExitCode;
use shifter_core::ids::ImageId;

use crate::child::Finished;

/// Where the image manager has an image, or why it has none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Located {
    /// The site's store has it.
    Site(ImageId),
    /// Only the user's own store has it: nodes do not read that for jobs.
    UsersOwn,
    /// It is refused, for this reason, in the image manager's own words: one line or two.
    Refused(Option<ExitCode>, Vec<String>),
    /// The answer is none; this is what was wrong with it.
    Unclear(String),
}

/// The part of the answer that matters here.
#[derive(Deserialize)]
struct Answer {
    id: ImageId,
    store: String,
}

impl Located {
    /// Judges how the image manager ended and what it said.
    pub fn of(finished: &Finished) -> Self {
        if !finished.status.success() {
            let mut lines = finished.messages(2);
            let Some(first) = lines.first_mut() else {
                return Self::Unclear(format!("shifterimg ended with {}", finished.ending()));
            };
            // Nobody has called the helper: its name says nothing.
            *first = first.trim_start_matches("shifterimg: ").to_owned();
            let code = finished.status.code().and_then(ExitCode::from_code);
            return Self::Refused(code, lines);
        }
        match serde_json::from_slice::<Answer>(&finished.stdout) {
            Ok(answer) if answer.store == "site" => Self::Site(answer.id),
            Ok(_) => Self::UsersOwn,
            Err(error) => Self::Unclear(format!("the answer cannot be read: {error}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::ExitStatus;

    use super::*;

    fn located(status: i32, stdout: &str, stderr: &str) -> Located {
        Located::of(&Finished {
            status: ExitStatus::from_raw(status),
            stdout: stdout.into(),
            stderr: stderr.into(),
        })
    }

    #[test]
    fn what_the_image_manager_says_is_believed_only_as_far_as_it_goes() {
        let id = ImageId::parse(&"a".repeat(64)).unwrap();
        let json = |store: &str| format!("{{\"id\":\"{id}\",\"store\":\"{store}\",\"x\":1}}");
        assert_eq!(
            located(0, &json("site"), "a warning"),
            Located::Site(id.clone())
        );
        assert_eq!(located(0, &json("user"), ""), Located::UsersOwn);
        for unclear in [
            "",
            "{}",
            "no",
            &json("site")[..40],
            &json("site").replace('a', "A"),
        ] {
            let found = located(0, unclear, "");
            assert!(matches!(found, Located::Unclear(_)), "{unclear}: {found:?}");
        }
        let words = "shifterimg: cannot find image 'x'\nhint: pull it\nmore\n";
        let lines = vec![
            "cannot find image 'x'".to_owned(),
            "hint: pull it".to_owned(),
        ];
        let code = i32::from(ExitCode::Image.code()) << 8;
        let refused = Located::Refused(Some(ExitCode::Image), lines);
        assert_eq!(located(code, &json("site"), words), refused);
        let killed = located(9, "", "shifterimg: x");
        assert_eq!(killed, Located::Refused(None, vec!["x".into()]));
        let silent = located(code, "", "\n");
        let reason = format!("shifterimg ended with exit code {}", ExitCode::Image.code());
        assert_eq!(silent, Located::Unclear(reason));
    }
}
