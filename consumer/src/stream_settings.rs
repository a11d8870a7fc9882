//! Settings of a stream by which an event can be lost or changed before it is handled.
//!
//! The consumer cannot change these settings, and none of them has done harm yet. So they do not end the consumer, and
//! do not make it unwell. The log and the status show each of them, with what to do about it.
//!
//! | setting | why the consumer warns |
//! |---|---|
//! | `max_msgs`, `max_bytes`, with `discard` = old | a full stream removes its oldest messages, even unhandled ones |
//! | `max_msgs_per_subject`, unless a full subject refuses new ones | the same, for a subject |
//! | `retention` = interest | a message that is published while no durable consumer exists is not kept for it |
//! | `allow_rollup_hdrs` | a message with that header removes all messages before it |
//! | `allow_msg_ttl` | a message can set its own age, and is removed at that age |
//! | `allow_msg_counter` | the server replaces payloads with sums |
//! | `allow_msg_schedules` | a message that only schedules another one is stored, and delivered, too |
//! | `storage` = memory, `persist_mode` = async | a restart or a crash of the server loses messages |
//! | `sealed` | the stream takes no new messages |
//! | `max_age` | not here: it is [compared](crate::ConsumerError::Retention) with how long the inbox remembers |
//!
//! The other settings are harmless for a consumer: `duplicate_window` (the inbox drops repeats in any case), `mirror`,
//! `sources` and subject transforms (events keep their identity), `deny_delete` and `deny_purge` (they protect),
//! `allow_direct` (the consumer asks the leader), work queues (unacknowledged messages stay), replicas and placement.
//!
//! Messages that the stream has in fact removed are reported by [`removed`](crate::removed).

use async_nats::jetstream::stream::{
    Config, DiscardPolicy, PersistenceMode, RetentionPolicy, StorageType,
};

/// For each such setting of the stream: what can happen, and what to do.
pub(super) fn warnings(stream: &Config) -> Vec<String> {
    let old = stream.discard == DiscardPolicy::Old;
    let full_subjects_refuse = !old && stream.discard_new_per_subject;
    let name = &stream.name;
    let all = [
        (old && stream.max_messages > 0).then(|| {
            format!(
                "max_msgs = {}: when the stream is full, it removes its oldest messages, even unhandled ones; set \
                 discard = new, so that the relay waits instead",
                stream.max_messages
            )
        }),
        (old && stream.max_bytes > 0).then(|| {
            format!(
                "max_bytes = {}: when the stream is full, it removes its oldest messages, even unhandled ones; set \
                 discard = new, so that the relay waits instead",
                stream.max_bytes
            )
        }),
        (stream.max_messages_per_subject > 0 && !full_subjects_refuse).then(|| {
            format!(
                "max_msgs_per_subject = {}: newer messages of a subject remove older ones, even unhandled ones; set it \
                 to -1, or set discard = new together with discard_new_per_subject",
                stream.max_messages_per_subject
            )
        }),
        (stream.retention == RetentionPolicy::Interest).then(|| {
            "retention = interest: a message that is published while no durable consumer exists is not kept for it; \
             create the durable consumer before anything is published and do not delete it, or use retention = limits \
             with a max_age"
                .to_owned()
        }),
        stream.allow_rollup.then(|| {
            "allow_rollup_hdrs = true: a message with the header Nats-Rollup removes the messages before it, even \
             unhandled ones; set it to false"
                .to_owned()
        }),
        stream.allow_message_ttl.then(|| {
            "allow_msg_ttl = true: a message with the header Nats-TTL is removed at that age, even if it is unhandled; \
             make sure that no producer sets the header, or use another stream, because the setting cannot be \
             switched off"
                .to_owned()
        }),
        stream.allow_message_counter.then(|| {
            "allow_msg_counter = true: the server replaces payloads with sums, which are not events; use another \
             stream for events"
                .to_owned()
        }),
        stream.allow_message_schedules.then(|| {
            "allow_msg_schedules = true: a message that only schedules another one is stored and delivered, too; keep \
             the subjects of such messages out of filter_subjects"
                .to_owned()
        }),
        (stream.storage == StorageType::Memory).then(|| {
            "storage = memory: a restart of the server loses unhandled messages; use storage = file".to_owned()
        }),
        (stream.persist_mode == Some(PersistenceMode::Async)).then(|| {
            "persist_mode = async: a crash of the server can lose messages that it has acknowledged; use the default"
                .to_owned()
        }),
        stream.sealed.then(|| {
            "sealed = true: the stream can never take new messages again; use another stream".to_owned()
        }),
    ];
    all.into_iter().flatten().map(|warning| format!("stream {name} has {warning}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_setting_that_can_lose_an_event_is_told_by_its_name_and_no_other() {
        type Change = fn(&mut Config);
        let cases: [(Change, &[&str]); 18] = [
            (|_| {}, &[]),
            (|c| c.max_messages = -1, &[]),
            (|c| c.max_messages = 7, &["max_msgs = 7"]),
            (|c| c.max_bytes = 8, &["max_bytes = 8"]),
            (|c| (c.max_messages, c.max_bytes) = (7, 8), &["max_msgs = 7", "max_bytes = 8"]),
            (|c| (c.max_messages, c.discard) = (7, DiscardPolicy::New), &[]),
            (|c| c.max_messages_per_subject = 1, &["max_msgs_per_subject = 1"]),
            (
                |c| (c.max_messages_per_subject, c.discard) = (1, DiscardPolicy::New),
                &["max_msgs_per_subject = 1"],
            ),
            (
                |c| {
                    (c.max_messages_per_subject, c.discard) = (1, DiscardPolicy::New);
                    c.discard_new_per_subject = true;
                },
                &[],
            ),
            (|c| c.retention = RetentionPolicy::Interest, &["retention = interest"]),
            (|c| c.retention = RetentionPolicy::WorkQueue, &[]),
            (|c| c.allow_rollup = true, &["allow_rollup_hdrs"]),
            (|c| c.allow_message_ttl = true, &["allow_msg_ttl"]),
            (|c| c.allow_message_counter = true, &["allow_msg_counter"]),
            (|c| c.allow_message_schedules = true, &["allow_msg_schedules"]),
            (|c| c.storage = StorageType::Memory, &["storage = memory"]),
            (|c| c.persist_mode = Some(PersistenceMode::Async), &["persist_mode = async"]),
            (|c| c.sealed = true, &["sealed"]),
        ];
        for (change, expected) in cases {
            let mut stream = Config { name: "ORDERS".into(), ..Config::default() };
            change(&mut stream);
            let told = warnings(&stream);
            assert_eq!(told.len(), expected.len(), "{told:?}");
            for (told, expected) in told.iter().zip(expected) {
                assert!(told.starts_with(&format!("stream ORDERS has {expected}")), "{told}");
                assert!(told.contains("; "), "it says what to do: {told}");
            }
        }
    }
}
