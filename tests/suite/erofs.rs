//! Images as erofs, where the site wants them: in its own store, mounted by the kernel.

use std::fs;
use std::path::PathBuf;

use anyhow::{Result, ensure};
use shifter_tests::call::Call;
use shifter_tests::image::Recipe;
use shifter_tests::product::{CONFIG, STORE};
use shifter_tests::snapshot::loop_devices;
use shifter_tests::world::User::{Alice, Bob, Shifter};

use crate::bench::{Bench, Stored, stored};
use crate::sharing::sleeper;

/// A `/dev` for one node that has all but loop devices.
const WITHOUT_LOOP: &str = "set -e; mkdir /run/dev; mount -t tmpfs dev /run/dev; cd /dev; \
     cp -a null zero full random urandom tty fuse fd stdin stdout stderr /run/dev/; \
     mkdir /run/dev/pts /run/dev/shm; ln -s pts/ptmx /run/dev/ptmx; \
     mount --bind pts /run/dev/pts; mount --bind shm /run/dev/shm; mount --rbind /run/dev /dev";

/// A store on the machine's own disk: the world's overlay has no pages that erofs could be mounted from.
struct OnDisk(PathBuf);

impl OnDisk {
    fn new() -> Result<Self> {
        let dir = std::env::current_exe()?.with_extension(format!("store.{}", std::process::id()));
        fs::create_dir(&dir)?;
        let dir = Self(dir);
        let copy = "cp -a \"$2/.\" \"$1\" && mount --bind \"$1\" \"$2\"";
        let path = dir.0.display().to_string();
        Call::new(["sh", "-c", copy, "copy", &path, STORE]).ok()?;
        Ok(dir)
    }
}

impl Drop for OnDisk {
    fn drop(&mut self) {
        let _ = Call::new(["umount", "-l", STORE]).output();
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Starts a site whose images are erofs from now on, with one that is called `e`.
fn start() -> Result<(Bench, Stored)> {
    start_with(|| Ok(()))
}

fn start_with(change: impl FnOnce() -> Result<()>) -> Result<(Bench, Stored)> {
    let bench = Bench::start_with(|_, _| change())?;
    let config = fs::read_to_string(CONFIG)?;
    let with_erofs = config.replacen("[store]", "[store]\nformat = 'erofs'", 1);
    bench.product.configure_with(&with_erofs)?;
    let image = stored(&bench.product, &bench.registry, "e")?;
    Ok((bench, image))
}

#[test]
fn cluster_jobs_of_one_erofs_image_share_one_superblock() -> Result<()> {
    let (bench, image) = start()?;
    let file = |end: &str| format!("{STORE}/{}.{end}", image.image.id());
    ensure!(fs::exists(file("erofs"))? && !fs::exists(file("squashfs"))?);
    ensure!(fs::read_to_string(file("meta"))?.contains("FORMAT: erofs\n"));

    let first = sleeper(&bench, Alice, &image)?;
    let second = sleeper(&bench, Bob, &image)?;
    let loops = loop_devices()?;
    ensure!(loops.len() == 1, "{loops:?}");
    let look = "stat -c %d /usr; grep -c ' erofs ' /proc/self/mountinfo";
    let inside = |job: &shifter_tests::job::Job, user| {
        let words = ["srun", "--overlap", "--jobid", job.id(), "shifter"];
        let call = Call::new(words).args(["sh", "-c", look]).by(user);
        call.ok()
    };
    let (one, other) = (inside(&first, Alice)?, inside(&second, Bob)?);
    ensure!(one == other && one.lines().count() == 2, "{one}{other}");
    first.cancel()?;
    first.wait()?;
    ensure!(inside(&second, Bob)? == other);
    second.cancel()?;
    second.wait()?;

    // Squashfs images of before go on as they are, and so does everything about the store.
    let output = bench.srun(Alice, &bench.a, &["shifter", "cat", "/etc/marker"])?;
    ensure!(output.success()?.stdout == "a\n");
    let shifterimg = |words: &[&str]| bench.product.shifterimg(words.iter().copied()).by(Shifter);
    ensure!(shifterimg(&["images"]).ok()?.lines().count() == 4);
    shifterimg(&["verify"]).ok()?;
    let again = shifterimg(&["pull", &image.reference])
        .output()?
        .success()?;
    ensure!(again.stderr.contains("already there"), "{again}");
    shifterimg(&["rmi", &image.reference]).ok()?;
    ensure!(!fs::exists(file("erofs"))? && !fs::exists(file("meta"))?);
    bench.ensure_clean()
}

#[test]
fn cluster_erofs_images_need_no_loop_devices_and_no_user_has_them() -> Result<()> {
    let mut disk = None;
    let (bench, image) = start_with(|| {
        disk = Some(OnDisk::new()?);
        Ok(())
    })?;
    bench.cluster.node("n1")?.shell(WITHOUT_LOOP).ok()?;
    let cat = ["-w", "n1", "shifter", "cat", "/etc/marker"];
    let output = bench.srun(Alice, &image, &cat)?.success()?;
    ensure!(output.stdout == "e\n", "{output}");
    ensure!(loop_devices()?.is_empty());
    bench
        .cluster
        .node("n1")?
        .shell("umount -l /dev; umount -R /run/dev; rmdir /run/dev")
        .ok()?;

    // A user's own store has squashfs, whatever the site's has.
    let own = Recipe::tiny("erofs-own").build()?;
    let reference = bench.registry.push(&own, "erofs-own:1")?;
    let pull = ["pull", "--quiet", "--store", "user", &reference];
    bench.product.shifter(pull).by(Alice).ok()?;
    let store = "/home/alice/.shifter";
    ensure!(fs::exists(format!("{store}/{}.squashfs", own.id()))?);

    // One that a user put there is not mounted, whatever the site's policy.
    let config = fs::read_to_string(CONFIG)?;
    let kernel = config.replacen("[store]", "[store]\nuser_images = 'kernel'", 1);
    bench.product.configure_with(&kernel)?;
    let forge = format!(
        "cd {store} && mv {0}.squashfs {0}.erofs && sed -i s/squashfs/erofs/ {0}.meta",
        own.id()
    );
    Call::new(["sh", "-c", &forge]).by(Alice).ok()?;
    let option = format!("--image={reference}");
    let words = ["shifter", &option, "cat", "/etc/marker"];
    let output = bench.cluster.srun(Alice, words).output()?;
    let is_refused = output.stderr.contains("from the site's store alone");
    ensure!(output.code != 0 && is_refused, "{output}");

    // Nor does anybody mount it without privilege.
    let option = format!("--image={}", image.reference);
    let words = ["shifter", "--rootless", &option, "true"];
    let output = bench.cluster.srun(Alice, words).output()?;
    let is_refused = output.stderr.contains("only the kernel mounts erofs");
    ensure!(output.code != 0 && is_refused, "{output}");
    bench.ensure_clean()
}
