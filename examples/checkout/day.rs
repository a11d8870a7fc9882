//! The day: open the shop, place orders, let things go wrong, wait until everything is handled, check the books.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use tokio::sync::watch;
use tokio::time::sleep;

use crate::children::Children;
use crate::progress::{self, Progress};
use crate::redelivery::Redelivery;
use crate::screen::Screen;
use crate::service::Service;
use crate::shop::{STREAM, Shop};
use crate::verdict::Finding;
use crate::{assortment, audit, console, orders, report, trouble, verdict};

#[derive(Debug, Args)]
pub struct Options {
    /// How many orders are placed.
    #[arg(long, default_value_t = 2_000, value_parser = clap::value_parser!(i64).range(20..=1_000_000))]
    orders: i64,
    /// Leave everything running after the verdict, until Ctrl-C, and print how to look around.
    #[arg(long)]
    keep: bool,
    /// Serve the operator's page, with some trouble on it after the verdict, and leave everything running.
    #[arg(long)]
    console: bool,
    /// Make the inboxes forget what they have handled, just before events are delivered again. The verdict must notice.
    #[arg(long)]
    sabotage: bool,
}

pub async fn run(options: Options) -> anyhow::Result<ExitCode> {
    let Options { orders, keep, console, sabotage } = options;
    let screen = Screen::new();
    screen.say("starting Postgres and nats-server; the first time they may have to be fetched");
    let shop = Shop::open(orders).await?;
    let mut children = Children::start(&shop.addresses)?;
    let page = if console { Some(console::serve(&shop).await?) } else { None };
    screen.say(&format!("{orders} orders, 5 services, 5 databases, 1 stream, 6 processes"));

    let (told, progress) = watch::channel(Progress::default());
    let mut redelivery = Redelivery::default();
    let business = async {
        let placing = place_orders(&shop, orders, progress.clone());
        let troubling =
            trouble::make(&shop, &mut children, &screen, progress.clone(), orders, sabotage);
        ((), redelivery) = tokio::try_join!(placing, troubling)?;
        progress::finished(&mut progress.clone(), orders).await?;
        until_quiet(&shop, redelivery.events.len() as u64).await
    };
    let ended = tokio::select! {
        done = business => done,
        watched = progress::watch(&shop, &screen, &told) => watched,
    };
    screen.say(&Progress::read(&shop).await?.to_string());

    let books = audit::read(&shop, orders, &redelivery).await?;
    report::table(&books);
    let mut findings = verdict::judge(&books);
    findings.push(Finding {
        claim: "the day came to its end",
        figure: String::new(),
        problems: ended.err().map(|error| format!("{error:#}")).into_iter().collect(),
    });
    let well = report::findings(&findings);
    if console {
        console::make_trouble(&shop).await?;
    }
    if keep || console {
        until_interrupted(&shop).await?;
    }
    if let Some(page) = page {
        page.abort();
    }
    children.stop().await?;
    Ok(if well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Places orders, a few at a time, as long as not too many are under way. Some of them are rolled back.
async fn place_orders(
    shop: &Shop,
    count: i64,
    mut progress: watch::Receiver<Progress>,
) -> anyhow::Result<()> {
    let most_in_flight = (count / 4).min(500);
    let pool = shop.pool(Service::Orders);
    let numbers: Vec<i64> = (1..=count).collect();
    for few in numbers.chunks(8) {
        progress::finished(&mut progress, few[0] - most_in_flight).await?;
        futures::future::try_join_all(few.iter().map(async |&number| {
            if number % 20 == 0 {
                // An extra order, of which nobody must ever hear.
                orders::place_and_roll_back(pool, &assortment::order(-number)).await?;
            }
            orders::place(pool, &assortment::order(number)).await
        }))
        .await?;
    }
    Ok(())
}

/// Waits until every event is in the stream, and every consumer has handled it.
async fn until_quiet(shop: &Shop, redelivered: u64) -> anyhow::Result<()> {
    loop {
        let said = events_said(shop).await?;
        let mut quiet = shop.stream.get_info().await?.state.messages >= said + redelivered;
        for service in Service::ALL {
            let consumer = shop.stream.consumer_info(service.name()).await?;
            quiet &= consumer.num_pending == 0 && consumer.num_ack_pending == 0;
        }
        if quiet && said == events_said(shop).await? {
            return Ok(());
        }
        sleep(Duration::from_millis(50)).await;
    }
}

async fn events_said(shop: &Shop) -> anyhow::Result<u64> {
    let mut said = 0;
    for service in Service::ALL.into_iter().filter(|service| service.speaks()) {
        let events: i64 = sqlx::query_scalar("select count(*) from pillarbox.outbox")
            .fetch_one(shop.pool(service))
            .await?;
        said += u64::try_from(events)?;
    }
    Ok(said)
}

async fn until_interrupted(shop: &Shop) -> anyhow::Result<()> {
    let psql = shop.servers.postgres.programs().join("psql");
    let psql = if psql.exists() { psql.display().to_string() } else { "psql".to_owned() };
    println!("\nEverything is still running; Ctrl-C ends it. Look around:");
    for service in Service::ALL {
        println!("  {psql} {}", shop.addresses.database(service));
    }
    println!("  nats --server {} stream view {STREAM}", shop.addresses.nats);
    println!("  nats --server {} consumer report {STREAM}", shop.addresses.nats);
    tokio::signal::ctrl_c().await?;
    Ok(())
}
