//! Asks the server again and again how far behind a consumer is, whether something on the server keeps events from it,
//! and whether the stream loses events.

use std::time::Duration;

use async_nats::jetstream;
use async_nats::jetstream::consumer::Info;
use async_nats::jetstream::stream::Stream;
use futures::{StreamExt, TryStreamExt};
use pillarbox_store::full_text;
use time::OffsetDateTime;
use tokio::time::{Instant, sleep, timeout};

use super::config::ConsumerConfig;
use super::durable::Durable;
use super::removed::{Gap, Looker, RemovedSoFar};
use super::status::{Hindrance, Lag, Reporter};
use super::stored;
use super::stream_settings;
use super::subjects::overlap;
use super::subscription::active_pin;

/// How often the server is asked.
const EVERY: Duration = Duration::from_secs(2);

/// About how many partitions the server is asked at a time.
const ASKED_AT_ONCE: usize = 16;

/// How long the server may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// How often the log reports removed events at the most. The status has the figures in between.
const TELL_EVERY: Duration = Duration::from_secs(60);

/// How long to wait before a question is repeated that was not answered, perhaps because a right is missing.
const PAUSE: Duration = Duration::from_secs(60);

/// Measures until it is dropped.
pub(super) async fn measure(
    jetstream: &jetstream::Context,
    config: &ConsumerConfig,
    reporter: &Reporter,
) -> std::convert::Infallible {
    let mut measure = Measure {
        jetstream,
        config,
        reporter,
        not_before: Instant::now(),
        removed: RemovedSoFar::default(),
        told_at: None,
    };
    loop {
        let (before, resets) = (reporter.pin(), reporter.resets());
        match timeout(PATIENCE, measure.infos()).await {
            Ok(Some((stream, infos))) => {
                let resets = resets.filter(|_| resets == reporter.resets());
                measure.look_for_removed(&stream, &infos, resets);
                let (lag, active) = measure.lag(&infos).await;
                reporter.measured(lag, active, &before);
                reporter.hindered(measure.hindrance(&stream, &infos).await);
            }
            _ => {
                tracing::debug!(consumer = config.name, "the lag could not be measured");
                reporter.not_measured();
            }
        }
        sleep(EVERY).await;
    }
}

struct Measure<'a> {
    jetstream: &'a jetstream::Context,
    config: &'a ConsumerConfig,
    reporter: &'a Reporter,
    /// When to ask again what a stream stores.
    not_before: Instant,
    removed: RemovedSoFar,
    /// When the log last reported removed events.
    told_at: Option<Instant>,
}

impl Measure<'_> {
    /// The stream and its durables. `None` if one does not exist, or the server does not answer.
    async fn infos(&self) -> Option<(Stream, Vec<(Durable, Info)>)> {
        let stream = self.jetstream.get_stream(&self.config.stream).await.ok()?;
        self.reporter.warned(stream_settings::warnings(&stream.cached_info().config));
        let infos = Durable::all(self.config).into_iter().map(|durable| {
            let stream = &stream;
            async move {
                let info = stream.consumer_info(&durable.name).await.ok()?;
                Some((durable, info))
            }
        });
        let infos: Vec<_> = futures::stream::iter(infos).buffered(ASKED_AT_ONCE).collect().await;
        Some((stream, infos.into_iter().collect::<Option<Vec<_>>>()?))
    }

    /// Reports events that were removed before they were delivered. `resets`: how often this process has had durables
    /// reset.
    fn look_for_removed(
        &mut self,
        stream: &Stream,
        infos: &[(Durable, Info)],
        resets: Option<u64>,
    ) {
        let is_mine = |pin: &str| self.reporter.had_pin(pin);
        let looker = Looker { is_mine: &is_mine, resets, ordered: self.config.order.keeps_keys() };
        let stream = stream.cached_info();
        for (durable, info) in infos {
            let takes_all = durable.takes_all(&stream.config);
            let pin = active_pin(info);
            let gap = self.removed.look(&durable.name, &stream.state, info, pin, takes_all, looker);
            let Some(gap) = gap else { continue };
            let events_in_all = self.reporter.removed(gap);
            if self.told_at.is_some_and(|told| told.elapsed() < TELL_EVERY) {
                continue;
            }
            self.told_at = Some(Instant::now());
            let (consumer, durable) = (&self.config.name, &durable.name);
            let Gap { events, first, last } = gap;
            let error = format!(
                "stream {} removed at least {events} events between sequences {first} and {last} before they were \
                 delivered to {durable}, by a limit, a purge or by hand; they are not handled unless they are sent \
                 again (pillarbox replay); check the stream's limits",
                self.config.stream
            );
            tracing::error!(consumer, events_in_all, error, "events are lost");
            self.reporter.error(None, &error);
        }
    }

    /// The lag, and the pin of the process that is active.
    async fn lag(&mut self, infos: &[(Durable, Info)]) -> (Lag, Option<String>) {
        let sum = |part: fn(&Info) -> u64| infos.iter().map(|(_, info)| part(info)).sum();
        let mut lag = Lag {
            pending: sum(|info| info.num_pending),
            ack_pending: sum(|info| info.num_ack_pending as u64),
            redelivered: sum(|info| info.num_redelivered as u64),
            oldest_age_seconds: None,
            measured_at: OffsetDateTime::now_utc(),
        };
        let held = self.reporter.oldest_age();
        lag.oldest_age_seconds = match held {
            None if lag.unhandled() == 0 => Some(0.0),
            // With an order, the active process holds the oldest event.
            Some(_) if self.config.order.keeps_keys() => held,
            _ => match (self.oldest_age(infos).await, held) {
                (Some(stored), Some(held)) => Some(f64::max(stored, held)),
                (stored, held) => stored.or(held),
            },
        };
        (lag, infos.iter().find_map(|(_, info)| active_pin(info)))
    }

    /// The age of the oldest message above the ack floors. Without an order, an event can be with another process, or
    /// wait on the server for its next attempt.
    async fn oldest_age(&mut self, infos: &[(Durable, Info)]) -> Option<f64> {
        if Instant::now() < self.not_before {
            return None;
        }
        let behind =
            infos.iter().filter(|(_, info)| info.num_pending > 0 || info.num_ack_pending > 0);
        let mut questions = Vec::new();
        for (durable, info) in behind {
            let from = info.ack_floor.stream_sequence + 1;
            questions
                .extend(durable.all_filters().iter().map(|filter| (from, (*filter).to_owned())));
        }
        // All filters, because any of them may take the oldest message.
        let (jetstream, stream) = (self.jetstream, &self.config.stream);
        let mut answers =
            futures::stream::iter(questions)
                .map(|(from, filter)| async move {
                    stored::first(jetstream, stream, from, &filter).await
                })
                .buffer_unordered(ASKED_AT_ONCE);
        let oldest = async {
            let mut oldest: Option<f64> = None;
            while let Some(stored) = answers.try_next().await? {
                // The clocks may differ by more than the age.
                let age = stored.map(|stored| stored.place.stored().elapsed().unwrap_or_default());
                let age = age.map(|age| age.as_secs_f64());
                oldest = oldest.into_iter().chain(age).reduce(f64::max);
            }
            Ok::<_, String>(oldest)
        };
        let error = match timeout(PATIENCE, oldest).await {
            Ok(Ok(oldest)) => return oldest,
            Ok(Err(error)) => error,
            Err(_) => "the server did not answer in time".to_owned(),
        };
        let consumer = &self.config.name;
        tracing::debug!(consumer, error, "the age of the oldest event is not known");
        self.not_before = Instant::now() + PAUSE;
        None
    }

    /// What keeps events from the consumer, if anything does.
    async fn hindrance(&self, stream: &Stream, infos: &[(Durable, Info)]) -> Option<Hindrance> {
        let pinned = self.config.order.keeps_keys()
            && self.jetstream.client().is_server_compatible(2, 11, 0);
        for (durable, info) in infos {
            let name = &durable.name;
            if let Some(differs) = durable.difference(info, self.config, pinned) {
                return Some(Hindrance::Differs(full_text(&differs)));
            }
            if info.paused {
                return Some(Hindrance::Nothing(format!(
                    "consumer {name} is paused on the server: resume it (nats consumer resume {} {name})",
                    self.config.stream
                )));
            }
            let floor = info.ack_floor.stream_sequence;
            if info.num_ack_pending > 0 && self.reporter.is_stuck_unseen(name, floor) {
                let (api, stream) = (self.config.api(), &self.config.stream);
                return Some(Hindrance::Nothing(format!(
                    "the connection was lost several times while consumer {name} acknowledged nothing above sequence \
                     {floor}; perhaps a message there cannot be parsed, but the consumer could not check it; look at the log, and \
                     let this user publish to {api}.STREAM.MSG.GET.{stream}"
                )));
            }
        }
        let never_fed = infos
            .iter()
            .all(|(_, info)| info.delivered.consumer_sequence == 0 && info.num_pending == 0);
        let state = stream.cached_info();
        if !never_fed || (state.state.messages == 0 && !state.config.subjects.is_empty()) {
            return None;
        }
        for filter in &self.config.filter_subjects {
            let taken = state.config.subjects.iter().any(|subject| overlap(subject, filter));
            let mirrors = state.config.mirror.is_some() || state.config.sources.is_some();
            if !taken && !mirrors {
                return Some(Hindrance::Nothing(format!(
                    "filter {filter} matches none of the subjects of stream {}; correct filter_subjects or the \
                    stream: {:?}",
                    self.config.stream, state.config.subjects
                )));
            }
        }
        self.unmatched(stream, state.state.messages).await.map(Hindrance::Nothing)
    }

    /// The filters, if the stream holds messages and none that fits them.
    async fn unmatched(&self, stream: &Stream, messages: u64) -> Option<String> {
        if messages == 0 {
            return None;
        }
        for filter in &self.config.filter_subjects {
            let subjects = stream.info_with_subjects(filter).await;
            let first = async { subjects.ok()?.try_next().await.ok() };
            match timeout(PATIENCE, first).await {
                Ok(Some(None)) => {}
                // There is one, or it is not known.
                _ => return None,
            }
        }
        (!self.config.filter_subjects.is_empty()).then(|| {
            format!(
                "none of the {messages} messages of stream {} matches the filters {:?}; check that they are spelled \
                 like the topics. A relay with partitions sends orders.placed as orders.3.placed, which the filter \
                 orders.*.placed matches",
                self.config.stream, self.config.filter_subjects
            )
        })
    }
}
