//! Containers as a table, in the manner of `docker ps`.

use super::Container;

const HEADER: [&str; 7] = [
    "CONTAINER",
    "USER",
    "JOB",
    "IMAGE",
    "COMMAND",
    "AGE",
    "PIDS",
];

/// Characters of a command that are shown.
const COMMAND_WIDTH: usize = 30;

pub(super) fn render(containers: &[Container], now: u64) -> String {
    let mut rows = vec![HEADER.map(str::to_owned)];
    rows.extend(containers.iter().map(|container| row(container, now)));
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..HEADER.len()).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let cells = row.iter().zip(&widths);
        let cells: Vec<String> = cells
            .map(|(cell, width)| format!("{cell:<width$}"))
            .collect();
        text.push_str(cells.join("   ").trim_end());
        text.push('\n');
    }
    text
}

fn row(container: &Container, now: u64) -> [String; 7] {
    let or_none = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
    let pids: Vec<String> = container.pids.iter().map(u32::to_string).collect();
    [
        container.namespace.to_string(),
        container.user.clone(),
        or_none(&container.job),
        or_none(&container.image),
        cut(&container.command),
        age(now.saturating_sub(container.started)),
        pids.join(","),
    ]
}

fn cut(command: &str) -> String {
    if command.chars().count() <= COMMAND_WIDTH {
        return command.to_owned();
    }
    let mut text: String = command.chars().take(COMMAND_WIDTH - 1).collect();
    text.push('…');
    text
}

fn age(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table() {
        let container = Container {
            namespace: 4_026_532_200,
            uid: 2001,
            user: "alice".into(),
            job: None,
            image: Some("docker:a:1".into()),
            command: "python3 /scratch/alice/a-long-name.py".into(),
            started: 1000,
            pids: vec![7, 9],
        };
        assert_eq!(
            render(&[container], 1000 + 3 * 3600),
            "CONTAINER    USER    JOB   IMAGE        COMMAND                          AGE   PIDS\n\
             4026532200   alice   -     docker:a:1   python3 /scratch/alice/a-long…   3 h   7,9\n"
        );
        assert_eq!(
            render(&[], 0),
            "CONTAINER   USER   JOB   IMAGE   COMMAND   AGE   PIDS\n"
        );
        for (seconds, expect) in [(0, "0 s"), (119, "119 s"), (120, "2 min"), (200_000, "2 d")] {
            assert_eq!(age(seconds), expect);
        }
    }
}
