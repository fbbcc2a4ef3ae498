//! Modules: which of the site's extensions a container uses. What they put into it is in [`place`]
//! and [`devices`]; whether it can work there, in [`compat`].

pub mod compat;
pub mod devices;
pub mod place;

use shifter_core::config::{Config, Module};

use crate::error::{Error, Result};

/// The word for no module, not even the site's default ones.
const NONE: &str = "none";

/// Returns the modules that a request for these names means, each once: the site's default ones
/// where there is no name, none for `none`.
pub fn requested(config: &Config, names: &[String]) -> Vec<String> {
    let names = if names.is_empty() {
        &config.default_modules
    } else {
        names
    };
    let mut found: Vec<String> = Vec::new();
    for name in names {
        if name != NONE && !found.contains(name) {
            found.push(name.clone());
        }
    }
    found
}

/// Checks that every module exists, is enabled and agrees with the others.
pub fn check(config: &Config, names: &[String]) -> Result<()> {
    selected(config, names).map(drop)
}

/// Returns the modules by name, in the order given.
pub fn selected<'a>(config: &'a Config, names: &[String]) -> Result<Vec<&'a Module>> {
    let mut found = Vec::new();
    for name in names {
        match config.module.get(name).filter(|module| module.enabled) {
            Some(module) => found.push(module),
            None => {
                let enabled = config.module.iter().filter(|(_, module)| module.enabled);
                return Err(Error::NoModule {
                    name: name.clone(),
                    known: enabled.map(|(name, _)| name.clone()).collect(),
                });
            }
        }
    }
    for (name, module) in names.iter().zip(&found) {
        if let Some(other) = names.iter().find(|other| module.conflicts.contains(other)) {
            let what = format!("module '{name}' cannot be used together with '{other}'");
            return Err(Error::Denied {
                what,
                hint: Some("drop one of the two"),
            });
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use shifter_core::exit::ExitCode;

    use super::*;

    #[test]
    fn no_name_means_the_default_and_none_means_none() {
        let text = "default_modules = ['b', 'a', 'b']\n[module.a]\n[module.b]\n[module.c]\n";
        let config = Config::parse(text, "/x".as_ref()).unwrap();
        let judge = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
            requested(&config, &names).join(",")
        };
        assert_eq!(judge(&[]), "b,a");
        assert_eq!(judge(&["none"]), "");
        assert_eq!(judge(&["c", "a", "c"]), "c,a");
        assert_eq!(judge(&["none", "c"]), "c");
    }

    #[test]
    fn unknown_disabled_and_conflicting_modules_are_refused() {
        let text = "[module.a]\nconflicts = ['b']\n[module.b]\n[module.c]\nenabled = false\n";
        let config = Config::parse(text, "/x".as_ref()).unwrap();
        let judge = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
            check(&config, &names).map_err(|e| e.to_string())
        };
        assert_eq!(judge(&["a"]), Ok(()));
        assert_eq!(judge(&["b"]), Ok(()));
        for bad in [&["x"][..], &["c"], &["a", "b"], &["b", "a"]] {
            assert!(judge(bad).is_err(), "{bad:?}");
        }
        let hint = |text: &str| {
            let config = Config::parse(text, "/x".as_ref()).unwrap();
            let refused = check(&config, &["x".to_owned()]).unwrap_err();
            assert_eq!(refused.exit_code(), ExitCode::Denied);
            refused.hint()
        };
        assert_eq!(hint(text).as_deref(), Some("modules here: a, b"));
        assert_eq!(hint("").as_deref(), Some("this site has no modules"));
    }
}
