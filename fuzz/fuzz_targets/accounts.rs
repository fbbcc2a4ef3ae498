//! Whatever lines a name service gives, the account files made of them hold no other account.
#![no_main]

use libfuzzer_sys::fuzz_target;
use shifter_core::identity::{Group, Identity, group_of_line};

fuzz_target!(|text: &str| {
    let find = |line| Identity::from_passwd_line(line, 2001);
    let Some(mut user) = text.lines().find_map(find) else {
        return;
    };
    let groups = text.lines().filter_map(group_of_line).take(100);
    user.groups = groups
        .map(|(gid, name)| Group {
            gid,
            name: Some(name.to_owned()),
        })
        .collect();
    assert!(user.is_well_formed());
    for line in user.passwd_file().lines() {
        let fields: Vec<&str> = line.split(':').collect();
        assert_eq!((fields.len(), fields[1]), (7, "x"), "{line}");
        assert!(["0", "2001", "65534"].contains(&fields[2]), "{line}");
    }
    for line in user.group_file().lines() {
        let fields: Vec<&str> = line.split(':').collect();
        assert_eq!((fields.len(), fields[1]), (4, "x"), "{line}");
        assert!(fields[3].is_empty() || fields[3] == user.name, "{line}");
        assert!((fields[0] == "root") == (fields[2] == "0"), "{line}");
    }
});
