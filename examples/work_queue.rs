//! Work queue: competing consumers. Each job is done once, by any free process.
//!
//! ```text
//! cargo run --example work_queue -- --events 600
//!
//!                                   ┌─► worker 1   (killed in the middle)
//!  outbox ─► relay ─► stream JOBS ──┼─► worker 2
//!                     (work queue)  └─► worker 3   (starts late)
//! ```
//!
//! All workers are one consumer: one name, one inbox, `order = none`. What the killed worker had begun is rolled back,
//! and the others do it. The exit code is 1 if a job was done twice or never.

mod stage;

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use pillarbox::consumer::streams::StreamSpec;
use pillarbox::event::Event;
use pillarbox::{ConsumerConfig, Handler, HandlerError, HandlingOrder, Router, Tx};
use serde::{Deserialize, Serialize};
use stage::{Arguments, Stage, Verdict, number, reaches};

#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(type = "photo.resize", topic = "jobs.resize")]
struct ResizePhoto {
    photo: i64,
}

struct Worker(i32);

impl Handler<ResizePhoto> for Worker {
    async fn handle(&self, tx: &mut Tx, job: ResizePhoto) -> Result<(), HandlerError> {
        tokio::time::sleep(Duration::from_millis(2)).await; // the work
        sqlx::query("insert into resized (photo, worker) values ($1, $2)")
            .bind(job.photo)
            .bind(self.0)
            .execute(&mut **tx)
            .await?;
        Ok(())
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let Arguments { events } = Arguments::parse();
    let stage = Stage::open(StreamSpec::work_queue("JOBS", ["jobs.>"])).await?;
    let database = stage.database("create table resized (photo bigint, worker int)").await?;
    let config = ConsumerConfig {
        order: HandlingOrder::None,
        concurrency: 4,
        prefetch: 8,
        // How long the jobs of a killed worker wait before others get them.
        ack_wait: Duration::from_secs(1),
        ..ConsumerConfig::new("JOBS", "resizer")
    };
    let start = |number| stage.start(&database, config.clone(), Router::new().on(Worker(number)));
    let (first, second) = (start(1).await?, start(2).await?);

    let mut tx = stage.producer().begin().await?;
    let jobs: Vec<_> = (1..=events).map(|photo| ResizePhoto { photo }).collect();
    pillarbox::outbox::publish_all(&mut tx, &jobs).await?;
    tx.commit().await?;

    reaches(&database, "select count(*) from resized", events / 3).await?;
    first.kill().await;
    let third = start(3).await?;
    reaches(&database, "select count(distinct photo) from resized", events).await?;
    let done = second.until("an empty queue", |status| status.is_caught_up()).await?;
    second.stop().await?;
    third.stop().await?;

    println!("\nworker   jobs");
    let shares: Vec<(i32, i64)> =
        sqlx::query_as("select worker, count(*) from resized group by worker order by worker")
            .fetch_all(&database)
            .await?;
    for (worker, jobs) in &shares {
        println!("{worker:6} {jobs:6}");
    }
    println!("worker 2 alone: {:?}\n", done.totals);

    let mut left = stage.jetstream().get_stream("JOBS").await?;
    let mut verdict = Verdict::default();
    let jobs = number(&database, "select count(*) from resized").await?;
    verdict.claim("every job was done once", jobs, events);
    let photos = number(&database, "select count(distinct photo) from resized").await?;
    verdict.claim("no job was left out", photos, events);
    verdict.claim("all three workers had a share", shares.len(), 3);
    verdict.claim("the queue is empty", left.info().await?.state.messages, 0);
    stage.close().await?;
    Ok(verdict.end())
}
