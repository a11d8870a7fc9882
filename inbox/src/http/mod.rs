//! HTTP requests that take effect once (feature `http`).
//!
//! A client that got no answer to a `POST` cannot know whether it took effect. With [`IdempotencyLayer`], the client
//! sends the request again under the same `Idempotency-Key`. The first request runs in a Postgres transaction that the
//! handler writes in, and its answer is stored in that transaction. A repeated request gets the stored answer. This
//! follows the IETF draft *The Idempotency-Key HTTP Header Field* (draft-ietf-httpapi-idempotency-key-header).
//!
//! ```no_run
//! use axum::routing::post;
//! use axum::{Extension, Router, http::StatusCode};
//! use pillarbox_event::RawEvent;
//! use pillarbox_inbox::http::{Command, IdempotencyLayer};
//!
//! /// Set by the service's own authentication, a layer outside of this one.
//! #[derive(Clone)]
//! struct Tenant(String);
//!
//! async fn place(Extension(command): Extension<Command>, body: String) -> Result<StatusCode, StatusCode> {
//!     place_in(command, body).await.map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)
//! }
//!
//! async fn place_in(command: Command, body: String) -> Result<StatusCode, Box<dyn std::error::Error>> {
//!     let mut tx = command.transaction().await?;
//!     sqlx::query("insert into orders (text) values ($1)").bind(body).execute(&mut **tx).await?;
//!     let placed = RawEvent::builder("order.placed", "orders.placed").build()?;
//!     pillarbox_outbox::publish(&mut tx, placed).await?;
//!     Ok(StatusCode::CREATED) // the layer commits the order, the event, and this answer
//! }
//!
//! # async fn example(pool: sqlx::PgPool) -> Result<(), Box<dyn std::error::Error>> {
//! pillarbox_inbox::migrate(&pool).await?;
//! let once = IdempotencyLayer::new(pool, |request| Some(request.extensions.get::<Tenant>()?.0.clone()));
//! let app: Router = Router::new().route("/orders", post(place).layer(once));
//! # Ok(()) }
//! ```
//!
//! | request | answer |
//! |---|---|
//! | first with its key | the handler's; stored |
//! | again, after the first one's answer | the stored one, with `idempotent-replayed: true` |
//! | again, while the first one runs | 409 at once, with `retry-after` |
//! | same key, but another method, path, query or body | 422 |
//! | no key, where one is required | 400 |
//! | an invalid key, one longer than 255 bytes, or two keys | 400 |
//! | a body above the limit | 413 |
//! | no scope for the request | 403 |
//! | the database is not available | 503, with `retry-after` |
//!
//! The layer's own answers are `application/problem+json` (RFC 9457), with a `code` that is also in the header
//! `idempotency-problem`. So a 409 with `in-progress` comes from the layer, and one without it from the handler.
//!
//! The response decides what becomes of the transaction; see [`Verdict`]. Success is committed. After a server error, a
//! panic, or when the client is gone, everything is rolled back, so a repeated request runs again.
//!
//! | module | concept |
//! |---|---|
//! | [`layer`] | [`IdempotencyLayer`] and its settings |
//! | [`command`] | [`Command`]: the transaction, for the handler |
//! | [`verdict`] | [`Verdict`]: what a response means for the transaction |
//! | [`scope`] | whom a key belongs to |
//! | [`metrics`] | how many requests came, and what came of them |
//! | [`requests`] | [`StoredRequests`]: removing old ones |
//! | `key`, `fingerprint`, `multipart` | which requests are the same |
//! | `problem` | the layer's own answers |

pub mod command;
mod fingerprint;
mod key;
pub mod layer;
pub mod metrics;
mod multipart;
mod once;
mod problem;
pub mod requests;
pub mod scope;
mod settings;
pub mod verdict;

// For the fuzz target. It is not part of the interface.
#[doc(hidden)]
pub use key::key_of;

pub use command::{Command, CommandOver, CommandTransaction};
pub use layer::{Idempotency, IdempotencyLayer};
pub use requests::StoredRequests;
pub use verdict::Verdict;
