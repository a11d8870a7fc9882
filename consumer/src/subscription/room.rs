//! Takes no more messages than the process may hold. See [`places`](crate::places).

use tokio::time::{Instant, sleep_until};

use super::{Arrival, Subscription};
use crate::config::ConsumerConfig;
use crate::durable::Durable;
use crate::interrupted::Interrupted;
use crate::one_by_one::stay_pinned;

/// How much this process may hold of a durable.
pub(super) struct Room {
    partition: u32,
    /// How many events. `None` without an order: whoever reads sees to it then.
    pub(super) places: Option<usize>,
    /// A message that came although the process holds as many as it may.
    beyond: Option<Arrival>,
    /// When to say that this process stays pinned, while that message waits.
    stay_at: Instant,
}

impl Room {
    pub(super) fn new(durable: &Durable, config: &ConsumerConfig) -> Self {
        let places = config.order.keeps_keys().then(|| Durable::places(config));
        Self { partition: durable.number(), places, beyond: None, stay_at: Instant::now() }
    }
}

impl Subscription {
    /// The next message that may be held. Safe to cancel.
    pub(crate) async fn next(&mut self) -> Result<Arrival, Interrupted> {
        loop {
            if self.room.beyond.is_some() {
                self.wait_for_room().await?;
                if let Some(arrival) = self.room.beyond.take() {
                    return Ok(arrival);
                }
            }
            let arrival = self.arrive().await?;
            if self.may_be_held(&arrival) {
                return Ok(arrival);
            }
            self.room.beyond = Some(arrival);
            self.room.stay_at = Instant::now();
        }
    }

    fn may_be_held(&self, arrival: &Arrival) -> bool {
        let (Some(most), Some(place)) = (self.room.places, arrival.place()) else { return true };
        self.reporter.held().takes(&place, self.room.partition, most)
    }

    /// Waits until another message may be held, and stays pinned meanwhile. The server does not wait for that: what it
    /// delivers meanwhile waits in the client, up to what the client has asked for. The message is dropped if the
    /// connection is lost, and comes again. Safe to cancel.
    async fn wait_for_room(&mut self) -> Result<(), Interrupted> {
        let Some(most) = self.room.places else { return Ok(()) };
        loop {
            tokio::select! {
                () = self.reporter.held().room(self.room.partition, most) => return Ok(()),
                () = sleep_until(self.room.stay_at) => {
                    self.room.stay_at = Instant::now() + self.look_every;
                    if let Some(pin) = &self.pin {
                        let stream = &self.stream.cached_info().config.name;
                        stay_pinned(&self.answering, stream, &self.consumer, pin).await?;
                    }
                }
                () = self.connection.lost() => {
                    self.room.beyond = None;
                    return self.reconnected().await;
                }
                () = self.reporter.differs() => {
                    return Err(Interrupted::new("the durable consumer on the server was changed"));
                }
            }
        }
    }
}
