//! Fault runs: what Pillarbox promises, checked on real processes while they are killed, paused and cut off.
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
//! Writers, relays and consumers are processes of their own (this program, told a role), each behind proxies of its
//! own; the servers are real ones. A [`schedule`](mod@schedule) drawn from a seed says which faults are made and
//! when. When the last one is mended, everything must come to rest; then the [`checker`] reads what every process
//! noted down and what stands in databases and stream.
//!
//! | module | concept |
//! |---|---|
//! | [`options`] | what a run is told |
//! | [`schedule`](mod@schedule) | which faults, and when |
//! | [`fault`] | the faults, and how each is made |
//! | [`role`] | what writers, relays and consumers do |
//! | [`event`] | the events of a run |
//! | `foreign`, `wire` | a producer of other habits, and the broker's protocol |
//! | [`journal`] | notes that outlive their process |
//! | `process`, `world` | the processes; the servers and tables around them |
//! | [`run`](mod@run) | a run from begin to end |
//! | `rest` | waiting until nothing waits any more |
//! | [`history`], `gather` | what happened, and where that is read |
//! | [`checker`] | what must be, and what is not so |
//! | [`story`] | what befell one event |
//! | [`report`] | the counts and the verdict |

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
mod wire;
mod world;

pub use checker::Violation;
pub use options::{Options, SwitchedOff};
pub use report::Report;
pub use run::run;
