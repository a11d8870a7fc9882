//! `pillarbox dead-letters`, on both sides.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::process::Command;

use pillarbox_testkit::eventually;
use sqlx::Row;
use support::{DEADLINE, Process, Shop};

fn dead_letters(shop: &Shop, arguments: &[&str]) -> (i32, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_pillarbox"))
        .arg("dead-letters")
        .args(arguments)
        .env("DATABASE_URL", shop.scope.database_url())
        .env("NATS_URL", shop.scope.nats_url())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    (output.status.code().unwrap(), text)
}

#[tokio::test]
async fn an_outbox_letter_is_listed_shown_and_shipped_again_under_its_id() {
    let shop = Shop::open().await;
    shop.create_stream(|config| async_nats::jetstream::stream::Config {
        max_message_size: 2_000,
        ..config
    })
    .await;
    let _relay = Process::relay(&shop, &[]);
    shop.insert_one("1", &"x".repeat(5_000)).await;
    shop.insert_one("2", &"y".repeat(5_000)).await;
    eventually("two dead letters", DEADLINE, async || {
        let found = shop.number("select count(*) from pillarbox.outbox_dead_letter").await;
        Ok::<_, String>((found == 2).then_some(()))
    })
    .await
    .unwrap();
    let row =
        sqlx::query("select event_id::text from pillarbox.outbox_dead_letter where key = '1'");
    let id: String = row.fetch_one(shop.pool()).await.unwrap().get(0);

    let (code, listed) = dead_letters(&shop, &["list", "--outbox"]);
    assert!(code == 0 && listed.contains(&id) && listed.contains("too_large"), "{listed}");
    assert_eq!(dead_letters(&shop, &["list", "--outbox", "--key", "3"]).1, "no dead letters\n");
    let (_, shown) = dead_letters(&shop, &["show", "--outbox", &id]);
    assert!(shown.contains("payload   5000 bytes") && !shown.contains("xxx"), "{shown}");
    assert_eq!(dead_letters(&shop, &["show", "--outbox", "--payload", &id]).1, "x".repeat(5_000));
    let (code, dry) = dead_letters(&shop, &["retry", "--outbox", "--all", "--dry-run"]);
    assert!(code == 0 && dry.contains("nothing was done"), "{dry}");

    shop.create_stream(|config| async_nats::jetstream::stream::Config {
        max_message_size: -1,
        ..config
    })
    .await;
    assert_eq!(dead_letters(&shop, &["retry", "--outbox", &id]), (0, "1 retried\n".into()));
    shop.until_messages(1).await;
    assert_eq!(shop.stored().await[0].id, id);
    assert_eq!(dead_letters(&shop, &["discard", "--outbox", "--all"]), (0, "1 discarded\n".into()));
    assert_eq!(dead_letters(&shop, &["list", "--outbox"]).1, "no dead letters\n");
    assert_eq!(dead_letters(&shop, &["retry", "--outbox", &id]).0, 1, "it is resolved");
    assert_eq!(dead_letters(&shop, &["list"]).0, 2, "one of the sides must be named");
}

#[tokio::test]
async fn an_inbox_letter_is_left_to_its_consumer_and_not_published_again() {
    let shop = Shop::open().await;
    pillarbox_inbox::migrate(shop.pool()).await.unwrap();
    sqlx::query(
        "with dead as (insert into pillarbox.inbox_dead_letter \
         (consumer, event_id, event_type, topic, key, headers, payload, reason, error, attempts, first_failed_at) \
         values ('payments', 'order-1', 'order.placed', $1, 'k', '{\"x-tenant\": \"acme\"}', '{}', 'attempts', 'no', 5, now()), \
                ('payments', 'STREAM:7', null, $1, null, '{}', 'junk', 'undecodable', 'no ce-id', 0, now())) \
         insert into pillarbox.inbox (consumer, event_id) values ('payments', 'order-1'), ('payments', 'STREAM:7')",
    )
    .bind(shop.topic())
    .execute(shop.pool())
    .await
    .unwrap();
    let (code, said) = dead_letters(&shop, &["retry", "--inbox", "--all"]);
    assert!(
        code == 1 && said.contains("1 retried") && said.contains("STREAM:7 cannot be retried"),
        "{said}"
    );
    assert!(shop.stored().await.is_empty(), "nothing is published");
    assert_eq!(
        shop.number(
            "select count(*) from pillarbox.inbox_dead_letter where event_id = 'order-1' and state = 'parked'"
        )
        .await,
        1
    );
    let (_, listed) = dead_letters(&shop, &["list", "--inbox"]);
    assert!(listed.contains("parked") && listed.contains("order-1"), "{listed}");
    assert_eq!(
        dead_letters(&shop, &["discard", "--inbox", "order-1"]),
        (0, "1 discarded\n".into())
    );
    assert_eq!(
        dead_letters(&shop, &["discard", "--inbox", "--reason", "undecodable", "--all"]).0,
        0
    );
    assert_eq!(dead_letters(&shop, &["list", "--inbox", "--json"]).1, "");
}
