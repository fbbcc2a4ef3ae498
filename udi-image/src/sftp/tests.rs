//! Requests as clients make them, and arbitrary ones.

use std::os::unix::fs::symlink;

use proptest::prelude::*;

use super::*;

fn request(kind: u8) -> Writer {
    Writer::new(kind).number(9)
}

/// Asks and returns the answer's type and what follows the id.
fn ask(server: &mut Server, request: Writer) -> (u8, Vec<u8>) {
    let answer = server.answer(&request.finish()[4..]).unwrap();
    assert_eq!(answer[5..9], 9_u32.to_be_bytes());
    (answer[4], answer[9..].to_vec())
}

fn code(answer: &(u8, Vec<u8>)) -> u32 {
    assert_eq!(answer.0, kind::STATUS);
    Reader(&answer.1).number().unwrap()
}

fn opened(server: &mut Server, path: &Path, flags: u32) -> Vec<u8> {
    let name = path.as_os_str().as_bytes();
    let open = request(kind::OPEN).string(name).number(flags);
    let answer = ask(server, open.attributes(&Attributes::default()));
    assert_eq!(
        answer.0,
        kind::HANDLE,
        "{}",
        String::from_utf8_lossy(&answer.1)
    );
    Reader(&answer.1).string().unwrap().to_vec()
}

#[test]
fn a_file_goes_there_and_back() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(OsStr::from_bytes(b"not \xff text"));
    let mut server = Server::default();
    let handle = opened(&mut server, &path, 2 | 8 | 16);
    let write = request(kind::WRITE).string(&handle).long(3);
    assert_eq!(code(&ask(&mut server, write.string(b"abc"))), 0);
    let close = request(kind::CLOSE).string(&handle);
    assert_eq!(code(&ask(&mut server, close.clone())), 0);
    assert_eq!(code(&ask(&mut server, close)), 5);
    assert_eq!(fs::read(&path).unwrap(), b"\0\0\0abc");

    let handle = opened(&mut server, &path, 1);
    let read = |offset| {
        request(kind::READ)
            .string(&handle)
            .long(offset)
            .number(1 << 30)
    };
    let answer = ask(&mut server, read(2));
    assert_eq!(
        (answer.0, Reader(&answer.1).string()),
        (kind::DATA, Ok(&b"\0abc"[..]))
    );
    assert_eq!(code(&ask(&mut server, read(6))), 1);
    let change = Attributes {
        mode: Some(0o640),
        times: Some((5, 7)),
        ..Attributes::default()
    };
    let name = path.as_os_str().as_bytes();
    let set = request(kind::SETSTAT).string(name).attributes(&change);
    assert_eq!(code(&ask(&mut server, set)), 0);
    let meta = fs::metadata(&path).unwrap();
    assert_eq!((meta.mode() & 0o777, meta.mtime()), (0o640, 7));
}

#[test]
fn a_file_is_emptied_also_where_it_is_appended_to() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    fs::write(&path, b"old").unwrap();
    let mut server = Server::default();
    for (flags, expected) in [(2 | 4 | 8, &b"oldnew"[..]), (2 | 4 | 8 | 16, b"new")] {
        let handle = opened(&mut server, &path, flags);
        let write = request(kind::WRITE).string(&handle).long(0);
        assert_eq!(code(&ask(&mut server, write.string(b"new"))), 0);
        assert_eq!(fs::read(&path).unwrap(), expected);
    }
}

#[test]
fn directories_are_listed_to_their_end() {
    let dir = tempfile::tempdir().unwrap();
    for number in 0..3000 {
        fs::write(dir.path().join(format!("file-{number:04}")), b"").unwrap();
    }
    symlink("nowhere", dir.path().join("link")).unwrap();
    let mut server = Server::default();
    let name = dir.path().as_os_str().as_bytes();
    let answer = ask(&mut server, request(kind::OPENDIR).string(name));
    let handle = Reader(&answer.1).string().unwrap().to_vec();
    let mut names = Vec::new();
    loop {
        let answer = ask(&mut server, request(kind::READDIR).string(&handle));
        if answer.0 == kind::STATUS {
            assert_eq!(code(&answer), 1);
            break;
        }
        let mut reader = Reader(&answer.1);
        for _ in 0..reader.number().unwrap() {
            names.push(reader.string().unwrap().to_vec());
            reader.string().unwrap();
            reader.attributes().unwrap();
        }
    }
    names.sort();
    names.dedup();
    assert_eq!(names.len(), 3001);
}

#[test]
fn refusals_say_why() {
    let dir = tempfile::tempdir().unwrap();
    let there = dir.path().join("there");
    fs::write(&there, b"x").unwrap();
    let mut server = Server::default();
    let text = |path: &Path| path.as_os_str().as_bytes().to_vec();
    let (there, gone) = (text(&there), text(&dir.path().join("gone")));
    let of = |kind: u8, path: &[u8]| request(kind).string(path);
    assert_eq!(code(&ask(&mut server, of(kind::STAT, &gone))), 2);
    assert_eq!(code(&ask(&mut server, of(kind::REMOVE, &gone))), 2);
    assert_eq!(code(&ask(&mut server, of(kind::OPENDIR, &there))), 4);
    // Renaming replaces nothing unless it is POSIX's that is asked for.
    let rename = of(kind::RENAME, &there).string(&there);
    assert_eq!(code(&ask(&mut server, rename)), 4);
    let posix = request(kind::EXTENDED).string(b"posix-rename@openssh.com");
    assert_eq!(
        code(&ask(&mut server, posix.string(&there).string(&there))),
        0
    );
    assert_eq!(code(&ask(&mut server, of(kind::EXTENDED, b"x@y"))), 8);
    assert_eq!(code(&ask(&mut server, request(99))), 8);
    assert_eq!(code(&ask(&mut server, request(kind::READ))), 5);
    assert!(server.answer(&[kind::READ]).is_err());
}

#[test]
fn handles_are_limited() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    let mut server = Server::default();
    for _ in 0..HANDLES {
        opened(&mut server, &path, 2 | 8);
    }
    let open = request(kind::OPEN).string(path.as_os_str().as_bytes());
    let open = open.number(1).attributes(&Attributes::default());
    assert_eq!(code(&ask(&mut server, open)), 4);
}

#[test]
fn days() {
    for (seconds, day) in [
        (0, "1970-01-01"),
        (951_782_400, "2000-02-29"),
        (1_709_251_199, "2024-02-29"),
        (-1, "1969-12-31"),
    ] {
        assert_eq!(date(seconds), day);
    }
}

proptest! {
    /// What no client would send is answered all the same; kinds that change files are left out.
    #[test]
    fn answering_is_total(kind in 100_u8.., rest in prop::collection::vec(any::<u8>(), 0..80)) {
        let mut packet = vec![kind, 0, 0, 0, 9];
        packet.extend(rest);
        prop_assert!(Server::default().answer(&packet).is_ok());
    }
}
