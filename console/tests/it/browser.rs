//! The pages in a real Chromium: at two widths, in both colour schemes, by keyboard, without JavaScript, while the
//! database is away. NOT TESTED where there is no chromium or chromedriver.
//!
//! The screenshots are in `target/tmp/console/`. `PILLARBOX_SCREENSHOTS=docs/console cargo test --test console browser`
//! also writes those of the documentation there.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use base64::Engine;
use futures::FutureExt;
use pillarbox_console::{Access, Console, Tokens};
use pillarbox_testkit::eventually;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use super::support::{Served, Shop};

const TOKEN: &str = "anna-0123456789-0123456789-abc";
/// The pictures that the documentation shows.
const DOCUMENTED: [&str; 2] = ["overview-wide-light", "dead-letters-wide-light"];
const WAIT: Duration = Duration::from_secs(60);

/// A session of a browser.
struct Browser {
    client: reqwest::Client,
    session: String,
    base: String,
    _driver: Child,
    _home: tempfile::TempDir,
}

fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(name)).find(|file| file.is_file())
}

impl Browser {
    async fn open(base: String) -> Option<Self> {
        let (Some(chromium), Some(driver)) = (find("chromium"), find("chromedriver")) else {
            println!("NOT TESTED: there is no chromium or no chromedriver");
            return None;
        };
        let home = tempfile::tempdir().unwrap();
        let mut driver = Command::new(driver)
            .arg("--port=0")
            .env("HOME", home.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(driver.stdout.take().unwrap()).lines();
        let port = loop {
            let line = lines.next_line().await.unwrap().expect("chromedriver says its port");
            if let Some((_, port)) = line.split_once("started successfully on port ") {
                break port.trim_end_matches('.').to_owned();
            }
        };
        let client = reqwest::Client::new();
        let arguments = json!([
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--hide-scrollbars",
            format!("--user-data-dir={}", home.path().join("profile").display())
        ]);
        let options = json!({ "binary": chromium, "args": arguments });
        let wanted =
            json!({ "capabilities": { "alwaysMatch": { "goog:chromeOptions": options } } });
        let answer = client
            .post(format!("http://127.0.0.1:{port}/session"))
            .body(wanted.to_string())
            .send()
            .await
            .unwrap();
        let answer: Value = serde_json::from_str(&answer.text().await.unwrap()).unwrap();
        let id = answer["value"]["sessionId"].as_str().unwrap_or_else(|| panic!("{answer}"));
        let session = format!("http://127.0.0.1:{port}/session/{id}");
        Some(Self { client, session, base, _driver: driver, _home: home })
    }

    async fn call(&self, path: &str, body: Value) -> Value {
        let request = self.client.post(format!("{}/{path}", self.session)).body(body.to_string());
        let answer = request.send().await.unwrap();
        let text = answer.text().await.unwrap();
        let value: Value = serde_json::from_str(&text).unwrap();
        assert!(value["value"]["error"].is_null(), "{path}: {text}");
        value["value"].clone()
    }

    async fn ask(&self, path: &str) -> Value {
        let answer = self.client.get(format!("{}/{path}", self.session)).send().await.unwrap();
        let value: Value = serde_json::from_str(&answer.text().await.unwrap()).unwrap();
        value["value"].clone()
    }

    async fn developer(&self, command: &str, parameters: Value) -> Value {
        self.call("goog/cdp/execute", json!({ "cmd": command, "params": parameters })).await
    }

    async fn go(&self, path: &str) {
        self.call("url", json!({ "url": format!("{}{path}", self.base) })).await;
    }

    async fn run(&self, script: &str) -> Value {
        self.call("execute/sync", json!({ "script": script, "args": [] })).await
    }

    async fn source(&self) -> String {
        self.ask("source").await.as_str().unwrap().to_owned()
    }

    async fn element(&self, css: &str) -> String {
        let found = self.call("element", json!({ "using": "css selector", "value": css })).await;
        found.as_object().unwrap().values().next().unwrap().as_str().unwrap().to_owned()
    }

    async fn click(&self, css: &str) {
        let element = self.element(css).await;
        self.call(&format!("element/{element}/click"), json!({})).await;
    }

    async fn write(&self, css: &str, text: &str) {
        let element = self.element(css).await;
        self.call(&format!("element/{element}/value"), json!({ "text": text })).await;
    }

    async fn press(&self, key: &str) {
        let presses =
            json!([{ "type": "keyDown", "value": key }, { "type": "keyUp", "value": key }]);
        let keys = json!({ "type": "key", "id": "keyboard", "actions": presses });
        self.call("actions", json!({ "actions": [keys] })).await;
    }

    async fn look(&self, width: u32, scheme: &str) {
        let size =
            json!({ "width": width, "height": 900, "deviceScaleFactor": 1, "mobile": false });
        self.developer("Emulation.setDeviceMetricsOverride", size).await;
        let scheme = json!([{ "name": "prefers-color-scheme", "value": scheme }]);
        self.developer("Emulation.setEmulatedMedia", json!({ "features": scheme })).await;
    }

    /// A picture of the whole page.
    async fn picture(&self, name: &str) {
        let whole = json!({ "format": "png", "captureBeyondViewport": true });
        let taken = self.developer("Page.captureScreenshot", whole).await;
        let png = base64::engine::general_purpose::STANDARD.decode(taken["data"].as_str().unwrap());
        let png = png.unwrap();
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("console");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join(format!("{name}.png")), &png).unwrap();
        if let Some(folder) = std::env::var_os("PILLARBOX_SCREENSHOTS")
            && DOCUMENTED.contains(&name)
        {
            let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join(folder);
            std::fs::create_dir_all(&root).unwrap();
            std::fs::write(root.join(format!("{name}.png")), &png).unwrap();
        }
    }

    async fn log_in(&self, token: &str) {
        self.go("/login").await;
        self.write("#token", token).await;
        self.click("button").await;
        // A click does not wait for the page that it leads to.
        eventually("the login", WAIT, async || {
            let page = self.source().await;
            if page.contains("Log out") { Ok::<_, String>(Some(())) } else { Err(page) }
        })
        .await
        .unwrap();
    }
}

/// Runs a test with a browser, and ends the browser whatever comes of it.
async fn with(served: &Served, test: impl AsyncFnOnce(&Browser)) {
    // One at a time, because a browser takes two processors by itself.
    static ONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
    let _one = ONE.lock().await;
    let Some(browser) = Browser::open(format!("http://{}", served.address)).await else { return };
    let came = std::panic::AssertUnwindSafe(test(&browser)).catch_unwind().await;
    let _ = browser.client.delete(&browser.session).send().await;
    if let Err(panic) = came {
        std::panic::resume_unwind(panic);
    }
}

/// A shop with some trouble, and a console with accounts.
async fn troubled() -> (Shop, Served) {
    let shop = Shop::open().await;
    shop.run(include_str!("trouble.sql")).await;
    pillarbox_trail::migrate(shop.pool()).await.unwrap();
    let day = "(now() at time zone 'UTC')::date";
    shop.run(&format!("select pillarbox.trail_days(array[{day} - 1, {day}])")).await;
    shop.run(include_str!("flow.sql")).await;
    let column = "column \"cents\" of relation \"payment\" does not exist: insert into payment failed for order 4711";
    shop.give_up("payments", "order.placed", &format!("handling failed: {column}"), 2_840).await;
    shop.give_up("payments", "order.refunded", "permanent: the card was closed on 2026-11-03", 164)
        .await;
    shop.give_up(
        "ledger",
        "order.paid",
        "invalid type: string \"12,50\", expected an integer at line 1 column 38",
        6,
    )
    .await;
    let tokens = Tokens::parse(&format!("operator anna {TOKEN}")).unwrap();
    let console = Console::new(vec![shop.place().relay("default")], Access::Tokens(tokens));
    let served = Served::new(console.show_payloads(true)).await;
    (shop, served)
}

/// The texts whose contrast with what is behind them is too small, and how wide the page is beyond its window.
const SEEN: &str = r"
  const light = (c) => { const [r, g, b] = c.map((v) => { v /= 255; return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; }); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const read = (text) => text.match(/[\d.]+/g).map(Number);
  const behind = (e) => { for (; e; e = e.parentElement) { const c = read(getComputedStyle(e).backgroundColor); if (c.length < 4 || c[3] === 1) return c.slice(0, 3); } return [255, 255, 255]; };
  const faint = [];
  for (const e of document.querySelectorAll('body *')) {
    const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
    if (!own || !e.getClientRects().length || e.closest('.skip, noscript, option')) continue;
    const [one, other] = [light(read(getComputedStyle(e).color).slice(0, 3)), light(behind(e))].sort((a, b) => b - a);
    if ((one + 0.05) / (other + 0.05) < 4.5) faint.push(e.tagName + ' ' + e.textContent.slice(0, 40));
  }
  const unnamed = [...document.querySelectorAll('input:not([type=hidden]), select')].filter((e) => !e.labels.length && !e.ariaLabel).map((e) => e.name);
  return { faint, unnamed, beyond: document.documentElement.scrollWidth - window.innerWidth };
";

#[tokio::test(flavor = "multi_thread")]
async fn every_page_is_readable_at_two_widths_and_in_both_colour_schemes() {
    let (_shop, served) = troubled().await;
    with(&served, async |browser| {
        browser.log_in(TOKEN).await;
        let pages = [
            ("overview", "/"),
            ("outboxes", "/outboxes"),
            ("consumers", "/consumers"),
            ("consumer", "/consumers/one?place=shop&consumer=payments"),
            ("retries", "/retries"),
            ("dead-letters", "/dead-letters"),
            ("letters", "/dead-letters/list?place=shop&side=inbox&owner=ledger"),
            ("letter", "/dead-letters/one?place=shop&side=inbox&letter=3010"),
            ("sure", "/dead-letters/sure?do=discard&place=shop&side=inbox&owner=ledger"),
            ("edit", "/dead-letters/edit?place=shop&side=inbox&letter=3010"),
            ("flows", "/flows?key=order-42"),
            ("sagas", "/sagas"),
            ("saga", "/sagas/one?place=shop&saga=trip&id=trip-17"),
            ("scheduled", "/scheduled"),
            ("doctor", "/doctor"),
            ("actions", "/actions"),
            ("runbook", "/runbook"),
        ];
        for (width, size) in [(1_280, "wide"), (390, "narrow")] {
            for scheme in ["light", "dark"] {
                browser.look(width, scheme).await;
                for (name, path) in pages {
                    browser.go(path).await;
                    let seen = browser.run(SEEN).await;
                    browser.picture(&format!("{name}-{size}-{scheme}")).await;
                    let fine = json!({ "faint": [], "unnamed": [], "beyond": 0 });
                    assert_eq!(seen, fine, "{name}, {size}, {scheme}");
                }
            }
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kind_is_retried_by_keyboard_and_the_page_shows_what_became_of_it() {
    let (_shop, served) = troubled().await;
    with(&served, async |browser| {
        browser.go("/").await;
        browser.write("#token", "a wrong token").await;
        browser.press("\u{e007}").await;
        assert!(browser.source().await.contains("This token is not known."));
        browser.write("#token", TOKEN).await;
        browser.press("\u{e007}").await;
        browser.go("/dead-letters/sure?do=retry&place=shop&side=inbox&owner=ledger").await;
        browser.press("\u{e004}").await;
        let first = browser.run("return document.activeElement.textContent").await;
        assert_eq!(first, "Skip to the content");
        let outline = "return getComputedStyle(document.activeElement).outlineStyle";
        for _ in 0..40 {
            assert_eq!(browser.run(outline).await, "solid", "focus is seen");
            if browser.run("return document.activeElement.name").await == "note" {
                break;
            }
            browser.press("\u{e004}").await;
        }
        let note = browser.element("input[name=note]").await;
        browser.call(&format!("element/{note}/value"), json!({ "text": "mended" })).await;
        browser.press("\u{e004}").await;
        browser.press("\u{e007}").await;
        eventually("the end of the job", WAIT, async || {
            let page = browser.source().await;
            let done =
                page.contains("6 letters are to be tried again") && page.contains("6 waiting");
            if done { Ok::<_, String>(Some(())) } else { Err(page) }
        })
        .await
        .unwrap();
        browser.picture("job").await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_letter_is_edited_in_the_form_and_only_what_was_changed_changes() {
    let (shop, served) = troubled().await;
    let payload = "{\"amount\": \"12,50\",\n  \"name\": \"</textarea>\u{202e}M\u{fc}ller\"}\n";
    sqlx::query("update pillarbox.inbox_dead_letter set payload = $1 where position = 3010")
        .bind(payload.as_bytes())
        .execute(shop.pool())
        .await
        .unwrap();
    let stored = async || {
        let sql = "select payload from pillarbox.inbox_dead_letter where position = 3010";
        let payload: Vec<u8> = sqlx::query_scalar(sql).fetch_one(shop.pool()).await.unwrap();
        String::from_utf8(payload).unwrap()
    };
    with(&served, async |browser| {
        browser.log_in(TOKEN).await;
        let edit = async |css: &str, text: &str| {
            browser.go("/dead-letters/one?place=shop&side=inbox&letter=3010").await;
            browser.click("a[href*='/dead-letters/edit']").await;
            browser.write(css, text).await;
            browser.write("input[name=note]", "by hand").await;
            browser.picture("editing").await;
            browser.click(".sure button").await;
            eventually("the letter again", WAIT, async || {
                let page = browser.source().await;
                if page.contains("<dt>Edited</dt>") { Ok::<_, String>(Some(())) } else { Err(page) }
            })
            .await
            .unwrap();
        };
        // The text goes through the browser and back, with every line as it was.
        edit("textarea[name=headers]", "{\"tenant\": \"acme\"}").await;
        assert_eq!(stored().await, payload);
        edit("textarea[name=payload]", "\n").await;
        assert_eq!(stored().await, payload.replace('\u{202e}', "\\u202e") + "\n");
        edit("textarea[name=merge]", "{\"amount\": 1250}").await;
        let name = "\"name\":\"</textarea>\\u202eM\u{fc}ller\"";
        assert_eq!(stored().await, format!("{{\"amount\":1250,{name}}}"));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_javascript_every_page_can_be_read_and_used() {
    let (_shop, served) = troubled().await;
    with(&served, async |browser| {
        browser.developer("Emulation.setScriptExecutionDisabled", json!({ "value": true })).await;
        browser.log_in(TOKEN).await;
        eventually("the first look", WAIT, async || {
            browser.go("/").await;
            match browser.source().await.contains("Consumer payments has 3,004 dead letters") {
                true => Ok::<_, String>(Some(())),
                false => Ok(None),
            }
        })
        .await
        .unwrap();
        browser.go("/dead-letters").await;
        browser.click(".groups a").await;
        browser.click("td ~ td, tbody a").await;
        browser.go("/dead-letters/sure?do=discard&place=shop&side=inbox&owner=ledger").await;
        browser.write("input[name=note]", "by hand").await;
        browser.click(".sure button").await;
        eventually("the end of the job", WAIT, async || {
            let page = browser.source().await;
            if page.contains("6 letters discarded") { Ok::<_, String>(Some(())) } else { Err(page) }
        })
        .await
        .unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_page_says_that_the_database_is_away_and_that_it_is_back() {
    let mut postgres = pillarbox_testkit::Postgres::options().durable().start().await.unwrap();
    let database = postgres.create_database("shop").await.unwrap();
    pillarbox_inbox::migrate(&database.pool).await.unwrap();
    let place = pillarbox_console::Place::new("shop", &database.url, "pillarbox").unwrap();
    let served = Served::new(Console::new(vec![place], Access::Loopback)).await;
    let says = async |browser: &Browser, text: &str| {
        eventually(text, WAIT, async || {
            let page = browser.source().await;
            if page.contains(text) { Ok::<_, String>(Some(())) } else { Err(page) }
        })
        .await
        .unwrap();
    };
    if find("chromium").is_none() || find("chromedriver").is_none() {
        println!("NOT TESTED: there is no chromium or no chromedriver");
        return;
    }
    let stopped = &mut postgres;
    with(&served, async move |browser| {
        browser.go("/").await;
        says(browser, "Nothing needs you.").await;
        stopped.stop().await.unwrap();
        says(browser, "The database cannot be read").await;
        browser.picture("away").await;
        stopped.restart().await.unwrap();
        says(browser, "Nothing needs you.").await;
    })
    .await;
}
