//! Why an event was not handled by a saga.

use pillarbox_event::RawEvent;

/// Why an event was not handled by a saga: the cause in the handler's error, and so in the dead letter.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Refused {
    /// Permanent: nothing in the event says for which instance it is.
    #[error(
        "event {event_id} ({event_type}) has no key, so it names no instance of saga {saga:?}; publish it with a key, or \
         tell the instance by `on_by`"
    )]
    NoInstance {
        /// The saga.
        saga: &'static str,
        /// The event's id.
        event_id: String,
        /// The event's type.
        event_type: String,
    },
    /// Permanent: what the event says cannot be the id of an instance.
    #[error(
        "event {event_id} ({event_type}) names the instance {id:?} of saga {saga:?}; an instance's id must have 1 to 255 \
         bytes, without control characters or white space at its ends"
    )]
    InstanceId {
        /// The saga.
        saga: &'static str,
        /// The event's id.
        event_id: String,
        /// The event's type.
        event_type: String,
        /// The beginning of the id.
        id: String,
    },
    /// Transient: there is no such instance. It may not have been started yet.
    #[error(
        "saga {saga:?} has no instance {id:?}: it has not been started yet, was removed long after its end, or the saga \
         had another name (`formerly`); a timer may also be of another database, or of a state before a restore"
    )]
    NotThere {
        /// The saga.
        saga: &'static str,
        /// The instance.
        id: String,
    },
    /// Permanent: the state of the instance cannot be read. It is untouched.
    #[error(
        "the state of instance {id:?} of saga {saga:?} (version {version}, step {step:?}) cannot be read: {problem}; run a \
         program whose state type reads it, then retry this letter"
    )]
    State {
        /// The saga.
        saga: &'static str,
        /// The instance.
        id: String,
        /// The instance's version.
        version: i64,
        /// Where it is.
        step: String,
        /// What serde_json said, without what it quoted of the state.
        problem: String,
    },
    /// Permanent: the row of the instance cannot be read, or cannot be written.
    #[error("instance {id:?} of saga {saga:?} cannot be {what}: {problem}")]
    Row {
        /// The saga.
        saga: &'static str,
        /// The instance.
        id: String,
        /// `read` or `written`.
        what: &'static str,
        /// Why not.
        problem: String,
    },
    /// Transient: another one wrote the instance although it was locked, or rows are hidden from this role.
    #[error(
        "instance {id:?} of saga {saga:?} is there, and yet this role cannot lock or write it; check for row-level \
         security and triggers on the tables of sagas"
    )]
    Hidden {
        /// The saga.
        saga: &'static str,
        /// The instance.
        id: String,
    },
    /// Permanent: the saga has no handler for events of this type. Only tests without servers meet this.
    #[error("saga {saga:?} has no handler for events of type {event_type:?}")]
    NoHandler {
        /// The saga.
        saga: &'static str,
        /// The event's type.
        event_type: String,
    },
}

impl Refused {
    pub(crate) fn no_instance(saga: &'static str, event: &RawEvent) -> Self {
        let (event_id, event_type) = (event.id().to_string(), event.event_type().to_owned());
        Self::NoInstance { saga, event_id, event_type }
    }

    pub(crate) fn instance_id(saga: &'static str, event: &RawEvent, id: String) -> Self {
        let (event_id, event_type) = (event.id().to_string(), event.event_type().to_owned());
        Self::InstanceId { saga, event_id, event_type, id }
    }
}
