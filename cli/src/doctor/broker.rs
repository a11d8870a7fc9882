//! The broker, and the streams that the outbox's topics go to.

use std::collections::BTreeSet;

use pillarbox_event::Partition;
use pillarbox_relay::broker::{AskError, Connection};
use pillarbox_relay::config::without_secrets;
use pillarbox_relay::{RelayConfig, StreamMark, StreamMarks};
use pillarbox_store::full_text;
use pillarbox_store::limit::within;

use super::outbox::Found;
use super::{Report, stream};

/// What the error text calls the broker when it does not answer.
const BROKER: &str = "the broker";

/// Checks the broker, and the streams that take the events that the outbox holds or held. `None`: there is no outbox.
pub(super) async fn examine(config: &RelayConfig, outbox: Option<&Found>, report: &mut Report) {
    let Some(broker) = connect(config, report).await else {
        return;
    };
    version(&broker, report);
    if !jetstream(&broker, report).await {
        return;
    }
    let Some(outbox) = outbox else {
        return;
    };
    let streams = streams(&broker, config, outbox, report).await;
    watched(&outbox.marks, report);
    let clustered = broker.server().is_clustered;
    for name in streams {
        let failed = match within(report.limit, BROKER, broker.stream(&name)).await {
            Ok(Ok(found)) => {
                stream::report_settings(&name, &found, config, clustered, report);
                continue;
            }
            Ok(Err(error)) => full_text(&error),
            Err(late) => late.to_string(),
        };
        report.fail(
            "broker.stream",
            format!("stream {name} does not answer: {failed}"),
            "check its replicas with `nats stream info`, and that the user may publish to $JS.API.STREAM.INFO.*",
        );
    }
}

/// Checks whether the streams can be watched for loss.
fn watched(marks: &StreamMarks, report: &mut Report) {
    const CHECK: &str = "broker.watched";
    let unseen: Vec<&str> =
        marks.iter().filter(|(_, mark)| !mark.shown).map(|(name, _)| name.as_str()).collect();
    if unseen.is_empty() {
        report.ok(CHECK, "a loss in any stream that acknowledged events would be noticed");
        return;
    }
    report.warn(
        CHECK,
        format!(
            "the JetStream API did not show {} at the newest checkpoint, although events were acknowledged there: a loss \
             there may go unnoticed",
            unseen.join(", ")
        ),
        "if the stream is in another domain or account, set nats.jetstream_domain or nats.api_prefix; if it was deleted, \
         do nothing: the relay forgets it after the retention (docs/operations.md#streams-out-of-sight)",
    );
}

/// What acknowledgements say about a subject for which the API shows no stream.
#[derive(Debug, PartialEq, Eq)]
enum Told {
    /// This stream acknowledged the subject, through a subject mapping of the account or in another domain.
    Taken(String),
    /// This stream acknowledged events, and the API has never shown it. It may take the subject.
    Perhaps(String),
    Nothing,
}

fn told(marks: &StreamMarks, subject: &str) -> Told {
    let never_shown = |mark: &StreamMark| mark.created.is_none();
    let taken =
        marks.iter().find(|(_, mark)| (mark.shown || never_shown(mark)) && mark.is_taken(subject));
    if let Some((name, _)) = taken {
        return Told::Taken(name.clone());
    }
    match marks.iter().find(|(_, mark)| never_shown(mark)) {
        Some((name, _)) => Told::Perhaps(name.clone()),
        None => Told::Nothing,
    }
}

async fn connect(config: &RelayConfig, report: &mut Report) -> Option<Connection> {
    const CHECK: &str = "broker.reachable";
    let url = without_secrets(&config.nats_url);
    let connecting = Connection::open(&config.nats_url, &config.nats);
    let error = match within(report.limit, BROKER, connecting).await {
        Ok(Ok(broker)) => {
            report.ok(CHECK, format!("connected to {url}"));
            return Some(broker);
        }
        Ok(Err(error)) => full_text(&error),
        Err(late) => format!("no connection to the broker at {url}: {late}"),
    };
    let remedy = if error.to_lowercase().contains("authorization") {
        "check the user and the password, token or credentials file, and docs/security.md for its permissions"
    } else if error.to_lowercase().contains("tls") || error.contains("certificate") {
        "check the CA, and that the certificate names the host in the URL"
    } else {
        "check the host and the port, that nats-server runs and listens there, and the network in between"
    };
    report.fail(CHECK, error, remedy);
    None
}

fn version(broker: &Connection, report: &mut Report) {
    const CHECK: &str = "broker.version";
    let server = broker.server();
    let version = server.version;
    if server.has_fast_ingest {
        report.ok(CHECK, format!("nats-server {version}"));
    } else {
        report.warn(
            CHECK,
            format!("nats-server {version} has no fast ingest: each event of a key takes one round trip"),
            "update to nats-server 2.14 or newer; consumers also need it to keep their order across crashes",
        );
    }
}

/// Checks whether JetStream answers. The request asks for the stream of a subject that none takes, which needs no more
/// rights than the relay has.
async fn jetstream(broker: &Connection, report: &mut Report) -> bool {
    const CHECK: &str = "broker.jetstream";
    let asked = within(report.limit, BROKER, broker.stream_of("pillarbox.doctor")).await;
    let error = match asked {
        Ok(Ok(_)) => None,
        Ok(Err(error)) => Some(full_text(&error)),
        Err(late) => Some(late.to_string()),
    };
    let Some(error) = error else {
        report.ok(CHECK, "JetStream answers");
        return true;
    };
    let remedy = if error.contains("no responders") || error.contains("not enabled") {
        "enable JetStream: `jetstream {}` in nats-server's configuration, and for the account if accounts are used"
    } else {
        "if nats-server logs a violation, let the user publish to $JS.API.STREAM.NAMES and subscribe to its inboxes \
         (docs/security.md); if not, check whether the cluster has a meta leader"
    };
    report.fail(CHECK, format!("JetStream does not answer: {error}"), remedy);
    false
}

/// The subjects that the relay sends these topics under. With partitions, those of the first and the last partition.
fn subjects(config: &RelayConfig, topics: &[String]) -> Vec<String> {
    let of = config.partitions;
    if of < 2 {
        return topics.to_vec();
    }
    let ends = [0, of - 1].into_iter().filter_map(|number| Partition::new(number, of).ok());
    topics.iter().flat_map(|topic| ends.clone().map(|end| end.subject(topic))).collect()
}

/// Which streams take the subjects.
#[derive(Default)]
struct Takers<'s> {
    /// Streams that the API shows.
    streams: BTreeSet<String>,
    /// Streams that only acknowledgements tell of.
    unseen: BTreeSet<String>,
    /// Subjects that no stream takes.
    homeless: Vec<&'s str>,
    /// Subjects that the stream beside them may take. The API has never shown that stream.
    unclear: Vec<(&'s str, String)>,
}

const SUBJECTS: &str = "broker.subjects";

/// The streams that take the topics, without repetitions.
async fn streams(
    broker: &Connection,
    config: &RelayConfig,
    outbox: &Found,
    report: &mut Report,
) -> BTreeSet<String> {
    let subjects = subjects(config, &outbox.topics);
    match takers(broker, &subjects, &outbox.marks, report).await {
        Ok(takers) => {
            report_takers(&takers, config, report);
            takers.streams
        }
        Err(failed) => {
            report.warn(SUBJECTS, format!("not checked: {failed}"), "run doctor again");
            BTreeSet::new()
        }
    }
}

/// Asks for each subject. Fails with what went wrong.
async fn takers<'s>(
    broker: &Connection,
    subjects: &'s [String],
    marks: &StreamMarks,
    report: &Report,
) -> Result<Takers<'s>, String> {
    let mut takers = Takers::default();
    for subject in subjects {
        match within(report.limit, BROKER, broker.stream_of(subject)).await {
            Ok(Ok(Some(stream))) => {
                takers.streams.insert(stream);
            }
            Ok(Ok(None)) => match told(marks, subject) {
                Told::Taken(stream) if marks.get(&stream).is_some_and(|mark| mark.shown) => {
                    takers.streams.insert(stream);
                }
                Told::Taken(stream) => {
                    takers.unseen.insert(stream);
                }
                Told::Perhaps(stream) => takers.unclear.push((subject, stream)),
                Told::Nothing => takers.homeless.push(subject),
            },
            // The relay makes a dead letter of such a row.
            Ok(Err(AskError::Subject { .. })) => {}
            Ok(Err(error)) => return Err(full_text(&error)),
            Err(late) => return Err(late.to_string()),
        }
    }
    Ok(takers)
}

fn report_takers(takers: &Takers<'_>, config: &RelayConfig, report: &mut Report) {
    let Takers { streams, unseen, homeless, unclear } = takers;
    if let Some(first) = homeless.first() {
        let mut remedy = format!(
            "add a stream with a subject such as {first:?} (`nats stream add`), or add the subject to a stream; the relay \
             then continues by itself"
        );
        if config.partitions > 1 {
            remedy.push_str(&format!(
                ". With partitions = {}, a number follows the topic's first word: use subjects such as `orders.>` or \
                 `orders.*.placed`",
                config.partitions
            ));
        }
        let homeless = homeless.join(", ");
        let message =
            format!("no stream takes {homeless}: the relay waits at the first such event");
        report.fail(SUBJECTS, message, remedy);
    } else if let Some((subject, stream)) = unclear.first() {
        let all: Vec<&str> = unclear.iter().map(|(subject, _)| *subject).collect();
        report.warn(
            SUBJECTS,
            format!(
                "it is not known whether a stream takes {}: the JetStream API shows no stream that does, and it does not \
                 show stream {stream} either, which acknowledged other events",
                all.join(", ")
            ),
            format!(
                "check whether that stream takes {subject:?}, or set nats.jetstream_domain or nats.api_prefix so that \
                 doctor can check it"
            ),
        );
    } else if streams.is_empty() && unseen.is_empty() {
        report.ok(SUBJECTS, "the outbox holds no event, so there is no stream to look for");
    } else {
        let names: Vec<&str> = streams.union(unseen).map(String::as_str).collect();
        report.ok(SUBJECTS, format!("streams take all topics: {}", names.join(", ")));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marks(of: &[(&str, serde_json::Value)]) -> StreamMarks {
        let marks = of.iter().map(|(name, mark)| {
            let mark =
                serde_json::from_value(mark.clone()).unwrap_or_else(|error| panic!("{error}"));
            ((*name).to_owned(), mark)
        });
        marks.collect()
    }

    #[test]
    fn acknowledgements_tell_of_streams_that_the_api_does_not_show() {
        let mark = |created: Option<&str>, shown: bool, subjects: &[&str]| {
            serde_json::json!({
                "created": created, "shown": shown, "subjects": subjects,
                "last_sequence": 1, "last_time": null,
            })
        };
        let then = Some("2026-01-01T00:00:00Z");
        let mapped = marks(&[("ORDERS", mark(then, true, &["orders.>", "shop.placed"]))]);
        assert_eq!(told(&mapped, "shop.placed"), Told::Taken("ORDERS".into()));
        assert_eq!(told(&mapped, "shop.paid"), Told::Nothing);
        let hidden = marks(&[("ORDERS", mark(None, false, &["orders.placed"]))]);
        assert_eq!(told(&hidden, "orders.placed"), Told::Taken("ORDERS".into()));
        assert_eq!(told(&hidden, "orders.paid"), Told::Perhaps("ORDERS".into()));
        // The API showed it before and does not now, so it is gone: no stream takes its subjects.
        let gone = marks(&[("ORDERS", mark(then, false, &["orders.>"]))]);
        assert_eq!(told(&gone, "orders.placed"), Told::Nothing);
        assert_eq!(told(&StreamMarks::new(), "orders.placed"), Told::Nothing);
    }
}
