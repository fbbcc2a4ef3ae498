//! What this machine is called.

use shifter_core::hostlist::is_host_name;

use crate::fanout::gather::keys;
use crate::nodes::nid_name;

/// Where a Cray's node says its number.
const NID: &str = "/proc/cray_xt/nid";

/// Returns the host name; `localhost` if it is none that a host can have.
pub fn own_name() -> String {
    let name = rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned();
    if is_host_name(&name) {
        name
    } else {
        "localhost".into()
    }
}

/// Returns all names of this machine; `given` is what the batch system calls it.
pub fn own_names(given: Option<&str>) -> Vec<String> {
    let mut names = keys(&own_name());
    names.extend(given.filter(|name| is_host_name(name)).map(str::to_owned));
    let nid = std::fs::read_to_string(NID).ok();
    if let Some(nid) = nid.and_then(|text| text.trim().parse::<u32>().ok()) {
        names.extend([nid_name(nid), nid.to_string()]);
    }
    let mut seen = std::collections::HashSet::new();
    names.retain(|name| seen.insert(name.clone()));
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_has_the_name_that_it_is_given() {
        let names = own_names(Some("n2"));
        assert!(names.contains(&"n2".to_owned()), "{names:?}");
        assert!(names.contains(&own_name()));
        assert!(!own_names(Some("a b\n")).contains(&"a b\n".to_owned()));
    }
}
