//! Consumers that are paused, resumed and limited from the page.

use reqwest::StatusCode;

use super::hostile::{is_harmless, trap};
use super::support::{ANNA, Answer, BEN, Served, Shop, form_token, log_in};

/// A shop whose consumer `payments` runs, and whose consumer `ledger` has measured nothing.
async fn shop() -> Shop {
    let shop = Shop::open().await;
    shop.run(
        "insert into pillarbox.inbox_member \
         (consumer, process, stream, host, state, pending, ack_pending, oldest_age, measured_at) values \
         ('payments', 'a', 'SHOP', 'host-7:42', 'active', 1234, 6, 90, now()), \
         ('ledger', 'b', 'SHOP', 'host-7:43', 'active', null, null, null, null)",
    )
    .await;
    shop
}

/// What is paused and limited.
async fn controls(shop: &Shop) -> Vec<(String, String, String, Option<String>)> {
    let sql = "select consumer, event_type, paused_by, note from pillarbox.inbox_pause union all \
               select consumer, per_second::text, set_by, note from pillarbox.inbox_rate order by 1, 2";
    sqlx::query_as(sql).fetch_all(shop.pool()).await.unwrap()
}

async fn send(served: &Served, cookie: &str, token: &str, fields: &[(&str, &str)]) -> Answer {
    let mut form = vec![("form_token", token)];
    form.extend(fields);
    served.post(cookie, "/consumers/change?place=shop&consumer=payments", &form).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_lag_is_what_was_measured_and_unknown_otherwise() {
    let shop = shop().await;
    let served = shop.served().await;
    let page = served.get("/consumers").await.text;
    let row = |name: &str| {
        let (_, row) = page.split_once(&format!(">{name}</a>")).unwrap();
        row.split_once("</tr>").unwrap().0.to_owned()
    };
    assert!(row("payments").contains("<td class=\"n\">1,240<br>"), "{page}");
    assert!(row("payments").contains("<td class=\"n\">90 s</td>"), "{page}");
    assert!(row("ledger").contains("<td class=\"n\">unknown</td>"), "{page}");
    let one = served.get("/consumers/one?place=shop&consumer=payments").await.text;
    for said in ["1,240 events, measured", "<dd>SHOP</dd>", "host-7:42", "active"] {
        assert!(one.contains(said), "{said}: {one}");
    }
    let one = served.get("/consumers/one?place=shop&consumer=ledger").await.text;
    assert!(one.contains("unknown: no process has measured it"), "{one}");
    let none = served.get("/consumers/one?place=shop&consumer=nobody").await;
    assert_eq!(none.status, StatusCode::NOT_FOUND);
    assert!(none.text.contains("knows no such consumer"), "{}", none.text);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_is_paused_limited_and_resumed_and_each_is_recorded() {
    let shop = shop().await;
    let served = shop.with_accounts(false).await;
    let cookie = log_in(&served, ANNA).await;
    let path = "/consumers/one?place=shop&consumer=payments";
    let token = form_token(&served.get_as(&cookie, path).await.text);
    let send = async |fields: &[(&str, &str)]| send(&served, &cookie, &token, fields).await;
    for (fields, said) in [
        (&[("do", "pause")][..], "a pause needs a note"),
        (&[("do", "pause-type"), ("type", " "), ("note", "x")], "Name the event type"),
        (&[("do", "resume-type")], "does not say what to do"),
        (&[("do", "remove"), ("note", "x")], "does not say what to do"),
        (&[("do", "limit"), ("rate", "")], "a rate must be above 0"),
        (&[("do", "limit"), ("rate", "0")], "a rate must be above 0"),
        (&[("do", "limit"), ("rate", "-1")], "a rate must be above 0"),
        (&[("do", "limit"), ("rate", "NaN")], "a rate must be above 0"),
        (&[("do", "limit"), ("rate", "inf")], "a rate must be above 0"),
    ] {
        let answer = send(fields).await;
        assert_eq!(answer.status, StatusCode::UNPROCESSABLE_ENTITY, "{fields:?}: {}", answer.text);
        assert!(answer.text.contains(said), "{fields:?}: {}", answer.text);
    }
    assert!(controls(&shop).await.is_empty() && shop.actions().await.is_empty());
    for fields in [
        &[("do", "pause"), ("note", "the bank is down")][..],
        &[("do", "pause-type"), ("type", "order.refunded"), ("note", "wrong amounts")],
        &[("do", "limit"), ("rate", " 0.5 "), ("note", "the provider throttles")],
        // Somebody has done it before.
        &[("do", "pause"), ("note", "again")],
    ] {
        let answer = send(fields).await;
        assert_eq!(answer.status, StatusCode::SEE_OTHER, "{fields:?}: {}", answer.text);
        assert_eq!(answer.header("location"), path);
    }
    let who = "anna (console)".to_owned();
    let row = |what: &str, note: &str| {
        ("payments".to_owned(), what.to_owned(), who.clone(), Some(note.to_owned()))
    };
    assert_eq!(
        controls(&shop).await,
        [
            row("", "the bank is down"),
            row("0.5", "the provider throttles"),
            row("order.refunded", "wrong amounts")
        ]
    );
    let list = served.get_as(&cookie, "/consumers").await.text;
    assert!(
        list.contains(">paused</span>") && list.contains("type order.refunded is paused"),
        "{list}"
    );
    assert!(list.contains("at most 0.5 events per second"), "{list}");
    let one = served.get_as(&cookie, path).await.text;
    assert!(
        one.contains("paused by anna (console) at") && one.contains("the bank is down"),
        "{one}"
    );
    let resume = [("form_token", &*token), ("do", "resume-type")];
    let of_type = "/consumers/change?place=shop&consumer=payments&type=order.refunded";
    let answer = served.post(&cookie, of_type, &resume).await;
    assert_eq!(answer.status, StatusCode::SEE_OTHER, "{}", answer.text);
    assert_eq!(controls(&shop).await.len(), 2);
    send(&[("do", "resume"), ("note", "it is back")]).await;
    send(&[("do", "no-limit")]).await;
    assert!(controls(&shop).await.is_empty());
    let done: Vec<(String, String)> =
        shop.actions().await.into_iter().map(|(what, target, ..)| (what, target)).collect();
    let done: Vec<(&str, &str)> = done.iter().map(|(what, to)| (&**what, &**to)).collect();
    assert_eq!(
        done,
        [
            ("consumers.pause", "payments"),
            ("consumers.pause", "payments, type order.refunded"),
            ("consumers.limit", "payments: 0.5 events per second"),
            ("consumers.resume", "payments, type order.refunded"),
            ("consumers.resume", "payments"),
            ("consumers.limit", "payments: no limit"),
        ]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn viewers_and_forged_forms_pause_and_limit_nothing() {
    let shop = shop().await;
    let served = shop.with_accounts(false).await;
    let (anna, ben) = (log_in(&served, ANNA).await, log_in(&served, BEN).await);
    let of_anna = form_token(&served.get_as(&anna, "/").await.text);
    let of_ben = form_token(&served.get_as(&ben, "/").await.text);
    for fields in [
        &[("do", "pause"), ("note", "x")][..],
        &[("do", "pause-type"), ("type", "order.placed"), ("note", "x")],
        &[("do", "limit"), ("rate", "1")],
        &[("do", "resume")],
    ] {
        for (cookie, token) in [
            (&*ben, &*of_ben),
            (&*ben, &*of_anna),
            (&*anna, &*of_ben),
            (&*anna, ""),
            ("", &*of_anna),
        ] {
            let answer = send(&served, cookie, token, fields).await;
            assert_eq!(answer.status, StatusCode::FORBIDDEN, "{fields:?}: {}", answer.text);
        }
    }
    assert!(controls(&shop).await.is_empty() && shop.actions().await.is_empty());
    let path = "/consumers/one?place=shop&consumer=payments";
    let of_ben = served.get_as(&ben, path).await.text;
    let without_accounts = shop.served().await.get(path).await.text;
    for page in [of_ben, without_accounts] {
        assert!(page.contains("host-7:42") && !page.contains("/consumers/change"), "{page}");
    }
    let answer = send(&served, &anna, &of_anna, &[("do", "limit"), ("rate", "1")]).await;
    assert_eq!(answer.status, StatusCode::SEE_OTHER, "the right one");
    let unknown = [("form_token", &*of_anna), ("do", "pause"), ("note", "x")];
    let answer = served.post(&anna, "/consumers/change?place=shop&consumer=nobody", &unknown).await;
    assert_eq!(answer.status, StatusCode::NOT_FOUND, "{}", answer.text);
}

/// Names, types, notes and hosts are somebody else's text, and still the right thing is resumed.
#[tokio::test(flavor = "multi_thread")]
async fn a_hostile_name_is_shown_as_text_and_can_be_resumed() {
    let shop = Shop::open().await;
    sqlx::query(
        "insert into pillarbox.inbox_member (consumer, process, stream, host, state, reason) \
         values ($1, 'a', $2, $3, $4, $5)",
    )
    .bind(trap("consumer"))
    .bind(trap("stream"))
    .bind(trap("host"))
    .bind(trap("state"))
    .bind(trap("reason"))
    .execute(shop.pool())
    .await
    .unwrap();
    for event_type in [String::new(), trap("type")] {
        sqlx::query("insert into pillarbox.inbox_pause (consumer, event_type, paused_by, note) values ($1, $2, $3, $4)")
            .bind(trap("consumer"))
            .bind(event_type)
            .bind(trap("by"))
            .bind(trap("note"))
            .execute(shop.pool())
            .await
            .unwrap();
    }
    sqlx::query("insert into pillarbox.inbox_rate (consumer, per_second, set_by, note) values ($1, 1, $2, $3)")
        .bind(trap("consumer"))
        .bind(trap("setter"))
        .bind(trap("why"))
        .execute(shop.pool())
        .await
        .unwrap();
    let served = shop.with_accounts(false).await;
    let cookie = log_in(&served, ANNA).await;
    let list = served.get_as(&cookie, "/consumers").await.text;
    is_harmless("/consumers", &list);
    let link = |page: &str, from: &str| {
        let at = page.find(from).unwrap_or_else(|| panic!("{from} in {page}"));
        page[at..].split('"').next().unwrap().replace("&amp;", "&")
    };
    let path = link(&list, "/consumers/one?");
    let one = served.get_as(&cookie, &path).await.text;
    is_harmless(&path, &one);
    for place in
        ["consumer", "stream", "host", "state", "reason", "type", "by", "note", "setter", "why"]
    {
        let shown = format!("{place}&lt;U+202E&gt;&lt;U+001B&gt;[2J&lt;U+200B&gt;");
        assert!(one.contains(&shown), "{place}: {one}");
    }
    let token = form_token(&one);
    let (_, of_type) = one.split_once("Type type&lt;U+202E&gt;").unwrap();
    let resume = [("form_token", &*token), ("do", "resume-type")];
    let answer = served.post(&cookie, &link(of_type, "/consumers/change?"), &resume).await;
    assert_eq!(answer.status, StatusCode::SEE_OTHER, "{}", answer.text);
    let left: Vec<String> = sqlx::query_scalar("select event_type from pillarbox.inbox_pause")
        .fetch_all(shop.pool())
        .await
        .unwrap();
    assert_eq!(left, [""]);
}
