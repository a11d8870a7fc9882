//! Why a consumer ended, or did not begin.

use pillarbox_inbox::InboxError;

pub(crate) type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Why a consumer ended, or did not begin. Outages are not among them: it waits.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConsumerError {
    /// A setting cannot be used.
    #[error("consumer setting {key} cannot be used: {problem}")]
    Config {
        /// The setting's name.
        key: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// The schema's name is refused.
    #[error(transparent)]
    Inbox(#[from] InboxError),
    /// The stream keeps messages for longer than the consumer remembers having handled them.
    #[error(
        "consumer {name} remembers what it has handled for {retention_s} s, and stream {stream} keeps messages for \
         {max_age_s} s: one that comes again after that would be handled twice; set retention_s to at least \
         {max_age_s}, or the stream's max_age to at most {retention_s} s"
    )]
    Retention {
        /// The consumer.
        name: String,
        /// How long it remembers, in seconds.
        retention_s: u64,
        /// The stream.
        stream: String,
        /// How long that keeps messages, in seconds.
        max_age_s: u128,
    },
    /// The durable consumer is gone, and the stream holds what this consumer may have handled and forgotten.
    #[error(
        "consumer {name} of stream {stream} has no durable consumer any more, and forgot what it handled until \
         {forgotten_s} s ago; the stream holds messages of that time (sequence {sequence}, stored {stored_s} s ago), \
         which would take effect again. Make the durable consumer anew where it was (an operator: `nats consumer add`), \
         or set after_loss = \"remembered\" to read only what is newer, or handle everything again under another name"
    )]
    Forgotten {
        /// The consumer.
        name: String,
        /// The stream.
        stream: String,
        /// The sequence of its oldest message.
        sequence: u64,
        /// How long ago that was stored, in seconds.
        stored_s: u64,
        /// How long ago the newest event was handled that is forgotten, in seconds.
        forgotten_s: u64,
    },
    /// There is a durable consumer of this name with another setting, and it is not changed behind its back.
    #[error(
        "consumer {name} of stream {stream} exists with {field} = {found}, and {expected} is wanted: \
         use that, another name, or delete it"
    )]
    Differs {
        /// The stream.
        stream: String,
        /// The consumer.
        name: String,
        /// The setting.
        field: &'static str,
        /// What it has.
        found: String,
        /// What was asked for.
        expected: String,
    },
    /// [`Consumer::prepare`](crate::Consumer::prepare) did not get what it asked the broker or the database for.
    #[error("consumer {name} of stream {stream} is not prepared: {reason}")]
    NotPrepared {
        /// The stream.
        stream: String,
        /// The consumer.
        name: String,
        /// What happened.
        reason: String,
    },
    /// There are events that were not handled before the number of partitions was changed.
    #[error(
        "consumer {name} of stream {stream} had partitions = {before}, and {unhandled} events of {durable} are not \
         handled: run it with that until it has none, then with {wanted}"
    )]
    Unread {
        /// The stream.
        stream: String,
        /// The consumer.
        name: String,
        /// The durable consumer that has them.
        durable: String,
        /// How many.
        unhandled: u64,
        /// How many partitions it had; 1 for none.
        before: u32,
        /// How many it should have.
        wanted: u32,
    },
}
