//! Torque's prologue over thousands of nodes, on the side of the launch node.
//!
//! The nodes are names: what the fan-out tool starts for each of them takes its host name (`floor
//! node`) and does what a node does, on this machine: it reads the job's state from the shared
//! directory, judges it, and calls setupRoot. Most of them have a setupRoot that reads the manifest and
//! ends (`floor`, called by that name); one in 64 has the real one and builds a whole container.
//! Everything else is the product's own and the site's own pdsh. A node's own work is thus part
//! of the figures: on a real machine, it is the nodes that do it.

use std::collections::HashMap;
use std::fs::{self, File};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use shifter_tests::call::Call;
use shifter_tests::product::PREFIX;
use shifter_tests::report;
use shifter_tests::torque::{Server, TorqueJob};
use shifter_tests::world::User;

use crate::site::{Site, WORK};
use crate::table::{Goal, Heading, Row, finish, row};

/// Nodes of which one builds a real container: `floor` goes by the same number.
const SAMPLE: usize = 64;

/// How many nodes pdsh has under way at once.
const WIDTH: &str = "64";

const SHARED: &str = "/scratch/.fanout";

/// What one run took.
#[derive(Clone, Copy, Default)]
struct Cost {
    took: Duration,
    /// Processor time of all processes, which a busy machine does not change.
    cpu: f64,
    /// That of the hook and its worker alone, without the tool and what it starts.
    own_cpu: f64,
    /// Bytes read by all processes, from wherever.
    read: u64,
    /// Processes and threads that were started.
    started: u64,
    /// The largest that the launching programs were: resident KiB, open files.
    memory: u64,
    files: usize,
}

/// Measures jobs of growing size.
pub fn measure(site: &Site, rounds: usize) -> Result<Vec<Row>> {
    let sizes: &[usize] = if site.scale.is_debian {
        &[256, 512, 1024, 2048, 4096, 8192]
    } else {
        &[16, 32]
    };
    prepare(site)?;
    report::line(&format!(
        "\nTorque's prologue, pdsh -R exec -f {WIDTH}; every {SAMPLE}th node with a real container\n\n\
         {:>6} {:>10} {:>10} {:>10} {:>10} {:>10} {:>10} {:>10} {:>10} {:>9} {:>7} {:>10} {:>10}",
        "nodes",
        "bare s",
        "prologue s",
        "above s",
        "epilogue s",
        "per node",
        "bare cpu",
        "cpu above",
        "own cpu",
        "memory",
        "files",
        "read/node",
        "processes"
    ));
    let (mut above, mut processor, mut tool) = (Vec::new(), Vec::new(), Vec::new());
    let mut own: Vec<(usize, f64)> = Vec::new();
    for size in sizes {
        let mut figures = Vec::new();
        for round in 0..rounds.clamp(1, 3) {
            let names = names(*size);
            let bare = bare(&names)?;
            let (begin, end) = job(*size, round, &names)?;
            figures.push((
                begin.took.as_secs_f64() - bare.took.as_secs_f64(),
                bare,
                begin,
                end,
            ));
        }
        figures.sort_by(|one, other| one.0.total_cmp(&other.0));
        let (cost, bare, begin, end) = figures[figures.len() / 2];
        let nodes = *size as f64;
        let above_cpu = begin.cpu - bare.cpu;
        report::line(&format!(
            "{size:>6} {:>10.2} {:>10.2} {cost:>10.2} {:>10.2} {:>7.2} ms {:>7.2} ms {:>7.2} ms {:>7.3} ms {:>5} KiB {:>7} {:>6} B {:>11}",
            bare.took.as_secs_f64(),
            begin.took.as_secs_f64(),
            end.took.as_secs_f64(),
            cost * 1e3 / nodes,
            bare.cpu * 1e3 / nodes,
            above_cpu * 1e3 / nodes,
            begin.own_cpu * 1e3 / nodes,
            begin.memory,
            begin.files,
            begin.read.saturating_sub(bare.read) / *size as u64,
            begin.started,
        ));
        above.push((*size, cost));
        processor.push((*size, above_cpu));
        own.push((*size, begin.own_cpu));
        tool.push((*size, bare.cpu));
    }
    let heading = Heading {
        title: "Torque's prologue above the bare tool",
        unit: "s",
        base: "",
    };
    let goals = above.iter().map(|(size, cost)| {
        let goal = if *size == 4096 {
            Goal::Most(10.0)
        } else {
            Goal::None
        };
        row(&format!("{size} nodes"), goal, vec![*cost])
    });
    let mut rows: Vec<Row> = goals.collect();
    // Linear is what grows with the first power of the nodes. Of all sizes, for what is beside the tool
    // is the difference of two large numbers, and one of them alone says little.
    let growths = [
        ("time above the tool's", &above, Goal::Most(1.1)),
        ("the hook's own processor time", &own, Goal::Most(1.1)),
        (
            "all processes' processor time above the tool's",
            &processor,
            Goal::Most(1.1),
        ),
        ("the tool's own processor time", &tool, Goal::None),
    ];
    for (what, costs, goal) in growths {
        let name = format!("{what}: power of the nodes");
        rows.push(row(&name, goal, vec![power(costs)]));
    }
    restore()?;
    Ok(finish(heading, rows))
}

/// Returns the power of the number of nodes with which a cost grows: the slope of the line through
/// the logarithms of both (least squares).
fn power(costs: &[(usize, f64)]) -> f64 {
    // Less than a clock tells is as much as it tells.
    let points = costs
        .iter()
        .map(|(size, cost)| ((*size as f64).ln(), cost.max(1e-3).ln()));
    let points: Vec<(f64, f64)> = points.collect();
    let count = points.len() as f64;
    let (x, y) = points
        .iter()
        .fold((0.0, 0.0), |sum, point| (sum.0 + point.0, sum.1 + point.1));
    let (x, y) = (x / count, y / count);
    let along: f64 = points.iter().map(|point| (point.0 - x).powi(2)).sum();
    let both: f64 = points
        .iter()
        .map(|point| (point.0 - x) * (point.1 - y))
        .sum();
    both / along
}

/// Configures the site, and puts `floor` where nodes will find it.
fn prepare(site: &Site) -> Result<()> {
    Server::install()?;
    let script = format!(
        "set -e; install -d -m 0700 {SHARED}; cd {PREFIX}/sbin
        cp {floor} {PREFIX}/sbin/floor
        mv setupRoot setupRoot.real; mv unsetupRoot unsetupRoot.real
        install -m 0700 {floor} setupRoot; install -m 0700 {floor} unsetupRoot",
        floor = site.floor
    );
    Call::shell(&script).ok()?;
    site.product.configure(&format!(
        "[shared_state]\npath = '{SHARED}'\n\
         [torque]\ngres = ['shifter16']\nqstat = '/opt/torque/bin/qstat'\n\
         qalter = '/opt/torque/bin/qalter'\nfanout_width = {WIDTH}\nstate_dir = '/run/fanout'\n\
         fanout_command = ['/usr/bin/pdsh', '-R', 'exec', '-f', '{{width}}', '-w', '^{{nodefile}}', \
         '{PREFIX}/sbin/floor', 'node', '%h', '{{command}}']\n"
    ))
}

fn restore() -> Result<()> {
    let script = "cd /opt/shifter/sbin && mv setupRoot.real setupRoot && \
                  mv unsetupRoot.real unsetupRoot && rm -rf floor /run/fanout";
    Call::shell(script).ok().map(drop)
}

/// Names the nodes as sites do, one number after the other.
fn names(size: usize) -> Vec<String> {
    (0..size).map(|number| format!("nid{number:05}")).collect()
}

/// Runs the tool with a worker that does nothing.
fn bare(names: &[String]) -> Result<Cost> {
    let file = format!("{WORK}/nodes");
    fs::write(&file, names.join("\n"))?;
    let mut command = Command::new("/usr/bin/pdsh");
    command.args([
        "-R",
        "exec",
        "-f",
        WIDTH,
        "-w",
        &format!("^{file}"),
        "/bin/true",
    ]);
    observe(&mut command, "pdsh")
}

/// Runs prologue and epilogue of a job on these nodes.
fn job(size: usize, round: usize, names: &[String]) -> Result<(Cost, Cost)> {
    let nodes: Vec<&str> = names.iter().map(String::as_str).collect();
    let id = format!("{size}{round}.server");
    let mut job = TorqueJob::new(&id, User::Alice, &nodes).variable("UDI", "base");
    job.nodes.iter_mut().for_each(|node| node.1 = 1);
    Server.knows(&job)?;
    let file = format!("{WORK}/aux");
    fs::write(&file, job.node_file())?;
    let hook = |name: &str, words: &[&str]| {
        let mut command = Command::new(format!("{PREFIX}/sbin/shifter-{name}"));
        command
            .args([&*id, "alice", "alice", "bench"])
            .args(words)
            .env_clear()
            .env("PATH", "/bin:/usr/bin")
            .env("PBS_MSHOST", "login")
            .env("PBS_NODEFILE", &file)
            .env("PBS_RESOURCE_GRES", "shifter16");
        observe(&mut command, name)
    };
    let resources = job.resources();
    let begin = hook("prologue", &[&resources, "batch", "proj", "/x.SC"])?;
    let told = Server.comment(&id)?.unwrap_or_default();
    ensure!(
        told.is_empty() || told.contains(&format!("{size} of {size} nodes ready")),
        "{told}"
    );
    let end = hook(
        "epilogue",
        &["1", &resources, "walltime=1", "batch", "proj", "0", "/x.SC"],
    )?;
    Ok((begin, end))
}

/// Runs a program to its end and watches it and what it starts on this side.
fn observe(command: &mut Command, name: &str) -> Result<Cost> {
    let log = format!("{WORK}/{name}.log");
    let before = (bytes_read()?, last_pid()?, processor_secs()?);
    let began = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(File::create(&log)?)
        .stderr(File::options().append(true).open(&log)?)
        .spawn()?;
    let mut cost = Cost::default();
    let mut own = HashMap::new();
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        // Itself, its worker, and the tool; not the thousands below.
        let mut level = vec![child.id()];
        let (mut memory, mut files) = (0, 0);
        for depth in 0..3 {
            for pid in &level {
                // The tool below the worker is none of ours; nor is what a hook asks before.
                if depth < 2 {
                    own.insert(
                        *pid,
                        ran_secs(*pid).max(own.get(pid).copied().unwrap_or(0.0)),
                    );
                }
                memory += resident_kib(*pid);
                files += fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count);
            }
            level = level.iter().flat_map(|pid| children(*pid)).collect();
            level.truncate(1);
        }
        cost.memory = cost.memory.max(memory);
        cost.files = cost.files.max(files);
        std::thread::sleep(Duration::from_millis(5));
    };
    cost.own_cpu = own.values().sum();
    cost.took = began.elapsed();
    ensure!(
        status.success(),
        "{name} ended with {status}: {}",
        fs::read_to_string(&log)?
            .chars()
            .take(2000)
            .collect::<String>()
    );
    cost.cpu = processor_secs()? - before.2;
    cost.read = bytes_read()? - before.0;
    cost.started = last_pid()?.saturating_sub(before.1);
    Ok(cost)
}

/// Returns what this process and all that it has waited for have read.
fn bytes_read() -> Result<u64> {
    let text = fs::read_to_string("/proc/self/io")?;
    let read = text.lines().find_map(|line| line.strip_prefix("rchar: "));
    Ok(read.context("rchar")?.parse()?)
}

/// Returns the processor time of all that this process has waited for, in hundredths.
fn processor_secs() -> Result<f64> {
    let text = fs::read_to_string("/proc/self/stat")?;
    let fields = text.rsplit_once(") ").context("stat")?.1.split(' ');
    let ticks = fields.skip(13).take(2).map(str::parse::<f64>);
    Ok(ticks.sum::<Result<f64, _>>()? / 100.0)
}

/// Returns the process id that was given out last in this world.
fn last_pid() -> Result<u64> {
    let text = fs::read_to_string("/proc/loadavg")?;
    Ok(text.split_whitespace().last().context("loadavg")?.parse()?)
}

/// Returns how long a process itself has run; what it has waited for is not in it.
fn ran_secs(pid: u32) -> f64 {
    let text = fs::read_to_string(format!("/proc/{pid}/schedstat")).unwrap_or_default();
    let ran = text.split_whitespace().next();
    ran.and_then(|ran| ran.parse::<f64>().ok()).unwrap_or(0.0) / 1e9
}

fn resident_kib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let value = line.and_then(|rest| rest.split_whitespace().next());
    value.and_then(|value| value.parse().ok()).unwrap_or(0)
}

fn children(pid: u32) -> Vec<u32> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_whitespace()
        .filter_map(|pid| pid.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_power_is_that_of_the_cost() {
        for exponent in [0.0, 1.0, 2.0] {
            let costs =
                [256, 512, 4096, 8192].map(|size| (size, 0.5 * (size as f64).powf(exponent)));
            assert!((power(&costs) - exponent).abs() < 1e-9, "{exponent}");
        }
    }
}
