//! `pillarbox dead-letters`, on both sides.

use std::process::Command;

use std::time::Instant;

use crate::support::{DEADLINE, Process, Shop};
use pillarbox_consumer::{Consumer, ConsumerConfig};
use pillarbox_event::RawEvent;
use pillarbox_inbox::{HandlerError, Router, Tx};
use pillarbox_testkit::eventually;
use serde_json::Value;
use sqlx::Row;
use tokio_util::sync::CancellationToken;

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
    assert!(listed.contains("order.placed") && listed.ends_with("(2 in total)\n"), "{listed}");
    let (code, none) = dead_letters(&shop, &["list", "--outbox", "--key", "3"]);
    assert!(code == 0 && none.starts_with("no dead letters\n"), "{none}");
    assert!(none.contains("of the outbox matches --key 3;"), "{none}");
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

/// What a bad deploy left: 2,000 and 1,000 letters of two kinds of `order.placed`, and ten of `order.paid`.
async fn after_a_bad_deploy() -> Shop {
    let shop = Shop::open().await;
    pillarbox_inbox::migrate(shop.pool()).await.unwrap();
    sqlx::query(
        r#"with dead as (insert into pillarbox.inbox_dead_letter
         (consumer, event_id, event_type, topic, key, headers, payload, reason, error, attempts, first_failed_at, dead_at)
         select 'payments', 'event-' || n, case when n > 3000 then 'order.paid' else 'order.placed' end, $1, 'order-' || n,
             '{}', '{}', case when n > 2000 then 'permanent' else 'attempts' end,
             case when n > 3000 then 'the amount ' || n || '.50 is not in cents'
                 when n > 2000 then 'the payload cannot be read: missing field `c' || n || '` at line 1 column ' || n
                 else 'the charge failed: provider said 503 for "order-' || n || '" after ' || n || ' ms' end,
             5, now(), clock_timestamp() - n * interval '1 second' - (n / 3001) * interval '1 day'
         from generate_series(1, 3010) as n returning consumer, event_id)
         insert into pillarbox.inbox (consumer, event_id) select consumer, event_id from dead"#,
    )
    .bind(shop.topic())
    .execute(shop.pool())
    .await
    .unwrap();
    shop
}

/// The groups of a side, the largest first.
fn groups(shop: &Shop, side: &str) -> Vec<Value> {
    let (code, lines) = dead_letters(shop, &["summary", side, "--json"]);
    assert_eq!(code, 0, "{lines}");
    lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test]
async fn a_summary_has_one_line_for_each_kind_of_trouble() {
    let shop = after_a_bad_deploy().await;
    let found = groups(&shop, "--inbox");
    let told: Vec<_> = found
        .iter()
        .map(|group| {
            let text = |name: &str| group[name].as_str().unwrap();
            (
                group["count"].as_i64().unwrap(),
                text("event_type"),
                text("reason"),
                text("fingerprint"),
            )
        })
        .collect();
    assert_eq!(
        told,
        [
            (
                2_000,
                "order.placed",
                "attempts",
                "the charge failed: provider said # for # after # ms"
            ),
            (
                1_000,
                "order.placed",
                "permanent",
                "the payload cannot be read: missing field # at line # column #"
            ),
            (10, "order.paid", "permanent", "the amount # is not in cents"),
        ]
    );
    let newest = &found[0];
    assert!(newest["error"].as_str().unwrap().contains("\"order-1\" after 1 ms"), "{newest}");
    let age = |name: &str| newest[name].as_f64().unwrap();
    assert!(age("first_age_seconds") >= 2_000.0, "{newest}");
    assert!((1.0..1_900.0).contains(&age("last_age_seconds")), "{newest}");

    let (code, text) = dead_letters(&shop, &["summary"]);
    let name = newest["group"].as_str().unwrap();
    assert!(
        code == 0
            && text.contains("outbox: no unresolved dead letters")
            && text.contains("inbox: 3010 unresolved, in 3 groups")
            && text.lines().any(|line| line.starts_with(name) && line.contains(" 2000 ")),
        "{text}"
    );
    assert_eq!(groups(&shop, "--outbox"), Vec::<Value>::new());

    let (_, less) = dead_letters(&shop, &["summary", "--limit", "1"]);
    assert!(less.contains("(1010 more letters are in smaller groups)"), "{less}");
    let (_, old) = dead_letters(&shop, &["summary", "--inbox", "--older-than", "1d"]);
    assert!(old.contains("inbox: 10 unresolved, in 1 group\n"), "{old}");
}

#[tokio::test]
async fn a_summary_of_a_database_that_only_consumes_asks_for_no_outbox() {
    let shop = Shop::open().await;
    let (code, neither) = dead_letters(&shop, &["summary", "--schema", "elsewhere"]);
    assert!(code == 1 && neither.contains("pillarbox migrate"), "{neither}");
    pillarbox_inbox::migrate(shop.pool()).await.unwrap();
    sqlx::raw_sql("drop table pillarbox.outbox_dead_letter").execute(shop.pool()).await.unwrap();
    assert_eq!(
        dead_letters(&shop, &["summary"]),
        (0, "inbox: no unresolved dead letters\n".to_owned())
    );
    assert_eq!(dead_letters(&shop, &["summary", "--outbox"]).0, 1, "it was asked for");
}

/// How many letters there are in this state.
async fn in_state(shop: &Shop, state: &str) -> i64 {
    let count = "select count(*) from pillarbox.inbox_dead_letter where state = ";
    shop.number(&format!("{count}'{state}'")).await
}

#[tokio::test]
async fn one_kind_of_3010_letters_is_retried_and_another_discarded() {
    let shop = after_a_bad_deploy().await;
    let found = groups(&shop, "--inbox");
    let named = |at: usize| found[at]["group"].as_str().unwrap();
    let (code, asked) = dead_letters(&shop, &["retry", "--inbox", "--all", "--group", named(1)]);
    assert!(code == 1 && asked.contains("retry 1000 dead letters"), "{asked}");
    assert!(asked.contains("Nothing was retried: give --yes"), "{asked}");
    let (_, dry) =
        dead_letters(&shop, &["retry", "--inbox", "--all", "--group", named(1), "--dry-run"]);
    assert!(dry.contains("1000 would be retried; nothing was done"), "{dry}");
    assert_eq!(in_state(&shop, "dead").await, 3_010);

    let few = ["retry", "--inbox", "--all", "--group", named(1), "--limit", "20"];
    let (code, said) = dead_letters(&shop, &few);
    assert!(code == 0 && said.starts_with("20 retried\n"), "{said}");
    assert!(said.contains("no process of consumer payments was seen"), "{said}");
    let oldest = shop
        .number("select min(position) from pillarbox.inbox_dead_letter where state = 'parked'")
        .await;
    assert_eq!(oldest, 2_981, "the oldest come first");
    let (code, said) =
        dead_letters(&shop, &["retry", "--inbox", "--all", "--group", named(1), "--yes"]);
    assert!(code == 0 && said.contains("980 retried"), "{said}");
    assert_eq!(in_state(&shop, "parked").await, 1_000);
    assert_eq!(groups(&shop, "--inbox")[1]["parked"], 1_000);
    let discard = ["discard", "--inbox", "--all", "--group", named(2)];
    assert_eq!(dead_letters(&shop, &discard), (0, "10 discarded\n".into()));
    let others = "select count(*) from pillarbox.inbox_dead_letter \
         where (position <= 2000) <> (state = 'dead') or (position > 3000) <> (state = 'discarded')";
    assert_eq!(shop.number(others).await, 0, "no other letter was touched");
}

#[tokio::test]
async fn letters_are_found_by_type_error_and_age() {
    let shop = after_a_bad_deploy().await;
    for (filters, wanted) in [
        (&["--type", "order.paid"][..], 10),
        (&["--type", "order.placed", "--reason", "permanent"], 1_000),
        (&["--error-like", "PROVIDER said 503"], 2_000),
        (&["--error-like", "missing%`c2042`"], 1),
        (&["--older-than", "20h"], 10),
        (&["--since", "20h"], 3_000),
        (&["--type", "order.paid", "--since", "20h"], 0),
        // `_` and `\\` stand for themselves.
        (&["--error-like", "provider_said"], 0),
        (&["--error-like", "provider said\\"], 0),
    ] {
        let dry = [&["retry", "--inbox", "--all", "--dry-run"], filters].concat();
        let (code, said) = dead_letters(&shop, &dry);
        let found = said.contains(&format!("{wanted} would be retried; nothing"));
        assert!(code == 0 && found, "{filters:?}: {said}");
    }
    let (_, listed) = dead_letters(&shop, &["list", "--inbox", "--limit", "3"]);
    assert!(listed.contains("(the oldest 3 of 3010; --limit shows more)"), "{listed}");
    assert!(listed.contains("order.paid") && listed.contains("3010.50 is not in"), "{listed}");
}

#[tokio::test]
async fn a_filter_that_matches_nothing_by_itself_is_named() {
    let shop = after_a_bad_deploy().await;
    for (flag, value) in [
        ("--type", "order.plced"),
        ("--owner", "payment"),
        ("--reason", "attempt"),
        ("--group", "0123456789"),
        ("--error-like", "segfault"),
    ] {
        for action in [&["list"][..], &["summary"], &["retry", "--all"], &["discard", "--all"]] {
            let known = ["--inbox", "--key", "order-1", flag, value];
            let (code, said) = dead_letters(&shop, &[action, &known].concat());
            let named = format!("of the inbox matches {flag} {value};");
            assert!(code == 0 && said.contains(&named), "{action:?}: {said}");
            let known = match flag {
                "--type" => "there are order.paid, order.placed",
                "--owner" => "there are payments",
                "--reason" => "there are attempts, permanent",
                "--group" => "there are ",
                _ => "`pillarbox dead-letters summary` shows what there is",
            };
            assert!(said.contains(&format!("{named} {known}")), "{action:?}: {said}");
            assert!(!said.contains("--key order-1"), "{action:?}: {said}");
        }
    }
    assert_eq!(in_state(&shop, "dead").await, 3_010);
}

/// Runs any command, and returns its exit code and what it said.
fn pillarbox(shop: &Shop, arguments: &[&str]) -> (i32, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_pillarbox"))
        .args(arguments)
        .env("DATABASE_URL", shop.scope.database_url())
        .env("NATS_URL", shop.scope.nats_url())
        .env("USER", "mia")
        .env_remove("SUDO_USER")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    (output.status.code().unwrap(), text)
}

/// The version after the bad deploy: it wants a currency, and a tenant in a header.
async fn charge(tx: &mut Tx, event: RawEvent) -> Result<(), HandlerError> {
    let payload: Value = serde_json::from_slice(event.payload())
        .map_err(|error| HandlerError::permanent(error.to_string()))?;
    if payload["order"].as_i64() > Some(2_000) && payload["currency"] != "EUR" {
        return Err(HandlerError::permanent("no currency"));
    }
    sqlx::query("insert into charges values ($1, $2)")
        .bind(event.id().as_str())
        .bind(event.headers().get("tenant"))
        .execute(&mut **tx)
        .await?;
    Ok(())
}

fn payments(shop: &Shop) -> (CancellationToken, tokio::task::JoinHandle<()>) {
    let config = ConsumerConfig {
        filter_subjects: vec![">".into()],
        ..ConsumerConfig::new(shop.scope.prefix().to_uppercase(), "payments")
    };
    let client = shop.scope.nats().clone();
    let consumer = Consumer::with_config(client, shop.pool().clone(), config).unwrap();
    let shutdown = CancellationToken::new();
    let running = consumer.router(Router::new().on(charge)).run(shutdown.clone());
    (shutdown, tokio::spawn(async move { running.await.unwrap() }))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_kinds_of_3010_letters_are_resolved_in_under_ten_commands() {
    let shop = after_a_bad_deploy().await;
    sqlx::raw_sql(
        "create table charges (event_id text, tenant text); \
         update pillarbox.inbox_dead_letter set payload = \
         convert_to('{\"order\":' || position || ',\"cents\":12345678901234567890.10}', 'UTF8')",
    )
    .execute(shop.pool())
    .await
    .unwrap();
    let patch = std::env::temp_dir().join(format!("{}.json", shop.scope.prefix()));
    std::fs::write(&patch, r#"{"currency": "EUR"}"#).unwrap();
    let headers = std::env::temp_dir().join(format!("{}-headers.json", shop.scope.prefix()));
    std::fs::write(&headers, r#"{"tenant": "acme"}"#).unwrap();
    let began = Instant::now();
    let mut commands = 0;
    let mut run = |args: &[&str]| {
        commands += 1;
        pillarbox(&shop, args)
    };

    // 1: the summary names the groups.
    let found = groups(&shop, "--inbox");
    let named = |at: usize| found[at]["group"].as_str().unwrap();
    // 2: without a process, a retry says so and its letters wait.
    let first = [
        "dead-letters",
        "retry",
        "--inbox",
        "--all",
        "--group",
        named(0),
        "--limit",
        "1",
        "--wait=1s",
    ];
    let (code, said) = run(&first);
    assert!(code == 1 && said.contains("no process of consumer payments was seen"), "{said}");
    assert!(said.contains("0 handled, 0 failed again, 1 still waiting"), "{said}");
    let (shutdown, running) = payments(&shop);
    // 3: the first kind is retried, and the command waits for what becomes of it.
    let retry =
        ["dead-letters", "retry", "--inbox", "--all", "--group", named(0), "--yes", "--wait"];
    let (code, said) = run(&retry);
    assert!(code == 0 && said.contains("1999 retried"), "{said}");
    assert!(said.contains("1999 handled, 0 failed again, 0 still waiting"), "{said}");
    // 4: the second fails again as long as it is not edited.
    let too_early = [
        "dead-letters",
        "retry",
        "--inbox",
        "--all",
        "--group",
        named(1),
        "--limit",
        "3",
        "--wait",
    ];
    let (code, said) = run(&too_early);
    assert!(code == 1 && said.contains("0 handled, 3 failed again"), "{said}");
    // 5: it is edited, all of it at once.
    let (patch, headers) = (patch.to_str().unwrap(), headers.to_str().unwrap());
    let edit = [
        "dead-letters",
        "edit",
        "--inbox",
        "--all",
        "--type",
        "order.placed",
        "--yes",
        "--merge",
        patch,
        "--headers",
        headers,
        "--note",
        "version 7 left the currency out",
    ];
    let (code, said) = run(&edit);
    assert!(code == 0 && said.contains("1000 edited"), "{said}");
    // 6: and retried.
    let retry = [
        "dead-letters",
        "retry",
        "--inbox",
        "--all",
        "--type",
        "order.placed",
        "--yes",
        "--wait",
        "--rate",
        "2000/s",
    ];
    let (code, said) = run(&retry);
    assert!(code == 0 && said.contains("1000 handled, 0 failed again"), "{said}");
    // 7: the third is not worth it.
    let discard = [
        "dead-letters",
        "discard",
        "--inbox",
        "--all",
        "--group",
        named(2),
        "--note",
        "test data of the load test",
    ];
    assert_eq!(run(&discard), (0, "10 discarded\n".into()));
    // 8: nothing is left.
    let (_, summary) = run(&["dead-letters", "summary", "--inbox"]);
    assert!(summary.contains("inbox: no unresolved dead letters"), "{summary}");
    commands += 1; // the summary of the groups
    println!("{commands} commands in {:?}", began.elapsed());
    assert!(commands < 10, "{commands}");

    shutdown.cancel();
    running.await.unwrap();
    assert_eq!(shop.number("select count(distinct event_id) from charges").await, 3_000);
    assert_eq!(shop.number("select count(*) from charges").await, 3_000, "each once");
    assert_eq!(shop.number("select count(*) from charges where tenant = 'acme'").await, 1_000);
    let kept = "select count(*) from pillarbox.inbox_dead_letter where edited_at is not null \
         and convert_from(payload, 'UTF8') = \
             '{\"cents\":12345678901234567890.10,\"currency\":\"EUR\",\"order\":' || position || '}' \
         and convert_from(original_payload, 'UTF8') = '{\"order\":' || position || ',\"cents\":12345678901234567890.10}'";
    assert_eq!(shop.number(kept).await, 1_000, "the original is kept, and no number was rounded");

    let (_, shown) = pillarbox(&shop, &["dead-letters", "show", "--inbox", "event-3001"]);
    assert!(
        shown.contains("discard by mia (") && shown.contains("test data of the load"),
        "{shown}"
    );
    let (_, listed) = pillarbox(&shop, &["actions", "list", "--json", "--what", "inbox-letters"]);
    let actions: Vec<Value> =
        listed.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let told: Vec<_> = actions
        .iter()
        .map(|action| (action["what"].as_str().unwrap(), action["count"].as_i64().unwrap()))
        .collect();
    let told_first = [
        ("inbox-letters.discard", 10),
        ("inbox-letters.retry", 1_000),
        ("inbox-letters.edit", 1_000),
        ("inbox-letters.retry", 3),
        ("inbox-letters.retry", 1_999),
        ("inbox-letters.retry", 1),
    ];
    assert_eq!(told, told_first);
    assert_eq!(actions[0]["who"], "mia");
    assert_eq!(actions[0]["note"], "test data of the load test");
}

#[tokio::test]
async fn a_discarded_letter_is_restored_and_an_edit_keeps_who_the_event_is() {
    let shop = after_a_bad_deploy().await;
    assert_eq!(
        dead_letters(&shop, &["discard", "--inbox", "event-1"]),
        (0, "1 discarded\n".into())
    );
    let (code, said) = dead_letters(&shop, &["restore", "--inbox", "event-2"]);
    assert!(code == 1 && said.contains("no dead letter event-2 could be restored"), "{said}");
    let (_, listed) = dead_letters(&shop, &["list", "--inbox", "--state", "discarded"]);
    assert!(listed.contains("event-1 ") && listed.contains("(1 in total)"), "{listed}");
    assert_eq!(dead_letters(&shop, &["restore", "--inbox", "event-1"]), (0, "1 restored\n".into()));
    assert_eq!(in_state(&shop, "dead").await, 3_010);

    let file = std::env::temp_dir().join(format!("{}-edit.json", shop.scope.prefix()));
    let path = file.to_str().unwrap();
    let edit = ["edit", "--inbox", "event-1"];
    for (flag, content, wanted) in [
        ("--headers", r#"{"ce-id": "event-2"}"#, "says which event this is"),
        ("--headers", r#"{"CE-Source": "/elsewhere"}"#, "says which event this is"),
        ("--headers", r#"{"Nats-Msg-Id": "1"}"#, "says which event this is"),
        ("--headers", r#"{"tenant": "a\nb"}"#, "would not be an event any more"),
        ("--headers", r#"["tenant"]"#, "a JSON object of strings"),
        ("--merge", "[1]", "the patch must be a JSON object"),
    ] {
        std::fs::write(&file, content).unwrap();
        let (code, said) = dead_letters(&shop, &[&edit[..], &[flag, path]].concat());
        assert!(code == 1 && said.contains(wanted), "{content}: {said}");
    }
    let untouched = "select count(*) from pillarbox.inbox_dead_letter where edited_at is null";
    assert_eq!(shop.number(untouched).await, 3_010);
    for content in ["one", "two"] {
        std::fs::write(&file, content).unwrap();
        let (code, said) = dead_letters(&shop, &[&edit[..], &["--payload", path]].concat());
        assert_eq!((code, said.as_str()), (0, "1 edited\n"));
    }
    let payload = |more: &[&str]| {
        dead_letters(&shop, &[&["show", "--inbox", "event-1", "--payload"][..], more].concat()).1
    };
    assert_eq!((payload(&[]).as_str(), payload(&["--original"]).as_str()), ("two", "{}"));
    let all = ["edit", "--inbox", "--all", "--payload", path];
    assert_eq!(dead_letters(&shop, &all).0, 2, "one payload for all of them");
    // Somebody else was faster.
    dead_letters(&shop, &["retry", "--inbox", "event-1"]);
    let (code, said) = dead_letters(&shop, &[&edit[..], &["--payload", path]].concat());
    assert!(code == 1 && said.contains("no dead letter event-1 could be edited"), "{said}");
    assert_eq!(dead_letters(&shop, &["retry", "--inbox", "--all", "--rate", "0"]).0, 2);
}
