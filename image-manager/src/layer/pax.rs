//! Pax extended headers: `length key=value\n` records, of which only those that say something
//! about a file in an image are kept.

use squashfs_writer::Xattr;

const XATTR: &[u8] = b"SCHILY.xattr.";
/// More than the kernel could list; each new one is compared with those before.
const MAX_XATTRS: usize = 1024;
const SPARSE: &[u8] = b"GNU.sparse.";

/// What the extended header of one entry says; a record with an empty value says nothing.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Pax {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<i64>,
    pub(super) gid: Option<i64>,
    pub(super) mtime: Option<i64>,
    /// In the order of the header; the last of several with one name counts.
    pub(super) xattrs: Vec<Xattr>,
    pub(super) sparse: SparseRecords,
}

/// The records of GNU sparse files; which ones are there tells the version.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct SparseRecords {
    pub(super) major: Option<u64>,
    pub(super) minor: Option<u64>,
    pub(super) name: Option<Vec<u8>>,
    /// `GNU.sparse.size` (0.x) or `GNU.sparse.realsize` (1.0).
    pub(super) size: Option<u64>,
    /// Offsets and lengths in turn: one list (0.1) or repeated records (0.0).
    pub(super) map: Vec<u64>,
}

/// Parses an extended header.
pub(super) fn parse(mut records: &[u8]) -> Result<Pax, &'static str> {
    let mut pax = Pax::default();
    while !records.is_empty() {
        let (key, value) = record(&mut records)?;
        pax.apply(key, value)?;
    }
    if pax.sparse.map.len() % 2 != 0 {
        return Err("its sparse map has an offset without a length");
    }
    Ok(pax)
}

/// Splits off one record. Its length counts itself, the blank, and the newline at the end.
fn record<'a>(records: &mut &'a [u8]) -> Result<(&'a [u8], &'a [u8]), &'static str> {
    const MALFORMED: &str = "a pax record is malformed";
    let blank = records.iter().position(|&b| b == b' ').ok_or(MALFORMED)?;
    let length = usize::try_from(decimal(&records[..blank])?).map_err(|_| MALFORMED)?;
    if length <= blank + 1 || length > records.len() {
        return Err(MALFORMED);
    }
    let (record, rest) = records.split_at(length);
    *records = rest;
    let body = record[blank + 1..].strip_suffix(b"\n").ok_or(MALFORMED)?;
    let equals = body.iter().position(|&b| b == b'=').ok_or(MALFORMED)?;
    let (key, value) = (&body[..equals], &body[equals + 1..]);
    if key.is_empty() || key.contains(&0) {
        return Err(MALFORMED);
    }
    Ok((key, value))
}

impl Pax {
    fn apply(&mut self, key: &[u8], value: &[u8]) -> Result<(), &'static str> {
        if let Some(name) = key.strip_prefix(XATTR) {
            // Here an empty value is a value: attributes without content are common markers.
            if self.xattrs.len() == MAX_XATTRS {
                return Err("it has too many extended attributes");
            }
            self.xattrs.retain(|(known, _)| known != name);
            self.xattrs.push((name.to_vec(), value.to_vec()));
            return Ok(());
        }
        if let Some(key) = key.strip_prefix(SPARSE) {
            return self.sparse.apply(key, value);
        }
        if value.is_empty() {
            return Ok(());
        }
        match key {
            b"path" => self.path = Some(value.to_vec()),
            b"linkpath" => self.link = Some(value.to_vec()),
            b"size" => self.size = Some(decimal(value)?),
            b"uid" => self.uid = Some(signed(value)?),
            b"gid" => self.gid = Some(signed(value)?),
            b"mtime" => self.mtime = Some(seconds(value)?),
            _ => {}
        }
        Ok(())
    }
}

impl SparseRecords {
    fn apply(&mut self, key: &[u8], value: &[u8]) -> Result<(), &'static str> {
        if value.is_empty() {
            return Ok(());
        }
        match key {
            b"major" => self.major = Some(decimal(value)?),
            b"minor" => self.minor = Some(decimal(value)?),
            b"name" => self.name = Some(value.to_vec()),
            b"size" | b"realsize" => self.size = Some(decimal(value)?),
            b"map" => {
                self.map = value
                    .split(|&b| b == b',')
                    .map(decimal)
                    .collect::<Result<_, _>>()?;
            }
            b"offset" | b"numbytes" => {
                if (key == b"offset") != self.map.len().is_multiple_of(2) {
                    return Err("its sparse map is out of order");
                }
                self.map.push(decimal(value)?);
            }
            _ => {}
        }
        Ok(())
    }
}

/// Digits only.
pub(super) fn decimal(digits: &[u8]) -> Result<u64, &'static str> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return Err("a number is not decimal");
    }
    let text = std::str::from_utf8(digits).map_err(|_| "a number is not decimal")?;
    text.parse().map_err(|_| "a number is too large")
}

fn signed(value: &[u8]) -> Result<i64, &'static str> {
    let (sign, digits) = match value.strip_prefix(b"-") {
        Some(digits) => (-1, digits),
        None => (1, value),
    };
    let number = i64::try_from(decimal(digits)?).map_err(|_| "a number is too large")?;
    Ok(sign * number)
}

/// Seconds, perhaps with a fraction, which squashfs cannot store.
fn seconds(value: &[u8]) -> Result<i64, &'static str> {
    let mut parts = value.splitn(2, |&b| b == b'.');
    let whole = signed(parts.next().unwrap_or_default())?;
    match parts.next() {
        Some(fraction) if !fraction.iter().all(u8::is_ascii_digit) => {
            Err("a number is not decimal")
        }
        _ => Ok(whole),
    }
}

#[cfg(test)]
mod tests {
    use super::super::samples::record;
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn keeps_what_matters() {
        let text = [
            record(b"path", b"\xff long name\xfe"),
            record(b"linkpath", b"target"),
            record(b"size", b"123"),
            record(b"uid", b"4000000"),
            record(b"mtime", b"1350244992.023960108"),
            record(b"comment", b"whatever"),
            record(b"SCHILY.xattr.user.a", b"0"),
            record(b"SCHILY.xattr.user.a", b"1\n2=\n"),
            record(b"SCHILY.xattr.user.b", b""),
        ];
        let pax = parse(&text.concat()).unwrap();
        assert_eq!(pax.path.unwrap(), b"\xff long name\xfe");
        assert_eq!(pax.link.unwrap(), b"target");
        assert_eq!(
            (pax.size, pax.uid, pax.gid),
            (Some(123), Some(4_000_000), None)
        );
        assert_eq!(pax.mtime, Some(1_350_244_992));
        let xattrs: Vec<Xattr> = vec![
            (b"user.a".to_vec(), b"1\n2=\n".to_vec()),
            (b"user.b".to_vec(), Vec::new()),
        ];
        assert_eq!(pax.xattrs, xattrs);
    }

    #[test]
    fn sparse_maps_of_both_old_kinds() {
        let rec = |key: &str, value: &str| {
            record(format!("GNU.sparse.{key}").as_bytes(), value.as_bytes())
        };
        let old = [
            rec("size", "99"),
            rec("offset", "0"),
            rec("numbytes", "5"),
            rec("offset", "90"),
            rec("numbytes", "9"),
        ]
        .concat();
        let newer = [rec("size", "99"), rec("map", "0,5,90,9")].concat();
        assert_eq!(parse(&old).unwrap(), parse(&newer).unwrap());
        assert_eq!(parse(&newer).unwrap().sparse.map, [0, 5, 90, 9]);
        for bad in [
            rec("offset", "0"),
            rec("numbytes", "5"),
            rec("map", "0,5,"),
            rec("map", "1"),
        ] {
            assert!(parse(&bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn malformed_records_are_refused() {
        for bad in [
            &b"x"[..],
            b"12 path=abc",
            b"99 path=abc\n",
            b"3 path=abc\n",
            b"0 a=b\n",
            b" a=b\n",
            b"+7 a=b\n",
            b"6 =bc\n",
            b"7 abcd\n",
            b"12 size=0x1\n",
            b"11 size=-1\n",
            b"30 size=99999999999999999999\n",
            b"13 mtime=1.x\n",
            b"99999999999999999999 a=b\n",
        ] {
            assert!(parse(bad).is_err(), "{:?}", String::from_utf8_lossy(bad));
        }
        assert_eq!(parse(b"8 path=\n").unwrap(), Pax::default());
    }

    proptest! {
        #[test]
        fn never_panics(records in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&records);
        }

        #[test]
        fn reads_what_a_writer_writes(value in proptest::collection::vec(1u8.., 1..200)) {
            let text = record(b"path", &value);
            prop_assert_eq!(parse(&text).unwrap().path.unwrap(), value);
        }
    }
}
