#!/usr/bin/python3
"""Writes one tree as squashfs and erofs images of many kinds and reads them cold: benches/codecs.py
[ROUNDS [WORD...]], as root; only kinds whose names contain a WORD, and only the start of a program with
the WORD `case=start`. docs/images.md explains the table.

The images lie in memory and are mounted anew for each figure, so that what is measured is the work
and not the disk; what a disk would have to read is counted by the loop device. Kinds take turns,
round by round, and medians are shown. Everything is made below target/codecs and mounted in a mount
namespace of the program's own.
"""

import os
import random
import statistics
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
WORK = os.path.join(os.environ.get("CARGO_TARGET_DIR", HERE + "/../target"), "codecs")
WRITER = os.path.join(WORK, "../release/examples/tar2squashfs")
PACKAGES = "python3-numpy,python3-scipy,python3-pandas"
START = "import numpy, scipy, pandas"

# Name: command that makes OUT from the archive tree.tar or the directory tree.
OURS = [
    (f"{codec}, {size} KiB", f"compression={codec}", f"block_size={size << 10}")
    for codec, sizes in [
        ("zstd:1", [32, 64, 128, 1024]), ("zstd:3", [64, 128]), ("zstd:6", [128]),
        ("lz4", [32, 128]), ("gzip:6", [128]), ("xz:6", [128]),
    ]
    for size in sizes
] + [
    ("zstd:1, 128 KiB, tails packed", "compression=zstd:1", "block_size=131072", "pack_tails=true"),
] + [
    (f"erofs {codec}, {size} KiB", "format=erofs", f"compression={codec}", f"block_size={size << 10}")
    for codec, size in [("zstd:1", 32), ("zstd:1", 64), ("zstd:1", 128), ("lz4", 32), ("lz4", 64)]
]
MKSQUASHFS = ["mksquashfs", "tree", "OUT", "-noappend", "-quiet", "-no-progress", "-processors", "2"]
OTHERS = {
    "mksquashfs zstd 1, 128 KiB": MKSQUASHFS + ["-comp", "zstd", "-Xcompression-level", "1"],
    "mksquashfs zstd 15, 128 KiB": MKSQUASHFS + ["-comp", "zstd"],
    "tar2sqfs zstd 1, 128 KiB": ["tar2sqfs", "-q", "-f", "-j2", "-c", "zstd", "-X", "level=1", "OUT"],
    "erofs of mkfs.erofs, lz4": ["mkfs.erofs", "--quiet", "-zlz4", "OUT", "tree"],
}
KINDS = {name: [WRITER, "OUT", "threads=2", *words] for name, *words in OURS} | OTHERS


def run(command, **how):
    """Seconds of wall clock and of processor time of a command."""
    begin = time.monotonic()
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, **how)
    _, status, usage = os.wait4(child.pid, 0)
    if status != 0:
        raise SystemExit(f"{command} failed")
    return time.monotonic() - begin, usage.ru_utime + usage.ru_stime


def prepare():
    os.makedirs(WORK, exist_ok=True)
    os.chdir(WORK)
    if not os.path.exists("tree.tar"):
        run(["mmdebstrap", "--variant=minbase", f"--include={PACKAGES}", "bookworm", "tree.tar"])
    if not os.path.exists("tree"):
        os.mkdir("tree")
        run(["tar", "xpf", "tree.tar", "-C", "tree"])
    if not os.path.exists(WRITER):
        raise SystemExit("first: cargo build --release -p squashfs-writer --example tar2squashfs")
    files = (os.path.join(at, name) for at, _, names in os.walk("tree") for name in names)
    small = sorted(f for f in files if os.path.isfile(f) and not os.path.islink(f)
                   and os.path.getsize(f) < 64 << 10)
    return [os.path.relpath(f, "tree") for f in random.Random(7).sample(small, 3000)]


def reads(at):
    """Requests to a mounted image's loop device, and MB read."""
    device = next(line.split()[0] for line in open("/proc/mounts") if line.split()[1] == at)
    numbers = open(f"/sys/block/{os.path.basename(device)}/stat").read().split()
    return int(numbers[0]), int(numbers[2]) * 512 / 1e6


def read_files(at, names):
    begin, processor = time.monotonic(), time.process_time()
    for name in names:
        with open(os.path.join(at, name), "rb") as file:
            file.read()
    return time.monotonic() - begin, time.process_time() - processor


def main():
    if len(sys.argv) < 2 or "--inside" not in sys.argv:
        inside = ["unshare", "--mount", "--propagation", "private", sys.executable, __file__, "--inside"]
        os.execvp(inside[0], inside + sys.argv[1:])
    words = [word for word in sys.argv[1:] if word != "--inside"]
    rounds, words = int(words[0]) if words else 5, words[1:]
    wanted = [word.removeprefix("case=") for word in words if word.startswith("case=")]
    words = [word for word in words if not word.startswith("case=")]
    kinds = {k: c for k, c in KINDS.items() if not words or any(w in k for w in words)}
    small = prepare()
    memory, at = os.path.abspath("memory"), os.path.abspath("mounted")
    for directory in (memory, at):
        os.makedirs(directory, exist_ok=True)
    run(["mount", "-t", "tmpfs", "none", memory])
    cases = {
        "start": lambda: run(["chroot", at, "/usr/bin/python3", "-c", START]),
        "walk": lambda: run(["find", at, "-printf", "%s %m %T@\n"]),
        "random": lambda: read_files(at, small),
    }
    cases = {name: measure for name, measure in cases.items() if not wanted or name in wanted}
    images, written, found = {}, {}, {}
    for number, (kind, command) in enumerate(kinds.items()):
        images[kind] = f"{memory}/{number}"
        command = [images[kind] if word == "OUT" else word for word in command]
        with open("tree.tar", "rb") as archive:
            written[kind] = run(command, stdin=archive)
    for turn in range(rounds):
        # Each kind is the first one as often as any other.
        order = list(images.items())
        for kind, image in order[turn % len(order):] + order[:turn % len(order)]:
            for case, measure in cases.items():
                fs = "erofs" if kind.startswith("erofs") else "squashfs"
                run(["mount", "-t", fs, "-o", "loop,ro", image, at])
                before = reads(at)
                figures = measure()
                figures += tuple(b - a for a, b in zip(before, reads(at)))
                run(["umount", at])
                found.setdefault((kind, case), []).append(figures)
    print("| image | written: CPU s | MB | " + " | ".join(f"{c}: s | CPU s | reads | MB" for c in cases) + " |")
    print("|---" * (3 + 4 * len(cases)) + "|")
    for kind, image in images.items():
        cells = [kind, f"{written[kind][1]:.1f}", f"{os.path.getsize(image) / 1e6:.0f}"]
        for case in cases:
            wall, processor, requests, size = map(statistics.median, zip(*found[kind, case]))
            cells += [f"{wall:.2f}", f"{processor:.2f}", f"{requests:.0f}", f"{size:.1f}"]
        print("| " + " | ".join(cells) + " |")


main()
