//! Retries and discards from the page: who may, what is asked, what is recorded.

use std::time::Duration;

use pillarbox_testkit::eventually;
use reqwest::StatusCode;

use super::support::{ANNA, Answer, BEN, Served, Shop, form_token, log_in};

async fn states(shop: &Shop) -> Vec<(String, i64)> {
    sqlx::query_as(
        "select consumer || ' ' || state, count(*) from pillarbox.inbox_dead_letter group by 1 order by 1",
    )
    .fetch_all(shop.pool())
    .await
    .unwrap()
}

fn counts(states: &[(String, i64)]) -> Vec<(&str, i64)> {
    states.iter().map(|(state, count)| (&**state, *count)).collect()
}

/// Waits for the end of the job that an answer leads to.
async fn ended(served: &Served, cookie: &str, begun: &Answer) -> String {
    assert_eq!(begun.status, StatusCode::SEE_OTHER, "{}", begun.text);
    let at = begun.header("location").to_owned();
    eventually("the job to end", Duration::from_secs(30), async || {
        let page = served.get_as(cookie, &at).await.text;
        if page.contains("data-soon") { Err(page) } else { Ok::<_, String>(Some(page)) }
    })
    .await
    .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kind_is_retried_and_another_discarded_and_both_are_recorded() {
    let shop = Shop::open().await;
    shop.give_up("payments", "order.placed", "card declined for order 17", 250).await;
    shop.give_up("ledger", "order.paid", "no such column: cents", 3).await;
    let served = shop.with_accounts(false).await;
    let cookie = log_in(&served, ANNA).await;
    let sure = served
        .get_as(&cookie, "/dead-letters/sure?do=retry&place=shop&side=inbox&owner=payments")
        .await
        .text;
    assert!(sure.contains("250 unresolved dead letters"), "{sure}");
    let token = form_token(&sure);
    let retry = [
        ("form_token", &*token),
        ("do", "retry"),
        ("place", "shop"),
        ("side", "inbox"),
        ("owner", "payments"),
        ("note", "the bank is back"),
    ];
    let begun = served.post(&cookie, "/dead-letters/change", &retry).await;
    let page = ended(&served, &cookie, &begun).await;
    assert!(
        page.contains("250 letters are to be tried again") && page.contains("250 waiting"),
        "{page}"
    );
    let mut discard = retry;
    (discard[1].1, discard[4].1, discard[5].1) = ("discard", "ledger", "");
    let answer = served.post(&cookie, "/dead-letters/change", &discard).await;
    assert_eq!(answer.status, StatusCode::UNPROCESSABLE_ENTITY, "without a note");
    assert!(answer.text.contains("a discard needs a note"), "{}", answer.text);
    discard[5].1 = "<b>duplicates</b>";
    let begun = served.post(&cookie, "/dead-letters/change", &discard).await;
    ended(&served, &cookie, &begun).await;
    assert_eq!(counts(&states(&shop).await), [("ledger discarded", 3), ("payments parked", 250)]);
    let actions = served.get_as(&cookie, "/actions").await.text;
    for said in [
        "anna (console)",
        "the bank is back",
        "&lt;b&gt;duplicates&lt;/b&gt;",
        "<td class=\"n\">250</td>",
    ] {
        assert!(actions.contains(said), "{said}: {actions}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn viewers_and_forged_forms_change_nothing() {
    let shop = Shop::open().await;
    shop.give_up("payments", "order.placed", "card declined", 2).await;
    let served = shop.with_accounts(false).await;
    let (anna, ben) = (log_in(&served, ANNA).await, log_in(&served, BEN).await);
    let form = |token: &str| {
        ["form_token", "do", "place", "side", "note"]
            .into_iter()
            .zip([
                token.to_owned(),
                "discard".to_owned(),
                "shop".to_owned(),
                "inbox".to_owned(),
                "x".to_owned(),
            ])
            .collect::<Vec<_>>()
    };
    let send = async |cookie: &str, token: &str| {
        let form = form(token);
        let form: Vec<_> = form.iter().map(|(name, value)| (*name, &**value)).collect();
        served.post(cookie, "/dead-letters/change", &form).await.status
    };
    let of_anna = form_token(&served.get_as(&anna, "/").await.text);
    let of_ben = form_token(&served.get_as(&ben, "/").await.text);
    assert_ne!(of_anna, of_ben);
    assert_eq!(send(&ben, &of_ben).await, StatusCode::FORBIDDEN, "a viewer");
    assert_eq!(send(&anna, &of_ben).await, StatusCode::FORBIDDEN, "another session's form");
    assert_eq!(send(&anna, "").await, StatusCode::FORBIDDEN, "no token");
    assert_eq!(send("", &of_anna).await, StatusCode::FORBIDDEN, "no session");
    let page = served.get_as(&ben, "/dead-letters/list?place=shop&side=inbox").await.text;
    assert!(!page.contains("/dead-letters/sure"), "{page}");
    let sure = served.get_as(&ben, "/dead-letters/sure?do=discard&place=shop&side=inbox").await;
    assert_eq!(sure.status, StatusCode::FORBIDDEN);
    assert_eq!(counts(&states(&shop).await), [("payments dead", 2)]);
    assert_eq!(send(&anna, &of_anna).await, StatusCode::SEE_OTHER, "the right one");
}

/// A part of the link that says nothing must not widen what is changed to all letters.
#[tokio::test(flavor = "multi_thread")]
async fn a_filter_that_means_nothing_changes_nothing() {
    let shop = Shop::open().await;
    shop.give_up("payments", "order.placed", "card declined", 2).await;
    let served = shop.with_accounts(false).await;
    let cookie = log_in(&served, ANNA).await;
    let token = form_token(&served.get_as(&cookie, "/").await.text);
    for (name, value) in
        [("since", "2days"), ("since", " "), ("letter", " "), ("letter", "x"), ("owner", " ")]
    {
        let wish = [
            ("form_token", &*token),
            ("do", "discard"),
            ("place", "shop"),
            ("side", "inbox"),
            ("note", "x"),
            (name, value),
        ];
        let answer = served.post(&cookie, "/dead-letters/change", &wish).await;
        assert_eq!(answer.status, StatusCode::NOT_FOUND, "{name}={value:?}: {}", answer.text);
        let value = value.replace(' ', "+");
        let link = format!("/dead-letters/sure?do=discard&place=shop&side=inbox&{name}={value}");
        let answer = served.get_as(&cookie, &link).await;
        assert_eq!(answer.status, StatusCode::NOT_FOUND, "{link}: {}", answer.text);
    }
    assert_eq!(counts(&states(&shop).await), [("payments dead", 2)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_is_stopped_leaves_the_rest_as_it_was() {
    let shop = Shop::open().await;
    shop.give_up("payments", "order.placed", "card declined", 5_000).await;
    let served = shop.with_accounts(false).await;
    let cookie = log_in(&served, ANNA).await;
    // The job waits for this row after some hundreds of letters.
    let mut lock = shop.pool().begin().await.unwrap();
    sqlx::query("select 1 from pillarbox.inbox_dead_letter where position = 1050 for update")
        .execute(&mut *lock)
        .await
        .unwrap();
    let token = form_token(&served.get_as(&cookie, "/").await.text);
    let retry = [("form_token", &*token), ("do", "retry"), ("place", "shop"), ("side", "inbox")];
    let begun = served.post(&cookie, "/dead-letters/change", &retry).await;
    let at = begun.header("location").to_owned();
    eventually("a thousand letters", Duration::from_secs(20), async || {
        let page = served.get_as(&cookie, &at).await.text;
        if page.contains("1000 of 5000") { Ok::<_, String>(Some(())) } else { Err(page) }
    })
    .await
    .unwrap();
    let id = at.split("id=").nth(1).unwrap();
    let stop = served.post(&cookie, "/job/stop", &[("form_token", &token), ("id", id)]).await;
    assert_eq!(stop.status, StatusCode::SEE_OTHER);
    lock.rollback().await.unwrap();
    let page = ended(&served, &cookie, &begun).await;
    assert!(page.contains(">stopped</span>"), "{page}");
    assert_eq!(
        counts(&states(&shop).await),
        [("payments dead", 3_900), ("payments parked", 1_100)]
    );
    let recorded: i64 =
        sqlx::query_scalar("select sum(count)::bigint from pillarbox.operator_action")
            .fetch_one(shop.pool())
            .await
            .unwrap();
    assert_eq!(recorded, 1_100);
}
