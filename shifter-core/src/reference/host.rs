//! The registry's part of a reference: `host[:port]`, a name or an address.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::RefError;

/// The registry of a reference that names none.
pub(super) const DOCKER_HUB: &str = "docker.io";

/// True if the word before the first slash is a host, by Docker's rule.
pub(super) fn is_host(word: &str) -> bool {
    word.contains(['.', ':']) || word.eq_ignore_ascii_case("localhost")
}

/// Checks `host[:port]` and writes it in lower case; the names of Docker Hub become one.
pub(super) fn canonical(text: &str) -> Result<String, RefError> {
    let refused = |rule| RefError::Host {
        host: text.to_owned(),
        rule,
    };
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (address, rest) = rest.split_once(']').ok_or(refused("has no ']'"))?;
            let address: Ipv6Addr = address
                .parse()
                .map_err(|_| refused("is not an IPv6 address"))?;
            let port = match rest.strip_prefix(':') {
                None if !rest.is_empty() => return Err(refused("has no colon before its port")),
                port => port,
            };
            (format!("[{address}]"), port)
        }
        None => {
            let (host, port) = match text.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (text, None),
            };
            (name(host).map_err(refused)?, port)
        }
    };
    let Some(port) = port else {
        let is_hub = matches!(host.as_str(), "index.docker.io" | DOCKER_HUB);
        return Ok(if is_hub { DOCKER_HUB.to_owned() } else { host });
    };
    match port.parse::<u16>() {
        Ok(number) if number > 0 && number.to_string() == port => Ok(format!("{host}:{port}")),
        _ => Err(refused(
            "has no port number from 1 to 65535 after its colon",
        )),
    }
}

fn name(text: &str) -> Result<String, &'static str> {
    let host = text.to_ascii_lowercase();
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if !host.split('.').all(is_label) {
        return Err("is not a host name");
    }
    // "127.1" and "0x7f000001" are addresses to the resolver: only the full form is accepted, so
    // that a rule about addresses sees what will be connected to.
    let last = host.rsplit('.').next().unwrap_or_default();
    let is_number = last.bytes().all(|b| b.is_ascii_digit())
        || last
            .strip_prefix("0x")
            .is_some_and(|hex| hex.bytes().all(|b| b.is_ascii_hexdigit()));
    if is_number && host.parse::<Ipv4Addr>().is_err() {
        return Err("is not an IPv4 address");
    }
    Ok(host)
}
