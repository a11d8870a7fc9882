//! The operator's page of Pillarbox: what is wrong and what to do about it, outboxes, consumers, retries, dead letters,
//! sagas and scheduled events.
//!
//! `pillarbox console` serves it as a program of its own. A service can mount it beside its own routes:
//!
//! ```no_run
//! use std::net::SocketAddr;
//! use pillarbox_console::{Access, Console, Place};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let shop = Place::new("shop", "postgres://shop@localhost/shop", "pillarbox")?;
//! let console = Console::new(vec![shop], Access::Loopback).mounted_at("/operations")?;
//! let app = axum::Router::new().nest("/operations", console.router());
//! let listener = tokio::net::TcpListener::bind("127.0.0.1:8080").await?;
//! // The console must know who asks.
//! axum::serve(listener, app.into_make_service_with_connect_info::<SocketAddr>()).await?;
//! # Ok(())
//! # }
//! ```
//!
//! The pages are made on the server and can be read without JavaScript. A page loads nothing from another host.
//! Whatever comes from events, errors and names is somebody else's text: `shown` is the one way into a page.
//!
//! | module | concept |
//! |---|---|
//! | [`console`] | [`Console`]: the settings, and the routes |
//! | [`access`] | who may see and who may change something |
//! | [`place`] | a database whose tables are shown |
//! | [`check_up`] | what `pillarbox doctor` finds, for the page of that name |
//! | `stand` | how all parts of a place stand, read in one go |
//! | `trouble` | what of that is wrong, and what to do about it |
//! | `watch` | the newest stands, shared by all who look |
//! | `jobs` | changes that take a while |
//! | `pages` | a file for each page |
//! | `shown` | the one escape of everything that a page shows |
//! | `words` | numbers, sizes and times for people |

pub mod access;
pub mod check_up;
pub mod console;
mod guard;
mod jobs;
mod pages;
pub mod place;
mod shown;
mod stand;
mod state;
mod trouble;
mod watch;
mod words;

pub use access::{Access, Proxy, Role, Tokens, TokensError, Visitor};
pub use check_up::{Finding, Level};
pub use console::{Console, MountError};
pub use place::{Place, PlaceError};
