//! Addresses that a registry must not lead this machine to.
//!
//! A redirect, the realm of a challenge or a layer's `urls` come from the other side. They may lead
//! to public addresses, to those of the kind that the registry itself has, and to hosts that the
//! configuration names; never to this machine, its link or its private networks otherwise. The rule
//! is applied to what a name resolves to, in the moment of the connection, so that a name cannot be
//! pointed elsewhere in between.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::Builder;

use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::NextTimeout;
use ureq::unversioned::transport::time::Duration;

/// What an address belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Class {
    Public,
    Private,
    LinkLocal,
    ThisMachine,
    /// Multicast, broadcast, reserved, none at all: nobody's.
    Nobody,
}

impl Class {
    pub fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => Self::of_v4(address),
            IpAddr::V6(address) => Self::of_v6(address),
        }
    }

    fn of_v4(address: Ipv4Addr) -> Self {
        let [a, b, c, _] = address.octets();
        match (a, b, c) {
            (127, ..) => Self::ThisMachine,
            (169, 254, _) => Self::LinkLocal,
            (10, ..) | (172, 16..=31, _) | (192, 168, _) | (100, 64..=127, _) => Self::Private,
            (198, 18..=19, _) => Self::Private,
            (0 | 224..=255, ..) | (192, 0, 0) => Self::Nobody,
            _ => Self::Public,
        }
    }

    fn of_v6(address: Ipv6Addr) -> Self {
        let segments = address.segments();
        let embedded = |high: u16, low: u16| {
            let [a, b] = high.to_be_bytes();
            let [c, d] = low.to_be_bytes();
            Self::of_v4(Ipv4Addr::new(a, b, c, d))
        };
        match segments {
            [0, 0, 0, 0, 0, 0, 0, 1] => Self::ThisMachine,
            [0, 0, 0, 0, 0, 0, 0, 0] => Self::Nobody,
            // IPv4 in IPv6's clothes: mapped, compatible, NAT64, 6to4.
            [0, 0, 0, 0, 0, 0xffff | 0, high, low] => embedded(high, low),
            [0x64, 0xff9b, 0, 0, 0, 0, high, low] => embedded(high, low),
            [0x2002, high, low, ..] => embedded(high, low),
            [0xfe80..=0xfebf, ..] => Self::LinkLocal,
            [0xfc00..=0xfdff, ..] | [0xfec0..=0xfeff, ..] | [0x64, 0xff9b, 1, ..] => Self::Private,
            [0xff00..=0xffff, ..] => Self::Nobody,
            _ => Self::Public,
        }
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Public => "a public address",
            Self::Private => "an address of a private network",
            Self::LinkLocal => "an address of this machine's link",
            Self::ThisMachine => "an address of this machine",
            Self::Nobody => "nobody's address",
        })
    }
}

/// Classes of address that may be connected to; `None`: any, because somebody here named the host.
pub(super) type Allowed = Option<Vec<Class>>;

/// What each server that was named here turned out to be.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen(Arc<Mutex<HashMap<String, Vec<Class>>>>);

impl Seen {
    /// Returns what a server that is known as this leads to may be: public, or of its own kind.
    pub fn kinds(&self, authority: &str) -> Vec<Class> {
        let seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut kinds = seen.get(authority).cloned().unwrap_or_default();
        kinds.push(Class::Public);
        kinds.sort();
        kinds.dedup();
        kinds
    }

    fn note(&self, authority: &str, classes: impl Iterator<Item = Class>) {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut classes: Vec<Class> = classes.collect();
        classes.sort();
        classes.dedup();
        seen.insert(authority.to_owned(), classes);
    }
}

/// An address that must not be connected to.
#[derive(Debug, thiserror::Error)]
#[error("that is {0}")]
pub(super) struct Forbidden(pub Class);

/// Judges a host that is written as an address; a name is judged when it is resolved.
pub(super) fn judge_literal(host: &str, allowed: &Allowed) -> Result<(), Forbidden> {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let (Ok(address), Some(allowed)) = (bare.parse::<IpAddr>(), allowed) else {
        return Ok(());
    };
    let class = Class::of(address);
    match allowed.contains(&class) {
        true => Ok(()),
        false => Err(Forbidden(class)),
    }
}

/// Resolves names, and refuses what must not be connected to.
#[derive(Debug)]
pub(super) struct Guard {
    pub allowed: Allowed,
    pub seen: Seen,
    /// The proxy that is connected to instead, if it is to get the requests.
    pub proxy: Option<Uri>,
}

impl Resolver for Guard {
    fn resolve(
        &self,
        uri: &Uri,
        config: &Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        if let Some(proxy) = &self.proxy {
            return look_up(proxy, config, timeout);
        }
        let found = look_up(uri, config, timeout)?;
        // A proxy is named by the user's own environment, and looks names up itself.
        if config.proxy().is_some() {
            return Ok(found);
        }
        let classes = found.iter().map(|address| Class::of(address.ip()));
        let Some(allowed) = &self.allowed else {
            let authority = uri.authority().map_or("", |authority| authority.as_str());
            self.seen.note(authority, classes);
            return Ok(found);
        };
        // One bad address condemns the name: which one is used is not for the other side to choose.
        match classes.into_iter().find(|class| !allowed.contains(class)) {
            Some(class) => Err(ureq::Error::Io(io::Error::new(
                io::ErrorKind::PermissionDenied,
                Forbidden(class),
            ))),
            None => Ok(found),
        }
    }
}

/// As ureq does it, but where a limit of the caller's allows no thread, a name is waited for without
/// an end: ureq would panic.
fn look_up(
    uri: &Uri,
    config: &Config,
    timeout: NextTimeout,
) -> Result<ResolvedSocketAddrs, ureq::Error> {
    let (sender, receiver) = mpsc::sync_channel(1);
    let (its_uri, its_config) = (uri.clone(), config.clone());
    let endless = NextTimeout {
        after: Duration::NotHappening,
        ..timeout
    };
    let started = Builder::new().spawn(move || {
        let found = DefaultResolver::default().resolve(&its_uri, &its_config, endless);
        // Nobody hears of it who has waited for too long.
        let _ = sender.send(found);
    });
    if started.is_err() {
        return DefaultResolver::default().resolve(uri, config, endless);
    }
    receiver
        .recv_timeout(*timeout.after)
        .unwrap_or(Err(ureq::Error::Timeout(timeout.reason)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes() {
        let table = [
            ("8.8.8.8", Class::Public),
            ("127.0.0.1", Class::ThisMachine),
            ("127.255.0.1", Class::ThisMachine),
            ("0.0.0.0", Class::Nobody),
            ("10.1.2.3", Class::Private),
            ("172.16.0.1", Class::Private),
            ("172.32.0.1", Class::Public),
            ("192.168.1.1", Class::Private),
            ("100.64.0.1", Class::Private),
            ("100.128.0.1", Class::Public),
            ("169.254.169.254", Class::LinkLocal),
            ("224.0.0.1", Class::Nobody),
            ("255.255.255.255", Class::Nobody),
            ("::1", Class::ThisMachine),
            ("::", Class::Nobody),
            ("::ffff:127.0.0.1", Class::ThisMachine),
            ("::ffff:169.254.169.254", Class::LinkLocal),
            ("::ffff:8.8.8.8", Class::Public),
            ("::10.0.0.1", Class::Private),
            ("64:ff9b::a9fe:a9fe", Class::LinkLocal),
            ("2002:7f00:1::", Class::ThisMachine),
            ("fe80::1", Class::LinkLocal),
            ("fd00::1", Class::Private),
            ("ff02::1", Class::Nobody),
            ("2606:4700::1", Class::Public),
        ];
        for (text, expect) in table {
            assert_eq!(Class::of(text.parse().unwrap()), expect, "{text}");
        }
    }

    #[test]
    fn literals() {
        let public = Some(vec![Class::Public]);
        assert!(judge_literal("[::1]", &public).is_err());
        assert!(judge_literal("169.254.169.254", &public).is_err());
        assert!(judge_literal("8.8.8.8", &public).is_ok());
        assert!(judge_literal("localhost", &public).is_ok(), "a name waits");
        assert!(judge_literal("127.0.0.1", &None).is_ok());
    }
}
