//! The trail: every message of a stream is recorded once, whatever it holds and whatever happens.

use std::time::{Duration, Instant};

use crate::support::http::Endpoint;
use crate::support::{DEADLINE, Process, Shop, large};
use async_nats::HeaderMap;
use async_nats::jetstream::stream;
use pillarbox_testkit::eventually;
use rustix::process::Signal;
use sqlx::{AssertSqlSafe, Row};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

pub async fn with_trail() -> Shop {
    let shop = Shop::open().await;
    pillarbox_trail::migrate(shop.pool()).await.unwrap();
    shop
}

pub fn trail(shop: &Shop, more: &[&str], environment: &[(&str, &str)]) -> Process {
    let mut arguments = vec!["trail", "--streams", &shop.stream];
    arguments.extend(more);
    let mut all =
        vec![("DATABASE_URL", shop.scope.database_url()), ("NATS_URL", shop.scope.nats_url())];
    all.extend(environment);
    Process::run(&arguments, &all)
}

/// Publishes events with ids from `from` on.
async fn publish(shop: &Shop, from: usize, count: usize) {
    let jetstream = shop.jetstream().await;
    let mut acks = Vec::new();
    for number in from..from + count {
        let mut headers = HeaderMap::new();
        let id = format!("event-{number}");
        let key = format!("key-{}", number % 10);
        for (name, value) in [
            ("ce-id", id.as_str()),
            ("ce-type", "order.placed"),
            ("ce-partitionkey", &key),
            ("ce-correlationid", "first"),
            ("ce-causationid", "before"),
        ] {
            headers.insert(name, value);
        }
        let sent = jetstream.publish_with_headers(shop.topic(), headers, "a payload".into());
        acks.push(sent.await.unwrap());
        if acks.len() == 500 {
            for ack in acks.drain(..) {
                ack.await.unwrap();
            }
        }
    }
    for ack in acks {
        ack.await.unwrap();
    }
}

async fn until(shop: &Shop, sql: &str, wanted: i64) {
    eventually(&format!("{wanted} by {sql}"), DEADLINE, async || match shop.number(sql).await {
        found if found == wanted => Ok(Some(())),
        found => Err(format!("{found}")),
    })
    .await
    .unwrap();
}

async fn run(shop: &Shop, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(shop.pool()).await.unwrap();
}

/// Publishes these bytes as the header block, as a client that does not check them.
async fn publish_raw(shop: &Shop, subject: &str, headers: &[u8], payload: &[u8]) {
    let address = shop.scope.nats_url().split(',').next().unwrap().replace("nats://", "");
    let mut client = tokio::net::TcpStream::connect(address).await.unwrap();
    let mut said = b"CONNECT {\"verbose\":false,\"headers\":true}\r\n".to_vec();
    let (of_headers, of_all) = (headers.len(), headers.len() + payload.len());
    said.extend(format!("HPUB {subject} {of_headers} {of_all}\r\n").as_bytes());
    for part in [headers, payload, b"\r\nPING\r\n"] {
        said.extend(part);
    }
    client.write_all(&said).await.unwrap();
    let mut answer = Vec::new();
    while !answer.windows(4).any(|bytes| bytes == b"PONG") {
        let mut bytes = [0; 4_096];
        let read = client.read(&mut bytes).await.unwrap();
        assert!(read > 0, "{}", String::from_utf8_lossy(&answer));
        answer.extend(&bytes[..read]);
    }
}

const COUNT: &str = "select count(*) from pillarbox.trail";
const DISTINCT: &str = "select count(distinct event_id) from pillarbox.trail";

#[tokio::test]
async fn a_killed_trail_goes_on_where_it_stopped_and_records_everything_once() {
    let shop = with_trail().await;
    publish(&shop, 0, 3_000).await;
    let mut first = trail(&shop, &[], &[]);
    eventually("some rows", DEADLINE, async || {
        Ok::<_, String>((shop.number(COUNT).await > 0).then_some(()))
    })
    .await
    .unwrap();
    first.kill();
    publish(&shop, 3_000, 500).await;
    let second = trail(&shop, &[], &[("PILLARBOX_HTTP", "127.0.0.1:0")]);
    until(&shop, DISTINCT, 3_500).await;
    assert_eq!(shop.number(COUNT).await, 3_500);
    let endpoint = Endpoint::of(&second).await;
    let ready = endpoint.until_ready(200).await;
    assert_eq!(ready["streams"][&shop.stream]["sequence"], 3_500, "{ready}");

    // The next one has nothing to read again.
    drop(second);
    let third = trail(&shop, &[], &[("PILLARBOX_HTTP", "127.0.0.1:0")]);
    publish(&shop, 3_500, 7).await;
    until(&shop, COUNT, 3_507).await;
    let endpoint = Endpoint::of(&third).await;
    let recorded = format!("pillarbox_trail_recorded_total{{stream=\"{}\"}}", shop.stream);
    endpoint.until(&recorded, 7.0).await;
    let row = sqlx::query(
        "select event_type, topic, key, correlation_id, causation_id, size, stream, stream_life, stored_at \
         from pillarbox.trail where event_id = 'event-42'",
    )
    .fetch_one(shop.pool())
    .await
    .unwrap();
    let text = |column: usize| row.get::<String, _>(column);
    assert_eq!((text(0), text(1), text(2)), ("order.placed".into(), shop.topic(), "key-2".into()));
    assert_eq!((text(3), text(4), text(6)), ("first".into(), "before".into(), shop.stream.clone()));
    assert_eq!(row.get::<i64, _>(5), 9);
}

#[tokio::test]
async fn foreign_and_hostile_messages_are_recorded_and_stop_nothing() {
    let shop = with_trail().await;
    let _trail = trail(&shop, &[], &[]);
    let topic = shop.topic();
    publish(&shop, 0, 1).await;
    let huge =
        format!("NATS/1.0\r\nx-huge: {}\r\nce-id: huge\r\nce-type: t\r\n\r\n", "h".repeat(60_000));
    let too_long = format!(
        "NATS/1.0\r\nce-id: too-long\r\nce-type: t\r\nce-correlationid: {}\r\n\r\n",
        "k".repeat(5_000)
    );
    let blocks: [&[u8]; 7] = [
        b"NATS/1.0\r\n\r\n",
        b"NATS/1.0\r\nname: Caf\xe9\r\n\r\n",
        b"NATS/1.0\r\na: b\rc\r\n\r\n",
        b"NATS/1.0\r\nce-id: a%00b\r\nce-type: \x1b[2J\r\n\r\n",
        b"NATS/1.0\r\nce-id: no-type\r\n\r\n",
        huge.as_bytes(),
        too_long.as_bytes(),
    ];
    for (number, block) in blocks.iter().enumerate() {
        publish_raw(&shop, &topic, block, b"hunter2").await;
        publish(&shop, number + 1, 1).await;
    }
    shop.jetstream()
        .await
        .publish(topic.clone(), "no headers, hunter2".into())
        .await
        .unwrap()
        .await
        .unwrap();
    // The last message is one that ends the connection.
    publish_raw(&shop, &topic, b"NATS/1.0\r\nname: Caf\xe9\r\n\r\n", b"x").await;
    until(&shop, COUNT, 17).await;
    until(&shop, "select count(*) from pillarbox.trail where event_id like 'event-%'", 8).await;
    let parsed = "select count(*) from pillarbox.trail where problem like '%cannot be parsed%'";
    until(&shop, parsed, 3).await;
    until(&shop, "select count(*) from pillarbox.trail where event_id = 'too-long' and correlation_id is null and problem is not null", 1).await;
    until(&shop, "select count(*) from pillarbox.trail where event_id is null and problem like '%x-huge%' and size = 7", 1)
        .await;
    let payload = "select count(*) from pillarbox.trail where trail::text like '%hunter2%' or trail::text like '%hhhh%'";
    until(&shop, payload, 0).await;
    // And it goes on.
    publish(&shop, 100, 3).await;
    until(&shop, COUNT, 20).await;
}

#[tokio::test]
async fn a_stream_that_is_made_anew_is_read_from_its_beginning() {
    let shop = with_trail().await;
    let running = trail(&shop, &[], &[]);
    publish(&shop, 0, 5).await;
    until(&shop, COUNT, 5).await;
    for round in 1..3 {
        shop.jetstream().await.delete_stream(&shop.stream).await.unwrap();
        shop.create_stream(|config| config).await;
        publish(&shop, round * 1_000, 5).await;
        until(&shop, COUNT, 5 * (round as i64 + 1)).await;
    }
    let lives = "select count(distinct (stream, stream_life)) from pillarbox.trail";
    until(&shop, lives, 3).await;
    // And while no trail is running.
    drop(running);
    shop.jetstream().await.delete_stream(&shop.stream).await.unwrap();
    shop.create_stream(|config| config).await;
    publish(&shop, 3_000, 9).await;
    let _again = trail(&shop, &[], &[]);
    until(&shop, COUNT, 24).await;
    until(&shop, lives, 4).await;
}

#[tokio::test]
async fn a_place_whose_message_is_another_one_proves_nothing() {
    let shop = with_trail().await;
    let mut running = trail(&shop, &[], &[]);
    publish(&shop, 0, 10).await;
    until(&shop, COUNT, 10).await;
    running.kill();
    // As after a restore: the creation time is the same, and the message at the place is not.
    run(&shop, "update pillarbox.trail_stream set stored_at = stored_at - interval '1 second'")
        .await;
    run(&shop, "delete from pillarbox.trail where sequence in (3, 4, 10)").await;
    let _again = trail(&shop, &[], &[]);
    until(&shop, COUNT, 10).await;
}

#[tokio::test]
async fn another_process_stands_by_and_takes_over() {
    let shop = with_trail().await;
    let first = trail(&shop, &[], &[("PILLARBOX_HTTP", "127.0.0.1:0")]);
    publish(&shop, 0, 5).await;
    until(&shop, COUNT, 5).await;
    let second = trail(&shop, &[], &[("PILLARBOX_HTTP", "127.0.0.1:0")]);
    let standing_by = Endpoint::of(&second).await;
    eventually("the second one to stand by", DEADLINE, async || {
        let ready = standing_by.until_ready(200).await;
        Ok::<_, String>((ready["standing_by"] == true).then_some(()))
    })
    .await
    .unwrap();
    standing_by.until("pillarbox_trail_active", 0.0).await;
    first.signal(Signal::TERM);
    publish(&shop, 5, 5).await;
    until(&shop, COUNT, 10).await;
    standing_by.until("pillarbox_trail_active", 1.0).await;
}

#[tokio::test]
async fn messages_that_have_left_the_stream_are_not_waited_for() {
    let shop = with_trail().await;
    let lag = format!("pillarbox_trail_lag_messages{{stream=\"{}\"}}", shop.stream);
    publish(&shop, 0, 10).await;
    let stream = shop.jetstream().await.get_stream(&shop.stream).await.unwrap();
    stream.purge().await.unwrap();
    let running = trail(&shop, &[], &[("PILLARBOX_HTTP", "127.0.0.1:0")]);
    let endpoint = Endpoint::of(&running).await;
    endpoint.until(&lag, 0.0).await;
    let ready = endpoint.until_ready(200).await;
    assert_eq!(ready["streams"][&shop.stream]["last_sequence"], 10, "{ready}");
    let behind = "select last_sequence - sequence from pillarbox.trail_stream";
    until(&shop, behind, 0).await;
    // Nothing was recorded, so nothing proves a place; what comes is read all the same.
    publish(&shop, 100, 2).await;
    until(&shop, COUNT, 2).await;
    stream.delete_message(12).await.unwrap();
    publish(&shop, 200, 1).await;
    stream.delete_message(13).await.unwrap();
    drop(running);
    let running = trail(&shop, &[], &[("PILLARBOX_HTTP", "127.0.0.1:0")]);
    let endpoint = Endpoint::of(&running).await;
    endpoint.until(&lag, 0.0).await;
    until(&shop, behind, 0).await;
}

#[tokio::test]
async fn a_process_that_does_not_read_any_more_reports_nothing_of_the_streams() {
    let shop = with_trail().await;
    let streams = format!("{},{}_GONE", shop.stream, shop.stream);
    let environment = [
        ("DATABASE_URL", shop.scope.database_url()),
        ("NATS_URL", shop.scope.nats_url()),
        ("PILLARBOX_HTTP", "127.0.0.1:0"),
    ];
    let start = || Process::run(&["trail", "--streams", &streams], &environment);
    let first = start();
    let endpoint = Endpoint::of(&first).await;
    let problem = format!("pillarbox_trail_problem{{stream=\"{}_GONE\"}}", shop.stream);
    endpoint.until(&problem, 1.0).await;
    let second = start();
    second.until_said("http: ").await;
    // The first one loses its session until the second one has the trail.
    let end = "select count(pg_terminate_backend(pid)) from pg_stat_activity \
               where application_name = 'pillarbox trail' and datname = current_database()";
    let standing_by = "select count(*) from pg_locks where locktype = 'advisory' and granted \
                       and database = (select oid from pg_database where datname = current_database())";
    first.signal(Signal::STOP);
    shop.number(end).await;
    Endpoint::of(&second).await.until("pillarbox_trail_active", 1.0).await;
    assert_eq!(shop.number(standing_by).await, 1);
    first.signal(Signal::CONT);
    endpoint.until("pillarbox_trail_active", 0.0).await;
    endpoint.until(&problem, 0.0).await;
}

#[tokio::test]
async fn a_lost_session_is_opened_again_and_nothing_is_missed() {
    let shop = with_trail().await;
    let running = trail(&shop, &[], &[]);
    publish(&shop, 0, 5).await;
    until(&shop, COUNT, 5).await;
    let end = "select count(pg_terminate_backend(pid)) from pg_stat_activity \
               where application_name = 'pillarbox trail' and datname = current_database()";
    for round in 1..4 {
        assert!(shop.number(end).await > 0, "{:?}", running.lines);
        publish(&shop, round * 100, 5).await;
        until(&shop, COUNT, 5 * (round as i64 + 1)).await;
    }
}

#[tokio::test]
async fn without_its_tables_it_waits_and_says_what_to_do() {
    let shop = Shop::open().await;
    let waiting = trail(&shop, &[], &[("PILLARBOX_HTTP", "127.0.0.1:0")]);
    let endpoint = Endpoint::of(&waiting).await;
    let said = endpoint.until_ready(503).await["reason"].to_string();
    eventually("the reason", DEADLINE, async || {
        let said = endpoint.until_ready(503).await["reason"].to_string();
        Ok::<_, String>(said.contains("pillarbox migrate trail").then_some(()))
    })
    .await
    .unwrap_or_else(|error| panic!("{error}: {said}"));
    pillarbox_trail::migrate(shop.pool()).await.unwrap();
    publish(&shop, 0, 3).await;
    until(&shop, COUNT, 3).await;
    endpoint.until_ready(200).await;
}

#[tokio::test]
async fn a_work_queue_is_refused_by_name_and_others_are_read() {
    let shop = with_trail().await;
    let queue = format!("{}_QUEUE", shop.stream);
    let config = stream::Config {
        name: queue.clone(),
        subjects: vec![format!("{}_queue.>", shop.scope.prefix())],
        retention: stream::RetentionPolicy::WorkQueue,
        ..Default::default()
    };
    shop.jetstream().await.create_stream(config).await.unwrap();
    let both = format!("{},{queue}", shop.stream);
    let running = Process::run(
        &["trail", "--streams", &both],
        &[("DATABASE_URL", shop.scope.database_url()), ("NATS_URL", shop.scope.nats_url())],
    );
    publish(&shop, 0, 3).await;
    until(&shop, COUNT, 3).await;
    running.until_said("it is a work queue").await;
}

#[tokio::test]
async fn what_is_too_old_or_too_much_is_dropped_by_days() {
    let shop = with_trail().await;
    run(&shop, "select pillarbox.trail_days(array[current_date, current_date - 1, current_date - 2, current_date - 5])").await;
    let row = |days: i32| {
        format!(
            "insert into pillarbox.trail (stored_at, stream, stream_life, sequence, topic, size, problem) \
             select clock_timestamp() - interval '{days} days', 'S', 'epoch', i + 100000 * {days}, 't', 1, repeat('x', 500) \
             from generate_series(1, 2000) i"
        )
    };
    for days in [0, 1, 2, 5] {
        run(&shop, &row(days)).await;
    }
    let dropped = "select count(*) from pillarbox.trail_forget(3 * 86400, 1000000000)";
    assert_eq!(shop.number(dropped).await, 1);
    assert_eq!(shop.number(COUNT).await, 6_000);
    let dropped = "select count(*) from pillarbox.trail_forget(3 * 86400, 3000000)";
    assert_eq!(shop.number(dropped).await, 1, "the oldest");
    let youngest =
        "select count(*) from pillarbox.trail where stored_at > now() - interval '36 hours'";
    assert_eq!(shop.number(youngest).await, 4_000);
    // The process does the same, and makes the day anew that it needs.
    run(&shop, &format!("select pillarbox.trail_days(array[current_date - 5]); {}", row(5))).await;
    let _running = trail(&shop, &["--trail-max-bytes", "1048576"], &[]);
    until(&shop, "select count(*) from pillarbox.trail where stream = 'S'", 0).await;
    publish(&shop, 0, 3).await;
    until(&shop, COUNT, 3).await;
    for wrong in ["current_date + 4", "current_date - 4000", "null"] {
        let sql = format!("select pillarbox.trail_days(array[{wrong}]::date[])");
        let refused = sqlx::raw_sql(AssertSqlSafe(sql)).execute(shop.pool()).await;
        assert!(refused.is_err(), "{wrong}");
    }
}

#[tokio::test]
async fn a_day_that_somebody_still_reads_is_dropped_later_and_keeps_nothing_back() {
    let shop = with_trail().await;
    run(&shop, "select pillarbox.trail_days(array[current_date, current_date - 5])").await;
    let mut reading = shop.pool().begin().await.unwrap();
    sqlx::query("select from pillarbox.trail").execute(&mut *reading).await.unwrap();
    let running = trail(&shop, &[], &[]);
    running.until_said("somebody uses the trail's tables").await;
    publish(&shop, 0, 3).await;
    until(&shop, COUNT, 3).await;
    drop(reading);
}

#[tokio::test]
async fn the_trails_role_can_do_its_work_and_nothing_else() {
    let shop = with_trail().await;
    let prefix = shop.scope.prefix().to_owned();
    let printed = std::process::Command::new(env!("CARGO_BIN_EXE_pillarbox"))
        .args(["migrate", "trail", "--print-grants", "--role-prefix", &prefix])
        .output()
        .unwrap();
    assert!(printed.status.success(), "{printed:?}");
    let grants = String::from_utf8(printed.stdout).unwrap();
    run(&shop, &grants).await;
    run(&shop, &grants).await;
    run(&shop, &format!("create role {prefix}_app login password 'pw' in role {prefix}_trail"))
        .await;
    let url = shop.scope.database_url().replace("//postgres@", &format!("//{prefix}_app:pw@"));
    let arguments = ["trail", "--streams", &shop.stream];
    let _running =
        Process::run(&arguments, &[("DATABASE_URL", &url), ("NATS_URL", shop.scope.nats_url())]);
    publish(&shop, 0, 5).await;
    until(&shop, COUNT, 5).await;
    let account = sqlx::PgPool::connect(&url).await.unwrap();
    for refused in [
        "delete from pillarbox.trail",
        "update pillarbox.trail set event_id = 'x'",
        "select count(*) from pillarbox.outbox",
        "drop table pillarbox.trail",
        "create table pillarbox.mine (a int)",
        "delete from pillarbox.trail_stream",
        "select pillarbox.trail_forget(1, 1048576)",
    ] {
        let done = sqlx::raw_sql(AssertSqlSafe(refused.to_owned())).execute(&account).await;
        assert!(done.is_err(), "{refused}");
    }
    account.close().await;
}

/// Prints how fast the trail is. It is no timed assertion.
#[tokio::test]
async fn a_backlog_is_read_in_large_batches() {
    let _alone = large().await;
    let shop = with_trail().await;
    const EVENTS: usize = 40_000;
    publish(&shop, 0, EVENTS).await;
    let _running = trail(&shop, &[], &[]);
    eventually("the first rows", DEADLINE, async || {
        Ok::<_, String>((shop.number(COUNT).await > 0).then_some(()))
    })
    .await
    .unwrap();
    let (from, already) = (Instant::now(), shop.number(COUNT).await);
    eventually("all rows", Duration::from_secs(120), async || {
        let read = "select coalesce(max(sequence), 0)::bigint from pillarbox.trail_stream";
        Ok::<_, String>((shop.number(read).await == EVENTS as i64).then_some(()))
    })
    .await
    .unwrap();
    let rate = (EVENTS as i64 - already) as f64 / from.elapsed().as_secs_f64();
    println!("the trail recorded {rate:.0} events/s");
    assert_eq!(shop.number(COUNT).await, EVENTS as i64);
}
