//! TLS with a real Postgres.

use std::process::Command;

use crate::support::Process;
use crate::support::authority::{Authority, file};
use pillarbox_testkit::{Postgres, servers};

/// The program's exit code, and what it says.
fn pillarbox(arguments: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_pillarbox"))
        .env_remove("DATABASE_URL")
        .args(arguments)
        .output()
        .unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(said).unwrap())
}

#[tokio::test]
async fn tls_is_verified_as_far_as_sslmode_says() {
    let (authority, other) = (Authority::new("right"), Authority::new("another"));
    let server = authority.server(&["127.0.0.1"]);
    let started = Postgres::options()
        .tls(&server.certificate, &server.key, Some(&authority.certificate))
        .access("hostssl all app 127.0.0.1/32 cert\nhostssl all secure 127.0.0.1/32 trust")
        .start()
        .await;
    let postgres = match started {
        // As the one is that testkit installs where there is none.
        Err(error) if format!("{error:?}").contains("SSL is not supported by this build") => {
            println!("NOT TESTED: this machine's Postgres was built without TLS");
            return;
        }
        started => started.unwrap(),
    };
    let database = postgres.create_database("shop").await.unwrap();
    for role in ["app", "secure"] {
        let sql = format!("create role {role} superuser login");
        sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&database.pool).await.unwrap();
    }
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str, text: &str| file(folder.path(), name, text).display().to_string();
    let right = path("right.pem", &authority.certificate);
    let wrong = path("wrong.pem", &other.certificate);
    let client = authority.client("app");
    let client = format!(
        "&sslcert={}&sslkey={}",
        path("client.pem", &client.certificate),
        path("client-key.pem", &client.key)
    );
    let url = |user: &str, host: &str, parameters: &str| {
        format!("postgres://{user}:hunter2@{host}:{}/shop?{parameters}", postgres.port())
    };
    let verified = |mode: &str, root: &str| format!("sslmode={mode}&sslrootcert={root}");
    let full = url("secure", "127.0.0.1", &verified("verify-full", &right));
    let (code, said) = pillarbox(&["migrate", "--database-url", &full]);
    assert_eq!(code, Some(0), "{said}");

    let by_name = |mode, root| url("secure", "localhost", &verified(mode, root));
    let certified = verified("verify-full", &right) + &client;
    for (url, refused) in [
        (url("secure", "127.0.0.1", &verified("verify-full", &wrong)), Some("UnknownIssuer")),
        (url("secure", "127.0.0.1", "sslmode=verify-full"), Some("UnknownIssuer")),
        (by_name("verify-full", &right), Some("not valid for name")),
        (by_name("verify-ca", &right), None),
        (by_name("verify-ca", &wrong), Some("UnknownIssuer")),
        (url("secure", "127.0.0.1", "sslmode=require"), None),
        (url("secure", "127.0.0.1", "sslmode=disable"), Some("no pg_hba.conf entry")),
        (url("app", "127.0.0.1", &certified), None),
        (
            url("app", "127.0.0.1", &verified("verify-full", &right)),
            Some("valid client certificate"),
        ),
        (url("secure", "127.0.0.1", "sslmod=verify-full"), Some("did you mean `sslmode`?")),
        (url("secure", "127.0.0.1", "sslmode=verify"), Some("unknown value \"verify\"")),
    ] {
        let (code, said) = pillarbox(&["status", "--database-url", &url]);
        match refused {
            None => assert_eq!(code, Some(0), "{url}: {said}"),
            Some(why) => assert!(code == Some(1) && said.contains(why), "{url}: {said}"),
        }
        assert!(!said.contains("hunter2"), "{said}");
    }

    let shared = servers().await.unwrap();
    let nats = shared.nats.url();
    let relay = |url: &str, more: &[&str]| {
        Process::run(&[&["relay"], more].concat(), &[("DATABASE_URL", url), ("NATS_URL", &nats)])
    };
    let leading = relay(&(full + "&application_name=x"), &[]);
    leading.until_said("leading").await;
    let sql = "select count(*) from pg_stat_activity join pg_stat_ssl using (pid) where usename = 'secure' and not ssl";
    let open: i64 = sqlx::query_scalar(sql).fetch_one(&database.pool).await.unwrap();
    assert_eq!(open, 0);
    let wrong = url("secure", "127.0.0.1", &verified("verify-full", &wrong));
    let mut refused = relay(&wrong, &["--fail-fast"]);
    assert_eq!(refused.ended().await, 1);
    refused.until_said("no TLS connection to the database at postgres://127.0.0.1").await;
    refused.until_said("sslrootcert must hold the certificate of the authority").await;
    assert_eq!(refused.said("hunter2"), 0);
    let plain = format!("{}?sslmode=require", shared.postgres.url("postgres"));
    let mut refused = relay(&plain, &["--fail-fast"]);
    assert_eq!(refused.ended().await, 1);
    refused
        .until_said("the server must offer TLS, or sslmode must allow a connection without it")
        .await;
}
