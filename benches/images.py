#!/usr/bin/python3
"""Makes the images that `shifter-benches pull` pulls, once per build directory.

    <target>/bench/pull/packages/     what PyPI and Debian give, until the layers are made
    <target>/bench/pull/layers/       NAME.tar.gz, and NAME.json with its digests and sizes
    <target>/bench/pull/oci/          one OCI layout with all images, each by its name

Layers are written straight from the packages, without trees on disk: names in order, times and
owners fixed, so that the same packages give the same layers. Needs root for mmdebstrap.
"""

import concurrent.futures
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile

EPOCH = 1767225600  # 2026-01-01
SUITE = "bookworm"
RECIPE = 2  # counts changes of how layers are made
SITE = "usr/local/lib/python3.11/dist-packages"

PYTHON = """libexpat1 libffi8 libncursesw6 libnsl2 libpython3-stdlib libpython3.11-minimal
libpython3.11-stdlib libreadline8 libsqlite3-0 libssl3 libtirpc3 libtirpc-common media-types python3
python3-minimal python3.11 python3.11-minimal readline-common""".split()

SMALL = """six==1.16.0 python-dateutil==2.9.0.post0 pytz==2024.2 tzdata==2024.2 joblib==1.4.2
threadpoolctl==3.5.0 pillow==10.4.0 contourpy==1.3.0 cycler==0.12.1 fonttools==4.54.1
kiwisolver==1.4.7 packaging==24.1 pyparsing==3.2.0""".split()

# What one environment has, and what two others have in older versions.
NOW = """numpy==1.26.4 scipy==1.13.1 pandas==2.2.3 matplotlib==3.9.2 scikit-learn==1.5.2
pyarrow==17.0.0 plotly==5.24.1""".split()
OLDER = """numpy==1.25.2 scipy==1.11.4 pandas==2.1.4 matplotlib==3.8.4 scikit-learn==1.4.2
pyarrow==15.0.2 plotly==5.18.0""".split()
OLDEST = """numpy==1.24.4 scipy==1.10.1 pandas==2.0.3 matplotlib==3.7.5 scikit-learn==1.3.2
pyarrow==14.0.2 plotly==5.15.0""".split()
SCIENCE = "statsmodels==0.14.4 scikit-image==0.24.0 h5py==3.12.1".split()
NUMBA = "numba==0.60.0 llvmlite==0.43.0".split()
OPENCV, POLARS = ["opencv-python-headless==4.10.0.84"], ["polars==1.9.0"]
WEB = """jupyterlab==4.2.5 notebook==7.2.2 bokeh==3.6.0 botocore==1.35.36
sympy==1.13.3""".split()

# Name: what is in it, where it goes, and what of the layers below it hides.
LAYERS = {
    "minbase": ("debian", None, ()),
    "python": (PYTHON, None, ()),
    "numeric": (NOW[:2], SITE, ("usr/share/doc/.wh.python3.11",)),
    "frames": (NOW[2:5] + SCIENCE + SMALL, SITE, ("usr/share/zoneinfo/.wh..wh..opq",)),
    "columns": (NOW[5:6] + NUMBA + OPENCV + POLARS, SITE, ()),
    "plots": (NOW[6:], SITE, (f"{SITE}/scipy/.wh.datasets",)),
    "other-plots": (OLDER[6:], SITE, (f"{SITE}/scipy/.wh.datasets",)),
}
IMAGES = {
    "small": ["minbase"],
    "m6": ["minbase", "python", "numeric", "frames", "columns", "plots"],
    "m6b": ["minbase", "python", "numeric", "frames", "columns", "other-plots"],
    "m32": ["minbase", "python"],
}


def add_many():
    """The 32 layers: one package or few in each, in three environments."""
    packages = [[one] for one in NOW[:3]] + [NOW[3:4] + SMALL] + [[one] for one in NOW[4:]]
    packages += [SCIENCE, NUMBA, OPENCV, POLARS]
    packages += [["vtk==9.3.1"], ["PySide6-Essentials==6.7.3"], ["tensorflow-cpu==2.16.2"]]
    packages += [["ansible==9.10.0"], WEB]
    many = [(words, SITE) for words in packages]
    for env, words in (("older", OLDER), ("oldest", OLDEST)):
        many += [([one], f"opt/{env}/lib/python3.11/site-packages") for one in words]
    for number, (words, where) in enumerate(many, 3):
        name = f"many-{number:02}"
        # Each hides a little of what is below, as real ones do.
        hides = ["usr/share/zoneinfo/.wh.Etc"] if number == 9 else []
        LAYERS[name] = (words, where, hides)
        IMAGES["m32"].append(name)
    assert len(IMAGES["m32"]) == 32


def run(words, **more):
    subprocess.run(words, check=True, stdin=subprocess.DEVNULL, **more)


def fetch(root, packages):
    """Downloads the wheels and Debian packages of layers that are not there yet."""
    os.makedirs(packages, exist_ok=True)
    needed = {word for name, (words, _, _) in LAYERS.items()
              if words != "debian" and not ready(root, name) for word in words}
    wanted = sorted(word for word in needed if "==" in word)
    missing = [word for word in wanted if not wheel(packages, word)]
    by_name = [[] for _ in range(3)]  # pip takes one version of a project at a time
    for word in missing:
        name = word.split("==")[0]
        group = next(g for g in by_name if all(w.split("==")[0] != name for w in g))
        group.append(word)
    for group in filter(None, by_name):
        run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:",
             "--platform=manylinux_2_17_x86_64", "--platform=manylinux2014_x86_64",
             "--platform=manylinux_2_28_x86_64", "--platform=any", "--python-version=311",
             "--implementation=cp", "--abi=cp311", "--abi=abi3", "--abi=none",
             "--disable-pip-version-check", "-d", packages] + group)
    missing = sorted(name for name in needed if "==" not in name and not deb(packages, name))
    if missing:
        run(["apt-get", "download", "-qq", "-o", "APT::Sandbox::User=root"] + missing,
            cwd=packages)


def wheel(packages, word):
    name, version = word.lower().replace("-", "_").split("==")
    found = [file for file in os.listdir(packages)
             if file.lower().startswith(f"{name}-{version}-") and file.endswith(".whl")]
    return os.path.join(packages, found[0]) if found else None


def deb(packages, name):
    found = [file for file in os.listdir(packages)
             if file.startswith(f"{name}_") and file.endswith(".deb")]
    return os.path.join(packages, found[0]) if found else None


class Writer:
    """A layer's tar, on its way through gzip into a file, with both digests."""

    def __init__(self, path):
        self.path, self.hash, self.bytes, self.entries = path, hashlib.sha256(), 0, 0
        self.file = open(path, "wb")
        self.gzip = subprocess.Popen(["gzip", "-6n"], stdin=subprocess.PIPE, stdout=self.file)

    def write(self, data):
        self.hash.update(data)
        self.bytes += len(data)
        self.gzip.stdin.write(data)
        return len(data)

    def close(self):
        self.gzip.stdin.close()
        assert self.gzip.wait() == 0
        self.file.close()


def write_debian(writer):
    command = ["unshare", "--mount", "mmdebstrap", "--quiet", "--mode=root", "--variant=minbase"]
    # As small as images of Debian are.
    for what in ("doc", "man", "locale"):
        command.append(f"--dpkgopt=path-exclude=/usr/share/{what}/*")
    command += [SUITE, "-"]
    env = dict(os.environ, SOURCE_DATE_EPOCH=str(EPOCH))
    make = subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, env=env)
    with tarfile.open(fileobj=make.stdout, mode="r|") as source:
        with tarfile.open(fileobj=writer, mode="w|", format=tarfile.GNU_FORMAT) as tar:
            for entry in source:
                entry.pax_headers = {}
                tar.addfile(entry, source.extractfile(entry) if entry.isreg() else None)
                writer.entries += 1
    make.stdout.read()
    assert make.wait() == 0


def entries_of(packages, words, where):
    """Yields name, header and bytes; later packages' directories are those of earlier ones."""
    for word in words:
        if "==" not in word:
            data = subprocess.run(["dpkg-deb", "--fsys-tarfile", deb(packages, word)], check=True,
                                  stdout=subprocess.PIPE).stdout
            with tarfile.open(fileobj=io.BytesIO(data)) as source:
                for entry in source:
                    file = source.extractfile(entry) if entry.isreg() else None
                    entry.name = entry.name.lstrip("./")
                    entry.pax_headers = {}
                    if entry.name:
                        yield entry, file.read() if file else b""
            continue
        with zipfile.ZipFile(wheel(packages, word)) as archive:
            for info in archive.infolist():
                if info.is_dir():
                    continue
                entry = tarfile.TarInfo(f"{where}/{info.filename}")
                entry.mode = 0o755 if (info.external_attr >> 16) & 0o100 else 0o644
                entry.mtime = EPOCH
                entry.size = info.file_size
                yield entry, archive.read(info)


def write_packages(writer, packages, words, where, hides):
    with tarfile.open(fileobj=writer, mode="w|", format=tarfile.GNU_FORMAT) as tar:
        seen = set()

        def parents(name):
            at = os.path.dirname(name)
            if at and at not in seen:
                parents(at)
                directory(at)

        def directory(name):
            if name not in seen:
                seen.add(name)
                entry = tarfile.TarInfo(name)
                entry.type, entry.mode, entry.mtime = tarfile.DIRTYPE, 0o755, EPOCH
                tar.addfile(entry)
                writer.entries += 1

        for entry, data in entries_of(packages, words, where):
            parents(entry.name)
            if entry.isdir():
                directory(entry.name)
                continue
            entry.uid = entry.gid = 0
            entry.uname = entry.gname = ""
            tar.addfile(entry, io.BytesIO(data))
            writer.entries += 1
        for name in hides:
            parents(name)
            tar.addfile(tarfile.TarInfo(name))
            writer.entries += 1


def recipe_of(name):
    words, where, hides = LAYERS[name]
    return json.dumps([words, where, list(hides), EPOCH, RECIPE])


def ready(root, name):
    """What is known of a layer that was made before; None if it must be made."""
    try:
        with open(f"{root}/layers/{name}.json") as file:
            facts = json.load(file)
        size = os.path.getsize(f"{root}/layers/{name}.tar.gz")
        return facts if (facts["recipe"], facts["size"]) == (recipe_of(name), size) else None
    except (OSError, ValueError):
        return None


def make_layer(root, name):
    facts = ready(root, name)
    if facts:
        return facts
    words, where, hides = LAYERS[name]
    path, note = f"{root}/layers/{name}.tar.gz", f"{root}/layers/{name}.json"
    recipe = recipe_of(name)
    writer = Writer(f"{path}.new")
    if words == "debian":
        write_debian(writer)
    else:
        write_packages(writer, f"{root}/packages", words, where, hides)
    writer.close()
    os.rename(f"{path}.new", path)
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    facts = {"recipe": recipe, "digest": digest, "size": os.path.getsize(path),
             "diff_id": writer.hash.hexdigest(), "bytes": writer.bytes,
             "entries": writer.entries}
    with open(f"{note}.new", "w") as file:
        json.dump(facts, file)
    os.rename(f"{note}.new", note)
    return facts


def make_layout(root, facts):
    blobs = f"{root}/oci/blobs/sha256"
    os.makedirs(blobs, exist_ok=True)

    def blob(value, kind):
        data = json.dumps(value, sort_keys=True).encode()
        digest = hashlib.sha256(data).hexdigest()
        with open(f"{blobs}/{digest}", "wb") as file:
            file.write(data)
        return {"mediaType": f"application/vnd.oci.image.{kind}.v1+json",
                "digest": f"sha256:{digest}", "size": len(data)}

    manifests = []
    for image, layers in IMAGES.items():
        descriptors = []
        for name in layers:
            layer = facts[name]
            target = f"{blobs}/{layer['digest']}"
            if not os.path.exists(target):
                os.link(f"{root}/layers/{name}.tar.gz", target)
            descriptors.append({"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
                                "digest": f"sha256:{layer['digest']}", "size": layer["size"]})
        config = blob({"architecture": "amd64", "os": "linux", "created": "2026-01-01T00:00:00Z",
                       "config": {"Env": ["PATH=/usr/local/bin:/usr/bin:/bin"]},
                       # Charliecloud insists on it.
                       "history": [{"created_by": name} for name in layers],
                       "rootfs": {"type": "layers", "diff_ids":
                                  [f"sha256:{facts[name]['diff_id']}" for name in layers]}},
                      "config")
        manifest = blob({"schemaVersion": 2, "config": config, "layers": descriptors,
                         "mediaType": "application/vnd.oci.image.manifest.v1+json"}, "manifest")
        manifest["annotations"] = {"org.opencontainers.image.ref.name": image}
        manifests.append(manifest)
        total = {key: sum(facts[name][key] for name in layers)
                 for key in ("bytes", "size", "entries")}
        print(f"{image}: {len(layers)} layers, {total['bytes'] / 1e6:.0f} MB of tar, "
              f"{total['size'] / 1e6:.0f} MB compressed, {total['entries']} entries")
        with open(f"{root}/{image}.json", "w") as file:
            json.dump({"layers": [facts[name] for name in layers], **total}, file)
    with open(f"{root}/oci/oci-layout", "w") as file:
        json.dump({"imageLayoutVersion": "1.0.0"}, file)
    with open(f"{root}/oci/index.json", "w") as file:
        json.dump({"schemaVersion": 2, "manifests": manifests}, file)


def main():
    root = os.path.join(os.path.realpath(sys.argv[1]), "bench/pull")
    add_many()
    wanted = sys.argv[2:] or list(IMAGES)
    for name in set(IMAGES) - set(wanted):
        del IMAGES[name]
    for name in set(LAYERS) - {layer for layers in IMAGES.values() for layer in layers}:
        del LAYERS[name]
    fetch(root, f"{root}/packages")
    os.makedirs(f"{root}/layers", exist_ok=True)
    shutil.rmtree(f"{root}/oci", ignore_errors=True)
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        made = {name: pool.submit(make_layer, root, name) for name in LAYERS}
        facts = {name: layer.result() for name, layer in made.items()}
    make_layout(root, facts)
    # Twice the room otherwise, and all of it can be had again.
    shutil.rmtree(f"{root}/packages")


main()
