//! The files beside a database URL: certificates, keys and passwords.

use std::path::PathBuf;

use percent_encoding::percent_decode_str;

/// The files that a URL names. A certificate may also be written into the URL itself.
pub(super) fn files(url: &str) -> Vec<(&'static str, PathBuf)> {
    let parameters = url.split_once('?').map_or("", |(_, parameters)| parameters);
    parameters
        .split('&')
        .filter_map(|parameter| parameter.split_once('='))
        .filter(|(name, _)| name.starts_with("ssl") && !matches!(*name, "sslmode" | "ssl-mode"))
        .map(|(_, value)| percent_decode_str(value).decode_utf8_lossy().into_owned())
        .filter(|value| !value.starts_with("-----BEGIN"))
        .map(|value| ("database_url", PathBuf::from(value)))
        .collect()
}

/// The files that a URL names and that hold a private key.
pub(super) fn key_files(url: &str) -> impl Iterator<Item = PathBuf> {
    let keys: String = url
        .split_once('?')
        .map_or("", |(_, parameters)| parameters)
        .split('&')
        .filter(|parameter| parameter.starts_with("sslkey=") || parameter.starts_with("ssl-key="))
        .map(|parameter| format!("&{parameter}"))
        .collect();
    files(&format!("?{keys}")).into_iter().map(|(_, path)| path)
}

/// Whether neither the URL nor the environment has a password, so that the password files are read.
pub(super) fn wants_password(url: &str) -> bool {
    let login = url.split_once("//").and_then(|(_, rest)| rest.split_once('@'));
    let in_login = login.is_some_and(|(login, _)| login.contains(':'));
    let parameters = url.split_once('?').map_or("", |(_, parameters)| parameters);
    let in_parameters = parameters.split('&').any(|parameter| parameter.starts_with("password="));
    !in_login && !in_parameters && std::env::var_os("PGPASSWORD").is_none()
}

/// The files that are searched for passwords.
pub(super) fn password_files() -> Vec<PathBuf> {
    let named = std::env::var_os("PGPASSFILE").map(PathBuf::from);
    let own = std::env::home_dir().map(|home| home.join(".pgpass"));
    named.into_iter().chain(own).collect()
}
