//! Fault runs check what Pillarbox promises, with real processes that are killed, paused and cut off.
//!
//! ```text
//!  writers ──► Postgres ──► relays ──► nats-server ──► consumers ──► Postgres
//!     │           │           ▲             ▲             │             │
//!     │ journals  │ outbox    └── faults ───┘             │ journals    │ effects
//!     └───────────┴──────────── history ◄─────────────────┴─────────────┘
//!                                  │
//!                               checker ──► verdict, or the shortest story
//! ```
//!
//! Each writer, relay and consumer is a process of its own (this program, started in a role) behind its own proxies.
//! The servers are real. A [`schedule`](mod@schedule) drawn from a seed says which faults are made and when. After the
//! last fault, everything must come to rest. Then the [`checker`] reads what every process recorded, and what the
//! databases and the stream hold.
//!
//! | module | concept |
//! |---|---|
//! | [`options`] | the settings of a run |
//! | [`schedule`](mod@schedule) | which faults, and when |
//! | [`fault`] | the faults, and how each is made |
//! | [`role`] | what writers, relays and consumers do |
//! | [`event`] | the events of a run |
//! | `foreign`, `wire` | a producer that does not use Pillarbox, and the broker's protocol |
//! | [`journal`] | notes that outlive their process |
//! | `process`, `world` | the processes; the servers and tables around them |
//! | [`run`](mod@run) | a run from beginning to end |
//! | `rest` | waiting until nothing waits any more |
//! | [`history`], `gather` | what happened, and how that is gathered |
//! | [`checker`] | what must hold, and what violates it |
//! | [`story`] | what happened to one event |
//! | [`report`] | the counts and the verdict |
//! | [`trips`] | a saga of three services, for runs with `--saga` |
//! | `switched_off` | protections that a test takes away |

mod broker;
pub mod checker;
pub mod event;
pub mod fault;
mod foreign;
mod gather;
pub mod history;
pub mod journal;
pub mod options;
mod process;
pub mod report;
mod rest;
pub mod role;
pub mod run;
pub mod schedule;
pub mod story;
mod switched_off;
pub mod trips;
mod wire;
mod world;

pub use checker::Violation;
pub use options::Options;
pub use report::Report;
pub use run::run;
pub use switched_off::SwitchedOff;
