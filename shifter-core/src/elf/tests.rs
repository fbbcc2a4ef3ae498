//! A file made by hand, the machine's own libraries, and whatever comes.

use proptest::prelude::*;

use super::*;

/// A little-endian 64-bit library: `libmpi.so.12`, which needs GLIBC_2.38 and defines FAKE_1.0.
fn sample() -> Vec<u8> {
    let strings = b"\0libmpi.so.12\0libc.so.6\0GLIBC_2.38\0FAKE_1.0\0GLIBC_2.2.5\0";
    let name = |text: &str| {
        let found = strings
            .windows(text.len())
            .position(|window| window == text.as_bytes());
        found.unwrap() as u32
    };
    let mut file = vec![0; 0x400];
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"\x7fELF\x02\x01\x01");
    put(16, &3_u16.to_le_bytes());
    put(18, &62_u16.to_le_bytes());
    put(32, &64_u64.to_le_bytes());
    put(56, &2_u16.to_le_bytes());
    // Everything from 0x100 on is mapped at 0x10100.
    let segments: [(u32, u64, u64, u64); 2] = [
        (LOAD, 0x100, 0x10100, 0x300),
        (DYNAMIC, 0x100, 0x10100, 0x80),
    ];
    for (number, (kind, offset, address, size)) in segments.into_iter().enumerate() {
        let at = 64 + number * 56;
        put(at, &kind.to_le_bytes());
        put(at + 8, &offset.to_le_bytes());
        put(at + 16, &address.to_le_bytes());
        put(at + 32, &size.to_le_bytes());
    }
    let dynamic = [
        (1_u64, u64::from(name("libc.so.6"))),
        (14, u64::from(name("libmpi.so.12"))),
        (5, 0x10300),
        (0x6fff_fffe, 0x10200),
        (0x6fff_fffc, 0x10280),
    ];
    for (number, (tag, value)) in dynamic.into_iter().enumerate() {
        put(0x100 + number * 16, &tag.to_le_bytes());
        put(0x108 + number * 16, &value.to_le_bytes());
    }
    let words = |list: &[u32]| -> Vec<u8> { list.iter().flat_map(|w| w.to_le_bytes()).collect() };
    // Verneed with two Vernaux; the count is the upper half of its first word.
    put(0x200, &words(&[1 | 2 << 16, name("libc.so.6"), 16, 0]));
    put(0x210, &words(&[0, 0, name("GLIBC_2.38"), 16]));
    put(0x220, &words(&[0, 0, name("GLIBC_2.2.5"), 0]));
    // Verdef with one Verdaux.
    put(0x280, &words(&[1, 1 << 16, 0, 20, 0, name("FAKE_1.0"), 0]));
    put(0x300, strings);
    file
}

#[test]
fn reads_names_and_versions() {
    let elf = Elf::read(&*sample()).unwrap();
    assert_eq!(elf.soname.as_deref(), Some("libmpi.so.12"));
    assert_eq!(elf.needed, ["libc.so.6"]);
    assert_eq!(elf.defines, ["FAKE_1.0"]);
    assert_eq!(elf.requires.len(), 2);
    assert_eq!(elf.requires[0].library, "libc.so.6");
    assert_eq!(elf.glibc_needed().unwrap().to_string(), "2.38");
    assert_eq!(elf.glibc_defined(), None);
    assert_eq!(machine_name(elf.target.machine), "x86-64");
    assert!(elf.target.is_wide && !elf.target.is_big_endian);
}

#[test]
fn reads_what_the_machine_runs() {
    let file = File::open(std::env::current_exe().unwrap()).unwrap();
    let elf = Elf::read(&file).unwrap();
    assert!(elf.needed.iter().any(|name| name == "libc.so.6"), "{elf:?}");
    let needed = elf.glibc_needed().unwrap();
    assert!(needed >= GlibcVersion::parse("GLIBC_2.2.5").unwrap());
}

#[test]
fn versions_are_compared_as_numbers() {
    let version = |text| GlibcVersion::parse(text);
    assert!(version("GLIBC_2.9") < version("GLIBC_2.10"));
    assert!(version("GLIBC_2.3.4") > version("GLIBC_2.3"));
    for text in [
        "GLIBC_PRIVATE",
        "GLIBC_2",
        "GLIBCXX_3.4",
        "GLIBC_2.3.4.5",
        "GLIBC_2.x",
        "",
    ] {
        assert_eq!(version(text), None, "{text}");
    }
}

#[test]
fn what_is_no_library_is_refused() {
    assert!(matches!(Elf::read(&b""[..]), Err(ElfError::Foreign)));
    assert!(matches!(
        Elf::read(&b"#!/bin/sh\n: a script, not a library\n"[..]),
        Err(ElfError::Foreign)
    ));
    let broken = |at: usize, byte: u8| {
        let mut file = sample();
        file[at] = byte;
        Elf::read(&*file).unwrap_err().to_string()
    };
    assert_eq!(broken(4, 3), "malformed class");
    assert_eq!(broken(5, 0), "malformed byte order");
    assert_eq!(broken(57, 1), "malformed program headers");
    // Beyond every bound.
    assert_eq!(broken(0x12f, 0xff), "malformed dynamic section");
}

proptest! {
    /// Whatever the bytes: an answer, soon, and of bounded size.
    #[test]
    fn reading_is_total(edits in prop::collection::vec((0..0x400_usize, any::<u8>()), 0..40)) {
        let mut file = sample();
        for (at, byte) in edits {
            file[at] = byte;
        }
        if let Ok(elf) = Elf::read(&*file) {
            prop_assert!(elf.requires.len() <= VERSION_LIMIT && elf.defines.len() <= VERSION_LIMIT);
            prop_assert!(elf.needed.iter().all(|name| name.len() <= 4 * (NAME_LIMIT + 32)));
        }
    }

    /// A file that was cut off anywhere.
    #[test]
    fn a_short_file_is_no_panic(length in 0..0x400_usize) {
        let _ = Elf::read(&sample()[..length]);
    }
}
