//! Libraries and devices of the host in containers: a real MPICH, a made-up vendor's devices, and
//! what does not fit an image.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use shifter_tests::call::Call;
use shifter_tests::image::Recipe;
use shifter_tests::world::User::Alice;

use super::{Site, ensure_refused, manifest, store_image};

/// Directories of the test, of root's alone.
const HOST: &str = "/opt/site/host";

/// What is in every image with a C library, as on this machine.
const LOADER: [&str; 3] = [
    "/lib64/ld-linux-x86-64.so.2",
    "/lib/x86_64-linux-gnu/libc.so.6",
    "/lib/x86_64-linux-gnu/libm.so.6",
];

/// Compiles a library or program.
fn compile(to: &Path, source: &str, options: &[&str]) -> Result<()> {
    fs::create_dir_all(to.parent().context("a directory")?)?;
    let output = to.to_string_lossy();
    let call = Call::new(["gcc", "-x", "c", "-", "-O1", "-w", "-o", &output]);
    call.args(["-x", "none"])
        .args(options.iter().copied())
        .input(source)
        .ok()
        .map(drop)
}

/// Compiles a library with a name, and versions of symbols.
fn library(to: &Path, soname: &str, source: &str, more: &[&str]) -> Result<()> {
    let soname = format!("-Wl,-soname,{soname}");
    let options = [
        "-shared",
        "-fPIC",
        "-nostdlib",
        "-Wl,--no-as-needed",
        &soname,
    ];
    compile(to, source, &[&options[..], more].concat())
}

/// Puts an image with busybox and the C library into the store, and what `fill` adds to it.
fn image(name: &str, id: char, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let tree = Recipe::tiny(name).build()?.layout().join("tree");
    fill(&tree)?;
    store_image(&tree, &id.to_string().repeat(64), name)
}

fn with_c_library(tree: &Path) -> Result<PathBuf> {
    for file in LOADER {
        let to = tree.join(file.trim_start_matches('/'));
        fs::create_dir_all(to.parent().context("a directory")?)?;
        fs::copy(file, to)?;
    }
    Ok(tree.join("usr/lib/x86_64-linux-gnu"))
}

const ASK: &str = "int MPI_Get_library_version(char *, int *); int puts(const char *);
    int main(void) { char text[8192] = {0}; int size; MPI_Get_library_version(text, &size);
    return puts(text) < 0; }";

const OWN_MPI: &str = "int MPI_Get_library_version(char *text, int *size) {
    const char own[] = \"the image's own\"; for (*size = 0; *size < sizeof own; ++*size)
    text[*size] = own[*size]; return 0; }";

#[test]
fn privileged_the_hosts_mpich_takes_the_place_of_the_images() -> Result<()> {
    let site = Site::prepare()?;
    image("mpi", 'c', |tree| {
        let lib = with_c_library(tree)?;
        let own = lib.join("libmpich.so.12");
        library(&own, "libmpich.so.12", OWN_MPI, &[])?;
        compile(&tree.join("bin/ask"), ASK, &[&own.to_string_lossy()])?;
        // As all but Debian name it.
        let own = lib.join("libmpi.so.12");
        library(&own, "libmpi.so.12", OWN_MPI, &[])?;
        compile(&tree.join("bin/ask-too"), ASK, &[&own.to_string_lossy()])
    })?;
    let shipped = fs::read_to_string(site.product.path("share/shifter/modules/mpich.toml"))?;
    let config = shipped.replace("env.set", "env.append.LD_LIBRARY_PATH = '/mine'\nenv.set");
    site.product.configure(&config)?;
    let run = |options: &[&str], command: &str| -> Result<String> {
        let args = [&["--image=mpi"], options, &["sh", "-c", command]].concat();
        site.product.shifter(args).by(Alice).ok()
    };
    ensure!(run(&[], "ask")? == "the image's own\n");
    let version = run(&["--module=mpich"], "ask")?;
    ensure!(version.contains("MPICH Version"), "{version}");
    ensure!(run(&[], "ask-too")? == "the image's own\n");
    ensure!(run(&["--module=mpich"], "ask-too")? == version);
    // The very file of the host's, from the module's directory.
    let loaded = run(
        &["--module=mpich"],
        "LD_DEBUG=libs ask 2>&1 | grep 'calling init.*libmpich'",
    )?;
    ensure!(
        loaded.contains("/opt/udiImage/modules/mpich/lib/libmpich.so.12"),
        "{loaded}"
    );
    let identity = "stat -L -c %d:%i";
    let host = Call::shell(&format!(
        "{identity} /usr/lib/x86_64-linux-gnu/libmpich.so.12"
    ))
    .ok()?;
    let inside = run(
        &["--module=mpich"],
        &format!("{identity} /opt/udiImage/modules/mpich/lib/libmpich.so.12"),
    )?;
    ensure!(
        host.split(':').next_back() == inside.split(':').next_back(),
        "{host}{inside}"
    );
    let names = run(
        &["--module=mpich"],
        "cd /opt/udiImage/modules/mpich/lib; ls; touch x 2>&1; echo $LD_LIBRARY_PATH",
    )?;
    ensure!(
        names.contains("libmpich.so.12\nlibmpich.so.12.") && names.contains("Read-only"),
        "{names}"
    );
    ensure!(
        names.ends_with("\n/opt/udiImage/modules/mpich/lib:/mine\n"),
        "{names}"
    );
    // Beside files that the module copies, below the site's directory, and in a job.
    Call::shell("mkdir -p /opt/site/copy/lib /opt/site/udi/bin; echo c >/opt/site/copy/lib/own; echo u >/opt/site/udi/bin/x").ok()?;
    site.product.configure(&format!(
        "udi_image = '/opt/site/udi'\n{config}copy_path = '/opt/site/copy'\n"
    ))?;
    let version = run(
        &["--module=mpich"],
        "ask; cat /opt/udiImage/modules/mpich/lib/own /opt/udiImage/bin/x",
    )?;
    ensure!(
        version.contains("MPICH Version") && version.ends_with("c\nu\n"),
        "{version}"
    );
    let mut job = manifest("17");
    job["modules"] = json!(["mpich"]);
    job["image"] = json!({"id": "c".repeat(64), "reference": "docker:mpi:latest"});
    site.set_up(&job)?.success()?;
    let pin = "--mount=/run/shifter/jobs/17/roots/job/mnt";
    let call = [
        "nsenter",
        pin,
        "env",
        "LD_LIBRARY_PATH=/opt/udiImage/modules/mpich/lib",
        "/bin/ask",
    ];
    ensure!(Call::new(call).ok()?.contains("MPICH Version"));
    site.tear_down("17")?.success()?;
    site.clean.ensure_restored(None)
}

#[test]
fn privileged_libraries_that_do_not_fit_an_image_are_refused_with_the_reason() -> Result<()> {
    let site = Site::prepare()?;
    let host = Path::new(HOST);
    let mpi = "int MPI_Init(void) { return 0; }";
    library(&host.join("libmpi.so.12"), "libmpi.so.12", mpi, &[])?;
    // One that was linked with a C library of the future, one for another machine, one without
    // name and text.
    let map = host.join("map");
    fs::write(
        &map,
        "GLIBC_2.2.5 { local: none; }; GLIBC_2.99 { global: later; local: *; };",
    )?;
    let script = format!("-Wl,--version-script={}", map.display());
    library(
        &host.join("future/libc.so.6"),
        "libc.so.6",
        "int later(void) { return 0; }",
        &[&script],
    )?;
    let calls = "int later(void); int MPI_Init(void) { return later(); }";
    let future = host.join("future/libc.so.6");
    library(
        &host.join("new/libmpi.so.12"),
        "libmpi.so.12",
        calls,
        &[&future.to_string_lossy()],
    )?;
    let mut bytes = fs::read(host.join("libmpi.so.12"))?;
    bytes[18] = 183;
    fs::create_dir_all(host.join("arm"))?;
    fs::write(host.join("arm/libmpi.so.12"), &bytes)?;

    let open = |tree: &Path| -> Result<()> {
        let lib = with_c_library(tree)?;
        library(
            &lib.join("libopen-pal.so.40"),
            "libopen-pal.so.40",
            "int opal;",
            &[],
        )?;
        let pal = lib.join("libopen-pal.so.40");
        library(
            &lib.join("libmpi.so.40"),
            "libmpi.so.40",
            mpi,
            &[&pal.to_string_lossy()],
        )?;
        // Also under the number that MPICH has.
        library(
            &tree.join("opt/old/lib/libmpi.so.12"),
            "libmpi.so.12",
            mpi,
            &[&pal.to_string_lossy()],
        )
    };
    image("glibc", 'c', |tree| with_c_library(tree).map(drop))?;
    image("open", 'd', open)?;
    image("both", 'e', |tree| {
        open(tree)?;
        library(
            &tree.join("usr/local/lib/libmpi.so.12"),
            "libmpi.so.12",
            mpi,
            &[],
        )
    })?;
    image("musl", 'f', |tree| {
        fs::create_dir_all(tree.join("lib"))?;
        Ok(fs::write(tree.join("lib/ld-musl-x86_64.so.1"), "")?)
    })?;
    let module = |path: &str| format!("libraries = ['{HOST}/{path}']");
    let good = module("libmpi.so.12");
    let c_library = Call::shell("getconf GNU_LIBC_VERSION")
        .ok()?
        .replace("glibc ", "");
    let table = [
        ("glibc", &good, None),
        ("both", &good, None),
        ("open", &good, Some("its MPI is Open MPI ('/usr/lib/x86_64-linux-gnu/libmpi.so.40'), which is not ABI-compatible with the module's MPICH ('libmpi.so.12')".to_owned())),
        ("musl", &good, Some("'libmpi.so.12' needs the GNU C library and the image has musl".into())),
        ("tiny", &good, Some("and the image has none".into())),
        ("glibc", &module("new/libmpi.so.12"), Some(format!("'libmpi.so.12' needs GLIBC_2.99 and the image has {}", c_library.trim()))),
        ("glibc", &module("arm/libmpi.so.12"), Some("'libmpi.so.12' is for aarch64 (64 bits) and the image for x86-64 (64 bits)".into())),
    ];
    for (name, module, refusal) in table {
        site.product.configure(&format!("[module.mpi]\n{module}"))?;
        let image = format!("--image={name}");
        let output = site.shifter(&[&image, "--module=mpi", "echo", "runs"])?;
        match refusal {
            None => ensure!(
                output.code == 0 && output.stdout == "runs\n",
                "{name}: {output}"
            ),
            Some(words) => {
                ensure_refused(&output, 3, &words)?;
                ensure!(
                    output
                        .stderr
                        .contains("module 'mpi' does not fit this image: "),
                    "{output}"
                );
                ensure!(
                    output.stderr.contains("\nhint: ") && output.stderr.contains("--module=none"),
                    "{output}"
                );
                // The way out works.
                site.shifter(&[&image, "--module=none", "true"])?
                    .success()?;
            }
        }
    }
    // An Open MPI with MPICH's number, in a directory that the user's environment names.
    site.product.configure(&format!("[module.mpi]\n{good}"))?;
    let output = site.shifter(&[
        "--image=open",
        "-e",
        "LD_LIBRARY_PATH=/opt/old/lib",
        "--module=mpi",
        "true",
    ])?;
    ensure_refused(&output, 3, "Open MPI ('/opt/old/lib/libmpi.so.12')")?;
    // What the node lacks is the node's failure.
    fs::write(format!("{HOST}/text.so"), "INPUT(x)")?;
    for (path, words) in [
        ("missing.so", "missing.so'"),
        ("text.so", "it is not an ELF file"),
        ("nothing*", "there is no library '/opt/site/host/nothing*'"),
        ("future/libc.so.6", "the C library must be the image's"),
    ] {
        site.product
            .configure(&format!("[module.mpi]\n{}", module(path)))?;
        let output = site.shifter(&["--image=glibc", "--module=mpi", "true"])?;
        let code = if path == "missing.so" { 1 } else { 5 };
        ensure_refused(&output, code, words)?;
    }
    site.tear_down("0")?.success()?;
    site.clean.ensure_restored(None)
}

const VENDOR: &str = r#"---
cdiVersion: 0.5.0
kind: vendor.example/gpu
devices:
    - name: "0"
      containerEdits:
        deviceNodes:
            - path: /dev/shm/fake0
              major: 1
              minor: 3
              fileMode: 438
              permissions: rwm
    - name: all
      containerEdits:
        env:
            - FAKE_DEVICES=all
        deviceNodes:
            - path: /dev/shm/fake0
            - path: /dev/shm/fake1
              hostPath: /dev/zero
              type: c
            - path: /opt/fake/dev0
              hostPath: /dev/full
        additionalGids: [44]
containerEdits:
    env:
        - FAKE_VISIBLE_DEVICES=void
    hooks:
        - hookName: createContainer
          path: /opt/site/vendor-hook
          args:
            - vendor-hook
            - create-symlinks
            - --link
            - libfake.so.1::/usr/lib64/libfake.so
            - --link
            - ../x::/usr/share/vendor/x
        - hookName: createContainer
          path: /opt/site/vendor-hook
          args: [vendor-hook, enable-compat, --host-driver-version=550.1]
        - hookName: createContainer
          path: /opt/site/vendor-hook
          args:
            - vendor-hook
            - update-ldcache
            - --folder
            - /usr/lib64
            - --folder
            - /usr/lib64/vdpau
    mounts:
        - hostPath: /opt/site/driver/libfake.so.550.1
          containerPath: /usr/lib64/libfake.so.550.1
          options: [ro, nosuid, nodev, rbind, rprivate]
        - hostPath: /opt/site/driver/fake-smi
          containerPath: /usr/bin/fake-smi
          options:
            - ro
            - bind
        - hostPath: /opt/site/driver/etc
          containerPath: /etc/vendor
          options: [rw, rbind]
"#;

#[test]
fn privileged_devices_of_a_made_up_vendor() -> Result<()> {
    let site = Site::prepare()?;
    fs::create_dir_all("/opt/site/driver/etc")?;
    let real = Path::new("/opt/site/driver/libfake.so.550.1");
    library(real, "libfake.so.1", "int fake(void) { return 7; }", &[])?;
    Call::shell("cd /opt/site/driver; echo icd >etc/icd.json; printf '#!/bin/sh\necho smi\n' >fake-smi; chmod 755 fake-smi
        printf '#!/bin/sh\ntouch /run/vendor-hook-ran\n' >../vendor-hook; chmod 755 ../vendor-hook
        rm -f /dev/shm/fake*; mknod -m 666 /dev/shm/fake0 c 1 3; touch /dev/shm/fake1; mkdir -p /etc/cdi /run/cdi").ok()?;
    fs::write("/etc/cdi/vendor.yaml", VENDOR)?;
    fs::write("/etc/cdi/broken.yaml", "cdiVersion: &x 0.5.0\n")?;
    fs::write("/etc/cdi/README", "no specification")?;
    image("gpu", 'c', |tree| {
        with_c_library(tree)?;
        let link = format!("{}", real.display());
        compile(
            &tree.join("bin/use"),
            "int fake(void); int main(void) { return fake(); }",
            &[&link],
        )
    })?;
    let shipped = fs::read_to_string(site.product.path("share/shifter/modules/gpu.toml"))?;
    let module = |devices: &str| {
        let text = shipped.replace("\"nvidia.com/gpu=all\"", devices);
        format!("{text}env.set = {{ FAKE_DEVICES = 'none' }}\n")
    };
    site.product
        .configure(&module("'vendor.example/gpu=all', 'vendor.example/gpu=0'"))?;
    let run = |script: &str| site.shifter(&["--image=gpu", "--module=gpu", "sh", "-c", script]);
    let script =
        "use; echo $?; /usr/bin/fake-smi; cat /etc/vendor/icd.json; echo $FAKE_VISIBLE_DEVICES,$FAKE_DEVICES
        for dev in /dev/shm/fake0 /dev/shm/fake1 /opt/fake/dev0; do stat -c '%t:%T %F' $dev; done
        echo x >/dev/shm/fake0; head -c 3 /dev/shm/fake1 | od -An -tx1; echo x 2>&1 >/opt/fake/dev0
        touch /etc/vendor/x 2>&1; for l in /opt/udiImage/modules/gpu/lib/*; do readlink $l; done; cat /etc/marker";
    let output = run(script)?.success()?;
    for expected in [
        "7\nsmi\nicd\nvoid,all\n",
        "1:3 character special file\n1:5 character special file\n1:7 character special file\n 00 00 00\n",
        "No space left",
        "/etc/vendor/x: Read-only file system",
        "/usr/lib64/libfake.so.550.1\n",
        "libfake.so.1\n",
        "gpu\n",
    ] {
        ensure!(output.stdout.contains(expected), "'{expected}': {output}");
    }
    // One warning, which names all that is not done; and nothing of it was done.
    ensure!(
        output.stderr
            == "shifter: module 'gpu': left out: createContainer hook 'vendor-hook enable-compat', additional groups, link '/usr/share/vendor/x'\n",
        "{output}"
    );
    ensure!(!fs::exists("/run/vendor-hook-ran")?);
    let path = run("echo $LD_LIBRARY_PATH")?;
    ensure!(
        path.stdout == "/opt/udiImage/modules/gpu/lib:/usr/lib64/vdpau\n",
        "{path}"
    );
    // In a job the same, but for the warning, which the node gets.
    let mut job = manifest("17");
    job["modules"] = json!(["gpu"]);
    job["image"] = json!({"id": "c".repeat(64), "reference": "docker:gpu:latest"});
    let output = site.set_up(&job)?.success()?;
    ensure!(
        output.stderr.contains("left out: createContainer hook"),
        "{output}"
    );
    let pin = "--mount=/run/shifter/jobs/17/roots/job/mnt";
    let seen = Call::new(["nsenter", pin, "/usr/bin/fake-smi"]).ok()?;
    ensure!(seen == "smi\n", "{seen}");
    site.tear_down("17")?.success()?;

    // A later directory's specification counts; its number is not the device's.
    let late = r#"{"cdiVersion": "1.0.0", "kind": "vendor.example/gpu", "devices": [{"name": "0",
        "containerEdits": {"deviceNodes": [{"path": "/dev/shm/fake0", "major": 195, "minor": 0}]}}]}"#;
    fs::write("/run/cdi/vendor.json", late)?;
    let failures = [
        (
            "'vendor.example/gpu=0'",
            "device '/dev/shm/fake0' has number 1:3, not as its specification says",
        ),
        (
            "'vendor.example/gpu=7'",
            "there is no specification of device 'vendor.example/gpu=7'; '/etc/cdi/broken.yaml': it cannot be read: line 1: anchors",
        ),
    ];
    for (device, words) in failures {
        site.product.configure(&module(device))?;
        ensure_refused(&run("true")?, 5, words)?;
    }
    fs::remove_file("/run/cdi/vendor.json")?;
    // A node without such devices is in order.
    fs::remove_file("/etc/cdi/broken.yaml")?;
    site.product.configure(&module("'other.example/gpu=all'"))?;
    let output = run("true")?;
    let words = "module 'gpu' cannot be used on this node: there is no specification of device 'other.example/gpu=all'";
    ensure_refused(&output, 3, words)?;
    ensure!(
        output
            .stderr
            .contains("\nhint: use nodes that have the device"),
        "{output}"
    );
    let broken = [
        (
            "/opt/site/driver/fake-smi",
            "/opt/site/driver/gone",
            "'/opt/site/driver/gone': No such file",
        ),
        (
            "containerPath: /etc/vendor",
            "containerPath: /etc",
            "nothing can be mounted at '/etc'",
        ),
        (
            "containerPath: /etc/vendor",
            "containerPath: /opt/udiImage/x",
            "nothing can be mounted at",
        ),
        (
            "hostPath: /dev/full",
            "hostPath: /dev/gone",
            "device '/dev/gone': No such file",
        ),
        (
            "hostPath: /dev/full",
            "hostPath: /etc/passwd",
            "'/etc/passwd' is not the device",
        ),
        (
            "path: /dev/shm/fake1",
            "path: /dev/shm/fake2",
            "the host has no '/dev/shm/fake2'",
        ),
        ("type: c", "type: b", "'/dev/zero' is not the device"),
    ];
    for (from, to, words) in broken {
        fs::write("/etc/cdi/vendor.yaml", VENDOR.replace(from, to))?;
        site.product
            .configure(&module("'vendor.example/gpu=all'"))?;
        ensure_refused(&run("true")?, 5, words)?;
    }
    Call::shell("rm -rf /dev/shm/fake* /etc/cdi /run/cdi").ok()?;
    site.tear_down("0")?.success()?;
    site.clean.ensure_restored(None)
}
