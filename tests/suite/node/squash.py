# A file system for tests: one directory in which lies another, and so on, for one uid alone.
#   squash.py MOUNTPOINT UID LOG OPTIONS
# Everybody may ask for attributes; whatever else others ask for is refused, as where a server takes
# root for nobody. LOG gets a line for each request: the uid and what was asked.
import ctypes, os, struct, sys

at, uid, log, options = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
fd = os.open("/dev/fuse", os.O_RDWR)
options += f"fd={fd},rootmode=40000,user_id={uid},group_id={uid}"
libc = ctypes.CDLL(None, use_errno=True)
if libc.mount(b"squash", at.encode(), b"fuse", 6, options.encode()) != 0:
    sys.exit(f"mount: {os.strerror(ctypes.get_errno())}")

NAMES = {1: "lookup", 3: "getattr", 14: "open", 15: "read", 17: "statfs", 18: "release", 27: "opendir",
         28: "readdir", 29: "releasedir", 34: "access"}
EACCES, ENOENT, ENOSYS = 13, 2, 38


def attributes(node):
    return struct.pack("<6Q10I", node, 0, 0, 0, 0, 0, 0, 0, 0, 0o40700, 2, uid, uid, 0, 4096, 0)


def answer(opcode, node, who, body):
    if opcode == 26:
        return struct.pack("<4I2H2I2H8I", 7, 31, 65536, 0, 0, 0, 65536, 1, 0, 0, *[0] * 8)
    if opcode == 3:
        return struct.pack("<QII", 0, 0, 0) + attributes(node)
    if who != uid:
        return -EACCES
    if opcode == 1:
        if body.rstrip(b"\0") != b"dir":
            return -ENOENT
        return struct.pack("<4Q2I", node + 1, 0, 0, 0, 0, 0) + attributes(node + 1)
    if opcode in (14, 27):
        return struct.pack("<QII", 0, 0, 0)
    if opcode == 28:
        if struct.unpack_from("<Q", body, 8)[0]:
            return b""
        return struct.pack("<QQII", node + 1, 1, 3, 4) + b"dir".ljust(8, b"\0")
    if opcode == 17:
        return struct.pack("<5Q4I6I", *[0] * 5, 4096, 255, 4096, 0, *[0] * 6)
    if opcode in (18, 29, 25, 34):
        return b""
    return -ENOSYS


while True:
    try:
        request = os.read(fd, 1 << 20)
    except OSError:
        break
    _, opcode, unique, node, who, _, _, _ = struct.unpack_from("<IIQQIIII", request)
    with open(log, "a") as file:
        file.write(f"{who} {NAMES.get(opcode, opcode)}\n")
    if opcode in (2, 36, 42):
        continue
    said = answer(opcode, node, who, request[40:])
    error, data = (said, b"") if isinstance(said, int) else (0, said)
    os.write(fd, struct.pack("<IiQ", 16 + len(data), error, unique) + data)
