//! The service's process. It is this program, started again, so that the example can really kill it.
//!
//! It prints the port on which it listens, and a line when the trouble has struck. It ends when its standard input
//! ends, which happens when the process that started it ends.

use std::io::Read;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context as _;
use clap::ValueEnum;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::net::TcpListener;
use tokio::process::{Child, ChildStdout, Command};

use crate::order::NewOrder;
use crate::{after, before};

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Which {
    Before,
    After,
}

impl Which {
    pub fn name(self) -> &'static str {
        match self {
            Self::Before => "before",
            Self::After => "after",
        }
    }
}

/// The role of a process.
#[derive(Clone, Debug, clap::Args)]
pub struct Work {
    pub which: Which,
    #[arg(long)]
    pub database: String,
    #[arg(long)]
    pub nats: String,
    /// The customer whose order gets it stuck.
    #[arg(long)]
    pub stuck_with: Option<i64>,
}

/// Blocks the handler of one customer's first request for good, at the worst moment.
#[derive(Clone)]
pub struct Trouble {
    customer: Option<i64>,
    struck: Arc<AtomicBool>,
}

impl Trouble {
    pub fn of(work: &Work) -> Self {
        Self { customer: work.stuck_with, struck: Arc::default() }
    }

    pub async fn strike(&self, order: &NewOrder) {
        if Some(order.customer) == self.customer && !self.struck.swap(true, Ordering::SeqCst) {
            println!("stuck");
            std::future::pending::<()>().await;
        }
    }
}

/// Runs the service.
pub async fn serve(work: Work) -> anyhow::Result<()> {
    std::thread::spawn(|| {
        let mut input = std::io::stdin();
        while input.read(&mut [0; 64]).is_ok_and(|read| read > 0) {}
        std::process::exit(0);
    });
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let port = listener.local_addr()?.port();
    match work.which {
        Which::Before => {
            let app = before::start(&work).await?;
            println!("{port}");
            axum::serve(listener, app).await?;
        }
        Which::After => {
            let (service, app) = after::start(&work).await?;
            println!("{port}");
            service.http(listener, app).run_until_signal().await?;
        }
    }
    Ok(())
}

/// A running service, seen from outside.
pub struct Process {
    pub port: u16,
    child: Child,
    says: Lines<BufReader<ChildStdout>>,
}

impl Process {
    pub async fn start(work: &Work) -> anyhow::Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args([
            "serve",
            work.which.name(),
            "--database",
            &work.database,
            "--nats",
            &work.nats,
        ]);
        if let Some(customer) = work.stuck_with {
            command.args(["--stuck-with", &customer.to_string()]);
        }
        let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().context("starting the service")?;
        let output = child.stdout.take().context("the service has no output")?;
        let mut says = BufReader::new(output).lines();
        let port = says.next_line().await?.context("the service did not start")?.parse()?;
        Ok(Self { port, child, says })
    }

    /// Waits until it is stuck.
    pub async fn stuck(&mut self) -> anyhow::Result<()> {
        self.says.next_line().await?.context("the service has ended")?;
        Ok(())
    }

    /// Kills it (SIGKILL), so that it cannot finish anything.
    pub async fn kill(mut self) -> anyhow::Result<()> {
        self.child.kill().await.context("killing the service")
    }
}
