//! Which Slurm release is loading us, told from the version of its API.
//!
//! Slurm takes a plugin only if its `plugin_version` has the same major and minor number, and
//! the interface we use has not changed in all these releases; so the plugin says what it is
//! asked for.

/// Returns the `plugin_version` that the Slurm with this `slurm_api_version()` accepts; 0, which
/// none accepts, for releases older than those supported.
///
/// Slurm writes both as `major << 16 | minor << 8 | micro`. From API 40 (23.11) on there have been
/// two releases a year, .05 and .11. Newer ones than those known today are taken to go on like
/// that: if they do not, Slurm itself refuses the plugin, which is what it would do anyway, and
/// if they do, an upgrade of Slurm does not stop every slurmd that has the plugin as `required`.
pub const fn plugin_version(api: libc::c_long) -> u32 {
    if api < 38 << 16 || api >= 256 << 16 {
        return 0;
    }
    let (year, month) = match api >> 16 {
        38 => (22, 5),
        39 => (23, 2),
        later => {
            let half_years = (later - 39) as u32;
            (
                23 + half_years / 2,
                if half_years % 2 == 1 { 11 } else { 5 },
            )
        }
    };
    year << 16 | month << 8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_releases() {
        let table = [
            (38, 22, 5),
            (39, 23, 2),
            (40, 23, 11),
            (41, 24, 5),
            (42, 24, 11),
            (43, 25, 5),
            (44, 25, 11),
            (45, 26, 5),
            (46, 26, 11),
            (47, 27, 5),
        ];
        for (api, major, minor) in table {
            let expected = major << 16 | minor << 8;
            assert_eq!(plugin_version(api << 16), expected, "API {api}");
            assert_eq!(
                plugin_version(api << 16 | 2 << 8 | 1),
                expected,
                "API {api}.2.1"
            );
        }
    }

    #[test]
    fn unsupported_releases_refuse_us_themselves() {
        for api in [
            libc::c_long::MIN,
            -1,
            0,
            37 << 16,
            (38 << 16) - 1,
            256 << 16,
            libc::c_long::MAX,
        ] {
            assert_eq!(plugin_version(api), 0, "{api}");
        }
    }
}
