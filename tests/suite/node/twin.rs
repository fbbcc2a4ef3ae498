//! Private containers that are like one that runs: copies of it, as long as nothing differs.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Child;

use anyhow::{Context, Result, ensure};
use shifter_tests::call::{Call, wait_for};
use shifter_tests::image::Recipe;
use shifter_tests::product::{CONFIG, STORE};
use shifter_tests::world::User::{self, Alice, Bob};

use super::join::Step;
use super::{Site, ensure_refused, store_image};

/// Prints the file system of the root, which each container that is built has for itself, and the
/// namespace, which every container has for itself.
const LOOK: &str =
    "awk '$5 == \"/\" { print $3 }' /proc/self/mountinfo; readlink /proc/self/ns/mnt";

const NOTES: &str = "/run/shifter/images";

/// What a container shows of itself.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    root: String,
    namespace: String,
}

impl Seen {
    fn parse(text: &str) -> Result<Self> {
        let mut lines = text.lines().map(str::to_owned);
        let (root, namespace) = (lines.next(), lines.next());
        Ok(Self {
            root: root.context("no root")?,
            namespace: namespace.context("no namespace")?,
        })
    }
}

/// A container that runs until this is dropped.
struct Held {
    child: Child,
    seen: Seen,
}

impl Held {
    fn start(site: &Site, user: User, options: &[&str], then: &str) -> Result<Self> {
        let log = format!("/tmp/held.{}", user.uid());
        let script = format!("{LOOK}; {then}; exec sleep 1000");
        let args = [options, &["--image=tiny", "sh", "-c", &script]].concat();
        let call = site.product.shifter(args.iter().copied()).by(user);
        let child = call.timeout(0).start(&log)?;
        let seen = wait_for("a container", 20, || {
            let text = fs::read_to_string(&log)?;
            Ok((text.lines().count() == 2).then_some(text))
        })?;
        let seen = Seen::parse(&seen)?;
        Ok(Self { child, seen })
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Starts a container of alice's and returns what it shows.
fn look(site: &Site, options: &[&str]) -> Result<Seen> {
    Seen::parse(&site.script(options, LOOK)?)
}

fn notes() -> Result<usize> {
    if !fs::exists(NOTES)? {
        return Ok(0);
    }
    let names = fs::read_dir(NOTES)?.map(|entry| Ok(entry?.file_name()));
    let names = names.collect::<Result<Vec<_>>>()?;
    Ok(names
        .iter()
        .filter(|name| name.to_string_lossy().contains('.'))
        .count())
}

#[test]
fn privileged_what_is_like_a_running_container_is_a_copy_of_it() -> Result<()> {
    let site = Site::prepare()?;
    let first = Held::start(&site, Alice, &[], ":")?;
    let second = look(&site, &[])?;
    ensure!(
        second.root == first.seen.root,
        "{second:?} {:?}",
        first.seen
    );
    ensure!(second.namespace != first.seen.namespace, "{second:?}");
    // Nothing of the other one shows but the image, and everything is there.
    let script = "id -un; cat /etc/passwd; ls /opt/udiImage /scratch; touch /scratch/alice/x && echo writable
        touch /x /etc/x 2>&1 | grep -c Read-only; grep -e ^Cap -e NoNew /proc/self/status; ls -l /proc/self/fd | wc -l";
    let copied = site.script(&[], script)?;
    let built = site.script(&["--volume=/scratch/alice:/mnt"], script)?;
    ensure!(
        copied == built && copied.contains("writable"),
        "{copied}\n{built}"
    );
    ensure!(
        site.script(&[], "cat /proc/self/mountinfo")?
            .lines()
            .count()
            == fs::read_to_string(format!("/proc/{}/mountinfo", inside(&first)?))?
                .lines()
                .count()
    );
    ensure!(notes()? == 1, "{} notes", notes()?);
    // When the first one has ended the next one is built, and copied again.
    drop(first);
    let fourth = Held::start(&site, Alice, &[], ":")?;
    ensure!(look(&site, &[])?.root == fourth.seen.root);
    drop(fourth);
    site.tear_down("0")?.success()?;
    ensure!(notes()? == 0, "{} notes are left", notes()?);
    site.clean.ensure_restored(None)
}

/// Finds the process that a container holds.
fn inside(held: &Held) -> Result<String> {
    let pid = held.child.id().to_string();
    let child = Call::new(["pgrep", "-P", &pid]).output()?.stdout;
    Ok(match child.trim() {
        "" => pid,
        child => child.to_owned(),
    })
}

#[test]
fn privileged_what_differs_in_anything_is_built() -> Result<()> {
    let site = Site::prepare()?;
    let held = Held::start(&site, Alice, &[], ":")?;
    let root = held.seen.root.clone();
    ensure!(look(&site, &[])?.root == root);
    let is_built = |what: &str, options: &[&str]| -> Result<()> {
        let seen = look(&site, options)?;
        ensure!(seen.root != root, "{what}: {seen:?}");
        Ok(())
    };
    is_built("a volume", &["--volume=/scratch/alice:/mnt"])?;
    is_built("scratch space", &["--writable-tmpfs"])?;
    let others = site
        .product
        .shifter(["--image=tiny", "sh", "-c", LOOK])
        .by(Bob);
    ensure!(Seen::parse(&others.ok()?)?.root != root, "bob's is alice's");
    let fewer = ["setpriv", "--reuid=2001", "--regid=2001", "--clear-groups"];
    let shifter = site.product.path("bin/shifter");
    let fewer = Call::new(fewer).args([&*shifter, "--image=tiny", "sh", "-c", LOOK]);
    ensure!(Seen::parse(&fewer.ok()?)?.root != root, "with fewer groups");

    // Each of these replaces the note by that of a container that ends at once.
    let again = |what: &str| -> Result<Held> {
        let held = Held::start(&site, Alice, &[], ":")?;
        ensure!(look(&site, &[])?.root == held.seen.root, "after {what}");
        Ok(held)
    };
    for (what, change, back) in [
        (
            "a file of the host's",
            "echo 127.0.0.9 new >>/etc/hosts",
            "",
        ),
        (
            "another resolver",
            "echo nameserver 127.0.0.9 >/tmp/r; cp /tmp/r /etc/resolv.conf",
            "",
        ),
        (
            "a mount",
            "mkdir -p /scratch/new; mount -t tmpfs new /scratch/new",
            "umount /scratch/new",
        ),
        (
            "a mount less",
            "umount /scratch/new 2>/dev/null; mount -t tmpfs x /mnt; umount /mnt; mount -t tmpfs y /media",
            "umount /media",
        ),
        (
            "another directory in the same place",
            "mv /opt/shifter/lib/shifter/udiImage /opt/old; cp -a /opt/old /opt/shifter/lib/shifter/udiImage",
            "",
        ),
        (
            "another configuration",
            &format!("echo '# more' >>{CONFIG}"),
            "",
        ),
    ] {
        let held = again("the last one")?;
        Call::shell(change).ok()?;
        let seen = look(&site, &[])?;
        ensure!(seen.root != held.seen.root, "{what}: {seen:?}");
        if !back.is_empty() {
            Call::shell(back).ok()?;
        }
    }
    ensure!(
        site.script(&[], "cat /etc/hosts /etc/resolv.conf")?
            .matches("127.0.0.9")
            .count()
            == 2
    );

    // Another image under the same name.
    let _held = again("all of them")?;
    let tree = Recipe::tiny("other").build()?.layout().join("tree");
    fs::write(tree.join("etc/marker"), "another image\n")?;
    store_image(&tree, &"6".repeat(64), "tiny")?;
    ensure!(site.script(&[], "cat /etc/marker")? == "another image\n");
    // And another file under the same id, while the first one is mounted.
    fs::remove_file(format!("{STORE}/{}.squashfs", super::image_id()))?;
    store_image(&tree, &super::image_id(), "tiny")?;
    ensure!(site.script(&[], "cat /etc/marker")? == "another image\n");
    fs::remove_file(format!("{STORE}/{}.squashfs", super::image_id()))?;
    let gone = site.shifter(&["--image=tiny", "true"])?;
    ensure_refused(&gone, 4, "tiny")
}

#[test]
fn privileged_no_note_but_a_true_one_of_roots_leads_into_a_container() -> Result<()> {
    let site = Site::prepare()?;
    // A namespace of the user's own making is not the one that was noted.
    let nested = Held::start(&site, Alice, &[], "exec unshare -Urm sleep 1000")?;
    wait_for("a namespace of alice's own", 10, || {
        let now = fs::read_link(format!("/proc/{}/ns/mnt", inside(&nested)?))?;
        Ok((now.to_string_lossy() != nested.seen.namespace).then_some(()))
    })?;
    ensure!(look(&site, &[])?.root != nested.seen.root);
    drop(nested);

    let held = Held::start(&site, Alice, &[], ":")?;
    let root = held.seen.root.clone();
    let note = fs::read_dir(NOTES)?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|uid| uid == "2001"));
    let note = note.context("there is no note")?;
    let text = fs::read_to_string(&note)?;
    ensure!(fs::metadata(&note)?.permissions().mode() & 0o777 == 0o600);
    let (place, traits) = text.split_once('\n').context("no line")?;
    let (pid, number) = place.split_once(' ').context("no number")?;
    let is_copied = |what: &str, expected: bool| -> Result<()> {
        let copied = look(&site, &[])?.root == root;
        // A container that was built has left its own note.
        fs::write(&note, &text)?;
        ensure!(copied == expected, "{what}");
        Ok(())
    };
    is_copied("as it was", true)?;
    for (what, forged) in [
        ("another process", format!("1 {number}\n{traits}")),
        (
            "a process that is gone",
            format!("4194303 {number}\n{traits}"),
        ),
        ("another namespace", format!("{pid} 1\n{traits}")),
        ("the host's", format!("1 {}\n{traits}", 1)),
        ("nothing", String::new()),
        ("half of it", text[..text.len() / 2].to_owned()),
        ("more", format!("{text} ")),
        ("too much", format!("{text}{}", " ".repeat(1 << 20))),
    ] {
        fs::write(&note, forged)?;
        is_copied(what, false)?;
    }
    std::os::unix::fs::chown(&note, Some(2001), None)?;
    is_copied("alice's own", false)?;
    std::os::unix::fs::chown(&note, Some(0), None)?;
    is_copied("root's again", true)?;
    fs::set_permissions(&note, fs::Permissions::from_mode(0o666))?;
    is_copied("one that others can write", false)?;
    drop(held);
    site.tear_down("0")?.success()?;
    site.clean.ensure_restored(None)
}

#[test]
fn privileged_what_runs_in_a_job_is_not_copied_by_another_and_ends_with_its_own() -> Result<()> {
    let site = Site::prepare()?;
    let (step, other) = (Step::of(Alice, "17")?, Step::of(Alice, "18")?);
    let file = |seconds: u32| format!("/tmp/twin.{seconds}");
    let start = |seconds: u32| {
        let (to, look) = (file(seconds), LOOK.replace('\'', "'\\''"));
        format!(
            "shifter --image=tiny sh -c '{look}; exec sleep {seconds}' >{to} 2>&1 </dev/null &
            while [ \"$(cat {to} 2>/dev/null | wc -l)\" -lt 2 ]; do sleep 0.02; done\n"
        )
    };
    step.run(Alice, &(start(1701) + &start(1702) + &start(1703)))?
        .success()?;
    other.run(Alice, &start(1801))?.success()?;
    let seen = |seconds: u32| Seen::parse(&fs::read_to_string(file(seconds))?);
    let (first, third) = (seen(1701)?, seen(1801)?);
    for copy in [seen(1702)?, seen(1703)?] {
        ensure!(copy.root == first.root, "{copy:?} {first:?}");
        ensure!(copy.namespace != first.namespace, "{copy:?} {first:?}");
    }
    ensure!(third.root != first.root, "another job's");
    ensure!(look(&site, &[])?.root != third.root, "no job's");
    let running = |seconds: &str| Call::new(["pgrep", "-f", &format!("sleep {seconds}")]).output();
    ensure!(running("170[123]")?.stdout.lines().count() >= 3);
    site.tear_down("17")?.success()?;
    ensure!(
        running("170[123]")?.stdout.is_empty(),
        "a copy has outlived its job"
    );
    ensure!(
        !running("180[1]")?.stdout.is_empty(),
        "another job's has ended"
    );
    site.tear_down("18")?.success()?;
    ensure!(running("180[1]")?.stdout.is_empty());
    drop((step, other));
    site.tear_down("0")?.success()?;
    site.clean.ensure_restored(None)
}

#[test]
fn privileged_many_at_once_are_as_good_as_one_by_one() -> Result<()> {
    let site = Site::prepare()?;
    let script = "for n in $(seq 40); do
            shifter --image=tiny sh -c 'id -un; cat /etc/marker; ls /opt/udiImage | wc -l' >/tmp/many.$n 2>&1 &
        done; wait; sort /tmp/many.* | uniq -c | awk '{ print $1 }' | sort -u; rm /tmp/many.*";
    for _ in 0..3 {
        let held = Held::start(&site, Alice, &[], ":")?;
        let seen = Call::shell(script).by(Alice).timeout(60).ok()?;
        ensure!(seen == "40\n", "{seen}");
        // While some of them copy it, the container ends.
        drop(held);
    }
    site.tear_down("0")?.success()?;
    site.clean.ensure_restored(None)
}
