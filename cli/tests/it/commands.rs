//! The commands as somebody on call meets them: help, completions, manual pages, filters, failures.

use std::collections::BTreeSet;
use std::process::{Command, Stdio};

use crate::support::{Process, Shop};

const DOCS: &str = include_str!("../../../docs/commands.md");

/// Runs it, and returns the exit code, standard output and standard error.
fn pillarbox(arguments: &[&str], environment: &[(&str, &str)]) -> (i32, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_pillarbox"))
        .env_remove("DATABASE_URL")
        .env_remove("NATS_URL")
        .args(arguments)
        .envs(environment.iter().copied())
        .output()
        .unwrap();
    (
        output.status.code().unwrap(),
        String::from_utf8(output.stdout).unwrap(),
        String::from_utf8(output.stderr).unwrap(),
    )
}

/// The commands that a help text lists.
fn listed(help: &str) -> Vec<String> {
    let commands = help.split_once("Commands:\n").map_or("", |(_, rest)| rest);
    commands
        .lines()
        .take_while(|line| line.starts_with("  "))
        .filter_map(|line| line.split_whitespace().next())
        .filter(|command| *command != "help")
        .map(str::to_owned)
        .collect()
}

/// All commands, such as `dead-letters list`.
fn all_commands() -> Vec<Vec<String>> {
    let mut all = Vec::new();
    for command in listed(&pillarbox(&["--help"], &[]).1) {
        for below in listed(&pillarbox(&[&command, "--help"], &[]).1) {
            all.push(vec![command.clone(), below]);
        }
        all.push(vec![command]);
    }
    all
}

#[test]
fn each_command_is_in_the_completions_the_manual_and_the_docs() {
    let all = all_commands();
    assert!(all.len() >= 11, "{all:?}");
    let folder = std::env::temp_dir().join(format!("pillarbox-man-{}", std::process::id()));
    let (code, said, _) = pillarbox(&["man", "--dir", folder.to_str().unwrap()], &[]);
    assert!(code == 0 && said.starts_with(&format!("{} pages", all.len() + 1)), "{said}");
    let page = |name: &str| std::fs::read_to_string(folder.join(format!("{name}.1"))).unwrap();
    for command in &all {
        let name = format!("pillarbox-{}", command.join("-"));
        let page = page(&name);
        assert!(page.contains("EXIT STATUS") && page.contains(".SH SYNOPSIS"), "{name}: {page}");
        let arguments: Vec<&str> = command.iter().map(String::as_str).chain(["--help"]).collect();
        let (code, help, _) = pillarbox(&arguments, &[]);
        assert_eq!(code, 0);
        assert!(help.contains("Exit codes:\n  0    done"), "{command:?}: {help}");
        assert!(
            DOCS.contains(&format!("`pillarbox {}", command.join(" "))),
            "{command:?} is not in the docs"
        );
    }
    let whole = page("pillarbox");
    assert_eq!(pillarbox(&["man"], &[]).1, whole);
    assert!(whole.contains("dead\\-letters"), "{whole}");
    std::fs::remove_dir_all(&folder).unwrap();

    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let (code, script, _) = pillarbox(&["completions", shell], &[]);
        assert_eq!(code, 0);
        for command in &all {
            assert!(script.contains(command.last().unwrap().as_str()), "{shell}: {command:?}");
        }
    }
    assert_eq!(pillarbox(&["completions", "tcsh"], &[]).0, 2);
}

#[test]
fn the_bash_completions_complete_in_bash() {
    let script = pillarbox(&["completions", "bash"], &[]).1
        + "\nCOMP_WORDS=(pillarbox dead-letters re); COMP_CWORD=2; _pillarbox pillarbox re dead-letters; echo \"${COMPREPLY[@]}\"\n";
    let bash = Command::new("bash").arg("-c").arg(script).output();
    let Ok(bash) = bash else {
        eprintln!("skipped: there is no bash");
        return;
    };
    assert_eq!(String::from_utf8_lossy(&bash.stdout).trim(), "retry");
}

#[test]
fn exit_codes_are_those_of_the_docs() {
    let help = pillarbox(&["--help"], &[]).1;
    let codes: Vec<&str> = help
        .split_once("Exit codes:\n")
        .unwrap()
        .1
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    assert_eq!(codes, ["0", "1", "2", "130"]);
    for code in codes {
        assert!(DOCS.contains(&format!("| {code} |")), "{code} is not in the docs");
    }
    assert_eq!(pillarbox(&["relay", "--no-such-flag"], &[]).0, 2);
}

#[tokio::test]
async fn the_status_has_the_fields_of_the_docs() {
    let shop = Shop::open().await;
    let environment = [("DATABASE_URL", shop.scope.database_url())];
    let status = |arguments: &[&str]| pillarbox(&[&["status"], arguments].concat(), &environment).1;
    assert!(status(&[]).contains("this relay has never run\n"), "{}", status(&[]));
    let relay = shop.start(shop.config());
    shop.insert_one("1", "one").await;
    shop.shipped().await;
    let found: serde_json::Value = serde_json::from_str(&status(&["--json"])).unwrap();
    let found: BTreeSet<&str> = found.as_object().unwrap().keys().map(String::as_str).collect();
    let table = DOCS.split_once("### Fields of `status --json`").unwrap().1;
    let documented: BTreeSet<&str> = table
        .lines()
        .skip_while(|line| !line.starts_with("| `"))
        .take_while(|line| line.starts_with("| `"))
        .filter_map(|line| line.split('`').nth(1))
        .collect();
    assert_eq!(found, documented);
    relay.stop().await;
    assert!(status(&[]).contains("Nothing is shipped"), "{}", status(&[]));
    let other = status(&["--name", "typo"]);
    assert!(other.contains("give --name one of: default"), "{other}");
}

#[tokio::test]
async fn dead_letters_are_chosen_by_reason_topic_key_owner_and_age() {
    let shop = Shop::open().await;
    sqlx::raw_sql(
        "insert into pillarbox.outbox_dead_letter \
         (position, relay, event_id, event_type, topic, key, headers, payload, created_at, reason, error, attempts, dead_at) \
         select i, case when i > 60 then 'other' else 'default' end, \
         ('00000000-0000-0000-0000-' || lpad(i::text, 12, '0'))::uuid, 't', 'topic' || i % 2, 'key' || i, '{\"x\": \"a\\u001b[2J\"}', '', now(), \
         case when i % 3 = 0 then 'invalid' else 'too_large' end, E'bad \\x1b[2J', 1, now() - i * interval '1 minute' \
         from generate_series(1, 66) i",
    )
    .execute(shop.pool())
    .await
    .unwrap();
    let environment = [("DATABASE_URL", shop.scope.database_url())];
    let run = |arguments: &[&str]| {
        let (code, text, errors) =
            pillarbox(&[&["dead-letters"], arguments].concat(), &environment);
        assert_eq!(code, 0, "{errors}");
        text
    };
    let count = |filters: &[&str]| {
        let text = run(&[&["list", "--outbox", "--json", "--limit", "100"], filters].concat());
        text.lines().count()
    };
    assert_eq!(count(&[]), 66);
    assert_eq!(count(&["--reason", "invalid"]), 22);
    assert_eq!(count(&["--topic", "topic0"]), 33);
    assert_eq!(count(&["--key", "key7"]), 1);
    assert_eq!(count(&["--owner", "other"]), 6);
    assert_eq!(count(&["--older-than", "1h"]), 7);
    assert_eq!(count(&["--older-than", "30m", "--reason", "invalid", "--topic", "topic1"]), 6);
    let text = run(&["list", "--outbox"]);
    assert!(text.contains("(the oldest 50 of 66; --limit shows more)"), "{text}");
    let shown = run(&["show", "--outbox", "00000000-0000-0000-0000-000000000007"]);
    assert!(shown.contains("key       key7") && shown.contains("header    x: a"), "{shown}");
    assert!(!(text + &shown).contains('\x1b'), "nothing that steers a terminal");

    let dry = run(&["discard", "--outbox", "--all", "--dry-run"]);
    assert!(dry.ends_with("(the first 20)\n66 would be discarded; nothing was done\n"), "{dry}");
    assert_eq!(count(&[]), 66);
    assert_eq!(run(&["discard", "--outbox", "--all", "--older-than", "1h"]), "7 discarded\n");
    assert_eq!(run(&["discard", "--outbox", "--all", "--yes"]), "59 discarded\n");
    assert_eq!(count(&[]), 0);
    let refused =
        pillarbox(&["dead-letters", "list", "--outbox", "--older-than", "1w"], &environment);
    assert!(refused.0 == 2 && refused.2.contains("such as 15m"), "{}", refused.2);
}

#[tokio::test]
async fn scheduled_events_are_listed_shown_and_cancelled() {
    let shop = Shop::open().await;
    sqlx::raw_sql(
        "insert into pillarbox.outbox_scheduled (event_id, due_at, event_type, topic, key, headers, payload, error, tried_at) \
         select ('00000000-0000-0000-0000-' || lpad(i::text, 12, '0'))::uuid, clock_timestamp() + (70 - i) * interval '1 minute', \
         'type' || i % 3, 'topic' || i % 2, 'key' || i, '{\"x\": \"a\\u001b[2J\"}', convert_to('payload' || chr(27), 'utf8'), \
         case when i = 66 then E'bad \\x1b[2J' end, case when i = 66 then now() end \
         from generate_series(1, 66) i",
    )
    .execute(shop.pool())
    .await
    .unwrap();
    let environment = [("DATABASE_URL", shop.scope.database_url())];
    let all = |arguments: &[&str]| pillarbox(&[&["scheduled"], arguments].concat(), &environment);
    let run = |arguments: &[&str]| {
        let (code, text, errors) = all(arguments);
        assert_eq!(code, 0, "{errors}");
        text
    };
    let count = |filters: &[&str]| {
        run(&[&["list", "--json", "--limit", "100"], filters].concat()).lines().count()
    };
    assert_eq!(count(&[]), 66);
    assert_eq!(count(&["--topic", "topic0"]), 33);
    assert_eq!(count(&["--type", "type1", "--topic", "topic1"]), 11);
    assert_eq!(count(&["--held"]), 1);
    let text = run(&["list"]);
    assert!(text.contains("(the first 50; there may be more)"), "{text}");
    let second = text.lines().nth(1).unwrap();
    assert!(second.starts_with("00000000-0000-0000-0000-000000000066"), "{second}");
    assert!(second.contains("not released: bad"), "{second}");
    let id = "00000000-0000-0000-0000-000000000007";
    let shown = run(&["show", id]);
    assert!(shown.contains("key7") && shown.contains("(in 6"), "{shown}");
    assert!(!(text + &shown).contains('\x1b'), "nothing that steers a terminal");
    assert_eq!(run(&["show", id, "--payload"]), "payload\u{1b}");
    assert_eq!(run(&["cancel", id]), "1 cancelled\n");
    let other = "00000000-0000-0000-0000-000000000008";
    let (code, said, errors) = all(&["cancel", id, other]);
    assert!(code == 1 && said == "1 cancelled\n", "{said}");
    assert!(errors.contains(&format!("there is no scheduled event {id}")), "{errors}");
    assert_eq!(all(&["show", id]).0, 1);
    assert_eq!(all(&["show", "7"]).0, 2);
    assert_eq!(count(&[]), 64);
    let status = pillarbox(&["status"], &environment).1;
    assert!(status.contains("64, 1 could not be released"), "{status}");
}

#[tokio::test]
async fn sagas_are_listed_shown_cancelled_and_completed() {
    let shop = Shop::open().await;
    pillarbox_inbox::migrate(shop.pool()).await.unwrap();
    sqlx::raw_sql(
        "insert into pillarbox.saga (saga, id, state, step, status, version, deadline_at, ended_at, timers, compensations) \
         select 'saga' || i % 2, 'id' || i || chr(27), '{\"secret\": 4711}', 'step' || i % 3, \
         case when i > 60 then 'completed' else 'running' end, 1, \
         clock_timestamp() + (i - 10) * interval '1 minute', case when i > 60 then now() end, \
         '[{\"name\": \"late\", \"event_id\": \"00000000-0000-0000-0000-000000000001\"}]', \
         '[{\"id\": \"00000000-0000-0000-0000-000000000002\", \"type\": \"undo.first\", \"topic\": \"a\", \"key\": \"k\", \"payload\": \"{}\"}, \
           {\"id\": \"00000000-0000-0000-0000-000000000003\", \"type\": \"undo.last\", \"topic\": \"a\", \"key\": null, \"payload_base64\": \"AA==\"}]' \
         from generate_series(1, 66) i; \
         insert into pillarbox.saga_history (saga, id, seq, event_id, event_type, step_before, step_after, status, published, note) \
         select saga, id, 1, 'event', 'trip.requested', 'started', step, status, '[{\"id\": \"x\", \"type\": \"flight.book\"}]', E'a \\x1b[2J' \
         from pillarbox.saga",
    )
    .execute(shop.pool())
    .await
    .unwrap();
    let environment = [("DATABASE_URL", shop.scope.database_url())];
    let all = |arguments: &[&str]| pillarbox(&[&["sagas"], arguments].concat(), &environment);
    let run = |arguments: &[&str]| {
        let (code, text, errors) = all(arguments);
        assert_eq!(code, 0, "{errors}");
        text
    };
    let count = |filters: &[&str]| {
        run(&[&["list", "--json", "--limit", "100"], filters].concat()).lines().count()
    };
    assert_eq!(count(&[]), 60);
    assert_eq!(count(&["--saga", "saga1"]), 30);
    assert_eq!(count(&["--step", "step2", "--saga", "saga0"]), 10);
    assert_eq!(count(&["--overdue"]), 10);
    assert_eq!(count(&["--status", "completed"]), 6);
    let text = run(&["list"]);
    assert!(text.contains("(the first 50; there may be more)"), "{text}");
    let id = "id7\u{1b}";
    let shown = run(&["show", "saga1", id]);
    for part in
        ["running", "late 00000000", "undo.last, undo.first", "4711", "published: flight.book"]
    {
        assert!(shown.contains(part), "no {part} in {shown}");
    }
    assert!(!(text + &shown).contains('\x1b'), "nothing that steers a terminal");
    let json: serde_json::Value =
        serde_json::from_str(&run(&["show", "saga1", id, "--json"])).unwrap();
    assert_eq!((&json["state"]["secret"], &json["history"][0]["seq"]), (&4711.into(), &1.into()));

    let (code, _, errors) = all(&["cancel", "saga1", id]);
    assert!(code == 2 && errors.contains("--note"), "{errors}");
    let said = run(&["cancel", "saga1", id, "--note", "ticket 12"]);
    assert!(said.ends_with(": compensating\n"), "{said}");
    let published: Vec<String> =
        sqlx::query_scalar("select event_type from pillarbox.outbox order by position")
            .fetch_all(shop.pool())
            .await
            .unwrap();
    assert_eq!(published, ["undo.last", "undo.first"]);
    let shown = run(&["show", "saga1", id]);
    assert!(shown.contains("operator.cancel") && shown.contains(": ticket 12"), "{shown}");
    let (code, _, errors) = all(&["cancel", "saga1", id, "--note", "again"]);
    assert!(code == 1 && errors.contains("is compensating already"), "{errors}");
    assert!(run(&["complete", "saga1", id, "--note", "x"]).ends_with(": failed\n"));
    let other = "id9\u{1b}";
    let cancelled = run(&["cancel", "saga1", other, "--without-compensation", "--note", "x"]);
    assert!(cancelled.ends_with(": failed\n"), "{cancelled}");
    let (code, _, errors) = all(&["complete", "saga1", other, "--note", "x"]);
    assert!(code == 1 && errors.contains("has ended: it is failed"), "{errors}");
    assert_eq!(all(&["show", "saga1", "missing"]).0, 1);
    assert_eq!(count(&[]), 58);
}

#[tokio::test]
async fn a_failure_says_what_to_do() {
    let scope = pillarbox_testkit::servers().await.unwrap().scope().await.unwrap();
    for (url, said) in [
        (scope.database_url().to_owned(), "run `pillarbox migrate`"),
        ("postgres://u:hunter2@127.0.0.1:1/x".to_owned(), "run `pillarbox doctor`"),
        (scope.database_url().replace(scope.prefix(), "missing"), "run `pillarbox doctor`"),
    ] {
        for command in [
            &["status"][..],
            &["dead-letters", "list", "--outbox"],
            &["scheduled", "list"],
            &["sagas", "list"],
        ] {
            let (code, _, errors) = pillarbox(command, &[("DATABASE_URL", &url)]);
            assert!(code == 1 && errors.contains(said), "{command:?}: {errors}");
            assert!(!errors.contains("hunter2"), "{errors}");
        }
    }
}

#[test]
fn a_reader_that_has_seen_enough_is_no_failure() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_pillarbox"))
        .args(["completions", "bash"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}

#[tokio::test]
async fn the_relay_ends_with_0_when_told_to_stop() {
    let shop = Shop::open().await;
    let mut relay = Process::relay(&shop, &[]);
    relay.until_said("leading").await;
    relay.signal(rustix::process::Signal::TERM);
    assert_eq!(relay.ended().await, 0);
}
