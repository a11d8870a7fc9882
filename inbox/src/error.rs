use pillarbox_store::HiddenRows;

use crate::failure::{Fault, HandlerError, Sign, is_of_data, sign_of};
use crate::pooler::{Pooled, is_pooled};
use crate::store::ENDED;

/// What the inbox does first.
pub(crate) const BEGIN: &str = "begin a transaction";

/// Why an event was not handled. Everything was rolled back.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InboxError {
    /// The handler, or a layer between it and the inbox, failed.
    #[error("the handler failed")]
    Handler(#[source] HandlerCause),
    /// The inbox itself could not begin a transaction or record the event.
    #[error("the inbox could not {doing}")]
    Database {
        /// What it was about to do.
        doing: &'static str,
        /// What sqlx said.
        #[source]
        source: sqlx::Error,
    },
    /// The commit failed, or its answer was lost. Whether it took effect shows at the next delivery.
    #[error("the inbox could not commit")]
    Commit(#[source] sqlx::Error),
    /// A statement of the handler failed, and the handler returned success all the same.
    #[error(
        "the handler returned success although one of its statements had failed, which undoes the others; \
         it should return the error, or run in a savepoint what may fail"
    )]
    Aborted,
    /// The handler, or something that it called, ended the transaction that it was given: by `commit`, `rollback`,
    /// `prepare transaction` or the like.
    #[error(
        "the handler ended the transaction, which only the inbox may do, {}; it must leave out commit, rollback and \
         begin, or use a savepoint",
        if *.committed {
            "and what it had written until then is committed, with the event as handled"
        } else {
            "and what it had written until then is undone, while what it wrote afterwards may be there"
        }
    )]
    Ended {
        /// Whether what it had written until then is committed, and with it the event's row in the inbox.
        committed: bool,
    },
    /// The pool's sessions are shared with others, by a pooler in transaction mode.
    #[error(transparent)]
    Pooled(#[from] Pooled),
    /// Policies may hide rows of the inbox's tables from the pool's role.
    #[error(transparent)]
    Hidden(#[from] HiddenRows),
    /// The database did not answer in time. When the event was to be recorded, another transaction may be
    /// handling it.
    #[error("the database took too long to {doing}")]
    Slow {
        /// What it was about to do.
        doing: &'static str,
    },
    /// The handler returned while another task still held its transaction.
    #[error("the handler returned success while its transaction was still in use by another task")]
    InUse,
    /// The schema's name is refused.
    #[error(transparent)]
    Schema(#[from] pillarbox_store::SchemaError),
}

/// A [`HandlerError`] as a source of other errors.
#[derive(Debug)]
pub struct HandlerCause(pub HandlerError);

impl std::fmt::Display for HandlerCause {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for HandlerCause {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.cause().source()
    }
}

impl InboxError {
    /// The failure of a handler.
    pub fn handler(error: impl Into<HandlerError>) -> Self {
        Self::Handler(HandlerCause(error.into()))
    }

    /// The error of a service around a handler: the inbox's own, or that of a layer, which counts as the handler's.
    pub fn of_service(error: Box<dyn std::error::Error + Send + Sync>) -> Self {
        match error.downcast::<Self>() {
            Ok(error) => *error,
            Err(error) => Self::handler(HandlerError::of_layer(error)),
        }
    }

    pub(crate) fn database(doing: &'static str) -> impl FnOnce(sqlx::Error) -> Self {
        move |source| {
            let source = match source {
                sqlx::Error::Configuration(cause) => match cause.downcast::<HiddenRows>() {
                    Ok(hidden) => return Self::Hidden(*hidden),
                    Err(cause) => sqlx::Error::Configuration(cause),
                },
                source => source,
            };
            if is_pooled(&source) {
                return Self::Pooled(Pooled);
            }
            let code = source.as_database_error().and_then(|error| error.code());
            match code.as_deref() {
                // The statement_timeout or lock_timeout, while it waited for another transaction or a busy database.
                Some("57014" | "55P03") => Self::Slow { doing },
                _ => Self::Database { doing, source },
            }
        }
    }

    pub(crate) fn commit(error: sqlx::Error) -> Self {
        let said = error.as_database_error();
        match said.and_then(|error| error.code()).as_deref() {
            Some("25P02") => Self::Aborted,
            // The proof that it is the transaction that was begun has failed.
            Some("42704") if said.is_some_and(|error| error.message().contains(ENDED)) => {
                Self::Ended { committed: false }
            }
            _ => Self::Commit(error),
        }
    }

    /// Whose fault it is.
    pub fn fault(&self) -> Fault {
        self.sign().fault()
    }

    /// What it looks like.
    #[doc(hidden)]
    pub fn sign(&self) -> Sign {
        match self {
            Self::Handler(cause) => cause.0.sign(),
            Self::Database { source, .. } if is_of_data(source) => Sign::Sure(Fault::Permanent),
            Self::Database { doing, source } => match sign_of(source) {
                // Nothing of the event is in that statement, and a missing table is everybody's, too.
                _ if *doing == BEGIN => Sign::Sure(Fault::Environment),
                Sign::Unreached | Sign::Sure(Fault::Transient) => Sign::Sure(Fault::Environment),
                sign => sign,
            },
            // A deferred constraint, for instance, fails here.
            Self::Commit(source) => sign_of(source),
            Self::Slow { .. } | Self::Hidden(_) => Sign::Sure(Fault::Environment),
            Self::Aborted | Self::InUse => Sign::Sure(Fault::Transient),
            Self::Schema(_) | Self::Ended { .. } | Self::Pooled(_) => Sign::Sure(Fault::Permanent),
        }
    }

    /// Whether the handler itself says that nothing can be handled now.
    #[doc(hidden)]
    pub fn is_said_to_be_everybodys(&self) -> bool {
        matches!(self, Self::Handler(cause) if cause.0.sign() == Sign::Sure(Fault::Environment))
    }

    #[doc(hidden)]
    pub fn is_caused_by<E: std::error::Error + 'static>(&self) -> bool {
        match self {
            Self::Handler(cause) => {
                let cause: &(dyn std::error::Error + 'static) = cause.0.cause();
                cause.is::<E>()
            }
            _ => false,
        }
    }

    /// When the handler asked to be tried again.
    pub fn retry_after(&self) -> Option<std::time::Duration> {
        match self {
            Self::Handler(cause) => cause.0.wanted_retry_after(),
            _ => None,
        }
    }
}
