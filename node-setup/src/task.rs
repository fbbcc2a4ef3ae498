//! A batch system's task on its way into a root, in the batch system's own process.
//!
//! ```text
//! as root  [`enter`]   join the root, and take what no program in a container may have
//! as user  [`settle`]  verify that; directory and environment as for `shifter COMMAND`
//! ```
//!
//! Between the two the batch system makes the process its user, and after them it executes the
//! task. Nothing here loads code: from [`enter`] on every path leads into the image.

use shifter_core::config::Config;
use shifter_core::env::{Pair, join};
use shifter_core::meta::ImageMeta;

use crate::caller::Caller;
use crate::error::{Error, Result};
use crate::launch::{self, Container};
use crate::modules::place::UDI_IMAGE;
use crate::options::RunOptions;
use crate::prepared::Prepared;
use crate::{drop, hooks, image, modules};

/// Moves a task that is still root into the root, never to gain anything again.
///
/// # Errors
/// After any the task must not run.
pub fn enter(prepared: &Prepared) -> Result<()> {
    prepared.join()?;
    drop::confine()
}

/// Makes sure of a task in the root that it is the user `uid` alone, in a directory of the root's,
/// and returns its environment, made of what the batch system gave it.
///
/// # Errors
/// After any the task must not run.
pub fn settle(
    prepared: &Prepared,
    meta: &ImageMeta,
    config: &Config,
    uid: u32,
    given: Vec<Pair>,
) -> Result<Vec<Pair>> {
    let caller = Caller::identify()?;
    if caller.uid != uid {
        return Err(Error::Privilege("the task runs as somebody else"));
    }
    drop::check_is_confined(&caller)?;
    prepared.still_lets_in()?;
    launch::leave_outside()?;
    let manifest = &prepared.manifest;
    if manifest.modes.ccm {
        // The host's own environment is what it is.
        let mut environment = given;
        change_path(&mut environment, |value, own| join(own, value));
        return Ok(environment);
    }
    let id = image::id_in_job(&manifest.image);
    let container = Container {
        config,
        meta,
        id: &id,
        reference: &manifest.image.reference,
        modules: &manifest.modules,
        shell: &manifest.user.shell,
        is_jobs: true,
        starts_by_entry: false,
    };
    let mut environment = launch::environment(&container, &RunOptions::default(), given)?;
    change_path(&mut environment, join);
    modules::compat::check(config, &manifest.modules, &environment)?;
    let selected = modules::selected(config, &manifest.modules)?;
    for (name, module) in manifest.modules.iter().zip(selected) {
        hooks::run_as_user(name, &module.user_hook, &environment, config)?;
    }
    Ok(environment)
}

/// Lets scripts that say `shifter COMMAND` find the one that is for inside: in an image the search ends
/// there, on the host it begins there, for the host's own has lost its privilege.
fn change_path(environment: &mut [Pair], place: impl Fn(&[u8], &[u8]) -> Vec<u8>) {
    let own = format!("{UDI_IMAGE}/bin");
    for (name, value) in environment {
        if name == b"PATH"
            && !value
                .split(|byte| *byte == b':')
                .any(|dir| dir == own.as_bytes())
        {
            *value = place(value, own.as_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_has_our_programs_once_and_last() {
        let path = |value: &str| {
            let mut env = vec![
                (b"A".to_vec(), b"b".to_vec()),
                (b"PATH".to_vec(), value.into()),
            ];
            change_path(&mut env, join);
            String::from_utf8(env.remove(1).1).unwrap()
        };
        assert_eq!(path("/bin"), "/bin:/opt/udiImage/bin");
        assert_eq!(path("/opt/udiImage/bin:/bin"), "/opt/udiImage/bin:/bin");
        assert_eq!(path(""), "/opt/udiImage/bin");
    }
}
