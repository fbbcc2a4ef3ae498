//! What runs on a node for its launch node: `shifter-node setup|services|teardown|sweep`.
//!
//! One answer comes back, whatever happens: a marked line or a file. The programs that do the
//! work are setupRoot and unsetupRoot, with a deadline; a set-up that is late is undone here.

use std::io::Write;
use std::path::Path;
use std::process::{Command, ExitCode as Code};

use node_setup::child::Terms;
use node_setup::supervised::{self, SetupError, Subject};
use shifter_core::chain;
use shifter_core::config::{Config, DEFAULT_PATH, Service};
use shifter_core::exit::ExitCode;
use shifter_core::layout::{JOB_ROOT, Program};
use shifter_core::trusted;

use crate::epilogue::{self, Here};
use crate::fanout::gather;
use crate::fanout::template::Report;
use crate::guard;
use crate::host;
use crate::outside::fixed_environment;
use crate::say;
use crate::services::{self, ServiceError};
use crate::shared;
use crate::words::{Order, Verb};

/// A failure in the words that go back.
struct Failure(ExitCode, String);

type Result<T> = std::result::Result<T, Failure>;

impl Failure {
    fn of(code: ExitCode, error: &(dyn std::error::Error + 'static)) -> Self {
        Self(code, chain::line(error))
    }
}

/// Runs the program.
pub fn main() -> Code {
    let words = match guard::words() {
        Ok(words) => words,
        Err(code) => return code.into(),
    };
    let result = guard::take_hold()
        .map_err(|error| error.chain())
        .and_then(|()| match rustix::process::geteuid().is_root() {
            true => Order::parse(&words).map_err(|error| chain::line(&error)),
            false => Err("only root runs this".to_owned()),
        });
    match result {
        Ok(order) => obey(&order),
        Err(why) => {
            say::tell(&why);
            ExitCode::Usage.into()
        }
    }
}

fn obey(order: &Order) -> Code {
    let path = order.config.as_deref().unwrap_or(Path::new(DEFAULT_PATH));
    let config = Config::open_trusted(path);
    // Of a node that says no, nobody asks anything more.
    let give_back = |Failure(code, why)| match services::stop(&order.job, order.start()) {
        Ok(()) => Err(Failure(code, why)),
        Err(error) => Err(Failure(code, format!("{why}; {}", chain::line(&error)))),
    };
    let result = match (order.verb, &config) {
        // A broken configuration keeps nothing on the node.
        (Verb::Teardown | Verb::Sweep, Err(_)) => {
            tear_down(order, &epilogue::config(order.config.as_deref()))
        }
        (Verb::Teardown | Verb::Sweep, Ok(config)) => tear_down(order, config),
        (_, Err(error)) => Err(Failure::of(ExitCode::Internal, error)),
        (Verb::Services, Ok(config)) => start_services(order, config).or_else(give_back),
        (Verb::Setup, Ok(config)) => set_up(order, config).or_else(give_back),
    };
    let names = host::own_names(None);
    let answer = match &result {
        Ok(()) => Ok(""),
        Err(Failure(code, why)) => Err((*code, why.as_str())),
    };
    let line = gather::line(&order.nonce, &names, answer);
    // Who cannot be told takes the node for one that has not answered.
    match (order.report, &config) {
        (Report::Files, Ok(config)) => {
            if let Err(error) = shared::leave(config, order, &names, result.is_ok(), &line) {
                say::tell(&chain::line(&error));
            }
        }
        _ => {
            let _ = writeln!(std::io::stdout().lock(), "{line}");
        }
    }
    match result {
        Ok(()) => ExitCode::Success.into(),
        Err(Failure(code, _)) => code.into(),
    }
}

/// Starts the services; with nscd go the caches that the launch node shares, where it does.
fn start_services(order: &Order, config: &Config) -> Result<()> {
    let wants_caches = order.manifest.is_none() && config.torque.services.contains(&Service::Nscd);
    let caches = match wants_caches {
        true => shared::caches(config, order).unwrap_or_default(),
        false => Vec::new(),
    };
    services::start(config, &order.job, order.start(), &caches).map_err(|error| match &error {
        ServiceError::Node(node) => Failure(node.exit_code(), node.chain()),
        _ => Failure::of(ExitCode::Internal, &error),
    })
}

fn set_up(order: &Order, config: &Config) -> Result<()> {
    start_services(order, config)?;
    let internal =
        |error: &(dyn std::error::Error + 'static)| Failure::of(ExitCode::Internal, error);
    let program = trusted::audit(&Program::SetupRoot.path(&config.prefix), &[0])
        .map_err(|error| internal(&error))?;
    let mut command = Command::new(program);
    if let Some(path) = &order.config {
        command.arg("--config").arg(path);
    }
    command.args([
        "--expect-uid",
        &order.uid.to_string(),
        "--expect-job",
        order.job.as_str(),
    ]);
    command.args(["--manifest", "-"]);
    let manifest = match &order.manifest {
        Some(path) => trusted::read(path, shifter_core::manifest::SIZE_LIMIT)
            .map_err(|error| internal(&error))?,
        None => shared::manifest(config, order).map_err(|error| internal(&error))?,
    };
    let terms = Terms {
        seconds: order.timeout_secs,
        // A launch node that gives up kills our group, and what it then removes must not be built
        // up again by a setupRoot that nobody waits for.
        own_group: false,
        shows_stderr: false,
    };
    let subject = Subject {
        job: &order.job,
        root: JOB_ROOT,
        manifest: &manifest,
    };
    let finished = supervised::run(fixed_environment(command), subject, terms, config);
    let failure = match finished {
        Ok(finished) if finished.status.success() => {
            if order.manifest.is_some() || shared::is_wanted(config, order) {
                return Ok(());
            }
            Failure(ExitCode::Internal, "the job is being removed".into())
        }
        Ok(finished) => {
            let code = finished.status.code().and_then(ExitCode::from_code);
            let said = finished.messages(2).join("; ");
            let said = said.trim_start_matches("setupRoot: ").to_owned();
            let said = match said.is_empty() {
                true => format!("setupRoot ended with {}", finished.ending()),
                false => said,
            };
            let failure = Failure(code.unwrap_or(ExitCode::Internal), said);
            if code.is_some() {
                // It has undone what it began.
                return Err(failure);
            }
            failure
        }
        Err(error @ (SetupError::Overdue { .. } | SetupError::Blamed(_))) => internal(&error),
        Err(error) => return Err(internal(&error)),
    };
    match tear_down(order, config) {
        Ok(()) => Err(failure),
        Err(Failure(_, why)) => Err(Failure(failure.0, format!("{}; {why}", failure.1))),
    }
}

fn tear_down(order: &Order, config: &Config) -> Result<()> {
    let here = Here {
        config,
        config_path: order.config.as_deref(),
        job: &order.job,
        uid: Some(order.uid),
        start: order.start(),
        is_late: order.verb == Verb::Sweep,
    };
    here.tear_down(order.timeout_secs)
        .map_err(|error| Failure::of(ExitCode::Internal, &error))
}
