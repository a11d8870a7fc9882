//! HTTP requests that take effect once: axum on a loopback port, a real Postgres.

mod measured;
mod shop;

use std::sync::Arc;
use std::time::Duration;

use axum::http::{Method, StatusCode};
use futures::future::join_all;
use pillarbox_inbox::http::{IdempotencyLayer, StoredRequests, Verdict};
use pillarbox_testkit::{eventually, servers};
use shop::{Answer, Shop, tenant};

const DEADLINE: Duration = Duration::from_secs(10);

/// Repeats until the first one's transaction is gone.
async fn until_it_runs(shop: &Shop, key: &str, what: &str) -> Answer {
    eventually("the key to be free", DEADLINE, async || {
        match shop.send(Method::POST, "/orders", &[("idempotency-key", key)], what).await {
            Some(answer) if answer.status == StatusCode::CONFLICT => Err("409".to_owned()),
            Some(answer) => Ok(Some(answer)),
            None => Err("no answer".to_owned()),
        }
    })
    .await
    .unwrap()
}

fn assert_problem(answer: &Answer, status: u16, title: &str) {
    assert_eq!(answer.status.as_u16(), status, "{}", answer.body);
    assert_eq!(answer.header("content-type"), "application/problem+json");
    let problem: serde_json::Value = serde_json::from_str(&answer.body).unwrap();
    assert_eq!(problem["title"], title);
    assert_eq!(problem["status"], status);
}

#[tokio::test]
async fn a_repeat_gets_the_answer_of_the_first_one_and_has_no_effect() {
    let shop = Shop::open().await;
    let first = shop.post("\"k1\"", "tea").await;
    assert_eq!((first.status, first.body.as_str()), (StatusCode::CREATED, "order 1, call 1"));
    assert!(!first.replayed());
    assert_eq!(first.header("set-cookie"), "session=secret");
    for key in ["\"k1\"", "k1"] {
        let again = shop.post(key, "tea").await;
        assert_eq!((again.status, &again.body), (first.status, &first.body));
        assert!(again.replayed());
        let names = ["location", "content-type", "x-extra", "content-length", "cache-control"];
        for name in names.into_iter().chain(["content-disposition"]) {
            assert_ne!(again.header(name), "", "{name}");
            assert_eq!(again.header(name), first.header(name), "{name}");
        }
        assert_eq!(again.header("set-cookie"), "", "a session is nobody else's");
        assert_eq!(again.header("x-hop"), "", "it was about the connection");
    }
    assert_eq!((shop.calls(), shop.orders().await, shop.stored().await), (1, 1, 1));
    assert_eq!(shop.number("select count(*) from pillarbox.outbox").await, 1, "one event");
    let other = shop.post("k2", "coffee").await;
    assert_eq!(other.body, "order 2, call 2");
}

#[tokio::test]
async fn a_request_without_a_key_or_with_a_bad_one_is_refused() {
    let shop = Shop::with(|layer| layer.documentation("https://shop.example/keys")).await;
    let missing = shop.send(Method::POST, "/orders", &[], "tea").await.unwrap();
    assert_problem(&missing, 400, "Idempotency-Key is missing");
    assert!(missing.body.contains("https://shop.example/keys"));
    assert_eq!(missing.header("link"), "<https://shop.example/keys>; rel=\"describedby\"");
    let (long, two) = ("k".repeat(256), [("idempotency-key", "a"), ("idempotency-key", "b")]);
    for headers in [&[("idempotency-key", "")][..], &[("idempotency-key", long.as_str())], &two] {
        let answer = shop.send(Method::POST, "/orders", headers, "tea").await.unwrap();
        assert_problem(&answer, 400, "Idempotency-Key is malformed");
    }
    assert_eq!(shop.calls(), 0);
    let safe = shop.send(Method::GET, "/orders", &[], "").await.unwrap();
    assert_eq!(safe.body, "0", "a GET needs none");
    let idempotent = shop.send(Method::PUT, "/orders", &[], "tea").await.unwrap();
    assert_eq!(idempotent.status, StatusCode::CREATED, "a PUT neither");
    assert_eq!((shop.orders().await, shop.stored().await), (1, 0));
}

#[tokio::test]
async fn without_a_key_where_none_is_required_it_runs_in_a_transaction_each_time() {
    let shop = Shop::with(IdempotencyLayer::key_optional).await;
    let order = async |what| shop.send(Method::POST, "/orders", &[], what).await.unwrap().status;
    assert_eq!(order("fail-once").await, StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(order("refuse").await, StatusCode::PAYMENT_REQUIRED);
    assert_eq!(order("pass-over-an-error").await, StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(shop.orders().await, 0, "rolled back");
    assert_eq!(order("tea").await, StatusCode::CREATED);
    assert_eq!(order("more tea").await, StatusCode::CREATED);
    assert_eq!((shop.orders().await, shop.stored().await), (2, 0));
}

#[tokio::test]
async fn a_handler_that_ends_the_transaction_fails_for_good_and_is_not_run_again() {
    for sql in ["rollback", "commit", "commit and chain", "abort; begin", "commit; begin"] {
        let shop = Shop::open().await;
        for (number, word) in (1..).zip(["ends", "ends-and-fails"]) {
            let order = format!("{word} {sql}");
            let first = shop.post(word, &order).await;
            assert_problem(&first, 500, "The request failed");
            let again = shop.post(word, &order).await;
            assert_eq!((again.status, &again.body), (first.status, &first.body), "{order}");
            assert!(again.replayed(), "{order}");
            assert_eq!(shop.calls(), number, "{order}");
            let committed = u32::from(sql.contains("commit")) * number;
            assert_eq!(shop.orders().await, i64::from(committed), "{order}");
        }
    }
}

#[tokio::test]
async fn what_a_request_leaves_in_its_session_does_not_reach_the_next_one() {
    let shop = Shop::open().await;
    for (number, sql) in (1..).zip([
        "set search_path = pg_temp",
        "set local search_path = pg_temp",
        "set default_transaction_read_only = on",
        "select pg_advisory_lock(17)",
        "create temporary table orders (id bigint generated always as identity, text text)",
    ]) {
        let answer = shop.post(&format!("k{number}"), &format!("ends {sql}")).await;
        assert_eq!(answer.status, StatusCode::CREATED, "{sql}: {}", answer.body);
        assert_eq!(shop.orders().await, number, "{sql}");
    }
    let locks = "select count(*) from pg_locks where locktype = 'advisory' and objid = 17 \
                 and database = (select oid from pg_database where datname = current_database())";
    assert_eq!(shop.number(locks).await, 0);
}

#[tokio::test]
async fn the_same_key_for_another_request_is_refused() {
    let shop = Shop::open().await;
    assert_eq!(shop.post("k", "tea").await.status, StatusCode::CREATED);
    let key = [("idempotency-key", "k")];
    for (method, path, body) in [
        (Method::POST, "/orders", "coffee"),
        (Method::PATCH, "/orders", "tea"),
        (Method::POST, "/orders?cups=2", "tea"),
        (Method::POST, "/echo", "tea"),
    ] {
        let answer = shop.send(method, path, &key, body).await.unwrap();
        assert_problem(&answer, 422, "Idempotency-Key is already used");
    }
    assert_eq!((shop.calls(), shop.orders().await), (1, 1));
}

#[tokio::test]
async fn a_repeat_while_the_first_one_runs_is_told_so_at_once() {
    let shop = Arc::new(Shop::open().await);
    let first = tokio::spawn({
        let shop = shop.clone();
        async move { shop.post("k", "wait-once").await }
    });
    shop.signals.entered.notified().await;
    let second = tokio::time::timeout(DEADLINE, shop.post("k", "wait-once")).await.unwrap();
    assert_problem(&second, 409, "A request is outstanding for this Idempotency-Key");
    assert_eq!(second.header("retry-after"), "1");
    assert_eq!(second.header("idempotency-problem"), "in-progress");
    let problem: serde_json::Value = serde_json::from_str(&second.body).unwrap();
    assert_eq!(problem["type"], "urn:pillarbox:idempotency:in-progress");
    let other = shop.post("other", "tea").await;
    assert_eq!(other.status, StatusCode::CREATED, "another key is not held up");
    shop.signals.go_on.notify_one();
    assert_eq!(first.await.unwrap().status, StatusCode::CREATED);
    assert!(shop.post("k", "wait-once").await.replayed());
    assert_eq!(shop.calls(), 2);
}

#[tokio::test]
async fn of_fifty_at_once_one_takes_effect() {
    let shop = Shop::open().await;
    let answers = join_all((0..50).map(|_| shop.post("k", "tea"))).await;
    let of = |status| answers.iter().filter(|answer| answer.status == status).count();
    assert_eq!(of(StatusCode::CREATED) + of(StatusCode::CONFLICT), 50);
    let first = answers.iter().filter(|a| a.status == StatusCode::CREATED && !a.replayed()).count();
    assert_eq!((first, shop.calls(), shop.orders().await), (1, 1, 1));
    let again = join_all((0..50).map(|_| shop.post("k", "tea"))).await;
    assert!(again.iter().all(|answer| answer.replayed() && answer.body == "order 1, call 1"));
}

#[tokio::test]
async fn an_error_of_the_server_leaves_nothing_and_a_repeat_runs_again() {
    let shop = Shop::open().await;
    for (key, what, status) in [("a", "fail-once", 500), ("b", "busy-once", 429)] {
        shop.signals.calls.store(0, std::sync::atomic::Ordering::SeqCst);
        let (orders, stored) = (shop.orders().await, shop.stored().await);
        assert_eq!(shop.post(key, what).await.status.as_u16(), status);
        assert_eq!((shop.orders().await, shop.stored().await), (orders, stored));
        let again = shop.post(key, what).await;
        assert_eq!(again.status, StatusCode::CREATED, "at once, without a 409");
        assert!(!again.replayed());
        assert_eq!((shop.orders().await, shop.stored().await), (orders + 1, stored + 1));
    }
    assert_eq!(shop.number("select count(*) from pillarbox.outbox").await, 2);
}

#[tokio::test]
async fn a_panic_leaves_nothing_and_a_repeat_runs_again() {
    let shop = Shop::open().await;
    let key = [("idempotency-key", "k")];
    assert!(shop.send(Method::POST, "/orders", &key, "panic-once").await.is_none());
    let again = until_it_runs(&shop, "k", "panic-once").await;
    assert_eq!((again.status, shop.calls()), (StatusCode::CREATED, 2));
    assert_eq!((shop.orders().await, shop.stored().await), (1, 1));
}

#[tokio::test]
async fn a_client_that_goes_away_in_the_middle_leaves_nothing() {
    let shop = Arc::new(Shop::open().await);
    let first = tokio::spawn({
        let shop = shop.clone();
        async move { shop.post("k", "wait-once").await }
    });
    shop.signals.entered.notified().await;
    first.abort();
    tokio::time::timeout(DEADLINE, shop.signals.dropped.notified()).await.unwrap();
    let again = until_it_runs(&shop, "k", "wait-once").await;
    assert!(!again.replayed());
    assert_eq!((again.status, shop.calls()), (StatusCode::CREATED, 2));
    assert_eq!((shop.orders().await, shop.stored().await), (1, 1));
    assert_eq!(shop.number("select count(*) from pillarbox.outbox").await, 1);
}

#[tokio::test]
async fn a_connection_lost_before_the_commit_leaves_nothing() {
    let shop = Arc::new(Shop::open().await);
    let first = tokio::spawn({
        let shop = shop.clone();
        async move {
            let key = [("idempotency-key", "k")];
            shop.send(Method::POST, "/orders", &key, "wait-once").await
        }
    });
    shop.signals.entered.notified().await;
    let ended = "select count(pg_terminate_backend(pid)) from pg_stat_activity \
                 where datname = current_database() and state = 'idle in transaction'";
    assert_eq!(shop.number(ended).await, 1);
    shop.signals.go_on.notify_one();
    let first = first.await.unwrap().unwrap();
    assert_problem(&first, 503, "It is not known whether the request took effect");
    assert_eq!((shop.orders().await, shop.stored().await), (0, 0));
    let again = until_it_runs(&shop, "k", "wait-once").await;
    assert_eq!((again.status, again.replayed()), (StatusCode::CREATED, false));
    assert_eq!(shop.orders().await, 1);
}

#[tokio::test]
async fn a_server_that_dies_between_handler_and_commit_leaves_nothing() {
    let scope = servers().await.unwrap().scope().await.unwrap();
    pillarbox_inbox::migrate(scope.pool()).await.unwrap();
    // Judging comes after the handler and before anything is stored.
    let (judged, mut is_judged) = tokio::sync::mpsc::unbounded_channel();
    let layer = IdempotencyLayer::new(scope.pool().clone(), tenant).verdict(move |_| {
        judged.send(()).unwrap();
        panic!("dies here, as the test wants")
    });
    let shop = Shop::of(scope, layer).await;
    let key = [("idempotency-key", "k")];
    assert!(shop.send(Method::POST, "/orders", &key, "tea").await.is_none());
    is_judged.try_recv().unwrap();
    let shop = shop.again(|pool| IdempotencyLayer::new(pool, tenant)).await;
    assert_eq!((shop.orders().await, shop.stored().await), (0, 0));
    let again = until_it_runs(&shop, "k", "tea").await;
    assert_eq!((again.status, again.replayed()), (StatusCode::CREATED, false));
    assert_eq!(shop.orders().await, 1);
}

#[tokio::test]
async fn a_refusal_is_told_again_and_its_writes_are_undone() {
    let shop = Shop::open().await;
    let first = shop.post("k", "refuse").await;
    assert_eq!((first.status, shop.orders().await), (StatusCode::PAYMENT_REQUIRED, 0));
    let again = shop.post("k", "refuse").await;
    assert_eq!((again.status, &again.body), (first.status, &first.body));
    assert!(again.replayed());
    assert_eq!(shop.calls(), 1);
    // The answer is stored although a statement of the handler had failed.
    let first = shop.post("k2", "refuse-after-an-error").await;
    assert_eq!(first.status, StatusCode::PAYMENT_REQUIRED);
    assert!(shop.post("k2", "refuse-after-an-error").await.replayed());
    assert_eq!((shop.orders().await, shop.stored().await), (0, 2));
}

#[tokio::test]
async fn the_verdict_may_be_another() {
    let shop = Shop::with(|layer| layer.verdict(|_| Verdict::Commit)).await;
    assert_eq!(shop.post("k", "fail-once").await.status, StatusCode::INTERNAL_SERVER_ERROR);
    assert!(shop.post("k", "fail-once").await.replayed());
    assert_eq!((shop.calls(), shop.orders().await), (1, 1));
}

#[tokio::test]
async fn a_handler_that_passes_over_a_failed_statement_is_not_believed() {
    let shop = Shop::open().await;
    for call in 1..=2 {
        let answer = until_it_runs(&shop, "k", "pass-over-an-error").await;
        assert_problem(&answer, 500, "The request failed");
        assert_eq!((shop.calls(), shop.orders().await, shop.stored().await), (call, 0, 0));
    }
}

#[tokio::test]
async fn a_transaction_that_is_held_beyond_the_response_is_rolled_back() {
    let shop = Shop::open().await;
    assert_problem(&shop.post("k", "keep").await, 500, "The request failed");
    let second = shop.post("k", "keep").await;
    assert_problem(&second, 409, "A request is outstanding for this Idempotency-Key");
    shop.signals.go_on.notify_one();
    let again = until_it_runs(&shop, "k", "keep").await;
    assert_problem(&again, 500, "The request failed");
    shop.signals.go_on.notify_one();
    assert_eq!((shop.calls(), shop.orders().await, shop.stored().await), (2, 0, 0));
}

#[tokio::test]
async fn two_tenants_with_the_same_key_know_nothing_of_each_other() {
    let shop = Shop::with(|layer| layer).await;
    let by = async |tenant, what| {
        let headers = [("idempotency-key", "k"), ("x-tenant", tenant)];
        shop.send(Method::POST, "/orders", &headers, what).await.unwrap()
    };
    assert_eq!(by("one", "tea").await.body, "order 1, call 1");
    let other = by("two", "coffee").await;
    assert_eq!((other.body.as_str(), other.replayed()), ("order 2, call 2", false));
    assert_eq!(by("one", "tea").await.body, "order 1, call 1");
    assert_eq!(by("two", "coffee").await.body, "order 2, call 2");
    assert_eq!((shop.calls(), shop.stored().await), (2, 2));
}

#[tokio::test]
async fn a_request_that_belongs_to_nobody_is_refused() {
    let scope = servers().await.unwrap().scope().await.unwrap();
    pillarbox_inbox::migrate(scope.pool()).await.unwrap();
    let layer = IdempotencyLayer::new(scope.pool().clone(), |_| None);
    let shop = Shop::of(scope, layer).await;
    assert_problem(&shop.post("k", "tea").await, 403, "Idempotency-Key belongs to nobody");
    assert_eq!(shop.calls(), 0);
}

#[tokio::test]
async fn bodies_are_bounded() {
    let shop = Shop::with(|layer| layer.max_request_bytes(1_000).max_response_bytes(500)).await;
    let key = [("idempotency-key", "k")];
    let echo = async |bytes| {
        let body = "x".repeat(bytes);
        shop.send(Method::POST, "/echo", &key, &body).await.unwrap()
    };
    assert_problem(&echo(1_001).await, 413, "Request body is too large");
    assert_problem(&echo(501).await, 500, "The request failed");
    assert_eq!(shop.stored().await, 0);
    assert_eq!(echo(500).await.status, StatusCode::OK);
    assert!(echo(500).await.replayed());
}

#[tokio::test]
async fn another_schema_has_its_own_requests() {
    let scope = servers().await.unwrap().scope().await.unwrap();
    pillarbox_inbox::migrate_schema(scope.pool(), "commands").await.unwrap();
    let layer = IdempotencyLayer::in_schema(scope.pool().clone(), "commands", tenant).unwrap();
    assert!(IdempotencyLayer::in_schema(scope.pool().clone(), "no;schema", tenant).is_err());
    let shop = Shop::of(scope, layer).await;
    assert_eq!(shop.post("k", "tea").await.status, StatusCode::CREATED);
    assert!(shop.post("k", "tea").await.replayed());
    assert_eq!(shop.number("select count(*) from commands.inbox_request").await, 1);
}

#[tokio::test]
async fn old_answers_are_removed_in_batches() {
    let shop = Shop::open().await;
    assert_eq!(shop.post("k", "tea").await.status, StatusCode::CREATED);
    sqlx::raw_sql(
        "insert into pillarbox.inbox_request \
         select 'one', 'old-' || n, '\\x', 200, '{}', '{}', '\\x', now() - interval '2 days' \
         from generate_series(1, 2500) as n",
    )
    .execute(shop.pool())
    .await
    .unwrap();
    let requests = StoredRequests::new(shop.pool().clone());
    let day = Duration::from_secs(24 * 3600);
    assert_eq!(requests.remove_older_than(3 * day).await.unwrap(), 0);
    assert_eq!(requests.remove_older_than(Duration::MAX).await.unwrap(), 0);
    assert_eq!(requests.remove_older_than(day).await.unwrap(), 2_500);
    assert_eq!(shop.stored().await, 1);
    assert!(shop.post("k", "tea").await.replayed());
    assert_eq!(requests.remove_older_than(Duration::ZERO).await.unwrap(), 1);
    sqlx::raw_sql("delete from orders").execute(shop.pool()).await.unwrap();
    assert!(!shop.post("k", "tea").await.replayed(), "forgotten, so it is a new request");
}

#[tokio::test]
async fn under_a_stricter_isolation_too_one_takes_effect() {
    let shop = Shop::open().await;
    let strict = "do $$ begin execute format('alter database %I set default_transaction_isolation = \
                  ''repeatable read''', current_database()); end $$";
    sqlx::raw_sql(strict).execute(shop.pool()).await.unwrap();
    let others = "select count(pg_terminate_backend(pid)) from pg_stat_activity \
                  where datname = current_database() and pid <> pg_backend_pid()";
    shop.number(others).await;
    let answers = join_all((0..50).map(|_| shop.post("k", "tea"))).await;
    let created = |answer: &&Answer| answer.status == StatusCode::CREATED;
    let first = answers.iter().filter(created).filter(|answer| !answer.replayed()).count();
    let conflicts = answers.iter().filter(|answer| answer.status == StatusCode::CONFLICT).count();
    assert_eq!((first, answers.iter().filter(created).count() + conflicts), (1, 50));
    assert_eq!(shop.orders().await, 1);
    assert!(until_it_runs(&shop, "k", "tea").await.replayed());
}

#[tokio::test]
async fn what_is_about_the_state_of_things_is_not_told_again_for_ever() {
    let shop = Shop::open().await;
    let conflict = shop.post("k", "conflict-once").await;
    assert_eq!((conflict.status, conflict.replayed()), (StatusCode::CONFLICT, false));
    assert_eq!(conflict.header("idempotency-problem"), "", "it is the handler's own");
    assert_eq!((shop.orders().await, shop.stored().await), (0, 0));
    let again = shop.post("k", "conflict-once").await;
    assert_eq!((again.status, again.replayed()), (StatusCode::CREATED, false));
    let key = [("idempotency-key", "later")];
    for _ in 0..2 {
        let missing = shop.send(Method::POST, "/not-deployed-yet", &key, "tea").await.unwrap();
        assert_eq!((missing.status, missing.replayed()), (StatusCode::NOT_FOUND, false));
    }
    // And so the key is free when the route is there.
    let there = shop.send(Method::POST, "/echo", &key, "tea").await.unwrap();
    assert_eq!(there.status, StatusCode::OK);
}

#[tokio::test]
async fn a_stored_conflict_can_be_told_from_one_in_progress() {
    let conflicts_are_kept = |layer: IdempotencyLayer| {
        layer.verdict(|response| match response.status {
            StatusCode::CONFLICT => Verdict::Refuse,
            status => Verdict::of_status(status),
        })
    };
    let shop = Shop::with(conflicts_are_kept).await;
    for replayed in [false, true] {
        let conflict = shop.post("k", "conflict-once").await;
        assert_eq!((conflict.status, conflict.replayed()), (StatusCode::CONFLICT, replayed));
        assert_eq!(conflict.header("idempotency-problem"), "");
    }
    assert_eq!(shop.calls(), 1);
}

#[tokio::test]
async fn the_same_bytes_are_the_same_request_however_they_come() {
    let shop = Shop::open().await;
    let order = async |headers: &[(&str, &str)], body: &str| {
        let headers = [&[("idempotency-key", "k")], headers].concat();
        shop.send(Method::POST, "/orders", &headers, body).await.unwrap()
    };
    assert_eq!(order(&[("content-type", "application/json")], "{\"a\":1}").await.status, 201);
    for headers in [
        &[("content-type", "application/json; charset=utf-8")][..],
        &[("transfer-encoding", "chunked")],
        &[],
    ] {
        assert!(order(headers, "{\"a\":1}").await.replayed(), "{headers:?}");
    }
    let spaced = order(&[("content-type", "application/json")], "{ \"a\": 1 }").await;
    assert_problem(&spaced, 422, "Idempotency-Key is already used");
    assert_eq!(spaced.header("idempotency-problem"), "key-reused");
}

#[tokio::test]
async fn a_multipart_body_with_another_boundary_is_the_same_request() {
    let shop = Shop::open().await;
    let upload = async |boundary: &str, file: &str| {
        let content_type = format!("multipart/form-data; boundary=\"{boundary}\"");
        let headers = [("idempotency-key", "k"), ("content-type", content_type.as_str())];
        let body = format!(
            "--{boundary}\r\ncontent-disposition: form-data; name=\"cup\"\r\n\r\n1\r\n\
             --{boundary}\r\ncontent-disposition: form-data; name=\"file\"; filename=\"tea\"\r\n\r\n\
             {file}\r\n--{boundary}--\r\n"
        );
        shop.send(Method::POST, "/echo", &headers, &body).await.unwrap()
    };
    let first = upload("----WebKitFormBoundaryAAAA", "earl grey").await;
    assert_eq!((first.status, first.replayed()), (StatusCode::OK, false));
    let again = upload("----WebKitFormBoundaryBBBB", "earl grey").await;
    assert_eq!((again.status, again.replayed()), (StatusCode::OK, true));
    assert_eq!(again.body, first.body);
    let other = upload("----WebKitFormBoundaryBBBB", "darjeeling").await;
    assert_problem(&other, 422, "Idempotency-Key is already used");
}
