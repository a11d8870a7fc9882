//! What must have succeeded before consumers and relays start. An outage is waited out.

use std::any::Any;
use std::error::Error;
use std::future::Future;

use pillarbox_consumer::streams::StreamError;
use pillarbox_inbox::source::is_refused;
use pillarbox_store::{Backoff, full_text};
use sqlx::migrate::MigrateError;
use tokio::time::sleep;

use super::{BoxError, BoxFuture, Readiness, ServiceError};

/// How many sources of an error are looked at. An error may be its own source.
const DEEPEST: usize = 64;

/// A failed try: the error, and whether the next try would fail in the same way.
type Failed = (BoxError, bool);

pub(super) struct Preparation {
    name: String,
    try_once: Box<dyn FnMut() -> BoxFuture<Result<(), Failed>> + Send>,
}

impl Preparation {
    pub(super) fn new<S, F, T, E>(
        name: String,
        with: S,
        prepare: impl Fn(S) -> F + Send + 'static,
    ) -> Self
    where
        S: Clone + Send + 'static,
        F: Future<Output = Result<T, E>> + Send + 'static,
        E: Into<BoxError> + 'static,
    {
        let try_once = move || -> BoxFuture<Result<(), Failed>> {
            let trying = prepare(with.clone());
            Box::pin(async move { trying.await.map(drop).map_err(failed) })
        };
        Self { name, try_once: Box::new(try_once) }
    }
}

fn failed<E: Into<BoxError> + 'static>(error: E) -> Failed {
    // The box that anyhow makes of its error hides the type of what is in it.
    let any: &dyn Any = &error;
    let found = any.downcast_ref::<anyhow::Error>().map(|error| is_final(&**error));
    let error = error.into();
    let found = found.unwrap_or_else(|| is_final(&*error));
    (error, found)
}

/// Whether an error is certain to come again. Whatever is not recognised may be an outage.
fn is_final(error: &(dyn Error + 'static)) -> bool {
    let mut chain = std::iter::successors(Some(error), |error| Error::source(*error)).take(DEEPEST);
    chain.any(|error| {
        if let Some(error) = error.downcast_ref::<sqlx::Error>() {
            let code = error.as_database_error().and_then(|error| error.code());
            // Two processes that prepare at the same time may be in conflict.
            return is_refused(error) && !code.is_some_and(|code| code.starts_with("40"));
        }
        if let Some(error) = error.downcast_ref::<MigrateError>() {
            use MigrateError::{Execute, ExecuteMigration, Source};
            return !matches!(error, Execute(_) | ExecuteMigration(..) | Source(_));
        }
        let of_stream = error.downcast_ref::<StreamError>();
        of_stream.is_some_and(|error| !matches!(error, StreamError::Unavailable { .. }))
    })
}

/// Runs them one after the other, each until it succeeds.
///
/// # Errors
/// Of the first one that can never succeed.
pub(super) async fn prepare(
    preparations: Vec<Preparation>,
    readiness: &Readiness,
) -> Result<(), ServiceError> {
    for Preparation { name, mut try_once } in preparations {
        let (mut backoff, mut last) = (Backoff::default(), None);
        readiness.preparing(format!("{name} is being prepared"));
        while let Err((error, is_final)) = try_once().await {
            if is_final {
                return Err(ServiceError::Failed { part: name, source: error });
            }
            let text = full_text(&*error);
            readiness.preparing(format!("{name} waits: {text}"));
            if last.as_ref() != Some(&text) {
                tracing::warn!(
                    preparation = name,
                    error = text,
                    "not prepared yet; it is tried again"
                );
                last = Some(text);
            }
            sleep(backoff.wait()).await;
        }
        tracing::info!(preparation = name, "prepared");
    }
    readiness.prepared();
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn only_an_error_that_is_certain_to_come_again_is_final() {
        let refused = || io::Error::from(io::ErrorKind::ConnectionRefused);
        let differs = || StreamError::Differs {
            stream: "ORDERS".into(),
            setting: "max_age",
            found: "1".into(),
            wanted: "2".into(),
        };
        for (error, wanted) in [
            (failed(sqlx::Error::Io(refused())), false),
            (failed(sqlx::Error::PoolTimedOut), false),
            (failed(MigrateError::Execute(sqlx::Error::Io(refused()))), false),
            (failed("the broker is away"), false),
            (failed(anyhow::Error::new(refused()).context("connecting")), false),
            (failed(MigrateError::VersionMismatch(1)), true),
            (failed(anyhow::Error::new(MigrateError::VersionMismatch(1))), true),
            (failed(anyhow::Error::new(differs()).context("the stream")), true),
            (failed(sqlx::Error::RowNotFound), true),
        ] {
            assert_eq!(error.1, wanted, "{}", error.0);
        }
    }
}
