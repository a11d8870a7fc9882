//! Sagas: business processes over many events, with timers, compensation and a history.
//!
//! "Book flight, hotel and car; if one of them is refused, cancel the others; if it is not paid within 15 minutes, give
//! it up." A saga is a type with a state, and a handler for each event that concerns it. One *instance* of it is a row:
//! its state, the events that a step publishes, its timers and the record that the event was handled are written in one
//! transaction. So each event takes effect once, and nothing that a step has done is lost or done twice.
//!
//! ```
//! use std::time::Duration;
//! use pillarbox_event::Event;
//! use pillarbox_inbox::HandlerError;
//! use pillarbox_saga::{Saga, Status, Step};
//! # macro_rules! events { ($($name:ident $type:literal $topic:literal;)*) => { $(
//! #     #[derive(Event, serde::Serialize, serde::Deserialize)]
//! #     #[event(type = $type, topic = $topic, key = booking)]
//! #     struct $name { booking: i64 }
//! # )* } }
//! # events! {
//! #     Requested "booking.requested" "bookings.requested"; Unpaid "booking.unpaid" "bookings.unpaid";
//! #     BookRoom "room.book" "rooms.book"; CancelRoom "room.cancel" "rooms.cancel";
//! #     Paid "payment.taken" "payments.taken";
//! # }
//!
//! #[derive(Default, serde::Serialize, serde::Deserialize)]
//! struct Booking { paid: bool }
//!
//! impl Booking {
//!     async fn requested(
//!         &mut self,
//!         step: &mut Step<'_>,
//!         Requested { booking }: Requested,
//!     ) -> Result<(), HandlerError> {
//!         step.publish(BookRoom { booking })?;
//!         step.compensate(CancelRoom { booking })?; // what undoes it
//!         step.timer("payment", Duration::from_secs(15 * 60), Unpaid { booking })?;
//!         step.enter("awaiting payment");
//!         Ok(())
//!     }
//!
//!     async fn paid(&mut self, step: &mut Step<'_>, _: Paid) -> Result<(), HandlerError> {
//!         self.paid = true;
//!         step.complete(); // which cancels the timer
//!         Ok(())
//!     }
//!
//!     async fn unpaid(&mut self, step: &mut Step<'_>, _: Unpaid) -> Result<(), HandlerError> {
//!         step.fail("not paid in time"); // publishes the compensations, the newest first
//!         step.complete();
//!         Ok(())
//!     }
//! }
//!
//! let saga = Saga::new("booking").starts(Booking::requested).on(Booking::paid).on(Booking::unpaid);
//! # let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
//! # let unpaid = runtime.block_on(async {
//! # let mut given = saga.given_nothing();
//! # given.when(Requested { booking: 42 }).await.unwrap();
//! # let unpaid = given.elapse(Duration::from_secs(900)).await.unwrap();
//! # assert_eq!(given.status(), Some(Status::Failed)); unpaid });
//! # assert_eq!(unpaid[0].types(), ["room.cancel"]);
//! ```
//!
//! `Consumer::new(…)?.with(saga).run(shutdown)` runs it. The tables come with those of the inbox, in the same schema.
//!
//! # The states of an instance
//!
//! ```text
//!                  ┌───────────┐  complete                        ┌───────────┐
//!  start event ──► │  running  │ ────────────────────────────────►│ completed │
//!                  └───────────┘                                  └───────────┘
//!                     │     │ fail, with nothing to compensate,
//!                     │     │ or together with complete
//!                fail │     └──────────────────────────┐
//!                     ▼                                ▼
//!              ┌──────────────┐  complete         ┌──────────┐
//!              │ compensating │ ─────────────────►│  failed  │
//!              └──────────────┘                   └──────────┘
//! ```
//!
//! `fail` publishes the compensations, the newest first, and cancels the timers. While it is compensating, the instance
//! gets events like before, such as the answers to its compensations; `step.compensate` then publishes at once. An
//! instance in one of the states on the right has ended: its timers are cancelled.
//!
//! | an event comes | what follows |
//! |---|---|
//! | that starts an instance, and there is none | the instance is there; its handler runs |
//! | that starts an instance, and there is one | counted and acknowledged, and noted in the history |
//! | for an instance that is not there yet | tried again, as after a transient failure; at last a dead letter |
//! | for an instance that has ended | counted and acknowledged, and noted in the history |
//! | of a timer that was cancelled or replaced | counted and acknowledged, and noted in the history |
//! | without a key, for a handler that goes by the key | a dead letter |
//! | for an instance whose state cannot be read | a dead letter that names the instance, which is untouched |
//! | again, with the same id | skipped, by the inbox |
//!
//! Events for one instance are handled one after another, because its row is locked. Their order is that of their key.
//!
//! Since only the state is kept and no code is replayed, a program may be changed while instances are open, as long as
//! its state type reads what the old one wrote. To rename a saga, see [`Saga::formerly`].
//!
//! | module | concept |
//! |---|---|
//! | [`Saga`] | the name, the handlers and the settings |
//! | [`Step`] | what a handler can do |
//! | [`Given`] | a test without servers, with time that the test moves |
//! | [`operate`] | what operators do: list, show, cancel, complete |
//! | [`metrics`] | the metrics |
//! | [`Refused`], [`StepError`] | what can go wrong |
//! | `turn` | the decisions, without I/O |
//! | `handles`, `store` | carrying them out in the database |

mod error;
mod given;
mod handles;
mod instance;
pub mod metrics;
pub mod operate;
mod route;
mod saga;
mod settings;
mod state;
mod step;
mod store;
mod turn;

pub use error::Refused;
pub use given::{Given, Happened, Timer};
pub use instance::{NoStatus, PendingTimer, Status};
pub use route::StepFunction;
pub use saga::Saga;
pub use state::State;
pub use step::Step;
pub use turn::{MOST, StepError};
