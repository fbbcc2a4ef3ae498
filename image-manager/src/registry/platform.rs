//! Platforms: what an image was made for, and which of several fits.
//!
//! Names are Go's, as in every index; the ones that `uname` and Debian use are understood. Of an
//! architecture's variants, a machine runs its own and the older ones. Where none was asked for the
//! plainest is taken, so that an image pulled on a new login node also runs on older compute nodes.

use std::fmt;

use serde::Deserialize;
use shifter_core::sanitize;

/// An operating system, an architecture, and perhaps a variant of that.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Platform {
    /// The operating system, `linux`.
    pub os: String,
    /// The architecture, `amd64`.
    pub architecture: String,
    /// The variant, as `v8` of arm64; empty: none.
    pub variant: String,
}

/// Which image of an index is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    platform: Platform,
    /// True if somebody chose it: then the best variant is taken, not the plainest.
    is_chosen: bool,
}

impl Default for Wanted {
    fn default() -> Self {
        Self {
            platform: Platform::host(),
            is_chosen: false,
        }
    }
}

impl Wanted {
    /// Reads `os/architecture[/variant]`, or an architecture alone.
    pub fn parse(text: &str) -> Option<Self> {
        Some(Self {
            platform: Platform::parse(text)?,
            is_chosen: true,
        })
    }

    /// Returns the platform.
    pub fn platform(&self) -> &Platform {
        &self.platform
    }

    /// Returns how well a platform fits, the lowest number best; none if not at all.
    pub(super) fn rank(&self, other: &Platform) -> Option<u32> {
        let other = other.normal();
        let own = self.platform.normal();
        if (&own.os, &own.architecture) != (&other.os, &other.architecture) {
            return None;
        }
        if own.variant == other.variant {
            // Amd64's v1 is what everything runs on.
            return match (self.is_chosen, other.level()) {
                (false, Some(level)) if own.architecture == "amd64" => Some(level),
                _ => Some(0),
            };
        }
        let (most, level) = match (own.level(), other.level()) {
            (Some(most), Some(level)) => (most, level),
            // A variant that is not a number is only itself.
            _ => return None,
        };
        if level > most {
            return None;
        }
        let is_plainest_best = !self.is_chosen && own.architecture == "amd64";
        Some(if is_plainest_best {
            level
        } else {
            most - level
        })
    }
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // What is only assumed of this machine's processor explains nothing.
        match self.is_chosen || self.platform.architecture == "arm" {
            true => self.platform.fmt(f),
            false => write!(f, "{}/{}", self.platform.os, self.platform.architecture),
        }
    }
}

impl Platform {
    /// Returns this machine's.
    pub fn host() -> Self {
        Self {
            os: "linux".into(),
            architecture: host_architecture().into(),
            variant: host_variant().into(),
        }
    }

    fn parse(text: &str) -> Option<Self> {
        let is_word = |word: &&str| {
            let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
            !word.is_empty() && word.len() <= 32 && word.bytes().all(is_plain)
        };
        let lower = text.to_ascii_lowercase();
        let words: Vec<&str> = lower.split('/').collect();
        if !words.iter().all(is_word) {
            return None;
        }
        let (os, architecture, variant) = match words[..] {
            [architecture] => ("linux", architecture, ""),
            [os, architecture] => (os, architecture, ""),
            [os, architecture, variant] => (os, architecture, variant),
            _ => return None,
        };
        let platform = Self {
            os: os.into(),
            architecture: architecture.into(),
            variant: variant.into(),
        };
        Some(platform.normal())
    }

    /// True for what stands in an index and is no image: attestations are `unknown/unknown`.
    pub(super) fn is_unknown(&self) -> bool {
        let is_no_name = |name: &str| name.is_empty() || name == "unknown";
        is_no_name(&self.os) || is_no_name(&self.architecture)
    }

    /// Returns the one name of several for the same thing.
    fn normal(&self) -> Self {
        let (architecture, variant) = match (self.architecture.as_str(), self.variant.as_str()) {
            ("x86_64" | "x86-64", variant) => ("amd64", variant),
            ("aarch64" | "arm64", "" | "8") => ("arm64", "v8"),
            ("aarch64", variant) => ("arm64", variant),
            ("armhf", "") | ("arm", "" | "7") => ("arm", "v7"),
            ("armel", "") | ("arm", "6") => ("arm", "v6"),
            ("arm", "5") => ("arm", "v5"),
            ("arm", "8") => ("arm", "v8"),
            ("i386" | "i686" | "x86", variant) => ("386", variant),
            (architecture, variant) => (architecture, variant),
        };
        let variant = match (architecture, variant) {
            ("amd64", "") => "v1",
            (_, variant) => variant,
        };
        Self {
            os: self.os.to_ascii_lowercase(),
            architecture: architecture.into(),
            variant: variant.into(),
        }
    }

    /// Returns the number of a variant like `v8`.
    fn level(&self) -> Option<u32> {
        let variant = self.variant.split('.').next().unwrap_or_default();
        variant.strip_prefix('v')?.parse().ok()
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self.variant.as_str() {
            "" => format!("{}/{}", self.os, self.architecture),
            variant => format!("{}/{}/{variant}", self.os, self.architecture),
        };
        f.write_str(&sanitize::text(&text))
    }
}

/// Returns this machine's architecture in the words that indexes use, which are Go's.
pub fn host_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "powerpc64" if cfg!(target_endian = "little") => "ppc64le",
        "powerpc64" => "ppc64",
        "loongarch64" => "loong64",
        other => other,
    }
}

/// Returns the newest variant of its architecture that this machine runs.
fn host_variant() -> &'static str {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::is_x86_feature_detected as has;
        // The levels of the x86-64 psABI.
        let v2 = has!("sse4.2") && has!("ssse3") && has!("popcnt") && has!("cmpxchg16b");
        let v3 = v2 && has!("avx2") && has!("bmi1") && has!("bmi2") && has!("fma") && has!("f16c");
        let v4 = v3 && has!("avx512f") && has!("avx512bw") && has!("avx512vl") && has!("avx512dq");
        match (v4, v3, v2) {
            (true, ..) => "v4",
            (_, true, _) => "v3",
            (.., true) => "v2",
            _ => "v1",
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    match std::env::consts::ARCH {
        "aarch64" => "v8",
        "arm" => "v7",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let table = [
            ("linux/amd64", "linux/amd64/v1"),
            ("AMD64", "linux/amd64/v1"),
            ("linux/x86_64/v3", "linux/amd64/v3"),
            ("aarch64", "linux/arm64/v8"),
            ("linux/arm64/v8", "linux/arm64/v8"),
            ("linux/arm", "linux/arm/v7"),
            ("armel", "linux/arm/v6"),
            ("windows/amd64", "windows/amd64/v1"),
            ("linux/ppc64le", "linux/ppc64le"),
        ];
        for (text, expect) in table {
            let found = Platform::parse(text).map(|platform| platform.to_string());
            assert_eq!(found.as_deref(), Some(expect), "{text}");
        }
        for bad in ["", "/", "linux/", "a/b/c/d", "linux/a b", "linux/\u{1b}"] {
            assert_eq!(Platform::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn variants() {
        let rank = |wanted: &str, is_chosen, other: &str| {
            let platform = Platform::parse(wanted).unwrap();
            let wanted = Wanted {
                platform,
                is_chosen,
            };
            wanted.rank(&Platform::parse(other).unwrap())
        };
        let best = |wanted: &str, is_chosen, others: &[&'static str]| {
            let fits = others
                .iter()
                .filter(|o| rank(wanted, is_chosen, o).is_some());
            fits.min_by_key(|other| rank(wanted, is_chosen, other))
                .copied()
        };
        let amd64 = [
            "linux/amd64/v2",
            "linux/amd64",
            "linux/amd64/v4",
            "linux/amd64/v3",
        ];
        assert_eq!(best("linux/amd64/v3", false, &amd64), Some("linux/amd64"));
        assert_eq!(best("linux/amd64/v3", true, &amd64), Some("linux/amd64/v3"));
        assert_eq!(
            best("linux/amd64/v3", true, &amd64[..3]),
            Some("linux/amd64/v2")
        );
        assert_eq!(best("linux/amd64", true, &amd64), Some("linux/amd64"));
        assert_eq!(best("linux/amd64/v2", false, &amd64[2..]), None);
        let arm = [
            "linux/arm/v5",
            "linux/arm/v7",
            "linux/arm/v6",
            "linux/arm64/v8",
        ];
        assert_eq!(best("linux/arm/v7", false, &arm), Some("linux/arm/v7"));
        assert_eq!(best("linux/arm/v6", false, &arm), Some("linux/arm/v6"));
        assert_eq!(best("linux/arm64", true, &arm), Some("linux/arm64/v8"));
        assert_eq!(
            best("linux/arm64", true, &["linux/arm64"]),
            Some("linux/arm64")
        );
        assert_eq!(best("linux/arm64", true, &["linux/arm64/v9"]), None);
        assert_eq!(
            best("linux/s390x", true, &["linux/s390x"]),
            Some("linux/s390x")
        );
        assert_eq!(best("linux/mips/a", true, &["linux/mips/b"]), None);
    }

    #[test]
    fn this_machine() {
        let wanted = Wanted::default();
        assert!(wanted.rank(&Platform::host()).is_some());
        assert_eq!(wanted.to_string(), format!("linux/{}", host_architecture()));
    }
}
