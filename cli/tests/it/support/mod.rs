//! The shop of the relay's tests, and the program as a process.

pub mod accounts;
pub mod authority;
pub mod http;
#[path = "../../../../relay/tests/it/support.rs"]
mod shop;

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use pillarbox_store::Operator;
use pillarbox_store::dead_letters::{DeadLetters, LetterView};
use pillarbox_testkit::eventually;
pub use shop::{DEADLINE, Shop, Started, Stored};

/// Tests that move hundreds of megabytes or thousands of rows, or open hundreds of connections, hold this, so that one
/// of them runs at a time: two cores shared by four of them are too slow for their deadlines, and their servers
/// together take gigabytes.
pub async fn large() -> tokio::sync::MutexGuard<'static, ()> {
    static ONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
    ONE.lock().await
}

/// `pillarbox` as a process. Killed when dropped.
pub struct Process {
    pub child: Child,
    pub lines: Arc<Mutex<Vec<String>>>,
}

impl Process {
    pub fn relay(shop: &Shop, more: &[&str]) -> Self {
        let mut arguments = vec!["relay", "--lease-ms", "2000"];
        arguments.extend(more);
        Self::run(
            &arguments,
            &[("DATABASE_URL", shop.scope.database_url()), ("NATS_URL", shop.scope.nats_url())],
        )
    }

    pub fn run(arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        Self::run_through(&[], arguments, environment)
    }

    /// Through a program that is given these arguments, `pillarbox` and its own, and becomes that.
    pub fn run_through(
        launcher: &[&str],
        arguments: &[&str],
        environment: &[(&str, &str)],
    ) -> Self {
        let pillarbox = [env!("CARGO_BIN_EXE_pillarbox")];
        let mut all = launcher.iter().chain(&pillarbox).chain(arguments);
        let mut child = Command::new(all.next().unwrap())
            .args(all)
            .env_remove("RUST_LOG")
            // The default port is one for all.
            .env("PILLARBOX_HTTP", "off")
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = Arc::new(Mutex::new(Vec::new()));
        let (errors, kept) = (child.stderr.take().unwrap(), lines.clone());
        std::thread::spawn(move || {
            for line in BufReader::new(errors).lines().map_while(Result::ok) {
                kept.lock().unwrap().push(line);
            }
        });
        Self { child, lines }
    }

    pub fn id(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap()
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        rustix::process::kill_process(rustix::process::Pid::from_raw(self.id()).unwrap(), signal)
            .unwrap();
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub fn said(&self, text: &str) -> usize {
        self.lines.lock().unwrap().iter().filter(|line| line.contains(text)).count()
    }

    pub async fn until_said(&self, text: &str) {
        eventually(&format!("the line {text:?}"), DEADLINE, async || match self.said(text) {
            0 => Err(format!("{:#?}", self.lines.lock().unwrap())),
            _ => Ok(Some(())),
        })
        .await
        .unwrap();
    }

    pub async fn ended(&mut self) -> i32 {
        eventually("the process to end", DEADLINE, async || {
            self.child.try_wait().map(|status| status.map(|status| status.code().unwrap_or(-1)))
        })
        .await
        .unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn mia() -> Operator {
    Operator::new("mia", None)
}

/// Whether a dead letter was retried.
pub async fn retried(letters: &DeadLetters, letter: &LetterView) -> bool {
    !letters.retry(std::slice::from_ref(letter), &mia()).await.unwrap().letters.is_empty()
}

/// Whether a dead letter was discarded.
pub async fn discarded(letters: &DeadLetters, letter: &LetterView) -> bool {
    !letters.discard(std::slice::from_ref(letter), &mia()).await.unwrap().letters.is_empty()
}
