//! What this process reads: everything, or its share of the partitions.
//!
//! A partition that is beyond the share is handed over. Nothing more of it is read or begun, running handlers finish,
//! and the server is told and unpinned. Only then is the partition free for another process.

use std::collections::BTreeSet;

use pillarbox_inbox::source::Store;
use tokio::task::JoinSet;

use crate::config::ConsumerConfig;
use crate::durable::Durable;
use crate::error::ConsumerError;
use crate::partitions::membership::{Membership, MembershipChange};
use crate::partitions::messages::{Feeds, Opener, Step};

/// What a consumer's process reads.
pub(crate) struct Assignment {
    opener: Opener,
    feeds: Feeds,
    durables: Vec<Durable>,
    /// Set if there are several partitions.
    several: Option<Several>,
}

struct Several {
    of: u32,
    membership: Membership,
    reading: BTreeSet<u32>,
    /// No longer read, and not yet given up.
    leaving: BTreeSet<u32>,
    /// Those of the leaving partitions of which nothing is in progress any longer.
    done: BTreeSet<u32>,
    handing_over: JoinSet<u32>,
}

impl Assignment {
    pub(crate) fn open(opener: Opener, store: Store, config: &ConsumerConfig) -> Self {
        let mut feeds = Feeds::new(opener.clone());
        let durables = Durable::all(config);
        let several = config.several().map(|of| Several {
            of,
            membership: Membership::new(opener.client.clone(), store, config, of),
            reading: BTreeSet::new(),
            leaving: BTreeSet::new(),
            done: BTreeSet::new(),
            handing_over: JoinSet::new(),
        });
        match &several {
            Some(several) => opener.reporter.share(several.of, &several.reading),
            None => durables.iter().cloned().for_each(|durable| feeds.start(durable)),
        }
        Self { opener, feeds, durables, several }
    }

    /// Waits for what happens next. Messages come only while there is room for one. Safe to cancel.
    pub(crate) async fn next(&mut self, room: bool) -> Result<Step, ConsumerError> {
        let Some(several) = &mut self.several else {
            return match room {
                true => self.feeds.next().await,
                false => std::future::pending().await,
            };
        };
        tokio::select! {
            step = self.feeds.next(), if room => {
                if matches!(step, Ok(Step::Prepared)) {
                    several.membership.prepared();
                }
                step
            }
            change = several.membership.changed() => Ok(self.changed(change)),
            Some(Ok(partition)) = several.handing_over.join_next() => {
                several.done.remove(&partition);
                // Other processes may have taken it already.
                if several.leaving.remove(&partition) {
                    several.membership.give_up(partition);
                    tracing::debug!(consumer = self.opener.config.name, partition, "handed over");
                }
                Ok(Step::HandedOver)
            }
        }
    }

    fn changed(&mut self, change: MembershipChange) -> Step {
        let Some(several) = &mut self.several else {
            return Step::HandedOver;
        };
        let (held, size) = match change {
            MembershipChange::Share { held, size, reaches_broker } => {
                self.feeds.others(None);
                self.feeds.database(None);
                self.feeds.broker(reaches_broker);
                if several.membership.admitted() {
                    self.feeds.prepare();
                }
                (held, size)
            }
            MembershipChange::Others(partitions) => {
                self.feeds.others(Some(format!(
                    "other processes of this consumer run with partitions = {partitions}; waiting until they have \
                    stopped"
                )));
                (BTreeSet::new(), 0)
            }
            MembershipChange::Lost => (BTreeSet::new(), 0),
            MembershipChange::Failing(error) => {
                self.feeds.database(Some(&error));
                return Step::Failing(error);
            }
        };
        several.leaving.retain(|partition| held.contains(partition));
        let mut dropped: Vec<u32> = several.reading.difference(&held).copied().collect();
        let taken: Vec<u32> = held
            .iter()
            .filter(|partition| {
                !several.reading.contains(partition) && !several.leaving.contains(partition)
            })
            .copied()
            .collect();
        several.reading = &held - &several.leaving;
        while several.reading.len() > size {
            let Some(partition) = several.reading.pop_last() else { break };
            several.leaving.insert(partition);
            dropped.push(partition);
        }
        for durable in &self.durables {
            let number = durable.number();
            if let Some(partition) = durable.partition.filter(|_| dropped.contains(&number)) {
                self.feeds.stop(partition);
            } else if taken.contains(&number) {
                self.feeds.start(durable.clone());
            }
        }
        if !taken.is_empty() || !dropped.is_empty() {
            let (consumer, reading) = (&self.opener.config.name, &several.reading);
            tracing::info!(
                consumer,
                ?reading,
                of = several.of,
                "this process reads its share of the partitions"
            );
            self.opener.reporter.share(several.of, reading);
        }
        Step::Moved { taken, dropped }
    }

    /// Whether somebody waits for [`hand_over`](Self::hand_over).
    pub(crate) fn is_leaving(&self) -> bool {
        self.several.as_ref().is_some_and(|several| several.leaving.len() > several.done.len())
    }

    /// Hands over those partitions of which nothing is in progress any longer.
    pub(crate) fn hand_over(&mut self, in_work: impl Fn(u32) -> bool) {
        let Some(several) = &mut self.several else { return };
        let leaving: Vec<u32> = several.leaving.difference(&several.done).copied().collect();
        for partition in leaving.into_iter().filter(|partition| !in_work(*partition)) {
            several.done.insert(partition);
            let durable = self.durables.iter().find(|durable| durable.number() == partition);
            let (opener, durable) = (self.opener.clone(), durable.cloned());
            several.handing_over.spawn(async move {
                opener.unpin(durable).await;
                partition
            });
        }
    }

    /// Reads nothing more, and lets other processes continue at once. Nothing may be in progress any longer.
    pub(crate) async fn close(self) {
        let Self { opener, feeds, durables, several } = self;
        drop(feeds);
        match several {
            None => opener.unpin(durables).await,
            Some(several) => {
                let had = |durable: &Durable| {
                    several.reading.contains(&durable.number())
                        || several.leaving.contains(&durable.number())
                };
                opener.unpin(durables.into_iter().filter(had)).await;
                several.membership.leave().await;
            }
        }
    }
}
