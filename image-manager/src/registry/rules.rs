//! The site's and the user's rules about registries, put together.
//!
//! A registry that the site names is reached as the site says: what a user's file says about it is
//! left out, and a remark tells so. Users may name other registries, and forbid themselves more; what
//! the site allows they cannot widen. No rule changes what a reference means: a mirror is another
//! place for the same name, so `pull`, `run`, `lookup` and `import` cannot differ.

use std::collections::BTreeMap;
use std::time::Duration;

use shifter_core::config::{Registries, Registry};
use shifter_core::reference::{self, ImageRef};

use super::address::Address;
use super::error::RegistryError;
use super::retry::Patience;
use super::{HUB_HOST, HUB_NAME};

/// How registries are reached, and which images may come from where.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    entries: BTreeMap<String, Registry>,
    /// Each list must have the image in it.
    allow: Vec<Vec<String>>,
    block: Vec<String>,
    takes_users: bool,
    patience: Patience,
    /// Numbers that are fixed: retries, connect, progress.
    fixed: [bool; 3],
}

impl From<BTreeMap<String, Registry>> for Rules {
    fn from(entries: BTreeMap<String, Registry>) -> Self {
        let entries = entries
            .into_iter()
            .map(|(key, entry)| (canonical(&key), entry));
        Self {
            entries: entries.collect(),
            takes_users: true,
            ..Self::default()
        }
    }
}

impl Rules {
    /// Takes the registries of the site's configuration and the site's own file for them.
    ///
    /// # Errors
    /// Names a registry that stands in both.
    pub fn of_site(
        configured: BTreeMap<String, Registry>,
        file: Registries,
    ) -> Result<Self, RegistryError> {
        let mut rules = Self::from(configured);
        for (key, entry) in &file.registry {
            let key = canonical(key);
            if rules.entries.insert(key.clone(), entry.clone()).is_some() {
                return Err(RegistryError::Twice { registry: key });
            }
        }
        rules.takes_users = file.user_registries;
        rules.limit(&file);
        Ok(rules)
    }

    /// Adds a user's file and returns remarks about what does not count in it.
    pub fn add_user(&mut self, file: &Registries) -> Vec<String> {
        if !self.takes_users {
            return vec!["your own registries.toml does not count at this site".into()];
        }
        let mut remarks = Vec::new();
        let mut added = BTreeMap::new();
        for (key, entry) in &file.registry {
            let key = canonical(key);
            match self.entries.contains_key(&key) {
                true => remarks.push(format!(
                    "the site says how '{key}' is reached; your own registries.toml does not count for it"
                )),
                false => {
                    added.insert(key, entry.clone());
                }
            }
        }
        self.entries.extend(added);
        self.limit(file);
        remarks
    }

    /// Takes lists, which narrow, and numbers that nobody has fixed before.
    fn limit(&mut self, file: &Registries) {
        if !file.allow.is_empty() {
            self.allow.push(file.allow.clone());
        }
        self.block.extend(file.block.iter().cloned());
        let numbers = [
            file.retries,
            file.connect_timeout_secs,
            file.idle_timeout_secs,
        ];
        for (at, number) in numbers.into_iter().enumerate() {
            let Some(number) = number.filter(|_| !self.fixed[at]) else {
                continue;
            };
            self.fixed[at] = true;
            let seconds = Duration::from_secs(number.into());
            match at {
                0 => self.patience.retries = number,
                1 => self.patience.connect = seconds,
                _ => self.patience.progress = seconds,
            }
        }
    }

    /// Returns how patient to be.
    pub(super) fn patience(&self) -> Patience {
        self.patience
    }

    /// Changes how patient to be.
    pub(super) fn set_patience(&mut self, patience: Patience) {
        self.patience = patience;
    }

    /// Fails if images must not come from where the reference leads.
    pub(super) fn judge(&self, registry: &str, repository: &str) -> Result<(), RegistryError> {
        let refused = |rule: String| {
            Err(RegistryError::Blocked {
                image: format!("{registry}/{repository}"),
                rule,
            })
        };
        let covers = |pattern: &&String| covers(pattern, registry, repository);
        if let Some(pattern) = self.block.iter().find(covers) {
            return refused(format!("'{pattern}' is blocked"));
        }
        for list in &self.allow {
            if !list.iter().any(|pattern| covers(&pattern)) {
                return refused(format!("only {} may be used", quoted(list)));
            }
        }
        Ok(())
    }

    /// Returns the rules of a registry, by its name in references.
    pub(super) fn named(&self, registry: &str) -> Option<&Registry> {
        self.entries.get(&canonical(registry))
    }

    /// Finds the rules of an address.
    pub(super) fn find(&self, address: &Address) -> Option<&Registry> {
        // Docker Hub's programs answer at another name than its images are called by.
        let host = match address.host.as_str() {
            HUB_HOST => HUB_NAME,
            host => host,
        };
        let exact = self
            .entries
            .get(&canonical(&format!("{host}:{}", address.port)));
        let is_default = address.port == if address.tls { 443 } else { 80 };
        exact.or_else(|| self.entries.get(host).filter(|_| is_default))
    }

    /// True if this address may be spoken to as it is written.
    pub(super) fn is_allowed(&self, address: &Address) -> bool {
        address.tls
            || self
                .find(address)
                .is_some_and(|registry| registry.plain_http)
    }
}

/// Returns the one name that a registry has here. The usual ports are left out, so that
/// `host:443` is no way around what is said of `host`.
fn canonical(name: &str) -> String {
    let name = name.strip_suffix(":443").unwrap_or(name);
    let name = name.strip_suffix(":80").unwrap_or(name);
    let name = reference::canonical_host(name).unwrap_or_else(|_| name.to_owned());
    match name.as_str() {
        HUB_HOST => HUB_NAME.to_owned(),
        _ => name,
    }
}

/// Writes a list for a message.
fn quoted(list: &[String]) -> String {
    let quoted: Vec<String> = list.iter().map(|text| format!("'{text}'")).collect();
    quoted.join(", ")
}

/// True if `host[:port][/path]` or `*.domain` includes the image.
fn covers(pattern: &str, registry: &str, repository: &str) -> bool {
    if let Some(domain) = pattern.strip_prefix("*.") {
        let host = registry.rsplit_once(':').map_or(registry, |(host, _)| host);
        let front = host.strip_suffix(&canonical(domain));
        return front.is_some_and(|front| front.ends_with('.'));
    }
    let (host, path) = match pattern.split_once('/') {
        Some((host, path)) => (host, Some(path)),
        None => (pattern, None),
    };
    let rest = path.map_or(Some(""), |path| repository.strip_prefix(path));
    canonical(host) == canonical(registry)
        && rest.is_some_and(|rest| rest.is_empty() || path.is_none() || rest.starts_with('/'))
}

/// Where an image is asked for: the registry that its name says, or a mirror of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// The name under which logins and rules are found.
    pub registry: String,
    /// What stands before the paths of requests.
    pub base: Address,
    /// The path of the repository there; empty: the registry itself.
    pub repository: String,
    /// What a token is asked for.
    pub scope: Option<String>,
}

impl Rules {
    /// Returns the place that an image's name says, whether or not that is asked.
    pub(super) fn own_place(&self, reference: &ImageRef) -> Result<Place, RegistryError> {
        let registry = reference.registry().unwrap_or(HUB_NAME);
        self.place(registry, reference.repository().to_owned())
    }

    /// Lists the places to ask for an image, in order.
    pub(super) fn places(&self, reference: &ImageRef) -> Result<Vec<Place>, RegistryError> {
        let own = self.own_place(reference)?;
        let repository = reference.repository();
        self.judge(&own.registry, repository)?;
        let entry = self.named(&own.registry);
        let mut places = Vec::new();
        for mirror in entry.map_or(&[][..], |entry| &entry.mirrors) {
            let (host, path) = match mirror.split_once('/') {
                Some((host, path)) => (host, format!("{path}/{repository}")),
                None => (mirror.as_str(), repository.to_owned()),
            };
            places.push(self.place(host, path)?);
        }
        if !entry.is_some_and(|entry| entry.mirrors_only) {
            places.push(own);
        }
        Ok(places)
    }

    /// Returns where a registry is reached, for one of its repositories.
    pub(super) fn place(&self, name: &str, repository: String) -> Result<Place, RegistryError> {
        let bad = || RegistryError::Address(shifter_core::sanitize::text(name));
        let registry = reference::canonical_host(name).map_err(|_| bad())?;
        let host = match registry.as_str() {
            HUB_NAME => HUB_HOST,
            host => host,
        };
        let secure = Address::parse(&format!("https://{host}/v2/")).ok_or_else(bad)?;
        let plain = Address::parse(&format!("http://{host}/v2/")).ok_or_else(bad)?;
        let base = if self.is_allowed(&plain) {
            plain
        } else {
            secure
        };
        let scope = (!repository.is_empty()).then(|| format!("repository:{repository}:pull"));
        Ok(Place {
            registry,
            base,
            repository,
            scope,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use shifter_core::reference::TypeRules;
    use std::path::Path;

    fn file(text: &str) -> Registries {
        Registries::parse(text, Path::new("/r")).unwrap()
    }

    fn site(text: &str) -> Rules {
        Rules::of_site(BTreeMap::new(), file(text)).unwrap()
    }

    fn places(rules: &Rules, text: &str) -> Vec<String> {
        let types = TypeRules {
            default_type: "docker",
            site_types: &[],
        };
        let reference = ImageRef::parse(text, &types).unwrap();
        let places = rules.places(&reference).unwrap().into_iter();
        places
            .map(|place| format!("{}{}", place.base.full(), place.repository))
            .collect()
    }

    #[test]
    fn where_references_lead() {
        let hub = "https://registry-1.docker.io/v2/library/ubuntu";
        let none = site("");
        assert_eq!(places(&none, "ubuntu"), [hub]);
        assert_eq!(places(&none, "docker.io/ubuntu:1"), [hub]);
        assert_eq!(places(&none, "INDEX.docker.io/library/ubuntu"), [hub]);
        assert_eq!(places(&none, "Quay.IO/a/b"), ["https://quay.io/v2/a/b"]);
        assert_eq!(places(&none, "[::1]:5000/a"), ["https://[::1]:5000/v2/a"]);
        let plain = |name: &str| site(&format!("[registry.\"{name}\"]\nplain_http = true"));
        assert_eq!(
            places(&plain("docker.io"), "ubuntu"),
            [hub.replace("https", "http")]
        );
        assert_eq!(places(&plain("H:5000"), "h:5000/a"), ["http://h:5000/v2/a"]);
        assert_eq!(places(&plain("h"), "h:5000/a"), ["https://h:5000/v2/a"]);
        assert_eq!(places(&plain("h.x:80"), "h.x/a"), ["http://h.x/v2/a"]);
        let mirrored = "[registry.\"docker.io\"]\nmirrors = [\"harbor.x/hub\", \"m.x:5000\"]\n\
                        [registry.\"m.x:5000\"]\nplain_http = true";
        let mirrors = [
            "https://harbor.x/v2/hub/library/ubuntu",
            "http://m.x:5000/v2/library/ubuntu",
        ];
        assert_eq!(places(&site(mirrored), "ubuntu")[..2], mirrors);
        assert_eq!(places(&site(mirrored), "ubuntu")[2], hub);
        let only = mirrored.replace("m.x:5000\"]\n[", "m.x:5000\"]\nmirrors_only = true\n[");
        assert_eq!(places(&site(&only), "ubuntu"), mirrors);
        assert_eq!(places(&site(&only), "quay.io/a"), ["https://quay.io/v2/a"]);
    }

    #[test]
    fn a_user_adds_and_does_not_weaken() {
        let text = "retries = 1\nallow = [\"*.x\"]\n[registry.\"a.x\"]\nca_file = \"/ca\"\n\
                    [registry.\"docker.io\"]";
        let mut rules = site(text);
        let user = "retries = 9\nidle_timeout_secs = 5\nallow = [\"b.x\", \"evil\"]\n\
                    block = [\"b.x/bad\"]\n[registry.\"A.x:443\"]\nplain_http = true\n\
                    [registry.\"a.x:80\"]\nplain_http = true\n\
                    [registry.\"index.docker.io\"]\nmirrors = [\"evil\"]\n\
                    [registry.\"registry-1.docker.io\"]\nplain_http = true\n\
                    [registry.\"b.x\"]\nplain_http = true";
        let remarks = rules.add_user(&file(user));
        assert_eq!(remarks.len(), 4, "{remarks:?}");
        assert!(remarks[0].contains("'a.x'"), "{remarks:?}");
        let address = |text| Address::parse(text).unwrap();
        for refused in [
            "http://a.x/",
            "http://a.x:443/",
            "http://registry-1.docker.io/",
        ] {
            assert!(!rules.is_allowed(&address(refused)), "{refused}");
        }
        assert!(rules.is_allowed(&address("http://b.x/")));
        assert!(rules.named("docker.io").unwrap().mirrors.is_empty());
        assert_eq!(
            (rules.patience.retries, rules.patience.progress.as_secs()),
            (1, 5)
        );
        let table = [
            ("b.x", "good", true),
            ("b.x", "bad", false),
            ("b.x", "bad/y", false),
            ("b.x", "badger", true),
            ("a.x", "y", false),
            ("evil", "y", false),
        ];
        for (registry, repository, expect) in table {
            let found = rules.judge(registry, repository).is_ok();
            assert_eq!(found, expect, "{registry}/{repository}");
        }
        let mut closed = site("user_registries = false");
        assert_eq!(closed.add_user(&file(user)).len(), 1);
        assert!(closed.entries.is_empty() && closed.block.is_empty());
    }

    #[test]
    fn lists() {
        let table = [
            ("docker.io", "docker.io", "library/x", true),
            ("docker.io/library", "docker.io", "library/x", true),
            ("index.docker.io/library/x", "docker.io", "library/x", true),
            ("docker.io/libr", "docker.io", "library/x", false),
            ("*.x", "a.x:5000", "y", true),
            ("*.x", "a.b.x", "y", true),
            ("*.x", "x", "y", false),
            ("*.x", "ax", "y", false),
            ("a.x", "a.x:5000", "y", false),
            ("a.x:5000", "a.x:5000", "y", true),
            ("[::1]:5", "[::1]:5", "y", true),
        ];
        for (pattern, registry, repository, expect) in table {
            assert_eq!(
                covers(pattern, registry, repository),
                expect,
                "{pattern} {registry}"
            );
        }
        let error = site("block = [\"h\"]").judge("h", "x").unwrap_err();
        assert_eq!(
            error.to_string(),
            "the site or you forbid 'h/x': 'h' is blocked"
        );
    }

    #[test]
    fn plain_http_only_where_configured() {
        let text = "[registry.\"a:5000\"]\nplain_http = true\n[registry.b]\nplain_http = true\n\
                    [registry.c]";
        for (address, allowed) in [
            ("https://x/", true),
            ("http://a:5000/", true),
            ("http://a/", false),
            ("http://a:5001/", false),
            ("http://b/", true),
            ("http://b:5000/", false),
            ("http://c/", false),
        ] {
            let address = Address::parse(address).unwrap();
            assert_eq!(site(text).is_allowed(&address), allowed, "{address}");
        }
    }

    #[test]
    fn one_registry_is_configured_once() {
        let entry = || [("h:443".to_owned(), Registry::default())].into();
        let error = Rules::of_site(entry(), file("[registry.h]")).unwrap_err();
        assert!(error.to_string().contains("'h' stands in both"), "{error}");
    }
}
