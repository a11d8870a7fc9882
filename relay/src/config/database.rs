//! The parameters of a database URL. The database client only warns about a parameter that it does not know, so
//! `sslmod=verify-full` would silently leave verification off.

use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use sqlx::postgres::PgConnectOptions;

use super::ConfigError;
use super::nearest;
use super::secret::{MASK, masked};

/// The parameters that the client knows.
const KNOWN: [&str; 18] = [
    "sslmode",
    "ssl-mode",
    "sslrootcert",
    "ssl-root-cert",
    "ssl-ca",
    "sslcert",
    "ssl-cert",
    "sslkey",
    "ssl-key",
    "statement-cache-capacity",
    "host",
    "hostaddr",
    "port",
    "dbname",
    "user",
    "password",
    "application_name",
    "options",
];

/// The parameters of libpq that the client does not use. None holds a secret.
const IGNORED: [&str; 12] = [
    "channel_binding",
    "client_encoding",
    "connect_timeout",
    "fallback_application_name",
    "gssencmode",
    "keepalives",
    "keepalives_count",
    "keepalives_idle",
    "keepalives_interval",
    "sslnegotiation",
    "target_session_attrs",
    "tcp_user_timeout",
];

pub(super) fn validate(url: &str) -> Result<(), ConfigError> {
    let fail = |problem| Err(ConfigError { key: "database_url", value: masked(url), problem });
    if !url.starts_with("postgres://") && !url.starts_with("postgresql://") {
        let problem = "it must be postgres://user:password@host:port/database".to_owned();
        return Err(ConfigError { key: "database_url", value: MASK.to_owned(), problem });
    }
    let parameters = url.split_once('?').map_or("", |(_, parameters)| parameters);
    for (at, parameter) in parameters.split('&').enumerate() {
        let name = match parameter.split_once('=') {
            Some((name, _)) => name,
            None if parameter.is_empty() => continue,
            None => "",
        };
        if KNOWN.contains(&name) || name.starts_with("options[") || IGNORED.contains(&name) {
            continue;
        }
        if name == "sslpassword" {
            return fail(
                "unknown parameter `sslpassword`: use a key without a passphrase".to_owned(),
            );
        }
        // A name that resembles no known one may be part of a password, so it is not shown.
        return fail(match nearest(name, KNOWN) {
            Some(known) => format!("unknown parameter `{name}`; did you mean `{known}`?"),
            None => format!(
                "parameter {} is unknown; leave it out, or, if it is part of a password, percent-encode the special \
                 characters in the password",
                at + 1
            ),
        });
    }
    servers(url).map(drop)
}

/// How to connect to each server that a URL names, in the URL's order.
///
/// The forms are those of libpq. A host is a name, an IPv4 address, an IPv6 address in brackets, or the folder of a
/// Unix socket with its slashes percent-encoded. There may be several, each with its port, separated by commas. The
/// parameters `host`, `hostaddr` and `port` override them. The database client supports only one host, and treats the
/// brackets of an IPv6 address as part of its name, so each host becomes a URL of its own here, with the host as a
/// parameter.
///
/// # Errors
/// [`ConfigError`] for `database_url`; its text holds no secret.
pub(crate) fn servers(url: &str) -> Result<Vec<PgConnectOptions>, ConfigError> {
    let fail = |problem: String| ConfigError { key: "database_url", value: masked(url), problem };
    let (scheme, rest) = url.split_once("://").unwrap_or(("postgres", url));
    let (rest, parameters) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, database) = rest.split_once('/').unwrap_or((rest, ""));
    let (user, authority) = match authority.rsplit_once('@') {
        Some((user, hosts)) => (format!("{user}@"), hosts),
        None => (String::new(), authority),
    };
    let Places { hosts, ports, kept } = places(authority, parameters).map_err(fail)?;
    let servers = hosts.iter().zip(&ports).map(|(host, port)| {
        let mut parameters = kept.clone();
        if !host.is_empty() {
            let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
            parameters.push(format!("host={}", utf8_percent_encode(host, NON_ALPHANUMERIC)));
        }
        if !port.is_empty() {
            parameters.push(format!("port={}", port_number(port).map_err(fail)?));
        }
        let local = if user.is_empty() && host.is_empty() { "" } else { "localhost" };
        let alone = format!("{scheme}://{user}{local}/{database}?{}", parameters.join("&"));
        // The parser's error text holds no secret.
        let options = alone
            .parse::<PgConnectOptions>()
            .map_err(|error| fail(pillarbox_store::full_text(&error)))?;
        Ok(match (host.is_empty(), local.is_empty()) {
            (true, false) => {
                let usual = PgConnectOptions::new_without_pgpass();
                match usual.get_socket() {
                    Some(socket) => options.socket(socket),
                    None => options.host(usual.get_host()),
                }
            }
            _ => options,
        })
    });
    servers.collect()
}

/// The servers that a URL names, each by host and port, and the parameters that are the same for all of them.
struct Places {
    hosts: Vec<String>,
    ports: Vec<String>,
    kept: Vec<String>,
}

fn places(authority: &str, parameters: &str) -> Result<Places, String> {
    let each = authority.split(',').map(host_and_port).collect::<Result<Vec<_>, _>>()?;
    let (mut hosts, mut ports): (Vec<String>, Vec<String>) = each.into_iter().unzip();
    let mut kept = Vec::new();
    for parameter in parameters.split('&').filter(|parameter| !parameter.is_empty()) {
        let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        let value = || percent_decode_str(value).decode_utf8_lossy().into_owned();
        match name {
            "host" | "hostaddr" => hosts = value().split(',').map(str::to_owned).collect(),
            "port" => ports = value().split(',').map(str::to_owned).collect(),
            // The relay always connects to a primary, because it needs a session that can write.
            "target_session_attrs" => {
                let wanted = value();
                if !["any", "read-write", "primary"].contains(&wanted.as_str()) {
                    return Err(format!(
                        "target_session_attrs must be any, read-write or primary, since a relay needs a primary; \
                         it is {wanted:?}"
                    ));
                }
            }
            name if IGNORED.contains(&name) => {}
            _ => kept.push(parameter.to_owned()),
        }
    }
    if ports.len() == 1 {
        ports = vec![ports[0].clone(); hosts.len()];
    }
    if ports.len() != hosts.len() {
        return Err(format!(
            "{} hosts and {} ports: give one port for all of them, or one for each",
            hosts.len(),
            ports.len()
        ));
    }
    Ok(Places { hosts, ports, kept })
}

fn port_number(port: &str) -> Result<u16, String> {
    port.parse().ok().filter(|port| *port != 0).ok_or_else(|| {
        "a port must be a number between 1 and 65535; an IPv6 address needs brackets".to_owned()
    })
}

/// The parts of `host`, `host:port`, `[address]` or `[address]:port`; each may be empty.
fn host_and_port(place: &str) -> Result<(String, String), String> {
    let decoded = |host: &str| percent_decode_str(host).decode_utf8_lossy().into_owned();
    if let Some(address) = place.strip_prefix('[') {
        let (address, port) = address.split_once(']').unwrap_or((address, "?"));
        if address.parse::<std::net::Ipv6Addr>().is_err() {
            return Err("the text in brackets must be an IPv6 address, as in [::1]:5432".to_owned());
        }
        return match port.strip_prefix(':') {
            Some(port) => Ok((address.to_owned(), port.to_owned())),
            None if port.is_empty() => Ok((address.to_owned(), String::new())),
            None => Err("an IPv6 address must be followed by a port or nothing, as in [::1]:5432"
                .to_owned()),
        };
    }
    let (host, port) = place.split_once(':').unwrap_or((place, ""));
    Ok((decoded(host), port.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_parameters_are_refused_by_name() {
        for fine in [
            "postgres://localhost/x",
            "postgresql://u:p@h:1/x?sslmode=verify-full&sslrootcert=/ca.pem&options[search_path]=x",
            "postgres://h/x?sslmode=require&channel_binding=require",
        ] {
            validate(fine).unwrap();
        }
        for (wrong, said) in [
            ("mysql://u:hunter2@h/x", "it must be postgres://"),
            ("postgres://u:hunter2@h/x?sslmod=verify-full", "did you mean `sslmode`?"),
            ("postgres://u:hunter2@h/x?sslpassword=hunter2", "unknown parameter `sslpassword`"),
            ("postgres://u:hunter2@h/x?sslmode=maybe", "maybe"),
            ("postgres://u:hunter2@h:abc/x", "port"),
            ("postgres://u:p?hunter2=1@h/x", "percent-encode"),
            ("postgres://u:hunter2@h/x?port=1&hunter2", "parameter 2 is unknown"),
        ] {
            let error = validate(wrong).unwrap_err().to_string();
            assert!(error.contains(said) && !error.contains("hunter2"), "{error}");
        }
    }

    fn places(url: &str) -> Vec<String> {
        let place = |server: &PgConnectOptions| match server.get_socket() {
            Some(folder) => format!("{}:{}", folder.display(), server.get_port()),
            None => format!("{} {}", server.get_host(), server.get_port()),
        };
        servers(url).unwrap().iter().map(place).collect()
    }

    #[test]
    fn hosts_are_read_in_every_form() {
        for (url, wanted) in [
            ("postgres://u:p@h:1/x", vec!["h 1"]),
            ("postgres://u:p@[::1]:5433/x", vec!["::1 5433"]),
            ("postgres://[fe80::1]/x?port=7", vec!["fe80::1 7"]),
            ("postgres://u@a:1,b:2,[::1]:3/x?sslmode=require", vec!["a 1", "b 2", "::1 3"]),
            ("postgres://u@/x?host=a,b&port=9", vec!["a 9", "b 9"]),
            ("postgres://u@/x?host=a,::1&port=8,9", vec!["a 8", "::1 9"]),
            ("postgres://%2Fvar%2Frun:6/x", vec!["/var/run:6"]),
            ("postgres:///x?host=/tmp&port=5", vec!["/tmp:5"]),
            (
                "postgres://u:p%40%2F@10.0.0.1:4/x?target_session_attrs=read-write",
                vec!["10.0.0.1 4"],
            ),
        ] {
            validate(url).unwrap();
            assert_eq!(places(url), wanted, "{url}");
        }
        let [first, second] = &servers("postgres://u:p%40@a:1,b:2/shop").unwrap()[..] else {
            panic!()
        };
        for server in [first, second] {
            assert_eq!((server.get_username(), server.get_database()), ("u", Some("shop")));
        }
        assert_eq!(servers("postgres://u:p@/x").unwrap().len(), 1);
    }

    #[test]
    fn hosts_that_cannot_work_are_refused() {
        for (wrong, said) in [
            ("postgres://u:hunter2@::1:5432/x", "brackets"),
            ("postgres://u:hunter2@[::1/x", "[::1]:5432"),
            ("postgres://u:hunter2@[h]:1/x", "IPv6 address"),
            ("postgres://u:hunter2@h:0/x", "between 1 and 65535"),
            ("postgres://u:hunter2@h:70000/x", "between 1 and 65535"),
            ("postgres://u:hunter2@a,b,c/x?port=1,2", "3 hosts and 2 ports"),
            ("postgres://u:hunter2@a/x?target_session_attrs=standby", "target_session_attrs"),
        ] {
            let error = validate(wrong).unwrap_err().to_string();
            assert!(error.contains(said) && !error.contains("hunter2"), "{wrong}: {error}");
        }
    }
}
