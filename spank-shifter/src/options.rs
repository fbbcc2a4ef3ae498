//! The options that the plugin adds to sbatch, salloc and srun, exactly as typed.
//!
//! Slurm itself forwards only the last value of an option given twice, so the values are gathered
//! here as they come. Nothing is judged but size and encoding: `submit` does the rest.

use std::ffi::CStr;

use thiserror::Error;

/// Bytes that all values together may have. Slurm copies them into environments of limited size.
pub const LIMIT: usize = 32 << 10;

/// Says why a value is refused before it is even understood.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum OptionError {
    /// Slurm called back with a number that is none of ours.
    #[error("option number {0} is not one of Shifter's")]
    Foreign(i32),
    /// All values together are too long.
    #[error("the values of Shifter's options are longer than {LIMIT} bytes together")]
    TooLong,
    /// The value is not text.
    #[error("the value of --{0} is not UTF-8 text")]
    NotText(&'static str),
    /// The value has nothing in it.
    #[error("--{0} needs a value")]
    Empty(&'static str),
    /// The option is a switch.
    #[error("--{0} is given alone, or with =yes or =no")]
    Switch(&'static str),
}

/// What an option sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    Image,
    Volume,
    Module,
    Autoshift,
    Ccm,
    Sshd,
    Entrypoint,
}

/// An option as Slurm is told of it; its number is its place in [`SPECS`].
#[derive(Debug)]
pub struct Spec {
    /// Name without the dashes.
    pub name: &'static CStr,
    /// Placeholder of the value in `--help`, empty where there is none.
    pub value: &'static CStr,
    /// Whether there is one: never, always, or as the user likes.
    pub has_value: HasValue,
    /// Line of `--help`.
    pub usage: &'static CStr,
    target: Target,
}

/// Whether an option has a value, numbered as getopt_long(3) does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HasValue {
    /// Never.
    No = 0,
    /// Always.
    Yes = 1,
    /// Only after a '='.
    Maybe = 2,
}

/// The options, in the order in which `--help` shows them: one line of 80 characters each, that
/// tells whose they are among those of other plugins.
static SPECS: [Spec; 8] = [
    Spec {
        name: c"image",
        value: c"REF",
        has_value: HasValue::Yes,
        usage: c"Shifter: image of the job's containers",
        target: Target::Image,
    },
    Spec {
        name: c"autoshift",
        value: c"[yes|no]",
        has_value: HasValue::Maybe,
        usage: c"Shifter: run script and tasks in the image",
        target: Target::Autoshift,
    },
    Spec {
        name: c"volume",
        value: c"FROM:TO",
        has_value: HasValue::Yes,
        usage: c"Shifter: show FROM at TO in the image (repeatable)",
        target: Target::Volume,
    },
    Spec {
        name: c"imagevolume",
        value: c"FROM:TO",
        has_value: HasValue::Yes,
        usage: c"Shifter: the same as --volume",
        target: Target::Volume,
    },
    Spec {
        name: c"module",
        value: c"NAME[,..]",
        has_value: HasValue::Yes,
        usage: c"Shifter: use modules of the site in the image",
        target: Target::Module,
    },
    Spec {
        name: c"sshd",
        value: c"[yes|no]",
        has_value: HasValue::Maybe,
        usage: c"Shifter: ssh between the job's containers",
        target: Target::Sshd,
    },
    Spec {
        name: c"ccm",
        value: c"",
        has_value: HasValue::No,
        usage: c"Shifter: the host as container, on whole nodes",
        target: Target::Ccm,
    },
    Spec {
        name: c"entrypoint",
        value: c"[yes|no]",
        has_value: HasValue::Maybe,
        usage: c"Shifter: start commands by the image's entry point",
        target: Target::Entrypoint,
    },
];

/// Longer names, which the C Shifter's options have where a site wants it: each with the place of the
/// option in [`SPECS`].
const LONG_NAMES: [(&CStr, i32, &CStr); 3] = [
    (c"shifter.image", 0, c"Shifter: the same as --image"),
    (c"shifter.volume", 2, c"Shifter: the same as --volume"),
    (c"shifter.module", 4, c"Shifter: the same as --module"),
];

/// Returns all names of options, as Slurm is told of them: with the line of `--help`, and what they set.
pub fn names(
    has_long_ones: bool,
) -> impl Iterator<Item = (&'static CStr, &'static CStr, i32, &'static Spec)> {
    let own = SPECS.iter().zip(0..);
    let own = own.map(|(spec, number)| (spec.name, spec.usage, number, spec));
    let long = LONG_NAMES.iter().filter(move |_| has_long_ones);
    let long =
        long.filter_map(|(name, number, usage)| Some((*name, *usage, *number, spec(*number)?)));
    own.chain(long)
}

/// Everything given, in the order given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RawOptions {
    /// The last `--image`.
    pub image: Option<String>,
    /// Every `--volume`.
    pub volumes: Vec<String>,
    /// Every `--module`.
    pub modules: Vec<String>,
    /// The last `--autoshift`.
    pub autoshift: Option<bool>,
    /// True if there is a `--ccm`.
    pub ccm: bool,
    /// The last `--sshd`.
    pub sshd: Option<bool>,
    /// The last `--entrypoint`.
    pub entrypoint: Option<bool>,
    bytes: usize,
}

impl RawOptions {
    /// Starts without any.
    pub const fn new() -> Self {
        Self {
            image: None,
            volumes: Vec::new(),
            modules: Vec::new(),
            autoshift: None,
            ccm: false,
            sshd: None,
            entrypoint: None,
            bytes: 0,
        }
    }

    /// Takes one value.
    pub fn add(&mut self, number: i32, value: &[u8]) -> Result<(), OptionError> {
        let spec = spec(number).ok_or(OptionError::Foreign(number))?;
        let name = spec.name.to_str().unwrap_or_default();
        if value.is_empty() && spec.has_value == HasValue::Yes {
            return Err(OptionError::Empty(name));
        }
        self.bytes = self.bytes.saturating_add(value.len() + 1);
        if self.bytes > LIMIT {
            return Err(OptionError::TooLong);
        }
        let text = str::from_utf8(value)
            .map_err(|_| OptionError::NotText(name))?
            .to_owned();
        match spec.target {
            Target::Image => self.image = Some(text),
            // sbatch repeats the first component's options for every other one of a
            // heterogeneous job.
            Target::Volume if self.volumes.contains(&text) => {}
            Target::Volume => self.volumes.push(text),
            Target::Module => self.modules.push(text),
            Target::Autoshift => self.autoshift = Some(switch(value, name)?),
            Target::Ccm => self.ccm = true,
            Target::Sshd => self.sshd = Some(switch(value, name)?),
            Target::Entrypoint => self.entrypoint = Some(switch(value, name)?),
        }
        Ok(())
    }

    /// True if the user asked nothing of us.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }
}

/// What a step was started with, of which Slurm tells it only the last value of each option.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StepOptions {
    /// True if there was an image.
    pub image: bool,
    /// The value of `--autoshift`.
    pub autoshift: Option<bool>,
    /// The value of `--entrypoint`.
    pub entrypoint: Option<bool>,
}

impl StepOptions {
    /// Starts without any.
    pub const fn new() -> Self {
        Self {
            image: false,
            autoshift: None,
            entrypoint: None,
        }
    }

    /// Takes one value; the submit side has judged it, and what it would have refused is not there.
    pub fn add(&mut self, number: i32, value: &[u8]) {
        match spec(number).map(|spec| spec.target) {
            Some(Target::Image) => self.image = true,
            Some(Target::Autoshift) => self.autoshift = switch(value, "").ok(),
            Some(Target::Entrypoint) => self.entrypoint = switch(value, "").ok(),
            _ => {}
        }
    }
}

fn switch(value: &[u8], name: &'static str) -> Result<bool, OptionError> {
    match value {
        b"" | b"yes" => Ok(true),
        b"no" => Ok(false),
        _ => Err(OptionError::Switch(name)),
    }
}

fn spec(number: i32) -> Option<&'static Spec> {
    SPECS.get(usize::try_from(number).ok()?)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn help_is_a_line_each() {
        for spec in &SPECS {
            let (name, value) = (spec.name.to_str().unwrap(), spec.value.to_str().unwrap());
            assert_eq!(value.is_empty(), spec.has_value == HasValue::No, "{name}");
            // Slurm's columns: the option from 6 on, what it does from 30 to 80.
            assert!(name.len() + value.len() <= 21, "{name}");
            let usage = spec.usage.to_str().unwrap();
            assert!(
                usage.starts_with("Shifter: ") && usage.len() <= 50,
                "{usage}"
            );
        }
    }

    #[test]
    fn longer_names_set_the_same() {
        let sets = |wanted: &CStr| {
            let found = names(true).find(|(name, ..)| *name == wanted);
            found.map(|(.., number, spec)| (number, spec.target))
        };
        for (long, short) in [
            (c"shifter.image", c"image"),
            (c"shifter.volume", c"volume"),
            (c"shifter.module", c"module"),
        ] {
            assert!(
                sets(long).is_some() && sets(long) == sets(short),
                "{long:?}"
            );
        }
        assert_eq!(names(false).count(), SPECS.len());
    }

    #[test]
    fn repeated_options_add_up() {
        let mut raw = RawOptions::new();
        assert!(raw.is_empty());
        for (number, value) in [
            (0, "a"),
            (2, "/x:/y"),
            (3, "/z:/w"),
            (0, "b"),
            (4, "m,n"),
            (4, "o"),
        ] {
            raw.add(number, value.as_bytes()).unwrap();
        }
        assert_eq!(raw.image.as_deref(), Some("b"));
        assert_eq!(raw.volumes, ["/x:/y", "/z:/w"]);
        assert_eq!(raw.modules, ["m,n", "o"]);
        assert!(!raw.is_empty());
    }

    #[test]
    fn hostile_values_are_refused() {
        let mut raw = RawOptions::new();
        assert_eq!(raw.add(9, b"x"), Err(OptionError::Foreign(9)));
        assert_eq!(raw.add(-1, b"x"), Err(OptionError::Foreign(-1)));
        assert_eq!(raw.add(2, b""), Err(OptionError::Empty("volume")));
        assert_eq!(raw.add(0, b"a\xff"), Err(OptionError::NotText("image")));
        assert_eq!(raw.add(0, &[b'a'; 1 << 20]), Err(OptionError::TooLong));
        // What was refused once is not forgotten: the submission must not go on without it.
        assert_eq!(raw.add(0, b"a"), Err(OptionError::TooLong));
        assert!(!raw.is_empty());
    }

    #[test]
    fn ten_thousand_volumes_are_too_many() {
        let mut raw = RawOptions::new();
        let volume = |n: i32| format!("/scratch:/mnt/{n:04}");
        let refused = (0..10_000).find(|n| raw.add(2, volume(*n).as_bytes()).is_err());
        assert_eq!(refused, Some((LIMIT / (volume(0).len() + 1)) as i32));
    }

    #[test]
    fn switches_are_on_alone() {
        let given = |value: &[u8]| {
            let mut raw = RawOptions::new();
            raw.add(1, value).map(|()| raw.autoshift)
        };
        assert_eq!(given(b""), Ok(Some(true)));
        assert_eq!(given(b"yes"), Ok(Some(true)));
        assert_eq!(given(b"no"), Ok(Some(false)));
        assert_eq!(given(b"maybe"), Err(OptionError::Switch("autoshift")));
    }

    #[test]
    fn a_step_knows_what_it_was_started_with() {
        let given = |options: &[(i32, &[u8])]| {
            let mut step = StepOptions::new();
            options
                .iter()
                .for_each(|(number, value)| step.add(*number, value));
            (step.image, step.autoshift, step.entrypoint)
        };
        assert_eq!(given(&[]), (false, None, None));
        assert_eq!(given(&[(0, b"x"), (4, b"m")]), (true, None, None));
        assert_eq!(given(&[(1, b"")]), (false, Some(true), None));
        assert_eq!(given(&[(1, b"no"), (9, b"")]), (false, Some(false), None));
        assert_eq!(given(&[(1, b"\xff")]), (false, None, None));
        assert_eq!(
            given(&[(7, b""), (1, b"")]),
            (false, Some(true), Some(true))
        );
        assert_eq!(given(&[(7, b"no")]), (false, None, Some(false)));
    }

    proptest! {
        #[test]
        fn never_holds_more_than_the_limit(
            values in prop::collection::vec((0..5, 0..9000_usize), 0..20)
        ) {
            let mut raw = RawOptions::new();
            for (at, (number, length)) in values.into_iter().enumerate() {
                let _ = raw.add(number, format!("{at}").repeat(length).as_bytes());
            }
            let texts = raw.image.iter().chain(&raw.volumes).chain(&raw.modules);
            prop_assert!(texts.map(|text| text.len() + 1).sum::<usize>() <= LIMIT);
        }
    }
}
