//! S16, S17, S20: what steers the programs counts only in root's hands, whoever reads it.

use std::time::Duration;

use anyhow::{Result, ensure};
use shifter_tests::call::{Call, Output};
use shifter_tests::product::CONFIG;
use shifter_tests::world::User::{Alice, Bob};

use super::manifest;
use super::secure::Guard;

/// Words of a message that is judged only where users see it.
const USERS_ONLY: &str = "shifter";

/// Every program that reads the configuration, with what it is asked to do.
fn readers(guard: &Guard) -> Result<Vec<Output>> {
    let product = guard.site.product;
    Ok(vec![
        guard.site.shifter(&["--image=tiny", "true"])?,
        guard.site.shifter(&["images"])?,
        product.shifterimg(["images"]).by(Alice).output()?,
        guard.site.set_up(&manifest("17"))?,
    ])
}

/// Spoils something, lets every reader refuse it, and mends it again.
fn with(
    guard: &mut Guard,
    spoil: &str,
    mend: &str,
    judge: impl Fn(&Guard) -> Result<()>,
) -> Result<()> {
    Call::shell(spoil).ok()?;
    guard.rebase()?;
    let judged = judge(guard);
    Call::shell(mend).ok()?;
    guard.rebase()?;
    judged.map_err(|error| error.context(spoil.to_owned()))
}

#[test]
fn privileged_s16_no_program_uses_a_configuration_that_others_could_write() -> Result<()> {
    let mut guard = Guard::prepare()?;
    let own = "/scratch/alice/own.toml";
    Call::shell(&format!(
        "cp {CONFIG} {own}; chown alice {own}; cp -p {CONFIG} /root/kept.toml"
    ))
    .ok()?;
    let back = format!("rm -f {CONFIG}; cp -p /root/kept.toml {CONFIG}");
    for (spoil, mend, rule) in [
        (
            format!("chown alice {CONFIG}"),
            back.clone(),
            "belongs to uid 2001",
        ),
        (
            format!("chgrp proj {CONFIG}; chmod g+w {CONFIG}"),
            back.clone(),
            "lets others write",
        ),
        (
            format!("ln -sf {own} {CONFIG}"),
            back.clone(),
            "/scratch/alice",
        ),
        (
            format!(
                "ln -sf /scratch/alice/to-root {CONFIG}; ln -sf /root/kept.toml /scratch/alice/to-root"
            ),
            back.clone(),
            "",
        ),
        // The same file under a name of hers: what she owns counts, whatever it is called.
        (
            format!(
                "cp {CONFIG} /etc/shifter/x; chown alice /etc/shifter/x; ln -f /etc/shifter/x {CONFIG}"
            ),
            format!("{back}; rm /etc/shifter/x"),
            "belongs to uid 2001",
        ),
        (
            "chmod 0777 /etc/shifter".into(),
            "chmod 0755 /etc/shifter".into(),
            "'/etc/shifter'",
        ),
        ("chmod 1777 /etc".into(), "chmod 0755 /etc".into(), "'/etc'"),
        (
            "chown alice /etc/shifter".into(),
            "chown root /etc/shifter".into(),
            "'/etc/shifter'",
        ),
        (format!("rm {CONFIG}"), back.clone(), "No such file"),
        (
            format!("rm {CONFIG}; mkdir {CONFIG}"),
            format!("rmdir {CONFIG}; {back}"),
            "",
        ),
    ] {
        with(&mut guard, &spoil, &mend, |guard| {
            for output in readers(guard)? {
                guard.refused(&output, 1, rule)?;
            }
            Ok(())
        })?;
    }
    guard.finish()
}

/// S17, L27: whatever runs or is shown on the site's word lies where only root writes.
#[test]
fn privileged_s17_programs_and_directories_of_the_site_must_be_roots() -> Result<()> {
    let mut guard = Guard::prepare()?;
    Call::shell("mkdir -p /opt/udi/bin; echo site >/opt/udi/bin/marker").ok()?;
    let product = guard.site.product;
    product.configure("udi_image = '/opt/udi'")?;
    guard.rebase()?;
    let marker = guard.site.script(&[], "cat /opt/udiImage/bin/marker")?;
    ensure!(marker == "site\n", "{marker}");
    let starts = |guard: &Guard, code: i32, words: &str| -> Result<()> {
        guard.refused(&guard.site.shifter(&["--image=tiny", "true"])?, code, words)?;
        guard.refused(&guard.site.set_up(&manifest("17"))?, code, words)
    };
    for spoil in [
        "chown alice /opt/udi",
        "chmod g+w /opt/udi",
        "chmod 0777 /opt",
    ] {
        let mend = "chown root /opt/udi; chmod 0755 /opt/udi /opt";
        with(&mut guard, spoil, mend, |guard| {
            starts(guard, 1, "is not trusted: its")
        })
        .or_else(|error| match spoil.contains("chown") {
            true => with(&mut guard, spoil, mend, |guard| {
                starts(guard, 1, "belongs to uid 2001")
            }),
            false => Err(error),
        })?;
    }
    product.configure("")?;
    guard.rebase()?;

    // getent, which is asked about a group that no local file names.
    let nameless = [
        "setpriv",
        "--reuid=2001",
        "--regid=2001",
        "--groups=2100,7777",
    ];
    let start = || {
        Call::new(
            [
                &nameless[..],
                &["/opt/shifter/bin/shifter", "--image=tiny", "true"],
            ]
            .concat(),
        )
    };
    with(
        &mut guard,
        "chmod 0775 /usr/bin",
        "chmod 0755 /usr/bin",
        |guard| guard.refused(&start().output()?, 1, "'/usr/bin' is not trusted"),
    )?;
    // The image manager, which runs as whoever calls.
    let bin = "/opt/shifter/bin";
    for spoil in [
        format!("chown alice {bin}/shifterimg"),
        format!("chmod 0777 {bin}"),
    ] {
        let mend = format!("chown root {bin}/shifterimg; chmod 0755 {bin}");
        with(&mut guard, &spoil, &mend, |guard| {
            let images = product.shifter(["images"]).by(Bob).output()?;
            guard.refused(&images, 1, "is not trusted")
        })?;
    }
    guard.finish()
}

/// S20: no file that is odd in some way is waited for, read without end or shown.
#[test]
fn privileged_s20_odd_files_are_neither_waited_for_nor_read_without_end() -> Result<()> {
    let mut guard = Guard::prepare()?;
    Call::shell(&format!(
        "cp -p {CONFIG} /root/kept.toml; cp -p /etc/hosts /root/hosts"
    ))
    .ok()?;
    let back = format!("rm -f {CONFIG}; cp -p /root/kept.toml {CONFIG}");
    let soon = |output: &Output| {
        ensure!(
            output.took < Duration::from_secs(3),
            "{:?}: {output}",
            output.took
        );
        Ok(())
    };
    for (spoil, words) in [
        (
            format!("rm {CONFIG}; mkfifo -m 0644 {CONFIG}"),
            "must be a regular file",
        ),
        (
            format!("rm {CONFIG}; truncate -s 10G {CONFIG}"),
            "larger than",
        ),
        (format!("ln -sf /dev/zero {CONFIG}"), "not trusted"),
        (
            format!("rm {CONFIG}; ln -s {CONFIG} {CONFIG}"),
            "more than 40 links",
        ),
        // Root's own file, with its words not given away.
        (format!("ln -sf /root/canary {CONFIG}"), USERS_ONLY),
        (format!("printf 'a\\0b\\n' >{CONFIG}"), ""),
        (format!("printf '\\377\\376' >{CONFIG}"), "not UTF-8"),
        (
            format!("head -c 1000000 /dev/zero | tr '\\0' = >{CONFIG}"),
            ":1: ",
        ),
    ] {
        with(&mut guard, &spoil, &back, |guard| {
            let all = readers(guard)?;
            // setupRoot shows root the line at fault.
            let users = if words == USERS_ONLY { 3 } else { 4 };
            for output in all.into_iter().take(users) {
                soon(&output)?;
                guard.refused(&output, 1, words)?;
            }
            Ok(())
        })?;
    }
    // What the host gives every container.
    let back = "rm -f /etc/hosts; cp -p /root/hosts /etc/hosts";
    for spoil in [
        "rm /etc/hosts; mkfifo /etc/hosts",
        "rm /etc/hosts; truncate -s 10G /etc/hosts",
        "ln -sf /dev/zero /etc/hosts",
        "rm /etc/hosts; mkdir /etc/hosts",
    ] {
        let back = format!("rm -d /etc/hosts; {back}");
        with(&mut guard, spoil, &back, |guard| {
            let start = guard
                .site
                .product
                .shifter(["--image=tiny", "wc", "-c", "/etc/hosts"]);
            let output = start.by(Alice).timeout(10).output()?;
            soon(&output)?;
            guard.done_or_refused(&output)
        })?;
    }
    guard.finish()
}
