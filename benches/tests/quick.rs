//! Every program runs all its measurements, with few events.
#![allow(clippy::unwrap_used)]

use std::fs;

use pillarbox_benches::Report;
use pillarbox_benches::program::{Subject, run};
use pillarbox_benches::subjects::{
    DeliveryLatency, Footprint, InboxRate, OutboxRate, RelayBacklog, RelayBloat, RelayDrain,
    RelayKeys, Retention, SagaRate, Scheduled, Skipping, TrailRate,
};
use pillarbox_testkit::Servers;

/// The report of a quick run, read from the file that it wrote.
async fn quick<S: Subject>(servers: &Servers, folder: &std::path::Path) -> Report {
    run(&S::quick(), servers, folder).await.unwrap();
    let file =
        |extension| fs::read_to_string(folder.join(S::NAME).with_extension(extension)).unwrap();
    assert!(file("svg").contains("<svg") && file("svg").contains("</svg>"), "{}", S::NAME);
    let report: Report = serde_json::from_str(&file("json")).unwrap();
    assert!(!report.tables.is_empty(), "{}", S::NAME);
    for series in report.tables.iter().flat_map(|table| &table.series) {
        assert!(!series.rounds.is_empty(), "{}: {}", S::NAME, series.name);
        assert!(series.rounds.iter().all(|f| f.is_finite() && *f >= 0.0), "{series:?}");
    }
    report
}

#[tokio::test(flavor = "multi_thread")]
async fn every_program_measures_what_it_says_and_writes_its_files() {
    let servers = Servers::start().await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let reports = [
        quick::<RelayDrain>(&servers, folder).await,
        quick::<OutboxRate>(&servers, folder).await,
        quick::<InboxRate>(&servers, folder).await,
        quick::<DeliveryLatency>(&servers, folder).await,
        quick::<RelayBloat>(&servers, folder).await,
        quick::<RelayBacklog>(&servers, folder).await,
        quick::<RelayKeys>(&servers, folder).await,
        quick::<Retention>(&servers, folder).await,
        quick::<Footprint>(&servers, folder).await,
        quick::<SagaRate>(&servers, folder).await,
        quick::<Scheduled>(&servers, folder).await,
        quick::<Skipping>(&servers, folder).await,
        quick::<TrailRate>(&servers, folder).await,
    ];
    // Each goal has a row in the table.
    let wanted = reports.iter().flat_map(|report| &report.tables);
    let goals = wanted.flat_map(|table| &table.comparisons).filter(|held| held.goal.is_some());
    let text = fs::read_to_string(folder.join("summary.md")).unwrap();
    assert_eq!(text.lines().count(), 2 + goals.count(), "{text}");
}
