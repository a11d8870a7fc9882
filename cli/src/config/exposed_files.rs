//! Files with secrets that other accounts of this machine can read or change.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::database_files;
use super::file::{Layer, Origin, Setting};
use super::keys::{Kind, key};
use super::settings::Settings;

impl Settings {
    /// A sentence for each file with a secret, including a settings file, that every account of this machine can read
    /// or change, or that its group can change.
    pub fn exposed_files(&self) -> Vec<String> {
        let mut files: BTreeMap<PathBuf, &str> = BTreeMap::new();
        for outbox in &self.outboxes {
            let secrets = outbox.nats.secret_files().map(|(key, path)| (path.clone(), key));
            files.extend(secrets);
            files.extend(
                database_files::key_files(&outbox.database_url).map(|path| (path, "database_url")),
            );
        }
        let from_file = |setting: &Setting| matches!(setting.origin, Origin::File { .. });
        let holds_secret = |layer: &Layer| {
            layer.iter().any(|(name, setting)| {
                let kind = key(name).map(|key| key.kind);
                let login = || setting.value.as_str().is_some_and(|url| url.contains('@'));
                from_file(setting)
                    && (kind == Some(Kind::Secret) || (kind == Some(Kind::Url) && login()))
            })
        };
        if let Some(file) = self.file.clone()
            && (holds_secret(&self.top) || self.own.iter().any(holds_secret))
        {
            files.insert(file, "the settings");
        }
        let mut said: Vec<String> =
            files.iter().flat_map(|(path, key)| exposed(path, key)).collect();
        if self.outboxes.iter().any(|outbox| database_files::wants_password(&outbox.database_url)) {
            said.extend(database_files::password_files().iter().filter_map(|path| unused(path)));
        }
        said
    }
}

/// What is wrong with the permissions of a file that holds a secret. The file's group may read it: Kubernetes gives a
/// mounted secret to a pod that way (`fsGroup`), and a service gets a file that root owns that way.
fn exposed(path: &Path, key: &str) -> Vec<String> {
    use std::os::unix::fs::PermissionsExt;
    let Ok(metadata) = std::fs::metadata(path) else { return Vec::new() };
    let mode = metadata.permissions().mode();
    let path = path.display();
    let mut said = Vec::new();
    let everybody = match (mode & 0o004 != 0, mode & 0o002 != 0) {
        (false, false) => None,
        (true, false) => Some("read"),
        (false, true) => Some("change"),
        (true, true) => Some("read and change"),
    };
    said.extend(everybody.map(|what| {
        format!(
            "every account of this machine can {what} {path} ({key}), which holds a secret: run chmod o-rw {path}"
        )
    }));
    if mode & 0o020 != 0 {
        said.push(format!(
            "every account in the group of {path} ({key}) can change it, and it holds a secret: run chmod g-w {path}"
        ));
    }
    said
}

/// What is wrong with the permissions of a password file, of the kind that `psql` reads too. Such a file is not used.
fn unused(path: &Path) -> Option<String> {
    use std::os::unix::fs::PermissionsExt;
    let mode = std::fs::metadata(path).ok()?.permissions().mode();
    let path = path.display();
    (mode & 0o077 != 0).then(|| {
        format!(
            "other accounts of this machine can read or change {path} (PGPASSFILE), so the passwords in it are not \
             used: run chmod 600 {path}"
        )
    })
}
