//! A server as a child process that dies with its owner.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, test_kill_process};

use crate::account::Account;
use crate::error::{IoContext, TestkitError};

/// How long a paused process may take to stop.
const PAUSE_DEADLINE: Duration = Duration::from_secs(10);

/// A running server, its guard, and its folder.
#[derive(Debug)]
pub(crate) struct Process {
    server: &'static str,
    folder: PathBuf,
    guard: Option<Child>,
    pid: Option<Pid>,
}

impl Process {
    /// A server that does not run yet and that owns this folder.
    pub(crate) fn new(server: &'static str, folder: PathBuf) -> Self {
        Self { server, folder, guard: None, pid: None }
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    fn log_file(&self) -> PathBuf {
        self.folder.join("server.log")
    }

    /// Starts it, under `account` if one is given. If it already runs, it is ended first.
    pub(crate) fn start(
        &mut self,
        program: &Path,
        arguments: &[String],
        account: Option<Account>,
    ) -> Result<(), TestkitError> {
        self.end();
        let mut guard = Command::new("/bin/sh");
        guard
            .args(["-c", include_str!("guard.sh"), "guard"])
            .arg(&self.folder)
            .arg(self.log_file())
            .arg(program)
            .args(arguments)
            .current_dir(&self.folder)
            .env("LC_ALL", "C")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            // The terminal's Ctrl-C must not reach it, because the owner decides when it ends.
            .process_group(0);
        if let Some(account) = account {
            guard.uid(account.uid).gid(account.gid);
        }
        let mut child = guard.spawn().context(format!("starting {}", self.server))?;
        let mut line = String::new();
        if let Some(output) = child.stdout.take() {
            BufReader::new(output)
                .read_line(&mut line)
                .context("reading the server's process id")?;
        }
        self.guard = Some(child);
        self.pid = line.trim().parse().ok().and_then(Pid::from_raw);
        match self.pid {
            Some(_) => Ok(()),
            None => Err(self.failed("its guard gave no process id")),
        }
    }

    pub(crate) fn failed(&self, problem: impl Into<String>) -> TestkitError {
        TestkitError::Start { server: self.server, problem: problem.into(), log: self.log_tail() }
    }

    /// The last lines of the server's log.
    pub(crate) fn log_tail(&self) -> String {
        let log = fs::read(self.log_file()).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }

    pub(crate) fn pid(&self) -> Option<u32> {
        self.pid.map(|pid| pid.as_raw_nonzero().get().unsigned_abs())
    }

    /// Whether the server runs, or is paused.
    pub(crate) fn is_running(&self) -> bool {
        let Some(pid) = self.pid else {
            return false;
        };
        match state(Path::new(&format!("/proc/{}", pid.as_raw_nonzero()))) {
            // It has ended, but its exit status has not been collected yet.
            Some(state) => state != 'Z',
            None if Path::new("/proc/self").exists() => false,
            None => test_kill_process(pid).is_ok(),
        }
    }

    pub(crate) fn signal(&self, signal: Signal) -> Result<(), TestkitError> {
        let pid = self
            .pid
            .filter(|_| self.is_running())
            .ok_or(TestkitError::NotRunning { server: self.server })?;
        kill_process(pid, signal)
            .map_err(std::io::Error::from)
            .context(format!("signalling {}", self.server))
    }

    /// Pauses the server (SIGSTOP), and returns when its last thread has stopped. The signal is only queued, and a busy
    /// machine may let a thread run on for a while.
    pub(crate) fn pause(&self) -> Result<(), TestkitError> {
        self.signal(Signal::STOP)?;
        let until = Instant::now() + PAUSE_DEADLINE;
        while self.pid.is_some_and(any_thread_runs) {
            if Instant::now() > until {
                return Err(TestkitError::Deadline {
                    what: format!("{} to stop", self.server),
                    waited: PAUSE_DEADLINE,
                    last: "a thread of it runs on".to_owned(),
                });
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Ends the server if it still runs, and keeps the folder.
    fn end(&mut self) {
        self.pid = None;
        if let Some(mut guard) = self.guard.take() {
            if let Some(input) = &mut guard.stdin {
                // If the guard is gone, there is nothing left to do.
                let _ = input.write_all(b"keep\n");
            }
            let _ = guard.wait();
        }
    }
}

/// The state letter of a process or thread, from its folder under `/proc` on Linux.
fn state(folder: &Path) -> Option<char> {
    // The state comes after the name, which is in parentheses.
    let stat = fs::read_to_string(folder.join("stat")).ok()?;
    stat.rsplit(')').next()?.trim_start().chars().next()
}

/// Whether a thread of the process has not stopped yet. This is known only on Linux; elsewhere it is always false.
fn any_thread_runs(pid: Pid) -> bool {
    let Ok(threads) = fs::read_dir(format!("/proc/{}/task", pid.as_raw_nonzero())) else {
        return false;
    };
    threads
        .flatten()
        .any(|thread| state(&thread.path()).is_some_and(|state| !"TtZX".contains(state)))
}

impl Drop for Process {
    /// Ends the server and removes its folder.
    fn drop(&mut self) {
        match self.guard.take() {
            // `wait` first closes the guard's input.
            Some(mut guard) => drop(guard.wait()),
            None => drop(fs::remove_dir_all(&self.folder)),
        }
    }
}
