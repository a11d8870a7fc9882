//! Whether an address can be listened on.

/// Whether this is `off`, or a host and a port.
pub(super) fn is_listen_address(text: &str) -> bool {
    if text == "off" || text.parse::<std::net::SocketAddr>().is_ok() {
        return true;
    }
    // A host name. An IPv6 address has brackets and was parsed above.
    text.rsplit_once(':').is_some_and(|(host, port)| {
        let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
        is_host_name(host)
            && !digits(&host.replace('.', ""))
            && digits(port)
            && port.parse::<u16>().is_ok()
    })
}

/// Whether this can be a host's name: words of letters, digits, `-` and `_`, separated by dots. Whether a name server
/// knows it is checked later, because the server may not answer now.
fn is_host_name(host: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    let word = |word: &str| {
        (1..=63).contains(&word.len())
            && word.bytes().all(plain)
            && !word.starts_with('-')
            && !word.ends_with('-')
    };
    host.len() <= 253 && host.strip_suffix('.').unwrap_or(host).split('.').all(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_listened_on_is_told_from_what_cannot() {
        for fine in [
            "off",
            "127.0.0.1:9464",
            "0.0.0.0:0",
            "[::]:9464",
            "[::1]:1",
            "localhost:9464",
            "relay-1.shop:80",
        ] {
            assert!(is_listen_address(fine), "{fine}");
        }
        for wrong in [
            "",
            "on",
            "9464",
            ":9464",
            "localhost",
            "::1:9464",
            "[::1]",
            "127.0.0.1:70000",
            "1.2.3:80",
            "a b:1",
            "http://x:1",
            "a..b:1",
            ".a:1",
            ".:1",
            "-a:1",
            "a-.b:1",
            "localhost:+80",
            "localhost:",
            "größe:1",
            &format!("{}:1", "a".repeat(64)),
            &format!("{}a:1", "a.".repeat(127)),
        ] {
            assert!(!is_listen_address(wrong), "{wrong}");
        }
    }
}
