//! The machine and the versions of a measurement.

use std::fs;
use std::process::Command;
use std::time::Duration;

use pillarbox_testkit::Servers;
use serde::{Deserialize, Serialize};

/// The machine. Values are `None` or 0 if the system does not tell them, as on systems other than Linux.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Machine {
    /// The processor's name.
    pub cpu: Option<String>,
    /// Its cores, as the scheduler sees them.
    pub cores: usize,
    /// Its memory in bytes.
    pub memory_bytes: u64,
    /// The operating system and its release.
    pub kernel: String,
}

/// The versions of the programs that took part.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Versions {
    /// Postgres.
    pub postgres: String,
    /// nats-server.
    pub nats_server: String,
    /// The compiler.
    pub rustc: String,
    /// The commit of Pillarbox, with a `+` if there were uncommitted changes.
    pub commit: String,
}

impl Machine {
    /// This machine.
    pub fn this() -> Self {
        let field = |file: &str, name: &str| {
            let text = fs::read_to_string(file).ok()?;
            let line = text.lines().find(|line| line.starts_with(name))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        };
        let kibibytes = field("/proc/meminfo", "MemTotal")
            .and_then(|total| total.split(' ').next()?.parse::<u64>().ok());
        let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Self {
            cpu: field("/proc/cpuinfo", "model name"),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            memory_bytes: kibibytes.unwrap_or(0) * 1024,
            kernel: format!("{} {}", std::env::consts::OS, release.trim()).trim().to_owned(),
        }
    }
}

impl Versions {
    /// The versions of these servers, and of what this program was built from.
    pub fn of(servers: &Servers) -> Self {
        let git = |arguments: &[&str]| {
            said(Command::new("git").current_dir(env!("CARGO_MANIFEST_DIR")).args(arguments))
        };
        let changed = git(&["status", "--porcelain", "--untracked-files=no"]);
        let mark = if changed.is_some_and(|changed| !changed.is_empty()) { "+" } else { "" };
        let unknown = || "unknown".to_owned();
        Self {
            postgres: servers.postgres.version().to_owned(),
            nats_server: servers.nats.version().to_owned(),
            rustc: said(Command::new("rustc").arg("--version")).unwrap_or_else(unknown),
            commit: git(&["rev-parse", "--short=10", "HEAD"]).unwrap_or_else(unknown) + mark,
        }
    }
}

/// The average number of processes that were running or waiting during the last minute. On a busy machine, a
/// measurement also measures the other processes.
pub fn load_average() -> Option<f64> {
    fs::read_to_string("/proc/loadavg").ok()?.split(' ').next()?.parse().ok()
}

/// The memory of a process in bytes: `VmRSS` is what it uses now, and `VmHWM` is its peak. Known only on Linux.
pub fn memory_of(pid: u32, field: &str) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1024)
}

/// The processor time that a process has taken, in user and system mode. Known only on Linux, in hundredths of a
/// second.
pub fn processor_time_of(pid: u32) -> Option<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name comes second, in brackets, and may contain anything.
    let (_, behind) = stat.rsplit_once(") ")?;
    let mut fields = behind.split(' ').skip(11);
    let mut ticks = || fields.next()?.parse::<u64>().ok();
    Some(Duration::from_millis(10 * (ticks()? + ticks()?)))
}

fn said(command: &mut Command) -> Option<String> {
    let output = command.output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
