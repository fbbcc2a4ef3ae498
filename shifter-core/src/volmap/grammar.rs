//! The grammar of one map: from text to entries that are well-formed and allowed.

use super::{CacheFs, EntryFault, Origin, PathFault, PerNodeCache, Side, Volume, VolumeFlags};
use super::{path, policy};

/// Characters that separate the parts of a map and so cannot stand in a path.
const SEPARATORS: [char; 3] = [':', ';', '"'];

/// Block size of a per-node cache that names none.
const DEFAULT_BLOCK_SIZE: u64 = 1 << 20;

/// Sizes of files are signed 64-bit numbers to the kernel.
const SIZE_LIMIT: u64 = i64::MAX as u64;

/// Splits a map into its entries, without the quotes around the map or around an entry.
pub(super) fn split(map: &str) -> impl Iterator<Item = &str> {
    unquote(map)
        .split(';')
        .map(unquote)
        .filter(|entry| !entry.is_empty())
}

/// Removes one pair of quotes; any other quote is left for the path check to refuse.
fn unquote(text: &str) -> &str {
    let inner = text
        .strip_prefix('"')
        .and_then(|rest| rest.strip_suffix('"'));
    inner.filter(|inner| !inner.contains('"')).unwrap_or(text)
}

/// Parses and judges one entry.
pub(super) fn entry(text: &str, origin: Origin) -> Result<Volume, EntryFault> {
    let mut fields = text.split(':');
    let from_text = fields.next().unwrap_or_default();
    let from = clean(from_text, Side::From)?;
    let to = match (fields.next(), origin) {
        (None, Origin::Site) => from.clone(),
        (None, Origin::User) => return Err(EntryFault::NoTarget { from }),
        (Some(field), _) if is_flag_name(field) => return Err(EntryFault::NoTarget { from }),
        (Some(field), _) => clean(field, Side::To)?,
    };
    let flags = flags(fields, origin)?;
    policy::judge_target(&to, origin)?;
    Ok(Volume { from, to, flags })
}

fn clean(text: &str, side: Side) -> Result<String, EntryFault> {
    path::clean(text, &SEPARATORS).map_err(|fault: PathFault| EntryFault::Path {
        side,
        path: text.to_owned(),
        fault,
    })
}

const FLAG_NAMES: [&str; 5] = ["ro", "rec", "slave", "private", "perNodeCache"];

fn is_flag_name(field: &str) -> bool {
    let name = field.split('=').next().unwrap_or_default();
    FLAG_NAMES
        .iter()
        .any(|known| known.eq_ignore_ascii_case(name))
}

fn flags<'a>(
    fields: impl Iterator<Item = &'a str>,
    origin: Origin,
) -> Result<VolumeFlags, EntryFault> {
    let mut flags = VolumeFlags::default();
    for field in fields {
        let (name, value) = match field.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (field, None),
        };
        let known = FLAG_NAMES
            .into_iter()
            .find(|known| known.eq_ignore_ascii_case(name));
        let Some(flag) = known else {
            return Err(EntryFault::UnknownFlag {
                flag: field.to_owned(),
            });
        };
        if origin == Origin::User && !matches!(flag, "ro" | "perNodeCache") {
            return Err(EntryFault::FlagReserved { flag });
        }
        if flag == "perNodeCache" {
            let cache = cache(value.unwrap_or_default())?;
            if flags.per_node_cache.replace(cache).is_some() {
                return Err(EntryFault::FlagTwice { flag });
            }
            continue;
        }
        if value.is_some() {
            return Err(EntryFault::FlagValue { flag });
        }
        let slot = match flag {
            "ro" => &mut flags.ro,
            "rec" => &mut flags.rec,
            "slave" => &mut flags.slave,
            _ => &mut flags.private,
        };
        if std::mem::replace(slot, true) {
            return Err(EntryFault::FlagTwice { flag });
        }
    }
    if flags.slave && flags.private {
        return Err(EntryFault::SlaveAndPrivate);
    }
    Ok(flags)
}

/// Parses `size=100m,bs=1m,fs=xfs,method=loop`. The C Shifter reads `fs` and writes `fstype`.
fn cache(text: &str) -> Result<PerNodeCache, EntryFault> {
    let (mut cache_size, mut block_size, mut fs, mut method) = (None, None, None, None);
    for pair in text.split(',').filter(|_| !text.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let invalid = |key, rule| EntryFault::CacheValue {
            key,
            value: value.to_owned(),
            rule,
        };
        let (key, twice) = match key.to_ascii_lowercase().as_str() {
            "size" => {
                let bytes = size(value).map_err(|rule| invalid("size", rule))?;
                ("size", cache_size.replace(bytes).is_some())
            }
            "bs" => {
                let bytes = size(value).map_err(|rule| invalid("bs", rule))?;
                ("bs", block_size.replace(bytes).is_some())
            }
            "fs" | "fstype" => {
                let known = [CacheFs::Xfs, CacheFs::Ext4]
                    .into_iter()
                    .find(|known| known.as_str().eq_ignore_ascii_case(value))
                    .ok_or_else(|| invalid("fs", "neither xfs nor ext4"))?;
                ("fs", fs.replace(known).is_some())
            }
            "method" if value.eq_ignore_ascii_case("loop") => {
                ("method", method.replace(()).is_some())
            }
            "method" => return Err(invalid("method", "not loop")),
            _ => {
                return Err(EntryFault::CacheKey {
                    key: key.to_owned(),
                });
            }
        };
        if twice {
            return Err(EntryFault::CacheKeyTwice { key });
        }
    }
    Ok(PerNodeCache {
        size: cache_size.ok_or(EntryFault::CacheWithoutSize)?,
        block_size: block_size.unwrap_or(DEFAULT_BLOCK_SIZE),
        fs: fs.unwrap_or(CacheFs::Xfs),
    })
}

/// Parses a whole number of bytes with an optional unit: b, k, m, g, t, p, e, in powers of 1024;
/// `kb` is the same as `k`.
pub(super) fn size(text: &str) -> Result<u64, &'static str> {
    const NOT_A_SIZE: &str = "not a whole number with one of the units b, k, m, g, t, p, e";
    const TOO_LARGE: &str = "too large";
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (digits, unit) = text.split_at(end);
    if digits.is_empty() {
        return Err(NOT_A_SIZE);
    }
    let unit = unit.to_ascii_lowercase();
    let shift = match unit.strip_suffix('b').unwrap_or(&unit) {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        "p" => 50,
        "e" => 60,
        _ => return Err(NOT_A_SIZE),
    };
    let number: u64 = digits.parse().map_err(|_| TOO_LARGE)?;
    let bytes = number
        .checked_mul(1 << shift)
        .filter(|bytes| *bytes <= SIZE_LIMIT);
    match bytes {
        None => Err(TOO_LARGE),
        Some(0) => Err("zero"),
        Some(bytes) => Ok(bytes),
    }
}
