//! The `pillarbox` program.

use std::process::{Command, Output};

use crate::support::{Process, Shop};
use pillarbox_testkit::{Nats, Postgres, Servers};

fn pillarbox(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_pillarbox"))
        .env_remove("DATABASE_URL")
        .args(arguments)
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[tokio::test]
async fn status_shows_backlog_age_cursor_and_holder() {
    let shop = Shop::open().await;
    shop.insert_many(7).await;
    let status = |more: &[&str]| {
        let output =
            pillarbox(&[&["status", "--database-url", shop.scope.database_url()], more].concat());
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout)
    };
    let before = status(&[]);
    assert!(
        before.contains("backlog       7 events") && before.contains("this relay has never run"),
        "{before}"
    );
    let relay = Process::relay(&shop, &[]);
    shop.shipped().await;
    let after: serde_json::Value = serde_json::from_str(&status(&["--json"])).unwrap();
    assert_eq!(after["backlog_events"], 0);
    assert_eq!(after["leading"], true);
    assert!(after["holder"].as_str().unwrap().contains(&format!("/{}/", relay.id())), "{after}");
    assert_eq!(after["cursor"]["high"], 7);
}

#[tokio::test]
async fn migrate_creates_the_tables_and_prints_them() {
    let scope = pillarbox_testkit::servers().await.unwrap().scope().await.unwrap();
    let url = scope.database_url();
    for set in ["outbox", "inbox", "all"] {
        let output = pillarbox(&["migrate", set, "--database-url", url]);
        assert!(output.status.success(), "{}", text(&output.stderr));
    }
    sqlx::query("select from pillarbox.outbox, pillarbox.inbox")
        .fetch_all(scope.pool())
        .await
        .unwrap();
    let printed = text(&pillarbox(&["migrate", "--print", "--schema", "shop"]).stdout);
    assert!(
        printed.contains("create table if not exists shop.outbox (")
            && printed.contains("shop.inbox ("),
        "{printed}"
    );
    sqlx::raw_sql(sqlx::AssertSqlSafe(printed)).execute(scope.pool()).await.unwrap();
    let refused = pillarbox(&["migrate", "--print", "--schema", "a b"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(
        text(&refused.stderr).contains("schema = \"a b\" cannot be used"),
        "{}",
        text(&refused.stderr)
    );
}

#[tokio::test]
async fn what_cannot_be_reached_at_the_start_is_waited_for_unless_told_otherwise() {
    let shop = Shop::open().await;
    let nobody = "postgres://postgres:hunter2@127.0.0.1:1/shop";
    for (database, nats, said) in [
        (
            nobody,
            shop.scope.nats_url(),
            "no connection to the database at postgres://127.0.0.1:1/shop",
        ),
        (
            shop.scope.database_url(),
            "nats://user:hunter2@127.0.0.1:1",
            "no connection to the broker at nats://127.0.0.1:1",
        ),
    ] {
        let environment = [("DATABASE_URL", database), ("NATS_URL", nats)];
        let mut waiting = Process::run(&["relay"], &environment);
        waiting.until_said(said).await;
        tokio::time::sleep(std::time::Duration::from_millis(500)).await;
        assert!(waiting.child.try_wait().unwrap().is_none(), "it goes on trying");
        assert_eq!(waiting.said(said), 1, "said once: {:#?}", waiting.lines.lock().unwrap());
        assert_eq!(waiting.said("hunter2"), 0);
        let mut failing = Process::run(&["relay", "--fail-fast"], &environment);
        assert_eq!(failing.ended().await, 1);
        failing.until_said(said).await;
    }
}

#[tokio::test]
async fn a_database_without_the_tables_is_told_what_to_do_and_waited_for() {
    let scope = pillarbox_testkit::servers().await.unwrap().scope().await.unwrap();
    let environment = [("DATABASE_URL", scope.database_url()), ("NATS_URL", scope.nats_url())];
    let relay = Process::run(&["relay"], &environment);
    relay.until_said("run `pillarbox migrate outbox`").await;
    pillarbox_outbox::migrate(scope.pool()).await.unwrap();
    relay.until_said("leading").await;
}

#[test]
fn wrong_usage_ends_with_2_and_a_wrong_setting_with_1_and_its_name() {
    assert_eq!(pillarbox(&["relay", "--no-such-flag"]).status.code(), Some(2));
    assert_eq!(pillarbox(&["status"]).status.code(), Some(2));
    let refused =
        pillarbox(&["relay", "--database-url", "postgres://localhost/x", "--lease-ms", "1"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(
        text(&refused.stderr).contains("lease_ms = \"1\" cannot be used"),
        "{}",
        text(&refused.stderr)
    );
    let refused = pillarbox(&["relay", "--database-url", "not a url"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(
        text(&refused.stderr).contains("database_url = \"***\" cannot be used"),
        "{}",
        text(&refused.stderr)
    );
}

#[tokio::test]
async fn migrate_says_what_it_applied_and_that_tables_are_newer() {
    let scope = pillarbox_testkit::servers().await.unwrap().scope().await.unwrap();
    let migrate = || {
        let output = pillarbox(&["migrate", "--database-url", scope.database_url()]);
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout)
    };
    let first = migrate();
    assert!(
        first.contains("applied 0001_outbox.sql") && first.contains("applied 0001_inbox.sql"),
        "{first}"
    );
    assert_eq!(
        migrate(),
        "outbox tables in schema pillarbox are up to date\ninbox tables in schema pillarbox are up to date\n"
    );
    for side in ["outbox", "inbox"] {
        let newer = format!(
            "insert into pillarbox.{side}_migration (version, description, success, checksum, execution_time) \
             values (97, 'later', true, '', 0)"
        );
        sqlx::query(sqlx::AssertSqlSafe(newer)).execute(scope.pool()).await.unwrap();
    }
    let newer = migrate();
    assert!(!newer.contains("up to date"), "{newer}");
    assert_eq!(
        newer.matches("newer than this program, which does not know migration 97").count(),
        2,
        "{newer}"
    );
}

#[tokio::test]
async fn what_others_have_written_does_not_act_on_the_terminal() {
    let shop = Shop::open().await;
    let hostile = "x\u{1b}[2J\u{9b}2J\u{202e}\u{2028}y\r\u{7}";
    pillarbox_inbox::migrate(shop.pool()).await.unwrap();
    sqlx::query(
        "insert into pillarbox.inbox_dead_letter (consumer, event_id, event_type, topic, headers, payload, \
         reason, error, attempts, first_failed_at) values ($1, $1, $1, $1, '{}', 'p', 'permanent', $1, 1, now())",
    )
    .bind(hostile)
    .execute(shop.pool())
    .await
    .unwrap();
    sqlx::query(
        "insert into pillarbox.outbox_dead_letter (position, relay, event_id, event_type, topic, key, headers, \
         payload, created_at, reason, error, attempts) \
         values (1, $1, gen_random_uuid(), $1, $1, $1, jsonb_build_object('h', $1::text), 'p', now(), 'invalid', $1, 1)",
    )
    .bind(hostile)
    .execute(shop.pool())
    .await
    .unwrap();
    let id: String = sqlx::query_scalar("select event_id::text from pillarbox.outbox_dead_letter")
        .fetch_one(shop.pool())
        .await
        .unwrap();
    sqlx::query(
        "insert into pillarbox.relay (name, cursor, holder, epoch, expires_at, heartbeat) \
         values ($1, '{}', $1, 1, now() + interval '1 hour', now()), ('other', '{}', $1, 1, now(), now())",
    )
    .bind(hostile)
    .execute(shop.pool())
    .await
    .unwrap();
    let url = shop.scope.database_url();
    let nats = shop.scope.nats_url();
    for arguments in [
        &["dead-letters", "list", "--outbox"][..],
        &["dead-letters", "list", "--outbox", "--json"],
        &["dead-letters", "summary"],
        &["dead-letters", "summary", "--json"],
        &["dead-letters", "show", "--outbox", &id],
        &["dead-letters", "retry", "--outbox", "--all", "--dry-run"],
        &["dead-letters", "discard", "--inbox", "--all", "--dry-run"],
        &["dead-letters", "list", "--inbox"],
        &["dead-letters", "show", "--inbox", hostile],
        &["dead-letters", "show", "--outbox", hostile],
        &["replay", "--since", hostile, "--dry-run", "--name", "other"],
        &["replay", "--since", "1h", "--dry-run", "--name", hostile],
        &["status", "--name", hostile],
        &["config", "--schema", hostile],
        &["migrate", "--schema", hostile],
        &["migrate", "--config", hostile],
        &["status"],
        &["status", "--json"],
        &["status", "--name", "other"],
        &["doctor", "--nats-url", nats],
        &["doctor", "--nats-url", nats, "--json"],
        &["doctor", "--nats-url", nats, "--name", "other"],
    ] {
        let output = pillarbox(&[arguments, &["--database-url", url]].concat());
        let said = text(&output.stdout) + &text(&output.stderr);
        assert!(said.len() > 20, "{arguments:?}: {said}");
        let acting =
            |c: char| (c.is_control() && c != '\n') || matches!(c, '\u{2028}' | '\u{202e}');
        assert!(!said.contains(acting), "{arguments:?}: {said:?}");
        if arguments.contains(&"list") && arguments.contains(&"--json") {
            let letter: serde_json::Value = serde_json::from_str(said.trim()).unwrap();
            assert_eq!(letter["topic"], hostile, "JSON keeps the value");
        }
    }
}

#[test]
fn no_level_of_the_log_shows_a_secret() {
    let password_file =
        std::env::temp_dir().join(format!("pillarbox-pgpass-{}", std::process::id()));
    std::fs::write(&password_file, "hunter2 is no line of a password file\n").unwrap();
    std::fs::set_permissions(&password_file, std::os::unix::fs::PermissionsExt::from_mode(0o600))
        .unwrap();
    for level in [
        "debug",
        "trace",
        "async_nats=trace,sqlx=trace,sqlx_postgres::options=trace,async_nats::connector=trace",
    ] {
        for format in ["text", "json"] {
            let output = Command::new(env!("CARGO_BIN_EXE_pillarbox"))
                .args(["relay", "--fail-fast", "--http", "off", "--log-format", format])
                .env("RUST_LOG", level)
                .env("PGPASSFILE", &password_file)
                .env("DATABASE_URL", "postgres://u@127.0.0.1:1/x")
                .env("NATS_URL", "nats://u:hunter2@127.0.0.1:1")
                .output()
                .unwrap();
            let said = text(&output.stdout) + &text(&output.stderr);
            assert!(said.contains("127.0.0.1") && !said.contains("hunter2"), "{level}: {said}");
            let output = Command::new(env!("CARGO_BIN_EXE_pillarbox"))
                .args(["doctor", "--log-format", format])
                .env("RUST_LOG", level)
                .env("DATABASE_URL", "postgres://u:hunter2@127.0.0.1:1/x")
                .env("NATS_URL", "nats://u:hunter2@127.0.0.1:1")
                .output()
                .unwrap();
            let said = text(&output.stdout) + &text(&output.stderr);
            assert!(said.contains("127.0.0.1") && !said.contains("hunter2"), "{level}: {said}");
        }
    }
    std::fs::remove_file(&password_file).unwrap();
}

/// The ways in which `RUST_LOG` can ask for everything, also of the parts that write secrets.
const EVERYTHING: [&str; 4] = [
    "trace",
    "sqlx=trace,sqlx_postgres::options::pgpass=trace,async_nats=trace,async_nats::connection=trace",
    "async_nats::connector[{attempt}]=trace,async_nats::connection[{connect_info}]=trace,trace",
    "[connect]=trace,trace",
];

const PASSWORD: &str = "hunter2/+secret";

/// The password in all the forms in which it travels: as it is, in a URL, in base64 at each alignment, in hexadecimal
/// digits, and what md5 authentication stores, which is as good as the password.
fn forms_of_the_password(md5: &str) -> Vec<String> {
    let mut forms = vec![
        "hunter2".to_owned(),
        PASSWORD.to_owned(),
        "hunter2%2F%2Bsecret".to_owned(),
        data_encoding::HEXLOWER.encode(PASSWORD.as_bytes()),
        md5.to_owned(),
    ];
    for before in ["", "x", "xx"] {
        let text = data_encoding::BASE64.encode(format!("{before}{PASSWORD}").as_bytes());
        // What stands at the edges depends on the neighbours.
        forms.push(text[4..text.len() - 4].to_owned());
    }
    forms
}

#[tokio::test]
async fn no_level_of_the_log_shows_a_password_that_is_sent() {
    let servers = Servers {
        postgres: Postgres::options()
            .access("host all scram 127.0.0.1/32 scram-sha-256\nhost all old 127.0.0.1/32 md5")
            .start()
            .await
            .unwrap(),
        nats: Nats::start().await.unwrap(),
    };
    let scope = servers.scope().await.unwrap();
    let users = format!("authorization {{ users = [{{ user: u, password: \"{PASSWORD}\" }}] }}");
    let closed = Nats::options().closed().config(&users).start().await.unwrap();
    pillarbox_outbox::migrate(scope.pool()).await.unwrap();
    for sql in [
        "set password_encryption = 'scram-sha-256'",
        &format!("create role scram login superuser password '{PASSWORD}'"),
        "set password_encryption = 'md5'",
        &format!("create role old login superuser password '{PASSWORD}'"),
        "reset password_encryption",
    ] {
        sqlx::raw_sql(sqlx::AssertSqlSafe(sql.to_owned())).execute(scope.pool()).await.unwrap();
    }
    let md5: String = sqlx::query_scalar("select md5($1 || 'old')")
        .bind(PASSWORD)
        .fetch_one(scope.pool())
        .await
        .unwrap();
    let forms = forms_of_the_password(&md5);
    let folder = tempfile::tempdir().unwrap();
    let pgpass = folder.path().join("pgpass");
    std::fs::write(&pgpass, format!("*:*:*:*:{PASSWORD}\n")).unwrap();
    std::fs::set_permissions(&pgpass, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let pgpass = pgpass.to_str().unwrap();
    let url = |login: &str| scope.database_url().replace("//postgres@", &format!("//{login}@"));
    let in_url = ("PGAPPNAME", "x");
    let logins = [
        ("scram:hunter2%2F%2Bsecret", in_url),
        ("old:hunter2%2F%2Bsecret", in_url),
        ("scram", ("PGPASSWORD", PASSWORD)),
        ("scram", ("PGPASSFILE", pgpass)),
    ];
    let nats = format!("nats://u:{PASSWORD}@127.0.0.1:{}", closed.port())
        .replace(PASSWORD, "hunter2%2F%2Bsecret");
    let by_setting = format!("nats://127.0.0.1:{}", closed.port());
    for (number, level) in EVERYTHING.into_iter().enumerate() {
        for (login, (name, value)) in logins {
            let mut command = Command::new(env!("CARGO_BIN_EXE_pillarbox"));
            command
                .args(["doctor", "--log-format", ["text", "json"][number % 2]])
                .env("RUST_LOG", level)
                .env("DATABASE_URL", url(login))
                .env(name, value);
            match name {
                "PGPASSWORD" => command
                    .env("NATS_URL", &by_setting)
                    .env("NATS_USER", "u")
                    .env("NATS_PASSWORD", PASSWORD),
                _ => command.env("NATS_URL", &nats),
            };
            let output = command.output().unwrap();
            let (shown, said) = (text(&output.stdout), text(&output.stderr));
            for check in ["database.reachable", "broker.reachable"] {
                let line = shown.lines().find(|line| line.contains(check)).unwrap();
                assert!(line.contains("ok"), "{login} {name}: {line}");
            }
            assert!(said.contains("DEBUG"), "{level} is heard: {said}");
            for form in &forms {
                let lines: Vec<_> =
                    said.lines().chain(shown.lines()).filter(|line| line.contains(form)).collect();
                assert!(lines.is_empty(), "{level}, {login}, {name}: {form} in {lines:#?}");
            }
        }
    }
}

#[test]
fn a_password_file_that_is_not_used_because_others_may_read_it_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let pgpass = folder.path().join("pgpass");
    std::fs::write(&pgpass, "*:*:*:*:hunter2\n").unwrap();
    let said = |mode: u32, url: &str| {
        std::fs::set_permissions(&pgpass, std::os::unix::fs::PermissionsExt::from_mode(mode))
            .unwrap();
        let output = Command::new(env!("CARGO_BIN_EXE_pillarbox"))
            .args(["config", "--database-url", url])
            .env_remove("PGPASSWORD")
            .env("PGPASSFILE", &pgpass)
            .output()
            .unwrap();
        text(&output.stdout) + &text(&output.stderr)
    };
    let named = |said: &str| said.contains(&format!("chmod 600 {}", pgpass.display()));
    for mode in [0o640, 0o604, 0o620, 0o602] {
        let said = said(mode, "postgres://u@h/x");
        assert!(named(&said) && !said.contains("hunter2"), "{mode:o}: {said}");
    }
    let used = said(0o600, "postgres://u@h/x");
    assert!(!named(&used), "{used}");
    let not_needed = said(0o644, "postgres://u:p@h/x");
    assert!(!named(&not_needed), "{not_needed}");
}
