//! The account under which Postgres runs if the owner is root, because Postgres refuses to run as root.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::error::{IoContext, TestkitError};
use crate::install::cache_folder;
use crate::run::run;

/// A user and a group.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Account {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

impl Account {
    /// An unprivileged account, if this process runs as root: `postgres`, or else `nobody`.
    pub(crate) fn unprivileged_for_root() -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            return None;
        }
        let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
        let find = |name: &str| {
            let mut fields = passwd
                .lines()
                .map(|line| line.split(':'))
                .find_map(|mut fields| (fields.next() == Some(name)).then_some(fields))?;
            Some(Self { uid: fields.nth(1)?.parse().ok()?, gid: fields.next()?.parse().ok()? })
        };
        Some(find("postgres").or_else(|| find("nobody")).unwrap_or(Self { uid: 65534, gid: 65534 }))
    }
}

/// The folder with Postgres's programs. If the account cannot read it, for instance in a checkout in root's home, a
/// copy of the install that it can read.
pub(crate) fn readable(programs: &Path, account: Account) -> Result<PathBuf, TestkitError> {
    let runs = Command::new(programs.join("postgres"))
        .arg("--version")
        .uid(account.uid)
        .gid(account.gid)
        .current_dir("/")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    if runs.is_ok_and(|status| status.success()) {
        return Ok(programs.to_owned());
    }
    let install = whole_install(programs);
    let stamp = fs::metadata(install)
        .map(|metadata| format!("{}-{}", metadata.ino(), metadata.mtime()))
        .unwrap_or_default();
    let copy = std::env::temp_dir().join(format!("pillarbox-testkit-{stamp}"));
    let owned = |path: &Path| {
        fs::symlink_metadata(path).is_ok_and(|found| found.is_dir() && found.uid() == 0)
    };
    if !owned(&copy) {
        let beside = tempfile::Builder::new()
            .prefix("pillarbox-testkit-")
            .tempdir()
            .context("making a temporary folder")?;
        run(Command::new("cp").arg("-a").arg(install).arg(beside.path().join("install")))?;
        fs::set_permissions(beside.path(), fs::Permissions::from_mode(0o755))
            .context("opening the copy")?;
        // The umask at the time of the install may have been strict.
        run(Command::new("chmod").args(["-R", "a+rX"]).arg(beside.path()))?;
        // Another process may have been faster, which is just as good.
        if fs::rename(beside.path(), &copy).is_ok() {
            let _ = beside.keep();
        }
    }
    let inside = programs.strip_prefix(install).unwrap_or(Path::new(""));
    Ok(copy.join("install").join(inside))
}

/// Everything that the programs need. For a private install that is all of it, because the libraries are next to the
/// programs' folder.
fn whole_install(programs: &Path) -> &Path {
    let cache = cache_folder();
    let private = programs.ancestors().find(|folder| folder.parent() == Some(&*cache));
    private.or_else(|| programs.parent()).unwrap_or(programs)
}
