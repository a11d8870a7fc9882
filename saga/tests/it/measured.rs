//! The gauges.

use std::time::Duration;

use metrics_exporter_prometheus::PrometheusBuilder;
use pillarbox_outbox::Outbox;
use pillarbox_saga::metrics::measure;
use pillarbox_testkit::eventually;

use crate::trips::*;

#[tokio::test]
async fn the_gauges_tell_what_is_open_overdue_and_failed() {
    let office = Office::open().await;
    for trip in ["1", "2", "3", "4"] {
        office.when(Requested::of(trip)).await;
    }
    office.when(FlightBooked::of("2")).await;
    office.when(HotelRefused::of("3")).await;
    office.when(poke("4", "fail and complete")).await;
    office.run("update pillarbox.saga set deadline_at = now() - interval '1 s', started_at = now() - interval '90 s' where id = '3'").await;

    let recorder = PrometheusBuilder::new().build_recorder();
    let handle = recorder.handle();
    // For this thread, on which all of the test runs.
    let _recording = metrics::set_default_local_recorder(&recorder);
    let measuring = measure(office.pool().clone(), Outbox::new());
    let found = eventually("the gauges", Duration::from_secs(30), async || {
        let text = handle.render();
        Ok::<_, String>(text.contains("pillarbox_saga_failed_instances{").then_some(text))
    });
    let text = tokio::select! {
        text = found => text.unwrap(),
        () = measuring => unreachable!("it goes on"),
    };
    for line in [
        "pillarbox_saga_open_instances{saga=\"trip\",step=\"flight\",status=\"running\"} 1",
        "pillarbox_saga_open_instances{saga=\"trip\",step=\"flight\",status=\"compensating\"} 1",
        "pillarbox_saga_open_instances{saga=\"trip\",step=\"hotel\",status=\"running\"} 1",
        "pillarbox_saga_overdue_instances{saga=\"trip\",step=\"flight\"} 1",
        "pillarbox_saga_overdue_instances{saga=\"trip\",step=\"hotel\"} 0",
        "pillarbox_saga_failed_instances{saga=\"trip\"} 1",
        "pillarbox_saga_oldest_open_age_seconds{saga=\"trip\",step=\"flight\"} 9",
    ] {
        assert!(text.contains(line), "no {line} in:\n{text}");
    }
}

#[tokio::test]
async fn events_are_counted_by_step_and_result() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let handle = recorder.handle();
    let _recording = metrics::set_default_local_recorder(&recorder);
    let office = Office::open().await;
    office.when(Requested::of("1")).await;
    office.when(Requested::of("1")).await;
    office.when(HotelBooked::of("1")).await;
    office.when(HotelBooked::of("1")).await;
    office.refused(HotelBooked::of("2")).await;
    let text = handle.render();
    for (step, result) in [
        ("started", "handled"),
        ("flight", "already_started"),
        ("flight", "completed"),
        ("flight", "ended"),
        ("", "not_there"),
    ] {
        let line = format!(
            "pillarbox_saga_events_total{{saga=\"trip\",step=\"{step}\",result=\"{result}\"}} 1"
        );
        assert!(text.contains(&line), "no {line} in:\n{text}");
    }
}
