//! Where the testkit looks for servers, and in which order.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use pillarbox_testkit::TestkitError;
use pillarbox_testkit::find::Search;

fn program(folder: &Path, name: &str, says: &str) {
    let path = folder.join(name);
    fs::write(&path, format!("#!/bin/sh\necho '{says}'\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
}

fn nowhere() -> Search {
    Search { postgres: None, nats: None, path: Vec::new(), usual_folders: false }
}

#[test]
fn the_environment_comes_first_and_is_checked() {
    let folder = tempfile::tempdir().unwrap();
    program(folder.path(), "nats-server", "nats-server: v2.99.0");
    let named = folder.path().join("nats-server");
    let search = Search { nats: Some(named.clone().into()), ..Search::of_this_process() };
    assert_eq!(search.nats().unwrap().path, named);

    program(folder.path(), "nats-server", "nats-server: v2.10.1");
    let error = search.nats().unwrap_err();
    assert!(
        matches!(&error, TestkitError::Override { variable: "PILLARBOX_NATS_SERVER", .. }),
        "{error}"
    );
    assert!(error.to_string().contains("2.14 or newer"), "{error}");

    let search = Search { postgres: Some(folder.path().into()), ..Search::of_this_process() };
    let error = search.postgres().unwrap_err().to_string();
    assert!(error.contains("PILLARBOX_POSTGRES_BIN") && error.contains("initdb"), "{error}");
}

#[test]
fn an_old_server_on_path_is_passed_over() {
    let (old, new) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    program(old.path(), "nats-server", "nats-server: v2.13.9");
    program(new.path(), "nats-server", "nats-server: v2.14.0");
    for name in ["postgres", "initdb"] {
        program(old.path(), name, "postgres (PostgreSQL) 12.9");
        program(new.path(), name, "postgres (PostgreSQL) 13.1");
    }
    let search = Search { path: vec![old.path().into(), new.path().into()], ..nowhere() };
    assert_eq!(search.nats().unwrap().version, "nats-server: v2.14.0");
    assert_eq!(search.postgres().unwrap().version, "postgres (PostgreSQL) 13.1");
}

/// This really installs if nothing has been installed yet, so it takes a few seconds the first time.
#[test]
fn with_nothing_on_path_the_private_install_serves() {
    let nats = nowhere().nats().unwrap();
    assert!(nats.version.contains("v2.15"), "{}", nats.version);
    let postgres = nowhere().postgres().unwrap();
    assert!(postgres.version.contains("PostgreSQL) 18"), "{}", postgres.version);
    assert!(
        nats.path.components().any(|part| part.as_os_str() == "testkit"),
        "{}",
        nats.path.display()
    );
}
