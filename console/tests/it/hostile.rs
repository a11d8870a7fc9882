//! What comes from events, errors and names is somebody else's text. None of it becomes markup, a link or a script, and
//! what acts instead of showing something is shown by its number.

use pillarbox_console::{Access, Console, Tokens};
use reqwest::StatusCode;
use serde_json::json;

use super::support::{Served, Shop};

/// A trap that names its place. It tries to leave the text, an attribute, a comment, a script and a style.
pub(super) fn trap(place: &str) -> String {
    format!(
        "{place}\u{202e}\u{1b}[2J\u{200b}</pre></title><script>alert('{place}')</script><img src=x onerror=\"alert(1)\"> \
         \" autofocus onfocus=\"x' javascript:alert(1) https://evil.example/{place} --> ]]> &lt;b&gt; {{{{ 7 * 7 }}}} %0d%0a"
    )
}

/// Every table has a trap in every column of text.
async fn set(shop: &Shop) {
    let headers = json!({ "ce-source": trap("source"), trap("header"): trap("value"), "ce-type": trap("ce") });
    sqlx::query(
        "insert into pillarbox.inbox_dead_letter (consumer, event_id, event_type, topic, key, headers, payload, reason, \
         error, attempts, first_failed_at) values ($1, $2, $3, $4, $5, $6, $7, $8, $9, 5, now())",
    )
    .bind(trap("consumer"))
    .bind(trap("id"))
    .bind(trap("type"))
    .bind(trap("topic"))
    .bind(trap("key"))
    .bind(headers.clone())
    .bind(json!({ "payload": trap("payload") }).to_string().into_bytes())
    .bind(trap("reason"))
    .bind(trap("error"))
    .execute(shop.pool())
    .await
    .unwrap();
    sqlx::query(
        "insert into pillarbox.outbox_dead_letter (position, relay, event_id, event_type, topic, key, headers, payload, \
         created_at, reason, error, attempts) values (1, $1, gen_random_uuid(), $2, $3, $4, $5, $6, now(), $7, $8, 1)",
    )
    .bind(trap("relay"))
    .bind(trap("type"))
    .bind(trap("topic"))
    .bind(trap("key"))
    .bind(headers)
    .bind([trap("bytes").as_bytes(), &[0xff, 0xfe, 0]].concat())
    .bind(trap("reason"))
    .bind(trap("error"))
    .execute(shop.pool())
    .await
    .unwrap();
    sqlx::query(
        "insert into pillarbox.inbox_failure (consumer, event_id, id, source, attempts, last_error, first_failed_at) \
         values ($1, $2, $3, $4, 2, $5, now() - interval '1 hour')",
    )
    .bind(trap("consumer"))
    .bind(trap("identity"))
    .bind(trap("id"))
    .bind(trap("source"))
    .bind(trap("error"))
    .execute(shop.pool())
    .await
    .unwrap();
    sqlx::query(
        "insert into pillarbox.outbox_scheduled (due_at, event_type, topic, payload, error, tried_at) \
         values (now() - interval '1 hour', $1, $2, '1', $3, now())",
    )
    .bind(trap("type"))
    .bind(trap("topic"))
    .bind(trap("error"))
    .execute(shop.pool())
    .await
    .unwrap();
    sqlx::query("insert into pillarbox.outbox (event_type, topic, payload) values ($1, $2, '1')")
        .bind(trap("type"))
        .bind(trap("topic"))
        .execute(shop.pool())
        .await
        .unwrap();
    sqlx::query(
        "insert into pillarbox.saga (saga, id, state, step, status, version, deadline_at, failure, timers) \
         values ($1, $2, $3, $4, 'running', 1, now() - interval '1 hour', $5, '[]')",
    )
    .bind(trap("saga"))
    .bind(trap("instance"))
    .bind(json!({ "state": trap("state") }))
    .bind(trap("step"))
    .bind(trap("failure"))
    .execute(shop.pool())
    .await
    .unwrap();
    sqlx::query(
        "insert into pillarbox.saga_history (saga, id, seq, event_id, event_type, step_before, step_after, status, \
         published, timers_set, timers_cancelled, note) values ($1, $2, 1, $3, $4, $5, $6, 'running', $7, $8, '[]', $9)",
    )
    .bind(trap("saga"))
    .bind(trap("instance"))
    .bind(trap("id"))
    .bind(trap("type"))
    .bind(trap("before"))
    .bind(trap("after"))
    .bind(json!([{ "id": trap("id"), "type": trap("published") }]))
    .bind(json!([{ "name": trap("timer") }]))
    .bind(trap("note"))
    .execute(shop.pool())
    .await
    .unwrap();
}

/// What a page must not contain, whatever the database contains.
pub(super) fn is_harmless(path: &str, page: &str) {
    for (at, _) in page.match_indices('<') {
        let tag: String = page[at..].chars().take_while(|c| *c != '>').collect();
        let name: String =
            tag[1..].chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '/').collect();
        assert!(
            !["img", "b", "iframe", "object", "style", "base"].contains(&&*name),
            "{path}: {tag}"
        );
        if name == "script" {
            assert!(tag.starts_with("<script src=\"/console.js\" defer"), "{path}: {tag}");
        }
        // Outside of attributes' values there is no attribute that runs something.
        let bare: String = tag.split('"').step_by(2).collect();
        assert!(!bare.contains("onerror") && !bare.contains("onfocus"), "{path}: {tag}");
        for link in ["href=\"", "src=\"", "action=\""] {
            for target in tag.split(link).skip(1) {
                assert!(target.starts_with('/') || target.starts_with('#'), "{path}: {tag}");
                assert!(!target.starts_with("//"), "{path}: {tag}");
            }
        }
    }
    let acting = |c: char| (c.is_control() && c != '\n') || matches!(c, '\u{202e}' | '\u{200b}');
    if let Some(at) = page.find(acting) {
        panic!("{path}: an acting character in {:?}", &page[at.saturating_sub(40)..]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn traps_in_every_field_are_shown_and_do_nothing() {
    let shop = Shop::open().await;
    set(&shop).await;
    let token = "anna-0123456789-0123456789-abc";
    let tokens = Tokens::parse(&format!("operator anna {token}")).unwrap();
    let console = Console::new(vec![shop.place()], Access::Tokens(tokens)).show_payloads(true);
    let served = Served::new(console).await;
    let cookie = served.post("", "/login", &[("token", token)]).await.cookie().unwrap();
    // Every link of every page, from the overview on.
    let mut paths = vec!["/".to_owned()];
    let mut pages = String::new();
    let mut seen = 0;
    while seen < paths.len() {
        let path = paths[seen].clone();
        seen += 1;
        let answer = served.get_as(&cookie, &path).await;
        assert_eq!(answer.status, StatusCode::OK, "{path}: {}", answer.text);
        if path.starts_with("/console.") {
            continue;
        }
        is_harmless(&path, &answer.text);
        for link in answer.text.split("href=\"").skip(1) {
            let link =
                link.split('"').next().unwrap().split('#').next().unwrap().replace("&amp;", "&");
            if !link.is_empty() && !paths.contains(&link) {
                paths.push(link);
            }
        }
        pages += &answer.text;
    }
    assert!(paths.iter().any(|path| path.starts_with("/dead-letters/one")), "{paths:#?}");
    assert!(paths.iter().any(|path| path.starts_with("/sagas/one")), "{paths:#?}");
    for place in [
        "consumer",
        "id",
        "type",
        "topic",
        "key",
        "source",
        "header",
        "value",
        "reason",
        "error",
        "relay",
        "bytes",
        "saga",
        "instance",
        "step",
        "failure",
        "after",
        "published",
        "timer",
        "note",
    ] {
        assert!(
            pages.contains(&format!("{place}&lt;U+202E&gt;&lt;U+001B&gt;[2J&lt;U+200B&gt;")),
            "{place}"
        );
    }
    // JSON has an escape of its own for the second one.
    for place in ["payload", "state"] {
        assert!(
            pages.contains(&format!("{place}&lt;U+202E&gt;\\u001b[2J&lt;U+200B&gt;")),
            "{place}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_filter_in_the_url_is_somebody_elses_text_too() {
    let shop = Shop::open().await;
    let served = shop.served().await;
    let hostile = percent_encoding::utf8_percent_encode(
        "\"><script>alert(1)</script>\u{202e}",
        percent_encoding::NON_ALPHANUMERIC,
    )
    .to_string();
    for path in [
        format!(
            "/dead-letters?place={hostile}&owner={hostile}&type={hostile}&error={hostile}&since={hostile}"
        ),
        format!("/retries?consumer={hostile}&place={hostile}"),
        format!("/sagas?saga={hostile}&step={hostile}&status={hostile}&overdue={hostile}"),
        format!("/scheduled?topic={hostile}&type={hostile}&held={hostile}"),
        format!("/dead-letters/list?place=shop&side=inbox&group={hostile}&key={hostile}"),
        format!("/login?next={hostile}"),
    ] {
        let answer = served.get(&path).await;
        assert!(answer.status.is_success() || answer.status.is_redirection(), "{path}");
        is_harmless(&path, &answer.text);
    }
}

/// A flow with this text in every field.
async fn flow(shop: &Shop, text: &str) {
    pillarbox_trail::migrate(shop.pool()).await.unwrap();
    shop.run("select pillarbox.trail_days(array[(now() at time zone 'UTC')::date])").await;
    let insert = "insert into pillarbox.trail (stored_at, stream, stream_life, sequence, event_id, source, event_type, topic, \
                  key, correlation_id, causation_id, size) values (now(), $1, 'epoch', $2, $3, $1, $4, $1, $1, $1, $5, 1)";
    for (sequence, id, cause) in [(1, "first", None), (2, "second", Some("first"))] {
        let (id, cause) =
            (format!("{id} {text}"), cause.map(|cause: &str| format!("{cause} {text}")));
        sqlx::query(insert)
            .bind(text)
            .bind(i64::from(sequence))
            .bind(&id)
            .bind(format!("type {text}"))
            .bind(cause)
            .execute(shop.pool())
            .await
            .unwrap();
    }
    sqlx::query("insert into pillarbox.inbox (consumer, event_id) values ($1, $2)")
        .bind(format!("consumer {text}"))
        .bind(format!("first {text}"))
        .execute(shop.pool())
        .await
        .unwrap();
    sqlx::query(
        "insert into pillarbox.inbox_failure (consumer, event_id, attempts, last_error, first_failed_at) \
         values ($1, $2, 2, $3, now() - interval '1 hour')",
    )
    .bind(format!("consumer {text}"))
    .bind(format!("second {text}"))
    .bind(format!("failure {text}"))
    .execute(shop.pool())
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flow_is_drawn_whatever_its_events_hold() {
    let shop = Shop::open().await;
    let text = trap("flow");
    flow(&shop, &text).await;
    let served = shop.served().await;
    let of = |name: &str, value: &str| {
        let value =
            percent_encoding::utf8_percent_encode(value, percent_encoding::NON_ALPHANUMERIC);
        format!("/flows?{name}={value}")
    };
    let whole = [("id", format!("first {text}")), ("key", text.clone()), ("correlation", text)];
    for (name, value) in whole {
        let path = of(name, &value);
        let answer = served.get(&path).await;
        assert_eq!(answer.status, StatusCode::OK, "{path}: {}", answer.text);
        is_harmless(&path, &answer.text);
        assert!(
            answer.text.contains("<svg ") && answer.text.contains("in retry for 60 min"),
            "{path}: {}",
            answer.text
        );
        assert!(answer.text.contains("failure flow&lt;U+202E&gt;"), "{path}: {}", answer.text);
        assert!(answer.text.contains("2 events in "), "{path}: {}", answer.text);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn flows_say_what_to_do_where_there_is_no_trail_or_nothing_is_known() {
    let shop = Shop::open().await;
    let served = shop.served().await;
    let empty = served.get("/flows").await.text;
    assert!(empty.contains("Follow one order") && !empty.contains("role=\"alert\""), "{empty}");
    let without = served.get("/flows?key=42").await.text;
    assert!(without.contains("pillarbox migrate trail"), "{without}");
    pillarbox_trail::migrate(shop.pool()).await.unwrap();
    let unknown = served.get("/flows?key=42").await.text;
    assert!(unknown.contains("nothing is known of key &quot;42&quot;"), "{unknown}");
}
