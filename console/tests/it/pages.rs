//! What the pages say.

use std::time::Instant;

use pillarbox_console::{Access, Console, Place};
use reqwest::StatusCode;

use super::support::{Served, Shop};

const PAGES: [&str; 11] = [
    "/",
    "/outboxes",
    "/consumers",
    "/retries",
    "/dead-letters",
    "/flows",
    "/sagas",
    "/scheduled",
    "/doctor",
    "/actions",
    "/runbook",
];

#[tokio::test(flavor = "multi_thread")]
async fn every_page_answers_with_and_without_anything_to_show() {
    let shop = Shop::open().await;
    let served = shop.served().await;
    for path in PAGES {
        let answer = served.get(path).await;
        assert_eq!(answer.status, StatusCode::OK, "{path}: {}", answer.text);
        assert!(answer.text.contains("<main id=\"main\""), "{path}");
        assert_eq!(answer.header("cache-control"), "no-store", "{path}");
        assert!(answer.header("content-security-policy").starts_with("default-src 'none'"));
    }
    for path in
        ["/nothing", "/dead-letters/list", "/dead-letters/one?place=shop&side=inbox&letter=7"]
    {
        assert_eq!(served.get(path).await.status, StatusCode::NOT_FOUND, "{path}");
    }
    for path in ["/console.css", "/console.js"] {
        assert_eq!(served.get(path).await.status, StatusCode::OK, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_trouble_is_at_the_top_of_the_overview_and_says_what_to_do() {
    let shop = Shop::open().await;
    shop.run("insert into pillarbox.outbox (event_type, topic, payload) values ('order.placed', 'a.b', '1')").await;
    shop.give_up("payments", "order.placed", "card declined for order 17", 3).await;
    let place = shop.place().relay("default");
    let served = Served::new(Console::new(vec![place], Access::Loopback)).await;
    let page = served.get("/").await.text;
    let never = page.find("Relay default has never run; 1 event waits").unwrap();
    let letters = page.find("Consumer payments has 3 dead letters").unwrap();
    assert!(never < letters && letters < page.find("id=\"places\"").unwrap(), "{page}");
    assert!(page.contains("/runbook#relay-down") && page.contains("pillarbox relay"), "{page}");
    let groups = served.get("/dead-letters?place=shop&side=inbox&owner=payments").await.text;
    assert!(groups.contains("<strong>3</strong> order.placed"), "{groups}");
}

#[tokio::test(flavor = "multi_thread")]
async fn letters_are_found_by_kind_and_by_what_the_url_says() {
    let shop = Shop::open().await;
    shop.give_up("payments", "order.placed", "card declined for order 17", 3).await;
    shop.give_up("payments", "order.placed", "no such column: cents", 1).await;
    shop.give_up("ledger", "order.paid", "no such column: cents", 2).await;
    let served = shop.served().await;
    let page = served.get("/dead-letters").await.text;
    assert!(page.contains("6 unresolved letters in 3 kinds"), "{page}");
    for (query, kinds) in [
        ("type=order.paid", 1),
        ("error=no+such", 2),
        ("owner=payments", 2),
        ("reason=poison", 0),
        ("since=hour", 3),
    ] {
        let page = served.get(&format!("/dead-letters?{query}")).await.text;
        assert_eq!(page.matches("<p class=\"count\">").count(), kinds, "{query}: {page}");
    }
    let link = |page: &str, from: &str| {
        let at = page.find(from).unwrap_or_else(|| panic!("{from} in {page}"));
        page[at..].split('"').next().unwrap().replace("&amp;", "&")
    };
    let list = served.get(&link(&page, "/dead-letters/list?")).await.text;
    assert_eq!(list.matches("<td class=\"error\">").count(), 3, "the largest kind: {list}");
    let one = served.get(&link(&list, "/dead-letters/one?")).await.text;
    assert!(
        one.contains("card declined for order 17") && one.contains("exhausted, after 5 attempts"),
        "{one}"
    );
    assert!(one.contains("<dt>ce-source</dt><dd class=\"id\">/shop</dd>"), "{one}");
    assert!(
        !one.contains("hunter2") && !one.contains("&quot;order&quot;"),
        "nothing secret: {one}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_away_takes_only_its_own_part_of_the_page() {
    let shop = Shop::open().await;
    shop.give_up("payments", "order.placed", "card declined", 2).await;
    let gone = Place::new("gone", "postgres://nobody@127.0.0.1:1/none", "pillarbox").unwrap();
    let served = Served::new(Console::new(vec![gone, shop.place()], Access::Loopback)).await;
    for path in PAGES {
        let answer = served.get(path).await;
        assert_eq!(answer.status, StatusCode::OK, "{path}: {}", answer.text);
    }
    let page = served.get("/").await.text;
    assert!(
        page.contains("The database cannot be read") && page.contains("payments has 2 dead"),
        "{page}"
    );
    let page = served.get("/dead-letters").await.text;
    assert!(
        page.contains("gone cannot be read.") && page.contains("2 unresolved letters"),
        "{page}"
    );
}

/// Databases that take connections and say nothing, and checks that never end.
#[tokio::test(flavor = "multi_thread")]
async fn silent_databases_do_not_hold_up_the_pages_of_the_others() {
    let shop = Shop::open().await;
    pillarbox_trail::migrate(shop.pool()).await.unwrap();
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("postgres://nobody@{}/none", silent.local_addr().unwrap());
    let mut places: Vec<Place> = ["one", "two", "three"]
        .map(|name| {
            let place = Place::new(name, &url, "pillarbox").unwrap();
            place.check_up(|| Box::pin(std::future::pending()))
        })
        .into();
    places.push(shop.place());
    let served = Served::new(Console::new(places, Access::Loopback)).await;
    let (flows, doctor) = tokio::join!(served.get("/flows?key=42"), served.get("/doctor"));
    assert_eq!(flows.status, StatusCode::OK, "{}", flows.text);
    assert_eq!(flows.text.matches("cannot be read.").count(), 3, "{}", flows.text);
    assert!(flows.text.contains("nothing is known of key"), "{}", flows.text);
    assert_eq!(doctor.status, StatusCode::OK, "{}", doctor.text);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mounted_console_links_to_its_own_path() {
    let shop = Shop::open().await;
    let console =
        Console::new(vec![shop.place()], Access::Loopback).mounted_at("/ops/pillarbox/").unwrap();
    let served = Served::router(axum::Router::new().nest("/ops/pillarbox", console.router())).await;
    let page = served.get("/ops/pillarbox").await;
    assert_eq!(page.status, StatusCode::OK);
    for link in page.text.split("href=\"").skip(1).map(|rest| rest.split('"').next().unwrap()) {
        assert!(link.starts_with("/ops/pillarbox") || link.starts_with('#'), "{link}");
        let status = served.get(link.split('#').next().unwrap()).await.status;
        assert!(link.starts_with('#') || status == StatusCode::OK, "{link}: {status}");
    }
    for wrong in ["ops", "/a b", "/a//b", "/\"x"] {
        assert!(Console::new(vec![], Access::Loopback).mounted_at(wrong).is_err(), "{wrong}");
    }
}

/// What the overview reads is bounded, whatever is in the tables: it counts at most ten thousand and one letters a
/// side.
#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_thousand_letters_do_not_slow_the_overview() {
    let shop = Shop::open().await;
    shop.give_up("payments", "order.placed", "card declined for order 17", 100_000).await;
    shop.run("analyze pillarbox.inbox_dead_letter").await;
    let served = shop.served().await;
    let page = served.get("/").await.text;
    assert!(page.contains("Consumer payments has more than 10,000 dead letters"), "{page}");
    let began = Instant::now();
    for _ in 0..20 {
        assert_eq!(served.get("/").await.status, StatusCode::OK);
    }
    println!("the overview with 100,000 letters: {:?} a page", began.elapsed() / 20);
    let statement = include_str!("../../src/sql/letters.sql")
        .replace("{owner}", "consumer")
        .replace("{table}", "inbox_dead_letter")
        .replace("$1", "10001");
    let statement = sqlx::AssertSqlSafe(format!("explain (analyze, timing off) {statement}"));
    let plan: Vec<String> = sqlx::query_scalar(statement).fetch_all(shop.pool()).await.unwrap();
    let plan = plan.join("\n");
    assert!(plan.contains("rows=10001 loops=1"), "as many as are counted are read: {plan}");
    assert!(!plan.contains("(actual rows=100000"), "not all of them are read: {plan}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_processes_of_every_consumer_count_while_they_write_that_they_run() {
    let shop = Shop::open().await;
    shop.run(
        "insert into pillarbox.inbox_member (consumer, process, stream, host, state, seen_at) values \
         ('payments', 'a', 'SHOP', 'h', 'running', now()), ('payments', 'b', 'SHOP', 'h', 'running', now()), \
         ('payments', 'c', 'SHOP', 'h', 'running', now() - interval '31 s'), \
         ('ledger', 'd', 'SHOP', 'h', 'running', now() - interval '1 hour')",
    )
    .await;
    let served = shop.served().await;
    let page = served.get("/consumers").await.text;
    let processes = |consumer: &str| {
        let (_, row) = page.split_once(&format!(">{consumer}</a>")).unwrap();
        let cells = row.split_once("</tr>").unwrap().0.trim();
        cells.rsplit_once("<td class=\"n\">").unwrap().1.trim_end_matches("</td>").to_owned()
    };
    assert_eq!((processes("payments"), processes("ledger")), ("2".into(), "0".into()), "{page}");
    assert!(page.contains("seen in the last 30 s"), "{page}");
}
