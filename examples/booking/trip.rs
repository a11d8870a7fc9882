//! The saga.

use std::time::Duration;

use pillarbox::saga::Status;
use pillarbox::{HandlerError, Saga, Step};
use serde::{Deserialize, Serialize};

use crate::events::{
    Book, Booked, Cancel, Cancelled, PROVIDERS, Refused, TripRequested, Unanswered,
};

/// How long the saga waits for one answer.
pub const PATIENCE: Duration = Duration::from_secs(3);

/// The state of a trip.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Trip {
    pub cents: i64,
    /// The providers that were asked, in order.
    pub asked: Vec<String>,
    pub booked: Vec<String>,
    pub cancelled: Vec<String>,
}

pub fn saga() -> Saga<Trip> {
    Saga::new("trip")
        .starts(Trip::requested)
        .on(Trip::booked)
        .on(Trip::refused)
        .on(Trip::unanswered)
        .on(Trip::cancelled)
        .deadline(Duration::from_secs(60))
}

impl Trip {
    async fn requested(
        &mut self,
        step: &mut Step<'_>,
        event: TripRequested,
    ) -> Result<(), HandlerError> {
        self.cents = event.cents;
        self.ask(step, event.trip, PROVIDERS[0])
    }

    async fn booked(&mut self, step: &mut Step<'_>, event: Booked) -> Result<(), HandlerError> {
        let next = PROVIDERS.iter().skip_while(|name| **name != event.provider).nth(1);
        self.booked.push(event.provider);
        // If the trip has failed meanwhile, the booking is being cancelled already.
        match (step.status(), next) {
            (Status::Running, Some(next)) => self.ask(step, event.trip, next)?,
            (Status::Running, None) => step.complete(),
            _ => {}
        }
        Ok(())
    }

    async fn refused(&mut self, step: &mut Step<'_>, event: Refused) -> Result<(), HandlerError> {
        step.fail(&format!("{} refused", event.provider));
        Ok(())
    }

    async fn unanswered(
        &mut self,
        step: &mut Step<'_>,
        event: Unanswered,
    ) -> Result<(), HandlerError> {
        step.fail(&format!("{} did not answer", event.provider));
        Ok(())
    }

    async fn cancelled(
        &mut self,
        step: &mut Step<'_>,
        event: Cancelled,
    ) -> Result<(), HandlerError> {
        self.cancelled.push(event.provider);
        if self.cancelled.len() == self.asked.len() {
            step.complete();
        }
        Ok(())
    }

    /// Asks a provider, and says how to undo it, whatever the answer is and whenever it comes.
    fn ask(&mut self, step: &mut Step<'_>, trip: i64, provider: &str) -> Result<(), HandlerError> {
        let (provider, cents) = (provider.to_owned(), self.cents);
        self.asked.push(provider.clone());
        step.enter(&provider);
        step.publish(Book { trip, provider: provider.clone(), cents })?;
        step.compensate(Cancel { trip, provider: provider.clone() })?;
        step.timer("answer", PATIENCE, Unanswered { trip, provider })?;
        Ok(())
    }
}
