//! The saga.

use std::time::Duration;

use pillarbox_inbox::HandlerError;
use pillarbox_saga::{Saga, Status, Step};
use serde::{Deserialize, Serialize};

use super::SAGA;
use super::events::{Book, Booked, Cancel, Cancelled, Refused, Requested, SERVICES, Unanswered};

/// How long the saga waits for an answer.
pub(super) const PATIENCE: Duration = Duration::from_secs(3);

/// The state of a trip.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Trip {
    asked: Vec<String>,
    booked: Vec<String>,
    cancelled: Vec<String>,
}

pub(super) fn saga() -> Saga<Trip> {
    Saga::new(SAGA)
        .starts(Trip::requested)
        .on(Trip::booked)
        .on(Trip::refused)
        .on(Trip::unanswered)
        .on(Trip::cancelled)
}

impl Trip {
    async fn requested(
        &mut self,
        step: &mut Step<'_>,
        event: Requested,
    ) -> Result<(), HandlerError> {
        self.ask(step, event.trip, SERVICES[0])
    }

    async fn booked(&mut self, step: &mut Step<'_>, event: Booked) -> Result<(), HandlerError> {
        let next = SERVICES.iter().skip_while(|name| **name != event.service).nth(1);
        self.booked.push(event.service);
        match (step.status(), next) {
            (Status::Running, Some(next)) => self.ask(step, event.trip, next)?,
            (Status::Running, None) => step.complete(),
            // It is being cancelled already.
            _ => {}
        }
        Ok(())
    }

    async fn refused(&mut self, step: &mut Step<'_>, event: Refused) -> Result<(), HandlerError> {
        step.fail(&format!("{} refused", event.service));
        Ok(())
    }

    async fn unanswered(
        &mut self,
        step: &mut Step<'_>,
        event: Unanswered,
    ) -> Result<(), HandlerError> {
        step.fail(&format!("{} did not answer", event.service));
        Ok(())
    }

    async fn cancelled(
        &mut self,
        step: &mut Step<'_>,
        event: Cancelled,
    ) -> Result<(), HandlerError> {
        self.cancelled.push(event.service);
        if self.cancelled.len() == self.asked.len() {
            step.complete();
        }
        Ok(())
    }

    fn ask(
        &mut self,
        step: &mut Step<'_>,
        trip: String,
        service: &str,
    ) -> Result<(), HandlerError> {
        let service = service.to_owned();
        self.asked.push(service.clone());
        step.enter(&service);
        step.publish(Book { trip: trip.clone(), service: service.clone() })?;
        step.compensate(Cancel { trip: trip.clone(), service: service.clone() })?;
        step.timer("answer", PATIENCE, Unanswered { trip, service })?;
        Ok(())
    }
}
