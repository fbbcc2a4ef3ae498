//! Blobs: one stream of bytes made of as many answers as it takes.
//!
//! A connection that breaks is taken up where it broke, with a `Range` request. A server that does
//! not know ranges sends everything again, and what is there already is skipped. The sink therefore
//! sees every byte once, in order. Nothing is written to disk here.

use std::io::{self, Read};

use crate::hash::Hasher;

use super::address::Address;
use super::error::RegistryError;
use super::http::{self, Answer, Trust, Want};
use super::manifest::Descriptor;
use super::repository::Repository;
use super::retry::Tries;

/// Bytes read at once.
const BUFFER: usize = 128 << 10;

/// One blob on its way.
struct Transfer<'a> {
    blob: &'a Descriptor,
    /// Bytes the sink has.
    done: u64,
    /// The digest of those bytes, where all of them passed through here.
    hasher: Option<Hasher>,
    /// False once the server was seen to answer ranges wrongly.
    uses_ranges: bool,
    /// Bytes that make a try a good one.
    enough: u64,
}

impl Repository<'_> {
    /// Streams a blob into `sink`, which gets at most the announced length.
    ///
    /// # Errors
    /// What `sink` was given is not the blob unless this returns `Ok`.
    pub fn blob(
        &self,
        blob: &Descriptor,
        sink: impl FnMut(&[u8]) -> io::Result<()>,
    ) -> Result<(), RegistryError> {
        self.blob_from(blob, 0, sink)
    }

    /// Streams a blob from byte `offset` on into `sink`. Retries, tokens and mirrors are in here,
    /// and `sink` gets each byte once.
    ///
    /// From the first byte on, the digest is compared here. From a later one it is the caller's to
    /// compare, who alone has the bytes before; if it is wrong, or this fails with
    /// [`RegistryError::Forged`], one more call from byte 0 is worth the while: the next mirror may
    /// be honest, and a damaged transfer does not repeat itself.
    ///
    /// # Errors
    /// What `sink` was given is not the blob unless this returns `Ok`.
    pub fn blob_from(
        &self,
        blob: &Descriptor,
        offset: u64,
        mut sink: impl FnMut(&[u8]) -> io::Result<()>,
    ) -> Result<(), RegistryError> {
        let path = format!("blobs/{}", blob.digest);
        if offset > blob.size {
            let address = self.shown(&path);
            let reason = format!("{offset} bytes are there already, and it has {}", blob.size);
            return Err(RegistryError::Forged {
                what: "the blob",
                address,
                reason,
            });
        }
        let mut transfer = Transfer {
            blob,
            done: offset,
            hasher: (offset == 0).then(|| Hasher::like(&blob.digest)),
            uses_ranges: true,
            enough: self.parts.http.patience().bytes,
        };
        let mut got_it = None;
        let asked = self.with_each(|source, tries| {
            transfer.run(tries, &mut sink, |want| source.get(&path, want))?;
            got_it = Some(source.number());
            Ok(())
        });
        match asked {
            Err(error) if !blob.urls.is_empty() && !error.is_final() => {
                self.foreign(&mut transfer, &mut sink, error)?;
            }
            asked => asked?,
        }
        let finished = transfer.finish(&self.shown(&path));
        match (got_it, &finished) {
            (Some(number), Ok(())) => self.prefer(number),
            (Some(number), Err(_)) => self.distrust(number),
            (None, _) => {}
        }
        finished
    }

    /// Fetches a layer that registries do not keep from where its manifest says it is: by https,
    /// without a login, and from a private network only if the registry itself is there. A mirror may
    /// be, and passes on what anybody wrote. Fails with `error` if that is no use.
    fn foreign(
        &self,
        transfer: &mut Transfer<'_>,
        sink: &mut impl FnMut(&[u8]) -> io::Result<()>,
        error: RegistryError,
    ) -> Result<(), RegistryError> {
        let http = &self.parts.http;
        let mut last = error;
        for url in &transfer.blob.urls {
            let Some(address) = Address::parse(url) else {
                continue;
            };
            let mut tries = Tries::new(http.patience());
            let fetched = self.patiently(&mut tries, |tries| {
                transfer.run(tries, sink, |want| {
                    let answer = http.get(&address, Trust::From(self.base()), want, None)?;
                    match answer.status() {
                        200 | 206 | 416 => Ok(answer),
                        status => Err(RegistryError::Refused {
                            address: answer.address.to_string(),
                            status,
                            asked: answer.asked_pause(),
                            message: answer.message(),
                        }),
                    }
                })
            });
            match fetched {
                Ok(()) => return Ok(()),
                Err(error) if error.is_final() => return Err(error),
                Err(error) => last = error,
            }
        }
        Err(last)
    }
}

impl Transfer<'_> {
    /// Returns the offset to ask for, if not for everything.
    fn range(&self) -> Option<u64> {
        (self.uses_ranges && self.done > 0).then_some(self.done)
    }

    /// Asks until all is there.
    fn run(
        &mut self,
        tries: &mut Tries,
        sink: &mut impl FnMut(&[u8]) -> io::Result<()>,
        ask: impl Fn(&Want) -> Result<Answer, RegistryError>,
    ) -> Result<(), RegistryError> {
        while self.done < self.blob.size {
            let before = self.done;
            let want = Want::Blob(self.range());
            let result = ask(&want).and_then(|answer| match (answer.status(), want) {
                // Nobody asked for a part.
                (status @ (206 | 416), Want::Blob(None)) => Err(RegistryError::Refused {
                    address: answer.address.to_string(),
                    status,
                    message: String::new(),
                    asked: None,
                }),
                _ => self.take(answer, tries, sink),
            });
            // A server that cuts every connection is good enough as long as each brings something.
            if self.done - before >= self.enough {
                tries.got_on();
            }
            result?;
        }
        Ok(())
    }

    /// Passes on what an answer brings.
    fn take(
        &mut self,
        answer: Answer,
        tries: &Tries,
        sink: &mut impl FnMut(&[u8]) -> io::Result<()>,
    ) -> Result<(), RegistryError> {
        let address = answer.address.clone();
        let size = self.blob.size;
        let wrong_length = |found: String| RegistryError::Forged {
            what: "the blob",
            address: address.to_string(),
            reason: format!("the manifest promises {size} bytes, the registry {found}"),
        };
        let is_whole = answer.status() != 206;
        let (mut skip, end) = match answer.status() {
            206 => match answer.header("content-range").and_then(content_range) {
                Some(range) if range.total.is_some_and(|total| total != size) => {
                    return Err(wrong_length(format!("has {}", range.total.unwrap_or(0))));
                }
                Some(range) if range.first == self.done && range.last < size => (0, range.last + 1),
                // Not the part that was asked for: everything from the start will be.
                _ => {
                    self.uses_ranges = false;
                    return Ok(());
                }
            },
            416 => {
                self.uses_ranges = false;
                return Ok(());
            }
            _ => (self.done, size),
        };
        let expected = end - self.done + skip;
        if let Some(length) = answer.length()
            && length != expected
        {
            return Err(wrong_length(match is_whole {
                true => format!("has {length}"),
                false => format!("sends {length} as a part of {expected}"),
            }));
        }
        // One byte more than promised is enough to know.
        let mut body = answer.into_body().take(expected.saturating_add(1));
        let mut buffer = vec![0; BUFFER];
        loop {
            let count = body
                .read(&mut buffer)
                .map_err(|error| http::broke_off(&address, error))?;
            if count == 0 {
                break;
            }
            if tries.is_over() {
                return Err(RegistryError::Stalled {
                    address: address.to_string(),
                    waited: "the time for one layer is over".into(),
                });
            }
            let skipped = skip.min(count as u64);
            skip -= skipped;
            let part = &buffer[usize::try_from(skipped).unwrap_or(count)..count];
            if self.done + part.len() as u64 > end {
                return Err(wrong_length("sends more".into()));
            }
            self.pass(part, sink)?;
        }
        if self.done == end {
            return Ok(());
        }
        // Without a length on the wire a cut connection looks like an end: take it up once more.
        Err(RegistryError::BrokeOff {
            address: address.to_string(),
            source: io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!("the registry sent {} of {size} bytes", self.done),
            ),
        })
    }

    fn pass(
        &mut self,
        part: &[u8],
        sink: &mut impl FnMut(&[u8]) -> io::Result<()>,
    ) -> Result<(), RegistryError> {
        if part.is_empty() {
            return Ok(());
        }
        if let Some(hasher) = &mut self.hasher {
            hasher.update(part);
        }
        sink(part).map_err(RegistryError::Write)?;
        self.done += part.len() as u64;
        Ok(())
    }

    fn finish(self, address: &str) -> Result<(), RegistryError> {
        let Some(hasher) = self.hasher else {
            return Ok(());
        };
        let (found, wanted) = (hasher.finish(), &self.blob.digest);
        if found == wanted.to_string() {
            return Ok(());
        }
        Err(RegistryError::Forged {
            what: "the blob",
            address: address.to_owned(),
            reason: format!("its digest is {found}, not {wanted}"),
        })
    }
}

/// What a `Content-Range` header says.
#[derive(Debug, PartialEq, Eq)]
struct Range {
    first: u64,
    last: u64,
    total: Option<u64>,
}

/// Reads `bytes FIRST-LAST/TOTAL`, where the total may be `*`.
fn content_range(header: &str) -> Option<Range> {
    let rest = header.trim().strip_prefix("bytes")?.trim_start();
    let (range, total) = rest.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let total = match total.trim() {
        "*" => None,
        number => Some(number.parse().ok()?),
    };
    let (first, last) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
    (first <= last).then_some(Range { first, last, total })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_ranges() {
        let range = |first, last, total| Some(Range { first, last, total });
        let table = [
            ("bytes 5-9/10", range(5, 9, Some(10))),
            ("bytes 5-9/*", range(5, 9, None)),
            ("bytes=5-9/10", None),
            ("bytes */10", None),
            ("bytes 9-5/10", None),
            ("bytes 5-18446744073709551616/*", None),
            ("items 0-1/2", None),
            ("", None),
        ];
        for (text, expect) in table {
            assert_eq!(content_range(text), expect, "{text}");
        }
    }
}
