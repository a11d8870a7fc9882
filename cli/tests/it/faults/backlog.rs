//! The memory that a relay needs for a large backlog.

use std::time::{Duration, Instant};

use pillarbox_testkit::eventually;

use super::relays::Relays;
use crate::support::Shop;

/// The most memory that a process has had in use so far, in bytes.
fn peak_memory(process: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

#[tokio::test]
async fn a_large_backlog_is_shipped_in_little_memory() {
    const MOST: u64 = 100 * 1024 * 1024;
    let events: i64 =
        std::env::var("PILLARBOX_BACKLOG").map_or(200_000, |events| events.parse().unwrap());
    let shop = Shop::open().await;
    sqlx::query(
        "insert into pillarbox.outbox (event_type, topic, key, payload) \
         select 'order.placed', $1, (i % 1000)::text, convert_to(repeat('x', 256), 'utf8') \
         from generate_series(1, $2) as i",
    )
    .bind(shop.topic())
    .bind(events)
    .execute(shop.pool())
    .await
    .unwrap();
    for sink in [&[][..], &["--keyed-window"]] {
        let (begin, deadline) = (Instant::now(), Duration::from_secs(300));
        // A name of its own ships from the first event on, into a stream that knows none of them.
        let mut relays = Relays::new(&shop, Duration::from_secs(10));
        relays
            .start(&[sink, &["--name", if sink.is_empty() { "first" } else { "second" }]].concat());
        let relay = relays.processes[0].id();
        let wanted = u64::try_from(events).unwrap();
        eventually("everything in the stream", deadline, async || match shop.messages().await {
            messages if messages >= wanted => Ok(Some(())),
            messages => Err(format!("{messages} messages")),
        })
        .await
        .unwrap();
        let (seconds, peak) = (begin.elapsed().as_secs_f64(), peak_memory(relay));
        println!(
            "backlog of {events} events of 256 bytes {sink:?}: {:.1} MiB at the most, {:.0} events/s",
            peak as f64 / 1_048_576.0,
            events as f64 / seconds
        );
        assert!(peak < MOST, "{peak} bytes");
        assert_eq!(shop.messages().await, wanted);
        drop(relays);
        shop.jetstream().await.delete_stream(&shop.stream).await.unwrap();
        shop.create_stream(|config| config).await;
    }
}
