//! The command line of `shifter`: options as typed, in both of their forms.
//!
//! `shifter [options] [--] [command args...]` and `shifter run [options] IMAGE [command args...]`.
//! Parsing stops at the first word that is no option, so a command's own options are its own.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use shifter_core::env::{self, Pair};
use shifter_core::layout::Program;
use shifter_core::sanitize;

use crate::error::{Error, Result};
use crate::root::Writable;

/// Words that are commands of the image manager.
const IMAGE_COMMANDS: [&str; 11] = [
    "pull", "images", "lookup", "inspect", "rmi", "import", "load", "login", "logout", "gc",
    "verify",
];

/// Words that are programs of their own, which get the words after them.
const TOOLS: [(&str, Program); 2] = [("ps", Program::Ps), ("doctor", Program::Doctor)];

/// What the user wants done.
#[derive(Debug, PartialEq)]
pub enum Action {
    /// Run a command in a container.
    Run(Box<RunOptions>),
    /// Hand the words to the image manager.
    Images(Vec<OsString>),
    /// Hand the words to another program without privileges.
    Tool(Program, Vec<OsString>),
    /// Explain the command line.
    Help,
    /// Say which version this is.
    Version,
}

/// Options of a run, exactly as typed.
#[derive(Debug, Default, PartialEq)]
pub struct RunOptions {
    /// `--image`.
    pub image: Option<String>,
    /// `--volume` and `--mount`, repeated, both as volumes.
    pub volumes: Vec<String>,
    /// `--writable-tmpfs`: none, or with the directory that becomes the user's.
    pub writable: Option<Writable>,
    /// `--module`, split at commas.
    pub modules: Option<Vec<String>>,
    /// `--env`, repeated.
    pub env: Vec<Pair>,
    /// `--env-file`.
    pub env_file: Option<OsString>,
    /// `--clearenv`.
    pub clear_env: bool,
    /// `--entrypoint`: none, the image's, or this one.
    pub entrypoint: Option<Option<OsString>>,
    /// `--workdir`: none, the image's, or this one.
    pub workdir: Option<Option<OsString>>,
    /// `--rootless`.
    pub rootless: bool,
    /// `--verbose`.
    pub verbose: bool,
    /// The command and its arguments.
    pub command: Vec<OsString>,
}

/// The text of `shifter --help`.
pub const HELP: &str = "\
Usage: shifter [OPTIONS] [--] [COMMAND [ARG]...]
       shifter run [OPTIONS] IMAGE [COMMAND [ARG]...]
       shifter pull|images|lookup|inspect|rmi|import|load ...
       shifter login|logout|gc|verify|ps|doctor ...

Run a command in a container, as yourself. Inside a job that was submitted with
--image, without --image of its own, the command joins the job's container.

  -i, --image=[TYPE:]IMAGE    image: docker:ubuntu:24.04, id:<64 digits>,
                              ./image.sqsh, local:/directory, local:NAME
  -V, --volume=FROM:TO[:ro]   make FROM, below a directory of the site, appear
                              as TO; may be repeated
      --mount=type=bind,src=FROM,dst=TO[,readonly]
                              the same, as written for Docker
      --writable-tmpfs[=DIR]  let the command write over the image, in memory;
                              DIR becomes yours
  -m, --module=NAME[,NAME]    use the site's modules of these names; 'none': none
  -e, --env=NAME=VALUE        set a variable; may be repeated
      --env-file=FILE         set the variables in FILE, one NAME=VALUE a line
  -E, --clearenv              start from the image's environment, not from yours
      --entrypoint[=COMMAND]  run the image's entry point, or this one
  -w, --workdir[=DIR]         start in the image's working directory, or in DIR
      --rootless              use no privilege, also where the site has given it
  -v, --verbose               say what is done
  -h, --help                  print this text
      --version               print the version

Exit status: the command's; 1 internal error, 2 usage, 3 denied, 4 image,
5 mount, 6 privilege, 7 registry, 126 not executable, 127 not found.
";

/// Parses the words after the program's name.
pub fn parse(words: Vec<OsString>) -> Result<Action> {
    let mut words = words.into_iter().peekable();
    let first = words
        .peek()
        .and_then(|word| word.to_str())
        .unwrap_or_default();
    if IMAGE_COMMANDS.contains(&first) {
        return Ok(Action::Images(words.collect()));
    }
    if let Some((_, program)) = TOOLS.into_iter().find(|(name, _)| *name == first) {
        return Ok(Action::Tool(program, words.skip(1).collect()));
    }
    let image_is_word = first == "run";
    if image_is_word {
        words.next();
    }
    let mut options = RunOptions::default();
    while let Some(word) = words.next_if(|word| word.as_bytes().starts_with(b"-")) {
        match word.as_bytes() {
            b"--" => break,
            b"-" => return Err(unknown(&word)),
            b"-h" => return Ok(Action::Help),
            _ => match word.to_str().map(full_name) {
                Some(Ok("--help")) => return Ok(Action::Help),
                Some(Ok("--version")) => return Ok(Action::Version),
                _ => parse_option(&word, &mut words, &mut options)?,
            },
        }
    }
    if image_is_word {
        let image = words.next().ok_or_else(|| usage("'run' needs an image"))?;
        options.image = Some(text(image, "IMAGE")?);
    }
    options.command = words.collect();
    Ok(Action::Run(Box::new(options)))
}

/// Parses one option, `-x`, `-xvalue`, `--name` or `--name=value`, and takes its value from
/// `rest` where it has none of its own and must have one.
fn parse_option(
    word: &OsStr,
    rest: &mut impl Iterator<Item = OsString>,
    options: &mut RunOptions,
) -> Result<()> {
    let bytes = word.as_bytes();
    // Several in one word, `-vE`, as getopt(3) has them.
    if let [b'-', first @ (b'E' | b'n' | b'v'), next, ..] = *bytes
        && next != b'='
    {
        parse_option(OsStr::from_bytes(&[b'-', first]), rest, options)?;
        let others = [b"-", &bytes[2..]].concat();
        return parse_option(OsStr::from_bytes(&others), rest, options);
    }
    let (name, inline) = if bytes.starts_with(b"--") {
        match bytes.iter().position(|b| *b == b'=') {
            Some(at) => (&bytes[..at], Some(&bytes[at + 1..])),
            None => (bytes, None),
        }
    } else {
        (
            &bytes[..2],
            (bytes.len() > 2).then(|| bytes[2..].strip_prefix(b"=").unwrap_or(&bytes[2..])),
        )
    };
    let inline = inline.map(|value| OsString::from_vec(value.to_vec()));
    let mut name = String::from_utf8_lossy(name).into_owned();
    if name.starts_with("--") {
        name = full_name(&name)?.to_owned();
    }
    let mut value = || {
        let value = inline.clone().or_else(|| rest.next());
        value.ok_or_else(|| usage(&format!("option '{name}' needs a value")))
    };
    match name.as_str() {
        "-i" | "--image" => options.image = Some(text(value()?, &name)?),
        "-V" | "--volume" => options.volumes.push(text(value()?, &name)?),
        "--mount" => options.volumes.push(bind_mount(&text(value()?, &name)?)?),
        "--writable-tmpfs" => {
            let path = inline.map(|path| text(path, &name)).transpose()?;
            options.writable = Some(Writable { path });
        }
        "-m" | "--module" => options.modules = Some(module_list(&text(value()?, &name)?)),
        "-e" | "--env" => {
            let value = value()?;
            let pair = env::parse_option(value.as_bytes());
            options.env.push(pair.map_err(Error::Variable)?);
        }
        "--env-file" => options.env_file = Some(value()?),
        "-E" | "--clearenv" | "--rootless" | "-v" | "--verbose" | "-n" | "--help" | "--version"
            if inline.is_some() =>
        {
            return Err(usage(&format!("option '{name}' takes no value")));
        }
        "-E" | "--clearenv" => options.clear_env = true,
        "--rootless" => options.rootless = true,
        "-v" | "--verbose" => options.verbose = true,
        "-n" => {}
        "--entrypoint" | "--entry" => options.entrypoint = Some(inline),
        "-w" | "--workdir" => options.workdir = Some(inline),
        _ => return Err(unknown(word)),
    }
    Ok(())
}

/// Long options, those of one meaning next to each other.
const LONG: [&str; 15] = [
    "--image",
    "--volume",
    "--mount",
    "--writable-tmpfs",
    "--module",
    "--env",
    "--env-file",
    "--clearenv",
    "--entrypoint",
    "--entry",
    "--workdir",
    "--rootless",
    "--verbose",
    "--help",
    "--version",
];

/// Returns the option that a name is, or is the beginning of and of no other one, as
/// getopt_long(3) has it.
fn full_name(name: &str) -> Result<&'static str> {
    let begin = || LONG.into_iter().filter(|long| long.starts_with(name));
    // Its other name is the beginning of this one.
    let different = |long: &&str| *long != "--entry";
    match (
        begin().find(|long| *long == name),
        begin().filter(different).count(),
    ) {
        (Some(exact), _) => Ok(exact),
        (None, 0) => Err(unknown(OsStr::new(name))),
        (None, 1) => begin().next().ok_or_else(|| unknown(OsStr::new(name))),
        _ => {
            let them: Vec<_> = begin().map(|long| format!("'{long}'")).collect();
            let (name, them) = (sanitize::text(name), them.join(", "));
            Err(usage(&format!("option '{name}' may be one of {them}")))
        }
    }
}

/// Turns Docker's way to write a bind mount into a volume.
fn bind_mount(value: &str) -> Result<String> {
    let (mut kind, mut from, mut to, mut read_only) = (None, None, None, false);
    for field in value.split(',') {
        let (key, value) = field.split_once('=').unwrap_or((field, ""));
        match key {
            "type" => kind = Some(value),
            "src" | "source" => from = Some(value),
            "dst" | "destination" | "target" => to = Some(value),
            "readonly" | "ro" => match value {
                "" | "true" | "1" => read_only = true,
                "false" | "0" => read_only = false,
                _ => return Err(usage(&format!("'{key}' of '--mount' is true or false"))),
            },
            _ => {
                let key = sanitize::text(key);
                return Err(usage(&format!("'--mount' has no key '{key}'")));
            }
        }
    }
    if kind != Some("bind") {
        return Err(usage("'--mount' needs 'type=bind'"));
    }
    let (Some(from), Some(to)) = (from, to) else {
        return Err(usage("'--mount' needs 'src=' and 'dst='"));
    };
    // The separators of a volume map, which it could not tell from its own.
    if let Some(path) = [from, to]
        .into_iter()
        .find(|path| path.contains([':', ';', '"']))
    {
        let path = sanitize::text(path);
        return Err(usage(&format!(
            "'{path}' of '--mount' contains one of ':;\"'"
        )));
    }
    let flag = if read_only { ":ro" } else { "" };
    Ok(format!("{from}:{to}{flag}"))
}

/// Splits a list of modules, each once; `none` and an empty list are none.
pub fn module_list(text: &str) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    let given = text.split(',').filter(|n| !n.is_empty() && *n != "none");
    for name in given {
        if !names.iter().any(|known| known == name) {
            names.push(name.to_owned());
        }
    }
    names
}

fn text(word: OsString, what: &str) -> Result<String> {
    word.into_string()
        .map_err(|_| usage(&format!("the value of '{what}' is not UTF-8 text")))
}

fn unknown(word: &OsStr) -> Error {
    usage(&format!(
        "unknown option '{}'; try 'shifter --help'",
        sanitize::bytes(word.as_bytes())
    ))
}

fn usage(text: &str) -> Error {
    Error::Usage(text.to_owned())
}

#[cfg(test)]
mod tests {
    use shifter_core::exit::ExitCode;

    use super::*;

    fn run(line: &str) -> RunOptions {
        match parse(
            line.split(' ')
                .filter(|w| !w.is_empty())
                .map(OsString::from)
                .collect(),
        ) {
            Ok(Action::Run(options)) => *options,
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn both_forms() {
        let plain = run("--image=ubuntu -V /a:/b --volume=/c:/d -E ls --image=x");
        assert_eq!(plain.image.as_deref(), Some("ubuntu"));
        assert_eq!(plain.volumes, ["/a:/b", "/c:/d"]);
        assert_eq!((plain.clear_env, plain.command.len()), (true, 2));
        let form = run("run -v ubuntu:24.04 ls -l");
        assert_eq!(form.image.as_deref(), Some("ubuntu:24.04"));
        assert_eq!((form.verbose, form.command.len()), (true, 2));
        assert_eq!(run("-iubuntu -- --odd").command, ["--odd"]);
        assert_eq!(run("-i=ubuntu run").command, ["run"]);
        let together = run("-vEn -vi ubuntu -Ew ls");
        assert!(together.verbose && together.clear_env);
        assert_eq!(together.image.as_deref(), Some("ubuntu"));
        assert_eq!(together.workdir, Some(None));
        assert_eq!(together.command, ["ls"]);
        assert_eq!(run(""), RunOptions::default());
    }

    #[test]
    fn values() {
        assert_eq!(run("--entrypoint ls").entrypoint, Some(None));
        assert_eq!(
            run("--entrypoint=/x ls").entrypoint,
            Some(Some("/x".into()))
        );
        assert_eq!(run("-w ls").command, ["ls"]);
        assert_eq!(
            run("-m a,b,,none ls").modules,
            Some(vec!["a".into(), "b".into()])
        );
        assert_eq!(run("-e A=b=c -e D= ls").env.len(), 2);
        let mounts = run(
            "--mount=type=bind,src=/a,dst=/b --mount type=bind,source=/c,target=/d,readonly -V/e:/f",
        );
        assert_eq!(mounts.volumes, ["/a:/b", "/c:/d:ro", "/e:/f"]);
        assert_eq!(
            run("--writable-tmpfs ls").writable,
            Some(Writable { path: None })
        );
        let path = Some("/x".to_owned());
        assert_eq!(
            run("--writable-tmpfs=/x ls").writable,
            Some(Writable { path })
        );
    }

    #[test]
    fn beginnings_of_options() {
        let plain = run("--im=ubuntu --vol /a:/b --verb --clear --mod=a --ent=/x --wo=/y --roo ls");
        let full = run(
            "--image=ubuntu --volume=/a:/b --verbose --clearenv --module=a \
                        --entrypoint=/x --workdir=/y --rootless ls",
        );
        assert_eq!(plain, full);
        assert_eq!(run("--env A=b --env-f=c ls").env_file, Some("c".into()));
        assert_eq!(run("--env=A=b ls").env.len(), 1);
        let parsed = |word: &str| parse(vec![word.into()]).unwrap();
        assert_eq!(
            (parsed("--he"), parsed("--vers")),
            (Action::Help, Action::Version)
        );
        let error = parse(vec!["--vo=/a:/b".into(), "--ver".into()]).unwrap_err();
        let said = "option '--ver' may be one of '--verbose', '--version'";
        assert_eq!(error.chain(), said);
    }

    #[test]
    fn refusals() {
        for line in [
            "--v",
            "--mo=x",
            "--en=A=b",
            "--=x",
            "--imagine",
            "--help=x",
            "--vers=1",
            "--imagex=a",
            "-",
            "-z",
            "--image",
            "-e =x",
            "run",
            "--verbose=1",
            "-v=1",
            "-Ez",
            "--clearenv=x",
            "--mount=src=/a,dst=/b",
            "--mount=type=bind,src=/a",
            "--mount=type=volume,src=/a,dst=/b",
            "--mount=type=bind,src=/a:x,dst=/b",
            "--mount=type=bind,src=/a,dst=/b,bind-propagation=shared",
            "--mount=type=bind,src=/a,dst=/b,readonly=maybe",
        ] {
            let words = line.split(' ').map(OsString::from).collect();
            let refused = parse(words).map_err(|error| error.exit_code());
            assert_eq!(refused, Err(ExitCode::Usage), "{line}");
        }
    }

    #[test]
    fn tools_get_the_words_after_theirs() {
        let words = ["doctor", "--json"].map(OsString::from);
        let expect = Action::Tool(Program::Doctor, vec!["--json".into()]);
        assert_eq!(parse(words.into()).unwrap(), expect);
        let words = ["--", "ps"].map(OsString::from);
        assert!(matches!(parse(words.into()), Ok(Action::Run(_))));
    }

    #[test]
    fn image_commands_are_handed_on() {
        let words: Vec<OsString> = ["pull", "--quiet", "x"].map(OsString::from).into();
        assert_eq!(parse(words.clone()).unwrap(), Action::Images(words));
    }
}
