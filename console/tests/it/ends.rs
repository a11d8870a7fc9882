//! Scheduled events that are cancelled, and instances of sagas that are ended, from the page.

use reqwest::StatusCode;

use super::hostile::{is_harmless, trap};
use super::support::{ANNA, BEN, Served, Shop, form_token, log_in};

async fn count(shop: &Shop, sql: &'static str) -> i64 {
    sqlx::query_scalar(sql).fetch_one(shop.pool()).await.unwrap()
}

const SCHEDULED: &str = "select count(*) from pillarbox.outbox_scheduled";
const OPEN: &str = "select count(*) from pillarbox.saga where ended_at is null";

/// The link of a page that begins so.
fn link(page: &str, from: &str) -> String {
    let at = page.find(from).unwrap_or_else(|| panic!("{from} in {page}"));
    page[at..].split('"').next().unwrap().replace("&amp;", "&")
}

async fn shop() -> Shop {
    let shop = Shop::open().await;
    for number in 1..=3_i64 {
        sqlx::query(
            "insert into pillarbox.saga (saga, id, state, step, status, version, timers, compensations) \
             values ($1, $2, '{}', $3, 'running', 1, '[]', '[]')",
        )
        .bind(trap("saga"))
        .bind(format!("{number} {}", trap("instance")))
        .bind(trap("step"))
        .execute(shop.pool())
        .await
        .unwrap();
    }
    sqlx::query(
        "insert into pillarbox.outbox_scheduled (due_at, event_type, topic, payload) \
         values (now() + interval '1 hour', $1, $2, '1')",
    )
    .bind(trap("type"))
    .bind(trap("topic"))
    .execute(shop.pool())
    .await
    .unwrap();
    shop
}

async fn of_an_instance(served: &Served, cookie: &str, verb: &str) -> String {
    let list = served.get_as(cookie, "/sagas").await.text;
    let one = served.get_as(cookie, &link(&list, "/sagas/one?")).await.text;
    is_harmless("/sagas/one", &one);
    link(&one, &format!("/sagas/sure?do={verb}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scheduled_event_is_cancelled_with_a_note_and_recorded() {
    let shop = shop().await;
    let served = shop.with_accounts(false).await;
    let cookie = log_in(&served, ANNA).await;
    let list = served.get_as(&cookie, "/scheduled").await.text;
    let sure = served.get_as(&cookie, &link(&list, "/scheduled/sure?")).await.text;
    is_harmless("/scheduled/sure", &sure);
    assert!(sure.contains("never delivered"), "{sure}");
    let (to, token) = (link(&sure, "/scheduled/cancel?"), form_token(&sure));
    let answer = served.post(&cookie, &to, &[("form_token", &token), ("note", " ")]).await;
    assert_eq!(answer.status, StatusCode::UNPROCESSABLE_ENTITY, "{}", answer.text);
    assert_eq!(count(&shop, SCHEDULED).await, 1);
    let form = [("form_token", &*token), ("note", "ordered twice")];
    let answer = served.post(&cookie, &to, &form).await;
    assert_eq!(answer.status, StatusCode::SEE_OTHER, "{}", answer.text);
    assert_eq!(count(&shop, SCHEDULED).await, 0);
    let [(what, _, who, note)] = &shop.actions().await[..] else { panic!("one action") };
    assert_eq!((&**what, &**who), ("scheduled.cancel", "anna (console)"));
    assert_eq!(note.as_deref(), Some("ordered twice"));
    assert_eq!(served.post(&cookie, &to, &form).await.status, StatusCode::NOT_FOUND, "again");
    let wrong = "/scheduled/cancel?place=shop&event=x";
    assert_eq!(served.post(&cookie, wrong, &form).await.status, StatusCode::NOT_FOUND);
}

#[tokio::test(flavor = "multi_thread")]
async fn instances_are_cancelled_and_completed_with_a_note_and_recorded() {
    let shop = shop().await;
    let served = shop.with_accounts(false).await;
    let cookie = log_in(&served, ANNA).await;
    for (left, verb, choice) in [(2, "cancel", ""), (1, "complete", ""), (0, "cancel", "yes")] {
        let sure = of_an_instance(&served, &cookie, verb).await;
        let sure = served.get_as(&cookie, &sure).await.text;
        is_harmless("/sagas/sure", &sure);
        let (to, token) = (link(&sure, "/sagas/end?"), form_token(&sure));
        let mut form = [("form_token", &*token), ("choice", choice), ("note", "")];
        let answer = served.post(&cookie, &to, &form).await;
        assert_eq!(answer.status, StatusCode::UNPROCESSABLE_ENTITY, "{}", answer.text);
        assert_eq!(count(&shop, OPEN).await, left + 1, "without a note");
        form[2].1 = "by hand";
        let answer = served.post(&cookie, &to, &form).await;
        assert_eq!(answer.status, StatusCode::SEE_OTHER, "{}", answer.text);
        assert_eq!(count(&shop, OPEN).await, left);
        let one = served.get_as(&cookie, answer.header("location")).await.text;
        assert!(!one.contains("/sagas/sure"), "it has ended: {one}");
        let again = served.post(&cookie, &to, &form).await;
        assert_eq!(again.status, StatusCode::CONFLICT, "{}", again.text);
        assert!(again.text.contains("has ended"), "{}", again.text);
    }
    let done = shop.actions().await;
    let done: Vec<_> =
        done.iter().map(|(what, _, who, note)| (&**what, &**who, note.as_deref())).collect();
    let who = "anna (console)";
    let note = Some("by hand");
    assert_eq!(
        done,
        [("sagas.cancel", who, note), ("sagas.complete", who, note), ("sagas.cancel", who, note)]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn viewers_and_forged_forms_end_and_cancel_nothing() {
    let shop = shop().await;
    let served = shop.with_accounts(false).await;
    let (anna, ben) = (log_in(&served, ANNA).await, log_in(&served, BEN).await);
    let of_anna = form_token(&served.get_as(&anna, "/").await.text);
    let of_ben = form_token(&served.get_as(&ben, "/").await.text);
    let scheduled = link(&served.get_as(&anna, "/scheduled").await.text, "/scheduled/sure?");
    let saga = of_an_instance(&served, &anna, "complete").await;
    for sure in [&scheduled, &saga] {
        assert_eq!(served.get_as(&ben, sure).await.status, StatusCode::FORBIDDEN);
        let to =
            sure.replace("scheduled/sure", "scheduled/cancel").replace("sagas/sure", "sagas/end");
        for (cookie, token) in [
            (&*ben, &*of_ben),
            (&*ben, &*of_anna),
            (&*anna, &*of_ben),
            (&*anna, ""),
            ("", &*of_anna),
        ] {
            let answer = served.post(cookie, &to, &[("form_token", token), ("note", "x")]).await;
            assert_eq!(answer.status, StatusCode::FORBIDDEN, "{to}: {}", answer.text);
        }
    }
    assert_eq!((count(&shop, SCHEDULED).await, count(&shop, OPEN).await), (1, 3));
    assert!(shop.actions().await.is_empty());
    let list = served.get_as(&ben, "/sagas").await.text;
    let one = link(&list, "/sagas/one?");
    for page in [served.get_as(&ben, &one).await.text, served.get_as(&ben, "/scheduled").await.text]
    {
        assert!(!page.contains("/sure?"), "{page}");
    }
    let open = shop.served().await;
    for page in [open.get(&one).await.text, open.get("/scheduled").await.text] {
        assert!(!page.contains("/sure?"), "without accounts: {page}");
    }
}

/// A server speaks its own language, so only the code of its refusal tells what is missing.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_database_refuses_is_said_with_what_to_do() {
    let shop = shop().await;
    let served = shop.with_accounts(false).await;
    let cookie = log_in(&served, ANNA).await;
    let event = r#"[{"id": "0198f3a0-0000-7000-8000-000000000001", "type": "t", "topic": "t", "key": null, "headers": {}, "payload": ""}]"#;
    sqlx::query("update pillarbox.saga set compensations = $1::json")
        .bind(event)
        .execute(shop.pool())
        .await
        .unwrap();
    let sure = of_an_instance(&served, &cookie, "cancel").await;
    let sure = served.get_as(&cookie, &sure).await.text;
    let (to, token) = (link(&sure, "/sagas/end?"), form_token(&sure));
    let form = [("form_token", &*token), ("choice", ""), ("note", "by hand")];
    for (table, code, remedy) in [
        ("outbox", "42501", "grant it pillarbox_writer"),
        ("outbox", "57014", "took too long"),
        ("saga_history", "42501", "print-grants"),
        ("saga_history", "42P01", "pillarbox migrate"),
    ] {
        shop.run(&format!(
            "create or replace function public.refuses() returns trigger language plpgsql as \
             $$ begin raise 'keine Berechtigung' using errcode = '{code}'; end $$; \
             create or replace trigger refuses before insert on pillarbox.{table} \
             for each row execute function public.refuses()"
        ))
        .await;
        let answer = served.post(&cookie, &to, &form).await;
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "{}", answer.text);
        assert!(answer.text.contains(remedy), "{table}, {code}: {}", answer.text);
        shop.run(&format!("drop trigger refuses on pillarbox.{table}")).await;
    }
    assert_eq!(count(&shop, OPEN).await, 3);
}
