//! Ships pages from the source to the sink, and reports how far it has come.
//!
//! Every failure is handled in the same way: the shipper drops everything under way, and reads again after the last row
//! that is known to be stored. The broker drops what it already has. After a failure of the broker, the first message
//! is stored alone before others are sent: see [`hold`].
//!
//! Between two pages, parked events are shipped: see [`parking`](crate::parking).

mod hold;
mod stretch;
mod trial;
mod under_way;

use std::sync::Arc;

use sqlx::PgConnection;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::broker::Broker;
use crate::checkpoint;
use crate::config::RelayConfig;
use crate::cursor::Cursor;
use crate::dead_letters::Unnoted;
use crate::health::Observer;
use crate::interrupted::{Forgotten, Interrupted};
use crate::lease::{Lease, LeaseError};
use crate::parking::say_dead;
use crate::refused::Refused;
use crate::session::{Database, Patience};
use crate::sink::{FirstSends, KeyedWindow, SinkError, duplicate_ids};

use self::hold::{Hold, NextStep};
use self::stretch::Stretch;
use self::trial::{Trial, TrialOutcome};

/// Everything that shipping needs, for as long as one leader holds the lease.
pub(crate) struct Shipper {
    pub(crate) config: RelayConfig,
    pub(crate) database: Database,
    /// The first connection to read on. Later connections are opened when they are needed.
    pub(crate) reading: Option<PgConnection>,
    pub(crate) patience: Patience,
    pub(crate) broker: Broker,
    /// How far the relay has shipped. The leader saves it.
    pub(crate) progress: watch::Sender<Cursor>,
    pub(crate) lease: Arc<Lease>,
    pub(crate) shutdown: CancellationToken,
    pub(crate) observer: Observer,
    /// Told when scheduled events have come into the outbox.
    pub(crate) released: Arc<Notify>,
}

/// What the next stretch must know of how the last one ended.
#[derive(Default)]
struct Start {
    /// A batch was refused or got no answer, so messages are sent one by one for a while.
    after_refusal: bool,
    /// The event that was not stored has been set aside, which is progress.
    after_set_aside: bool,
}

impl Shipper {
    /// Ships until shutdown, and then waits until everything under way is stored. Ends earlier only if the database
    /// fails or the lease is lost.
    ///
    /// Dropping the future stops shipping at once. What was under way is shipped again from the saved cursor.
    pub(crate) async fn run(mut self) -> Result<(), LeaseError> {
        let (first_sends, suspects) = FirstSends::above(self.progress.borrow().high);
        self.broker.first_sends = Some(first_sends);
        let mut looking = JoinSet::new();
        let (relay, observer) = (self.config.name.clone(), self.observer.clone());
        looking.spawn(duplicate_ids::look_at(suspects, self.broker.api(), relay, observer));
        let mut hold = Hold::new();
        let mut start = Start::default();
        let mut unnoted = Unnoted::default();
        loop {
            let mut trial = None;
            let shipping = self.ship(&start, &mut hold, &mut trial, &mut unnoted);
            let interrupted = match shipping.await {
                Ok(()) => return Ok(()),
                Err(interrupted) => interrupted,
            };
            start = Start::default();
            match interrupted {
                Interrupted::Lease(error) => return Err(error),
                Interrupted::Refused(refused) => {
                    self.set_aside(refused).await?;
                    hold.set_aside();
                    start.after_set_aside = true;
                    continue;
                }
                Interrupted::Forgotten(what) => match self.go_back(what).await {
                    Ok(events) => {
                        hold.goes_back(events);
                        // The stream may have lost these events too.
                        unnoted = Unnoted::default();
                    }
                    Err(Interrupted::Lease(error)) => return Err(error),
                    Err(_) => {}
                },
                Interrupted::Reconnected => self.observer.meter.rewound("reconnected"),
                Interrupted::Broker(error) => {
                    self.broker.forget_streams();
                    self.observer.meter.rewound(error.kind());
                    let refused = matches!(error, SinkError::BatchRefused(_));
                    start.after_refusal = refused || matches!(error, SinkError::BatchSilent(_));
                    if !refused {
                        say_held(&self.config.name, &self.observer, &mut hold, &error.to_string());
                    }
                    let step = hold.failed(&error);
                    if let Some(trial) = trial.filter(|trial| trial.is_of(error.position()))
                        && self.judge(&trial, step, &error, &mut hold).await?
                    {
                        start.after_set_aside = true;
                        start.after_refusal = true;
                        continue;
                    }
                }
            }
            tokio::select! {
                () = sleep(hold.wait()) => {}
                () = self.shutdown.cancelled() => return Ok(()),
            }
        }
    }

    /// Finds out why a message that was sent alone was not stored. Returns `true` if shipping continues without a
    /// pause, because the message was set aside or stored.
    async fn judge(
        &mut self,
        trial: &Trial,
        step: NextStep,
        error: &SinkError,
        hold: &mut Hold,
    ) -> Result<bool, LeaseError> {
        let SinkError::NotStored { refusal, error: said, .. } = error else {
            return Ok(false);
        };
        let outcome = match step {
            NextStep::Wait => return Ok(false),
            NextStep::Proven => TrialOutcome::Guilty(trial.refused(None, said)),
            NextStep::AskForProof => {
                let window = || KeyedWindow::new(self.broker.context(), self.broker.acknowledged());
                tokio::select! {
                    outcome = trial.prove(window, *refusal, said) => outcome,
                    () = self.shutdown.cancelled() => return Ok(false),
                }
            }
        };
        match outcome {
            TrialOutcome::Open => return Ok(false),
            TrialOutcome::Stored => {
                hold.stored(1);
                self.progress.send_replace(trial.after.clone());
            }
            TrialOutcome::Guilty(refused) => {
                if step == NextStep::AskForProof {
                    hold.proves(*refusal);
                }
                self.set_aside(Box::new((trial.after.clone(), refused))).await?;
                hold.set_aside();
            }
        }
        Ok(true)
    }

    async fn set_aside(&mut self, what: Box<(Cursor, Refused)>) -> Result<(), LeaseError> {
        let (cursor, refused) = *what;
        if self.lease.give_up(&cursor, refused.clone()).await? {
            say_dead(&self.config.name, &refused);
            self.observer.meter.dead_letter(refused.reason);
        }
        self.observer.moved();
        self.progress.send_replace(cursor);
        Ok(())
    }

    /// Goes back to where the streams are complete. Returns about how many events are shipped again.
    async fn go_back(&mut self, what: Forgotten) -> Result<u64, Interrupted> {
        let Forgotten { stream, how, .. } = &what;
        let relay = &self.config.name;
        tracing::error!(relay, stream, how, "the broker has lost what it had acknowledged");
        let now = self.progress.borrow().clone();
        let (api, acknowledged) = (self.broker.api(), self.broker.acknowledged());
        let (cursor, taken_at) =
            checkpoint::go_back(&api, &self.lease, &acknowledged, &what, &now).await?;
        let since = taken_at.as_deref().unwrap_or("the first event in the outbox");
        tracing::warn!(relay, since, from = now.high, to = cursor.high, "shipping again");
        let again = now.high.saturating_sub(cursor.high);
        self.observer.meter.broker_lost_data(again);
        // This comes first, so that the old cursor is not saved after the new one.
        self.progress.send_replace(cursor.clone());
        self.lease.go_back(&cursor, taken_at.as_deref()).await?;
        Ok(u64::try_from(again).unwrap_or(0))
    }

    /// Ships from where the relay stands, until shutdown or until something interrupts it.
    ///
    /// After a failure the first message is sent alone. `trial` then holds what is needed to judge it.
    async fn ship(
        &mut self,
        start: &Start,
        hold: &mut Hold,
        trial: &mut Option<Trial>,
        unnoted: &mut Unnoted,
    ) -> Result<(), Interrupted> {
        let mut stretch = Stretch::open(self, start, unnoted).await?;
        let outcome = stretch.run(hold).await;
        stretch.end(outcome, hold, trial, unnoted).await
    }
}

/// Reports in the log and in the relay's state why messages are not stored.
fn say_held(relay: &str, observer: &Observer, hold: &mut Hold, reason: &str) {
    if hold.holds(reason) {
        tracing::warn!(relay, reason, "holding: events wait in the outbox");
    }
    observer.held(reason);
}
