//! Dead letters that are edited or restored from the page.

use reqwest::StatusCode;

use super::support::{ANNA, Answer, BEN, Served, Shop, form_token, log_in};

const ONE: &str = "place=shop&side=inbox&letter=1";

/// A letter's content: headers, payload, state.
async fn content(shop: &Shop) -> (serde_json::Value, String, String) {
    let row: (String, Vec<u8>, String) = sqlx::query_as(
        "select headers::text, payload, state from pillarbox.inbox_dead_letter where position = 1",
    )
    .fetch_one(shop.pool())
    .await
    .unwrap();
    (serde_json::from_str(&row.0).unwrap(), String::from_utf8(row.1).unwrap(), row.2)
}

/// An operator with the form open.
struct Editor {
    served: Served,
    cookie: String,
    token: String,
    page: String,
}

impl Editor {
    async fn open(shop: &Shop, show_payloads: bool) -> Self {
        let served = shop.with_accounts(show_payloads).await;
        let cookie = log_in(&served, ANNA).await;
        let letter = served.get_as(&cookie, &format!("/dead-letters/one?{ONE}")).await.text;
        assert!(letter.contains("/dead-letters/edit?place=shop"), "{letter}");
        let page = served.get_as(&cookie, &format!("/dead-letters/edit?{ONE}")).await.text;
        let token = form_token(&page);
        Self { served, cookie, token, page }
    }

    /// Sends the form with these fields filled in, and the others as the page has them.
    async fn send(&self, fields: &[(&str, &str)]) -> Answer {
        let hidden = |name: &str| {
            let from = format!("name=\"{name}\" value=\"");
            self.page.split(&from).nth(1).unwrap().split('"').next().unwrap().to_owned()
        };
        let edited_at = hidden("edited_at");
        let mut form = vec![
            ("form_token", &*self.token),
            ("place", "shop"),
            ("side", "inbox"),
            ("letter", "1"),
            ("edited_at", &edited_at),
        ];
        form.extend(fields);
        self.served.post(&self.cookie, "/dead-letters/edit", &form).await
    }
}

fn area(page: &str, name: &str) -> String {
    let from = page.split(&format!("<textarea name=\"{name}\"")).nth(1).unwrap();
    let text = from.split_once(">\n").unwrap().1.split("</textarea>").next().unwrap();
    text.replace("&quot;", "\"").replace("&lt;", "<").replace("&gt;", ">").replace("&#39;", "'")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_letter_is_edited_and_the_edit_is_recorded() {
    let shop = Shop::open().await;
    shop.give_up("payments", "order.placed", "no currency", 1).await;
    let editor = Editor::open(&shop, true).await;
    assert_eq!(area(&editor.page, "payload"), "{\"order\": 1}");
    // As a browser sends the lines of a text.
    let payload = "{\"order\": 1,\r\n\"currency\": \"EUR\"}";
    let note = "<b>version 7 left the currency out</b>";
    let headers = "{\"tenant\": \"acme\", \"x-secret\": null}";
    let answer = editor.send(&[("payload", payload), ("headers", headers), ("note", note)]).await;
    assert_eq!(answer.status, StatusCode::SEE_OTHER, "{}", answer.text);
    assert_eq!(answer.header("location"), "/dead-letters/one?place=shop&side=inbox&letter=1");
    let (kept, payload, state) = content(&shop).await;
    assert_eq!(payload, "{\"order\": 1,\n\"currency\": \"EUR\"}");
    assert_eq!(kept, serde_json::json!({ "ce-source": "/shop", "tenant": "acme" }));
    assert_eq!(state, "dead");
    let wanted = ("inbox-letters.edit", "payments", "anna (console)", Some(note));
    let done = shop.actions().await;
    let done: Vec<_> = done.iter().map(|(a, b, c, d)| (&**a, &**b, &**c, d.as_deref())).collect();
    assert_eq!(done, [wanted]);
    let letter = editor.served.get_as(&editor.cookie, answer.header("location")).await.text;
    assert!(letter.contains("<dt>Edited</dt>") && letter.contains("EUR"), "{letter}");
    // The form that was open before the edit.
    let late = editor.send(&[("merge", "{\"currency\": \"USD\"}"), ("note", "again")]).await;
    assert_eq!(late.status, StatusCode::CONFLICT);
    assert!(late.text.contains("edited by somebody else"), "{}", late.text);
    assert_eq!(content(&shop).await.1, payload);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payload_that_is_not_shown_is_patched() {
    let shop = Shop::open().await;
    shop.give_up("payments", "order.placed", "no currency", 1).await;
    let editor = Editor::open(&shop, false).await;
    assert!(!editor.page.contains("{\"order\""), "{}", editor.page);
    assert_eq!(area(&editor.page, "payload"), "");
    let answer = editor
        .send(&[("payload", ""), ("merge", "{\"currency\": \"EUR\"}"), ("note", "left out")])
        .await;
    assert_eq!(answer.status, StatusCode::SEE_OTHER, "{}", answer.text);
    assert_eq!(content(&shop).await.1, "{\"currency\":\"EUR\",\"order\":1}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_form_that_cannot_be_applied_changes_nothing_and_keeps_what_was_written() {
    let shop = Shop::open().await;
    shop.give_up("payments", "order.placed", "no currency", 1).await;
    let editor = Editor::open(&shop, true).await;
    let before = content(&shop).await;
    let same = ("payload", "{\"order\": 1}");
    for (fields, said) in [
        (&[same, ("note", "x")][..], "Nothing would change"),
        (&[("payload", "[]"), ("merge", "{}"), ("note", "x")], "changed twice"),
        (&[same, ("merge", "{\"a\": 1}"), ("note", " ")], "an edit needs a note"),
        (&[same, ("merge", "[<b>]"), ("note", "x")], "the patch must be a JSON object"),
        (&[same, ("headers", "{\"a\": 1}"), ("note", "x")], "a JSON object of strings"),
        (&[same, ("headers", "{\"ce-id\": \"1\"}"), ("note", "x")], "cannot be edited"),
    ] {
        let answer = editor.send(fields).await;
        assert_eq!(answer.status, StatusCode::UNPROCESSABLE_ENTITY, "{fields:?}: {}", answer.text);
        assert!(answer.text.contains(said), "{fields:?}: {}", answer.text);
        for (name, value) in fields.iter().filter(|(name, _)| *name != "note") {
            assert_eq!(area(&answer.text, name), *value, "{fields:?}");
        }
    }
    assert_eq!(content(&shop).await, before);
    assert!(shop.actions().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn viewers_and_forged_forms_edit_and_restore_nothing() {
    let shop = Shop::open().await;
    shop.give_up("payments", "order.placed", "no currency", 2).await;
    shop.run("update pillarbox.inbox_dead_letter set state = 'discarded' where position = 2").await;
    let editor = Editor::open(&shop, true).await;
    let ben = log_in(&editor.served, BEN).await;
    let of_ben = form_token(&editor.served.get_as(&ben, "/").await.text);
    let before = content(&shop).await;
    for (cookie, token) in [
        (&*ben, &*of_ben),
        (&*ben, &*editor.token),
        (&*editor.cookie, &*of_ben),
        (&*editor.cookie, ""),
        ("", &*editor.token),
    ] {
        let edit = [
            ("form_token", token),
            ("place", "shop"),
            ("side", "inbox"),
            ("letter", "1"),
            ("merge", "{\"a\": 1}"),
            ("note", "x"),
        ];
        let answer = editor.served.post(cookie, "/dead-letters/edit", &edit).await;
        assert_eq!(answer.status, StatusCode::FORBIDDEN, "{}", answer.text);
        let restore = [
            ("form_token", token),
            ("do", "restore"),
            ("place", "shop"),
            ("side", "inbox"),
            ("note", "x"),
        ];
        let answer = editor.served.post(cookie, "/dead-letters/change", &restore).await;
        assert_eq!(answer.status, StatusCode::FORBIDDEN, "{}", answer.text);
    }
    let page = editor.served.get_as(&ben, &format!("/dead-letters/edit?{ONE}")).await;
    assert_eq!(page.status, StatusCode::FORBIDDEN);
    for letter in [1, 2] {
        let path = format!("/dead-letters/one?place=shop&side=inbox&letter={letter}");
        let page = editor.served.get_as(&ben, &path).await.text;
        assert!(!page.contains("/dead-letters/edit") && !page.contains("do=restore"), "{page}");
        // Without accounts nobody may change anything.
        let page = shop.served().await.get(&path).await.text;
        assert!(!page.contains("/dead-letters/edit") && !page.contains("do=restore"), "{page}");
    }
    let page = shop.served().await.get(&format!("/dead-letters/edit?{ONE}")).await;
    assert_eq!(page.status, StatusCode::FORBIDDEN);
    assert_eq!(content(&shop).await, before);
    assert!(shop.actions().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn discarded_letters_are_found_and_restored_with_a_note() {
    let shop = Shop::open().await;
    shop.give_up("payments", "order.placed", "card declined", 3).await;
    shop.run(
        "update pillarbox.inbox_dead_letter set state = 'discarded', resolved_at = now() where position < 3",
    )
    .await;
    let served = shop.with_accounts(false).await;
    let cookie = log_in(&served, ANNA).await;
    let page = served.get_as(&cookie, "/dead-letters?state=discarded").await.text;
    assert!(page.contains("2 discarded letters in 1 kind"), "{page}");
    let list = served
        .get_as(&cookie, "/dead-letters/list?place=shop&side=inbox&state=discarded")
        .await
        .text;
    assert_eq!(list.matches("<td>discarded</td>").count(), 2, "{list}");
    assert!(list.contains("do=restore&amp;place=shop&amp;side=inbox"), "{list}");
    assert!(!list.contains("do=retry") && !list.contains("do=discard"), "{list}");
    let one = served.get_as(&cookie, &format!("/dead-letters/one?{ONE}")).await.text;
    assert!(one.contains("Restore…") && !one.contains("Edit…"), "{one}");
    let edit = served.get_as(&cookie, &format!("/dead-letters/edit?{ONE}")).await;
    assert_eq!(edit.status, StatusCode::CONFLICT);
    assert!(edit.text.contains("this one is discarded"), "{}", edit.text);
    let sure = "/dead-letters/sure?do=restore&place=shop&side=inbox&state=discarded";
    let sure = served.get_as(&cookie, sure).await.text;
    assert!(sure.contains("2 discarded letters"), "{sure}");
    let token = form_token(&sure);
    let mut form = [
        ("form_token", &*token),
        ("do", "restore"),
        ("place", "shop"),
        ("side", "inbox"),
        ("letter", "1"),
        ("note", ""),
    ];
    let answer = served.post(&cookie, "/dead-letters/change", &form).await;
    assert_eq!(answer.status, StatusCode::UNPROCESSABLE_ENTITY, "without a note");
    form[5].1 = "they were needed";
    let begun = served.post(&cookie, "/dead-letters/change", &form).await;
    assert_eq!(begun.status, StatusCode::SEE_OTHER, "{}", begun.text);
    pillarbox_testkit::eventually("the end", std::time::Duration::from_secs(20), async || {
        let page = served.get_as(&cookie, begun.header("location")).await.text;
        match page.contains("1 letter is dead again") && !page.contains("data-soon") {
            true => Ok::<_, String>(Some(())),
            false => Err(page),
        }
    })
    .await
    .unwrap();
    let states: Vec<String> =
        sqlx::query_scalar("select state from pillarbox.inbox_dead_letter order by position")
            .fetch_all(shop.pool())
            .await
            .unwrap();
    assert_eq!(states, ["dead", "discarded", "dead"]);
    let [(what, target, who, note)] = &shop.actions().await[..] else { panic!("one action") };
    let note = note.as_deref();
    assert_eq!(
        (&**what, &**target, &**who),
        ("inbox-letters.restore", "payments", "anna (console)")
    );
    assert_eq!(note, Some("they were needed"));
    // A retry of what is discarded means nothing.
    form[1].1 = "retry";
    form[4] = ("state", "discarded");
    let answer = served.post(&cookie, "/dead-letters/change", &form).await;
    assert_eq!(answer.status, StatusCode::NOT_FOUND, "{}", answer.text);
}

/// A payload that would leave its place in the form, or that a form would change without a word.
#[tokio::test(flavor = "multi_thread")]
async fn a_hostile_payload_stays_in_its_place_and_as_it_is() {
    let shop = Shop::open().await;
    shop.give_up("payments", "order.placed", "no currency", 1).await;
    let hostile = "{\"a\": \"\u{202e}</textarea><script>alert(1)</script>\"}";
    sqlx::query("update pillarbox.inbox_dead_letter set payload = $1, error = $2")
        .bind(hostile.as_bytes())
        .bind("</textarea><img src=x onerror=alert(1)>")
        .execute(shop.pool())
        .await
        .unwrap();
    let editor = Editor::open(&shop, true).await;
    assert!(!editor.page.contains("<img") && !editor.page.contains("<script>"), "{}", editor.page);
    assert_eq!(editor.page.matches("</textarea>").count(), 3, "{}", editor.page);
    assert!(!editor.page.contains('\u{202e}'), "{}", editor.page);
    let shown = area(&editor.page, "payload");
    assert_eq!(shown, hostile.replace('\u{202e}', "\\u202e"));
    // Only the headers are changed, so the payload stays byte for byte.
    let answer = editor
        .send(&[("payload", &shown), ("headers", "{\"tenant\": \"acme\"}"), ("note", "x")])
        .await;
    assert_eq!(answer.status, StatusCode::SEE_OTHER, "{}", answer.text);
    assert_eq!(content(&shop).await.1, hostile);
    // What is no text cannot be in a form.
    shop.run("update pillarbox.inbox_dead_letter set payload = '\\xff00'").await;
    let page =
        editor.served.get_as(&editor.cookie, &format!("/dead-letters/edit?{ONE}")).await.text;
    assert!(page.contains("The payload is no text") && area(&page, "payload").is_empty(), "{page}");
}
