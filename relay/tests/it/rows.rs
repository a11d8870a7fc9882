//! Rows of any kind, as any SQL may write them: each becomes a message or a dead letter, and none stops the relay.

use std::collections::BTreeMap;

use crate::support::{DEADLINE, Shop};
use futures::StreamExt;
use pillarbox_event::{EventId, RawEvent};
use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{RngAlgorithm, TestRng, TestRunner};
use sqlx::types::{Json, Uuid};

const ROWS: usize = 300;

#[derive(Clone, Debug)]
struct Written {
    event_type: String,
    topic: String,
    key: Option<String>,
    headers: BTreeMap<String, serde_json::Value>,
    payload: Vec<u8>,
}

/// Any text that Postgres takes.
fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => "[a-z0-9._-]{1,12}",
        2 => r#"[ %"\\:;,.*>$\r\n\täß🎉]{1,12}"#,
        1 => any::<String>(),
        1 => ("[a-zä]", select_length()).prop_map(|(letter, times)| letter.repeat(times)),
    ]
    .prop_map(|text| text.replace('\0', ""))
}

fn select_length() -> impl Strategy<Value = usize> {
    prop_oneof![Just(255), Just(256), Just(8 * 1024), Just(8 * 1024 + 1)]
}

fn header_name() -> impl Strategy<Value = String> {
    let known = [
        "ce-source",
        "CE-Source",
        "ce-time",
        "ce-datacontenttype",
        "Content-Type",
        "traceparent",
        "ce-id",
        "Nats-Msg-Id",
        "Nats-Rollup",
        "x-tenant",
    ];
    prop_oneof![4 => proptest::sample::select(known.to_vec()).prop_map(str::to_owned), 1 => text()]
}

fn header_value() -> impl Strategy<Value = serde_json::Value> {
    prop_oneof![9 => text().prop_map(Into::into), 1 => any::<i32>().prop_map(Into::into)]
}

fn row(prefix: String) -> impl Strategy<Value = Written> {
    let topic = prop_oneof![
        4 => "[a-z]{1,5}(\\.[a-zä0-9_-]{1,5}){0,3}",
        1 => text(),
    ]
    .prop_map(move |topic| format!("{prefix}.{topic}"));
    let filled = text().prop_filter("the table refuses it", |text| !text.is_empty());
    (
        filled,
        topic,
        option::of(text()),
        btree_map(header_name(), header_value(), 0..4),
        vec(any::<u8>(), 0..64),
    )
        .prop_map(|(event_type, topic, key, headers, payload)| Written {
            event_type,
            topic,
            key,
            headers,
            payload,
        })
}

/// The event that a row stands for, if it stands for one: with the relay's source and the row's time where the row
/// says nothing.
fn event(id: Uuid, row: &Written, time: &str) -> Option<RawEvent> {
    let headers: Option<BTreeMap<String, String>> = row
        .headers
        .iter()
        .map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned())))
        .collect();
    let mut headers = headers?;
    let named = |headers: &BTreeMap<String, String>, wanted: &str| {
        headers.keys().any(|name| name.eq_ignore_ascii_case(wanted))
    };
    if !named(&headers, "ce-source") {
        headers.insert("ce-source".into(), "/pillarbox".into());
    }
    if !named(&headers, "ce-time") {
        headers.insert("ce-time".into(), time.to_owned());
    }
    let Written { event_type, topic, key, payload, .. } = row.clone();
    RawEvent::from_parts(EventId::from(id), event_type, topic, key, headers, payload.into()).ok()
}

/// Notes down each time that the cursor has passed one of these rows, and it is no dead letter. All rows are those of
/// one transaction, which every snapshot but the first sees.
async fn watch_the_cursor(shop: &Shop, refused: &[Uuid]) {
    sqlx::raw_sql(
        "create table watched (event_id uuid primary key); \
         create table passed (event_id uuid, cursor jsonb); \
         create function watch() returns trigger language plpgsql set search_path = public as $$ begin \
           insert into passed \
           select event_id, new.cursor from pillarbox.outbox join watched using (event_id) \
           where not event_id in (select event_id from pillarbox.outbox_dead_letter) \
             and (pg_visible_in_snapshot(txid, (new.cursor ->> 'snapshot')::pg_snapshot) \
               or position <= (new.cursor #>> '{window,position}')::bigint); \
           return null; \
         end $$; \
         create trigger watch after update of cursor on pillarbox.relay for each row execute function watch()",
    )
    .execute(shop.pool())
    .await
    .unwrap();
    sqlx::query("insert into watched select unnest($1::uuid[])")
        .bind(refused)
        .execute(shop.pool())
        .await
        .unwrap();
}

/// The choices of this run; its seed is printed, and `PILLARBOX_SEED` sets it.
fn seeded() -> TestRunner {
    let seed =
        std::env::var("PILLARBOX_SEED").map_or_else(|_| rand::random(), |s| s.parse().unwrap());
    println!("seed {seed}: PILLARBOX_SEED={seed} writes the same rows");
    let seed: [u8; 32] = std::array::from_fn(|at| u64::to_le_bytes(seed)[at % 8]);
    let random = TestRng::from_seed(RngAlgorithm::ChaCha, &seed);
    TestRunner::new_with_rng(proptest::test_runner::Config::default(), random)
}

#[tokio::test]
async fn every_row_becomes_a_message_or_a_dead_letter() {
    let shop = Shop::open().await;
    let mut runner = seeded();
    let mut transaction = shop.pool().begin().await.unwrap();
    let mut wanted = BTreeMap::new();
    let mut refused = BTreeMap::new();
    for at in 0..ROWS {
        let row = row(shop.scope.prefix().to_owned()).new_tree(&mut runner).unwrap().current();
        let (id, time): (Uuid, String) = sqlx::query_as(
            "insert into pillarbox.outbox (event_type, topic, key, headers, payload, created_at) \
             values ($1, $2, $3, $4, $5, '2026-01-02T03:04:05Z') returning event_id, '2026-01-02T03:04:05Z'",
        )
        .bind(&row.event_type)
        .bind(&row.topic)
        .bind(&row.key)
        .bind(Json(&row.headers))
        .bind(&row.payload)
        .fetch_one(&mut *transaction)
        .await
        .unwrap_or_else(|error| panic!("row {at}, {row:?}: {error}"));
        match event(id, &row, &time) {
            Some(event) => drop(wanted.insert(id.to_string(), (event, row))),
            None => drop(refused.insert(id, row)),
        }
    }
    let ids: Vec<Uuid> = refused.keys().copied().collect();
    watch_the_cursor(&shop, &ids).await;
    transaction.commit().await.unwrap();
    assert!(wanted.len() > ROWS / 5 && refused.len() > ROWS / 10, "{}", wanted.len());

    let relay = shop.start(shop.config());
    shop.shipped().await;
    relay.stop().await;
    let passed = shop.number("select count(*) from passed").await;
    assert_eq!(passed, 0, "the saved cursor passed rows that were neither shipped nor set aside");
    let dead: Vec<(Uuid,)> = sqlx::query_as("select event_id from pillarbox.outbox_dead_letter")
        .fetch_all(shop.pool())
        .await
        .unwrap();
    for (id,) in dead {
        assert!(
            refused.remove(&id).is_some(),
            "{:?} is a dead letter",
            wanted.get(&id.to_string())
        );
    }
    let stream = shop.jetstream().await.get_stream(&shop.stream).await.unwrap();
    let messages = usize::try_from(stream.cached_info().state.messages).unwrap();
    let config = async_nats::jetstream::consumer::pull::OrderedConfig::default();
    let mut stored = stream.create_consumer(config).await.unwrap().messages().await.unwrap();
    for _ in 0..messages {
        let message =
            tokio::time::timeout(DEADLINE, stored.next()).await.unwrap().unwrap().unwrap();
        let headers = message.headers.clone().unwrap();
        let headers = headers.iter().flat_map(|(name, values)| {
            let name: &str = name.as_ref();
            values.iter().map(move |value| (name, value.as_str()))
        });
        let found =
            RawEvent::from_wire(&message.subject, headers, message.payload.clone()).unwrap();
        let (event, row) = wanted.remove(found.id().as_str()).expect("each row once");
        assert_eq!(found, event, "headers {:?} of {row:?}", found.headers());
    }
    assert!(wanted.is_empty() && refused.is_empty(), "lost: {wanted:?}, and neither: {refused:?}");
}
