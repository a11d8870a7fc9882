//! Who is let in, and what comes from where.

use std::time::Duration;

use axum::extract::Request;
use axum::middleware::{Next, from_fn};
use pillarbox_console::{Access, Console, Proxy, Role, Tokens, Visitor};
use reqwest::{Method, StatusCode};

use super::support::{Served, Shop};

const ANNA: &str = "anna-0123456789-0123456789-abc";
const BEN: &str = "ben-00123456789-0123456789-abc";

fn tokens() -> Access {
    let file = format!("operator anna {ANNA}\nviewer ben {BEN}\n");
    Access::Tokens(Tokens::parse(&file).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn without_accounts_only_this_machine_may_look() {
    let shop = Shop::open().await;
    let served = shop.served().await;
    assert_eq!(served.get("/").await.status, StatusCode::OK);
    // A page of another site, with a name of its own that leads to this machine.
    for host in ["evil.example", "evil.example:9470", "10.0.0.1"] {
        let answer = served.send(served.request(Method::GET, "/").header("host", host)).await;
        assert_eq!(answer.status, StatusCode::FORBIDDEN, "{host}");
        assert!(!answer.text.contains("shop"), "{}", answer.text);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_opens_a_session_that_ends_with_the_log_out() {
    let shop = Shop::open().await;
    let served = Served::new(Console::new(vec![shop.place()], tokens())).await;
    let refused = served.get("/dead-letters?place=shop").await;
    assert_eq!(refused.status, StatusCode::SEE_OTHER);
    assert_eq!(refused.header("location"), "/login?next=%2Fdead%2Dletters%3Fplace%3Dshop");
    let form = [("token", ANNA), ("next", "/dead-letters?place=shop")];
    let answer = served.post("", "/login", &form).await;
    assert_eq!(
        (answer.status, answer.header("location")),
        (StatusCode::SEE_OTHER, "/dead-letters?place=shop")
    );
    let set = answer.header("set-cookie").to_owned();
    assert!(
        set.contains("HttpOnly") && set.contains("SameSite=Strict") && !set.contains("Secure"),
        "{set}"
    );
    let cookie = answer.cookie().unwrap();
    assert!(!cookie.contains(ANNA));
    let page = served.get_as(&cookie, "/").await;
    assert_eq!(page.status, StatusCode::OK);
    assert!(
        page.text.contains("<span>anna</span> <span class=\"role\">operator</span>"),
        "{}",
        page.text
    );
    let token = page.text.split("name=\"form_token\" value=\"").nth(1).unwrap();
    let token = token.split('"').next().unwrap();
    for wrong in ["", "0", &token[1..]] {
        let answer = served.post(&cookie, "/logout", &[("form_token", wrong)]).await;
        assert_eq!(answer.status, StatusCode::FORBIDDEN, "{wrong}");
    }
    assert_eq!(served.get_as(&cookie, "/").await.status, StatusCode::OK, "still there");
    let answer = served.post(&cookie, "/logout", &[("form_token", token)]).await;
    assert_eq!(answer.status, StatusCode::SEE_OTHER);
    assert_eq!(served.get_as(&cookie, "/").await.status, StatusCode::SEE_OTHER);
    // Elsewhere than on this machine the cookie needs TLS.
    let form = format!("token={ANNA}");
    let request = served
        .request(Method::POST, "/login")
        .header("host", "ops.shop")
        .header("content-type", "application/x-www-form-urlencoded")
        .body(form);
    assert!(served.send(request).await.header("set-cookie").contains("; Secure"));
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_tries_tokens_must_wait() {
    let shop = Shop::open().await;
    let served = Served::new(Console::new(vec![shop.place()], tokens())).await;
    for attempt in 0..5 {
        let answer = served.post("", "/login", &[("token", &format!("wrong {attempt}"))]).await;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
        assert!(answer.cookie().is_none() && answer.text.contains("not known"), "{}", answer.text);
    }
    let answer = served.post("", "/login", &[("token", ANNA)]).await;
    assert_eq!(answer.status, StatusCode::TOO_MANY_REQUESTS, "even with the right one");
    let wait: u64 = answer.header("retry-after").parse().unwrap();
    assert!((1..=10).contains(&wait), "{wait}");
    tokio::time::sleep(Duration::from_secs(wait)).await;
    let answer = served.post("", "/login", &[("token", ANNA)]).await;
    assert_eq!(answer.status, StatusCode::SEE_OTHER);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_page_and_every_change_is_closed_without_a_session() {
    let shop = Shop::open().await;
    let served = Served::new(Console::new(vec![shop.place()], tokens())).await;
    let routes = include_str!("../../src/console.rs");
    let paths: Vec<&str> =
        routes.split(".route(\"").skip(1).map(|rest| rest.split('"').next().unwrap()).collect();
    assert!(paths.len() > 12, "{paths:?}");
    for path in
        paths.into_iter().filter(|path| !["/login", "/console.css", "/console.js"].contains(path))
    {
        for cookie in
            ["", "pillarbox_console=", "pillarbox_console=00", "other=1; pillarbox_console=x"]
        {
            let answer = served.get_as(cookie, path).await;
            let closed =
                [StatusCode::SEE_OTHER, StatusCode::FORBIDDEN, StatusCode::METHOD_NOT_ALLOWED];
            assert!(closed.contains(&answer.status), "{path}: {}", answer.status);
            let answer = served.post(cookie, path, &[]).await;
            assert!(
                !answer.status.is_success() && answer.status != StatusCode::SEE_OTHER,
                "{path}: {}",
                answer.status
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_another_site_causes_is_refused() {
    let shop = Shop::open().await;
    let served = Served::new(Console::new(vec![shop.place()], tokens())).await;
    for (name, value) in [
        ("origin", "http://evil.example"),
        ("origin", "null"),
        ("sec-fetch-site", "cross-site"),
        ("sec-fetch-site", "same-site"),
    ] {
        let request = served
            .request(Method::POST, "/login")
            .header("content-type", "application/x-www-form-urlencoded")
            .header(name, value)
            .body(format!("token={ANNA}"));
        let answer = served.send(request).await;
        assert_eq!(answer.status, StatusCode::FORBIDDEN, "{name}: {value}");
        assert!(answer.cookie().is_none());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_says_who_it_is_and_nobody_else_does() {
    let shop = Shop::open().await;
    let proxy = |from: &str| {
        Access::Proxy(Proxy {
            from: vec![from.parse().unwrap()],
            user_header: "x-forwarded-user".parse().unwrap(),
            role_header: "x-pillarbox-role".parse().unwrap(),
        })
    };
    let ask = |request: reqwest::RequestBuilder, user: &str, role: &str| {
        request.header("x-forwarded-user", user).header("x-pillarbox-role", role)
    };
    let served = Served::new(Console::new(vec![shop.place()], proxy("127.0.0.1"))).await;
    assert_eq!(served.get("/").await.status, StatusCode::FORBIDDEN, "without headers");
    let page = served.send(ask(served.request(Method::GET, "/"), "ben", "viewer")).await;
    assert!(
        page.text.contains("<span>ben</span> <span class=\"role\">viewer</span>"),
        "{}",
        page.text
    );
    for role in ["admin", "", "OPERATOR"] {
        let page = served.send(ask(served.request(Method::GET, "/"), "ben", role)).await;
        assert_eq!(page.status, StatusCode::FORBIDDEN, "{role}");
    }
    let elsewhere = Served::new(Console::new(vec![shop.place()], proxy("10.0.0.1"))).await;
    let page = elsewhere.send(ask(elsewhere.request(Method::GET, "/"), "anna", "operator")).await;
    assert_eq!(page.status, StatusCode::FORBIDDEN, "not from the proxy");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_lets_in_whom_its_own_layer_names() {
    let shop = Shop::open().await;
    let console = Console::new(vec![shop.place()], Access::Service).router();
    let layer = from_fn(|mut request: Request, next: Next| async {
        if let Some(name) = request.headers().get("x-session").cloned() {
            let name = name.to_str().unwrap().to_owned();
            request.extensions_mut().insert(Visitor { name, role: Role::Viewer });
        }
        next.run(request).await
    });
    let served = Served::router(console.layer(layer)).await;
    assert_eq!(served.get("/").await.status, StatusCode::FORBIDDEN);
    let page = served.send(served.request(Method::GET, "/").header("x-session", "eve")).await;
    assert!(
        page.status == StatusCode::OK && page.text.contains("<span>eve</span>"),
        "{}",
        page.text
    );
}

/// Every page and every change work with the operator's role and no other right.
#[tokio::test(flavor = "multi_thread")]
async fn the_operators_role_is_enough_for_all_of_it() {
    use pillarbox_store::grants::{self, Roles, Tables};

    let shop = Shop::open().await;
    let prefix = shop.scope.prefix().to_owned();
    let roles = Roles::with_prefix(&prefix).unwrap();
    pillarbox_trail::migrate(shop.pool()).await.unwrap();
    let tables = [Tables::Outbox, Tables::Inbox, Tables::Trail];
    shop.run(&grants::sql("pillarbox", &roles, &tables)).await;
    shop.run(&format!("create role {prefix}_console login in role {prefix}_operator")).await;
    shop.run(include_str!("trouble.sql")).await;
    shop.give_up("payments", "order.placed", "card declined", 3).await;
    let url = shop.scope.database_url();
    let (scheme, rest) = url.split_once("://").unwrap();
    let server = rest.rsplit_once('@').map_or(rest, |(_, server)| server);
    let url = format!("{scheme}://{prefix}_console@{server}");
    let place = pillarbox_console::Place::new("shop", &url, "pillarbox").unwrap().relay("default");
    let served = Served::new(Console::new(vec![place], tokens())).await;
    let cookie = served.post("", "/login", &[("token", ANNA)]).await.cookie().unwrap();
    for path in [
        "/",
        "/outboxes",
        "/consumers",
        "/consumers/one?place=shop&consumer=payments",
        "/retries",
        "/dead-letters",
        "/dead-letters/list?place=shop&side=inbox",
        "/dead-letters/one?place=shop&side=inbox&letter=1",
        "/dead-letters/edit?place=shop&side=inbox&letter=1",
        "/dead-letters?state=discarded",
        "/flows?key=order-1",
        "/sagas",
        "/sagas/one?place=shop&saga=trip&id=trip-17",
        "/scheduled",
        "/actions",
    ] {
        let page = served.get_as(&cookie, path).await;
        assert_eq!(page.status, StatusCode::OK, "{path}: {}", page.text);
        assert!(
            !page.text.contains("permission denied") && !page.text.contains("cannot be read"),
            "{path}: {}",
            page.text
        );
    }
    let page = served.get_as(&cookie, "/").await.text;
    let token =
        page.split("name=\"form_token\" value=\"").nth(1).unwrap().split('"').next().unwrap();
    let edit = [
        ("form_token", token),
        ("place", "shop"),
        ("side", "inbox"),
        ("letter", "1"),
        ("merge", "{\"currency\": \"EUR\"}"),
        ("headers", "{\"tenant\": \"acme\"}"),
        ("note", "as the operator's role"),
    ];
    let edited = served.post(&cookie, "/dead-letters/edit", &edit).await;
    assert_eq!(edited.status, StatusCode::SEE_OTHER, "{}", edited.text);
    for control in [
        &[("do", "pause"), ("note", "x")][..],
        &[("do", "pause-type"), ("type", "order.placed"), ("note", "x")],
        &[("do", "resume")],
        &[("do", "limit"), ("rate", "20")],
        &[("do", "limit"), ("rate", "10")],
        &[("do", "no-limit")],
    ] {
        let form = [&[("form_token", token)], control].concat();
        let path = "/consumers/change?place=shop&consumer=payments";
        let answer = served.post(&cookie, path, &form).await;
        assert_eq!(answer.status, StatusCode::SEE_OTHER, "{control:?}: {}", answer.text);
    }
    let scheduled = served.get_as(&cookie, "/scheduled").await.text;
    let (_, event) = scheduled.split_once("/scheduled/sure?").unwrap();
    let event = event.split('"').next().unwrap().replace("&amp;", "&");
    for (path, choice) in [
        (format!("/scheduled/cancel?{event}"), ""),
        ("/sagas/end?do=complete&place=shop&saga=trip&id=trip-18".to_owned(), ""),
    ] {
        let form = [("form_token", token), ("choice", choice), ("note", "x")];
        let answer = served.post(&cookie, &path, &form).await;
        assert_eq!(answer.status, StatusCode::SEE_OTHER, "{path}: {}", answer.text);
    }
    for (verb, state) in [("retry", "parked"), ("discard", "discarded"), ("restore", "dead")] {
        let form = [
            ("form_token", token),
            ("do", verb),
            ("place", "shop"),
            ("side", "inbox"),
            ("note", "as the operator's role"),
        ];
        assert_eq!(
            served.post(&cookie, "/dead-letters/change", &form).await.status,
            StatusCode::SEE_OTHER
        );
        let states = "select count(*) from pillarbox.inbox_dead_letter where state = $1";
        pillarbox_testkit::eventually(state, Duration::from_secs(20), async || {
            let count: i64 =
                sqlx::query_scalar(states).bind(state).fetch_one(shop.pool()).await.unwrap();
            if count == 3 { Ok::<_, String>(Some(())) } else { Err(format!("{count} are {state}")) }
        })
        .await
        .unwrap();
    }
}
