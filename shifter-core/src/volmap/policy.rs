//! Where in a container a volume may be placed, by who asks for it.

use super::path::contains;
use super::{EntryFault, Origin};

/// Nothing of a user's may appear at or below these: programs of the site and of the image trust
/// what they find there.
const USER_REFUSED_BELOW: [&str; 5] = ["/var", "/opt/udiImage", "/proc", "/dev", "/sys"];

/// What Shifter and the site place in /etc. What the image has there is judged by whoever knows
/// the image.
const USER_REFUSED_BELOW_ETC: [&str; 11] = [
    "/etc/passwd",
    "/etc/group",
    "/etc/shadow",
    "/etc/gshadow",
    "/etc/nsswitch.conf",
    "/etc/host.conf",
    "/etc/hosts",
    "/etc/resolv.conf",
    "/etc/mtab",
    "/etc/ssh",
    "/etc/udiImage",
];

/// Exceptions from the list above.
const USER_ALLOWED_BELOW: [&str; 1] = ["/var/tmp"];

/// A user's volume here would hide the whole directory; below it is fine.
const USER_REFUSED_EXACTLY: [&str; 3] = ["/", "/opt", "/etc"];

/// Shifter itself writes these. `/` is here because nothing could be seen beside it, `/proc` because
/// the programs themselves read there, in the container, whether they have given up their privileges.
const SITE_REFUSED_EXACTLY: [&str; 8] = [
    "/",
    "/opt",
    "/etc",
    "/var",
    "/proc",
    "/etc/passwd",
    "/etc/group",
    "/etc/nsswitch.conf",
];

/// Judges a normalised target.
pub(super) fn judge_target(to: &str, origin: Origin) -> Result<(), EntryFault> {
    let exactly: &[&'static str] = match origin {
        Origin::User => &USER_REFUSED_EXACTLY,
        Origin::Site => &SITE_REFUSED_EXACTLY,
    };
    if exactly.contains(&to) {
        return Err(EntryFault::TargetReserved {
            path: to.to_owned(),
        });
    }
    let excepted = USER_ALLOWED_BELOW
        .iter()
        .any(|allowed| contains(allowed, to));
    if origin == Origin::User && !excepted {
        let below = USER_REFUSED_BELOW
            .into_iter()
            .chain(USER_REFUSED_BELOW_ETC)
            .find(|refused| contains(refused, to));
        if let Some(below) = below {
            return Err(EntryFault::TargetBelow {
                path: to.to_owned(),
                below,
            });
        }
    }
    Ok(())
}
