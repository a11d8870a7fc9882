//! Errors that end a consumer, or keep it from starting.

use pillarbox_inbox::{InboxError, SecondHandler};

/// Why a consumer ended, or did not start. Outages are not among these errors: the consumer waits until they are over.
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
    /// Two handlers take the same type of event.
    #[error(transparent)]
    SecondHandler(#[from] SecondHandler),
    /// A handler takes events of a topic that the stream does not take, so it would never run. Topics are compared only
    /// if [`filter_subjects`](crate::ConsumerConfig::filter_subjects) is empty, and if all messages of the stream come
    /// from its own subjects.
    #[error(
        "the handler {handler} takes events of topic {topic}, but stream {stream} takes only {subjects}, so it would \
         never run; name the stream that takes this topic, or add the topic to the subjects of {stream}"
    )]
    NotInStream {
        /// The stream.
        stream: String,
        /// The subjects that the stream takes, separated by commas.
        subjects: String,
        /// The handler.
        handler: &'static str,
        /// The topic of its events: [`Event::TOPIC`](pillarbox_event::Event::TOPIC).
        topic: &'static str,
    },
    /// There is nothing to hand events to.
    #[error("consumer {name} has no handler; add one with `on` before it runs")]
    NoHandler {
        /// The consumer.
        name: String,
    },
    /// The schema's name is not accepted.
    #[error(transparent)]
    Inbox(#[from] InboxError),
    /// The stream keeps messages for longer than the consumer remembers having handled them.
    #[error(
        "consumer {name} remembers handled events for {retention_s} s, but stream {stream} keeps messages for \
         {max_age_s} s, so a message that is delivered again after {retention_s} s would be handled twice; set \
         retention to at least {max_age_s} s, or the stream's max_age to at most {retention_s} s"
    )]
    Retention {
        /// The consumer.
        name: String,
        /// How long the consumer remembers handled events, in seconds.
        retention_s: u64,
        /// The stream.
        stream: String,
        /// How long the stream keeps messages, in seconds.
        max_age_s: u128,
    },
    /// The durable consumer is gone, and the stream holds messages that this consumer may have handled and forgotten.
    #[error(
        "the durable consumer {name} of stream {stream} is gone, and the inbox has forgotten what this consumer \
         handled until {forgotten_s} s ago; the stream holds messages of that time (sequence {sequence}, stored \
         {stored_s} s ago), which would take effect again. Create the durable consumer again where it was (an \
         operator can use `nats consumer add`), or set after_loss = \"remembered\" to read only newer messages, or \
         use another name to handle everything again"
    )]
    Forgotten {
        /// The consumer.
        name: String,
        /// The stream.
        stream: String,
        /// The sequence of the stream's oldest message.
        sequence: u64,
        /// How long ago that message was stored, in seconds.
        stored_s: u64,
        /// How long ago the newest forgotten event was handled, in seconds.
        forgotten_s: u64,
    },
    /// A durable consumer of this name exists with another setting. Pillarbox never changes an existing one.
    #[error(
        "durable consumer {name} of stream {stream} exists with {field} = {found}, but this consumer needs \
         {expected}; change the setting, use another name, or delete the durable consumer"
    )]
    Differs {
        /// The stream.
        stream: String,
        /// The consumer.
        name: String,
        /// The setting.
        field: &'static str,
        /// Its value on the server.
        found: String,
        /// The value that this consumer needs.
        expected: String,
    },
    /// [`Consumer::prepare`](crate::Consumer::prepare) failed, because the broker or the database failed or refused a
    /// request.
    #[error("consumer {name} of stream {stream} is not prepared: {reason}")]
    NotPrepared {
        /// The stream.
        stream: String,
        /// The consumer.
        name: String,
        /// What happened.
        reason: String,
    },
    /// [`Consumer::unhandled`](crate::Consumer::unhandled) did not get an answer, or what it asks about does not exist.
    #[error("what consumer {name} of stream {stream} has not handled is not known: {reason}")]
    NotKnown {
        /// The stream.
        stream: String,
        /// The consumer.
        name: String,
        /// What happened.
        reason: String,
    },
    /// Events from before a change of the number of partitions are not handled yet.
    #[error(
        "consumer {name} of stream {stream} had partitions = {before}, and {unhandled} events of {durable} are not \
         handled yet; run it with partitions = {before} until none is left, then with {wanted}"
    )]
    Unread {
        /// The stream.
        stream: String,
        /// The consumer.
        name: String,
        /// The durable consumer that has these events.
        durable: String,
        /// The number of these events.
        unhandled: u64,
        /// The number of partitions before; 1 means none.
        before: u32,
        /// The number of partitions now.
        wanted: u32,
    },
}
