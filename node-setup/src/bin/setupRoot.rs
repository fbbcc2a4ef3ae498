//! `setupRoot`: builds and pins the root of a job on this node, from its manifest.
#![allow(non_snake_case, reason = "the program's name, as sites know it")]

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use node_setup::error::{Context, Error, Result};
use node_setup::job::{self, Plan};
use node_setup::memory::OnePiece;
use node_setup::metrics;
use node_setup::record::{Event, Phases, Record};
use node_setup::{out, program};
use shifter_core::config::{Config, DEFAULT_PATH};
use shifter_core::ids::JobId;
use shifter_core::layout::{JOB_ROOT, is_step_root};
use shifter_core::manifest::{JobManifest, ManifestError, SIZE_LIMIT};
use shifter_core::trusted;

#[global_allocator]
static MEMORY: OnePiece = OnePiece::new();

const NAME: &str = "setupRoot";

const HELP: &str = "\
Usage: setupRoot [--config=FILE] [--verbose] [--record-failure] [--phases]
                 [--root=NAME] [--spool-dir=DIR]
                 --manifest=FILE|- --expect-uid=UID --expect-job=JOB
       setupRoot --refuse=MESSAGE --expect-uid=UID --expect-job=JOB

Build the container root of a job on this node and pin it, as the job's manifest
says; '-' reads the manifest from standard input. UID and JOB are what the batch
system itself says; a manifest that disagrees is refused.

  --record-failure  keep a mistake of the user's for the job's tasks to report
  --phases          print each phase with its milliseconds when it is over
  --root=NAME       build a step's own root, 'step-NUMBER', beside the job's
  --spool-dir=DIR   show the batch system's own directory, if it exists
  --refuse=MESSAGE  keep MESSAGE as such a mistake, and build nothing
";

#[derive(Default)]
struct Options {
    config: Option<PathBuf>,
    manifest: Option<PathBuf>,
    refuse: Option<String>,
    root: Option<String>,
    spool: Option<String>,
    uid: Option<u32>,
    job: Option<JobId>,
    record: bool,
    verbose: bool,
    phases: bool,
}

fn main() -> ExitCode {
    program::main(NAME, HELP, |words, _| run(&parse(words)?))
}

fn run(options: &Options) -> Result<String> {
    let (Some(uid), Some(expected)) = (options.uid, &options.job) else {
        return Err(usage("--expect-uid and --expect-job are needed"));
    };
    if let Some(message) = &options.refuse {
        job::record_failure(expected, message)?;
        return Err(Error::Denied {
            what: message.clone(),
            hint: None,
        });
    }
    let mut phases = match options.phases {
        true => Phases::begin_telling(),
        false => Phases::begin(),
    };
    let mut site = Site::default();
    let result = set_up(options, uid, expected, &mut site, &mut phases);
    keep(options, expected, &site, &phases, &result);
    if let Err(error) = &result
        && options.record
        && error.exit_code().is_users_mistake()
    {
        let hint = error
            .hint()
            .map(|hint| format!("\nhint: {hint}"))
            .unwrap_or_default();
        job::record_failure(expected, &(error.chain() + &hint))?;
    }
    result.map(|()| String::new())
}

/// What was read on the way.
#[derive(Default)]
struct Site {
    config: Option<Config>,
    manifest: Option<JobManifest>,
}

/// Keeps what came of the set-up for those who look after the node.
fn keep(options: &Options, job: &JobId, site: &Site, phases: &Phases, result: &Result<()>) {
    let root = options.root.as_deref().unwrap_or(JOB_ROOT);
    let name = (job.as_str(), root);
    let record = Record::new(Event::Setup, name, site.manifest.as_ref(), phases, result);
    record.log(NAME);
    let metrics = site.config.as_ref().map(|config| &config.metrics);
    if let Some(dir) = metrics.and_then(|metrics| metrics.textfile.as_deref())
        && let Err(error) = metrics::count(dir, &record)
    {
        out::complain(NAME, &error.chain());
    }
}

fn set_up(
    options: &Options,
    uid: u32,
    expected: &JobId,
    site: &mut Site,
    phases: &mut Phases,
) -> Result<()> {
    let start = Instant::now();
    let path = options
        .manifest
        .as_deref()
        .ok_or_else(|| usage("--manifest is needed"))?;
    let config = options.config.as_deref().unwrap_or(Path::new(DEFAULT_PATH));
    let config = site.config.insert(Config::open_trusted(config)?);
    let manifest = JobManifest::parse(&read_manifest(path)?)?;
    manifest.expect(uid, expected)?;
    let manifest = site.manifest.insert(manifest);
    if manifest.user.uid == 0 || manifest.user.gid == 0 {
        let what = "containers run for users, not for root or group root".into();
        return Err(Error::Denied { what, hint: None });
    }
    let plan = Plan {
        name: options.root.as_deref().unwrap_or(JOB_ROOT),
        spool: options.spool.as_deref(),
    };
    for warning in job::set_up(config, manifest, plan, phases)? {
        out::complain(NAME, &warning);
    }
    if options.verbose {
        let elapsed = start.elapsed().as_secs_f64() * 1e3;
        out::complain(
            NAME,
            &format!("job {} ready in {elapsed:.1} ms", manifest.job),
        );
    }
    Ok(())
}

/// Bytes that most manifests have less than.
const USUAL_SIZE: usize = 4096;

fn read_manifest(path: &Path) -> Result<Vec<u8>> {
    if path != Path::new("-") {
        return trusted::read(path, SIZE_LIMIT).map_err(Error::Untrusted);
    }
    let mut bytes = Vec::with_capacity(USUAL_SIZE);
    let stdin = File::from(rustix::io::dup(rustix::stdio::stdin()).step("read", "stdin")?);
    stdin
        .take(SIZE_LIMIT + 1)
        .read_to_end(&mut bytes)
        .step("read", "stdin")?;
    if bytes.len() as u64 > SIZE_LIMIT {
        Err(ManifestError::TooLarge.into())
    } else {
        Ok(bytes)
    }
}

/// Parses `--name=value` and `--name value`.
fn parse(words: Vec<String>) -> Result<Options> {
    let mut options = Options::default();
    let mut words = words.into_iter();
    while let Some(word) = words.next() {
        let (name, inline) = match word.split_once('=') {
            Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
            None => (word, None),
        };
        let switch = match name.as_str() {
            "--record-failure" => Some(&mut options.record),
            "--verbose" => Some(&mut options.verbose),
            "--phases" => Some(&mut options.phases),
            _ => None,
        };
        if let Some(switch) = switch {
            if inline.is_some() {
                return Err(usage(&format!("option '{name}' takes no value")));
            }
            *switch = true;
            continue;
        }
        if !name.starts_with("--") {
            return Err(usage(&format!("unexpected word '{name}'")));
        }
        let value = inline.or_else(|| words.next());
        let value = value.ok_or_else(|| usage(&format!("option '{name}' needs a value")))?;
        match name.as_str() {
            "--config" => options.config = Some(value.into()),
            "--manifest" => options.manifest = Some(value.into()),
            "--refuse" => options.refuse = Some(value),
            "--root" if is_step_root(&value) => options.root = Some(value),
            "--root" => {
                return Err(usage(&format!(
                    "'{value}' is not the name of a step's root"
                )));
            }
            "--spool-dir" => options.spool = Some(value),
            "--expect-uid" => {
                let uid = value
                    .parse()
                    .map_err(|_| usage(&format!("'{value}' is not a uid")))?;
                options.uid = Some(uid);
            }
            "--expect-job" => {
                options.job = Some(JobId::parse(&value).map_err(|e| usage(&e.to_string()))?);
            }
            _ => return Err(usage(&format!("unknown option '{name}'"))),
        }
    }
    Ok(options)
}

fn usage(text: &str) -> Error {
    program::usage(NAME, text)
}
