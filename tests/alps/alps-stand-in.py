#!/usr/bin/python3
"""A stand-in for Cray's ALPS and two of its neighbours; nothing in here is Cray's.

Called by the names of what it stands in for (copies in /opt/cray/alps/default/bin and the like):

  apbasil    reads a BasilRequest (QUERY, RESERVE, CONFIRM, RELEASE) and prints the BasilResponse
  apstat     -r: one line for each reservation; -rvvv -R RES: its PEs with their nodes
  aprun      runs a program on the nodes of the job's reservation, in the root CRAY_ROOTFS names
  xtxqtcmd   NODELIST_FILE COMMAND: runs it as root on every node
  pcmd       -r -q -n NIDS COMMAND: the same
  apinit     aprun's other half, as root on a compute node

State, on a directory that all nodes share (/srv/alps): `next`, and `RES.json` for each reservation.
Nodes are reached by ssh as nid%05d. As on a Cray, xtxqtcmd and pcmd give the command to a shell of
the node, and their own exit status says nothing about the nodes.
"""

import concurrent.futures
import fcntl
import json
import os
import pwd
import shlex
import subprocess
import sys
import xml.etree.ElementTree as tree

STATE = "/srv/alps"
ROOTS = "/etc/opt/cray/cnrte/roots.conf"
HELPER = "/opt/cray/alps/default/sbin/apsched-stand-in"
OURSELVES = "/opt/cray/alps/default/sbin/apinit"


def fail(text, status=1):
    print(text, file=sys.stderr)
    sys.exit(status)


def host(nid):
    return f"nid{int(nid):05d}"


def ranges(text):
    """Returns the numbers of `20-23,40`."""
    found = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found


def reservations():
    found = []
    for name in os.listdir(STATE):
        if name.endswith(".json"):
            with open(f"{STATE}/{name}", encoding="utf-8") as file:
                found.append(json.load(file))
    return sorted(found, key=lambda reservation: reservation["id"])


def keep(reservation):
    path = f"{STATE}/{reservation['id']}.json"
    with open(path + ".new", "w", encoding="utf-8") as file:
        json.dump(reservation, file)
    os.rename(path + ".new", path)


# --- apbasil

def reserve(request):
    params = request.find("ReserveParamArray")
    nids = []
    for param in params.iter("NodeParam"):
        nids += ranges(param.text.strip())
    one = params.find("ReserveParam")
    taken = {nid for other in reservations() for nid in other["nids"]}
    if not nids or taken & set(nids):
        return None
    with open(f"{STATE}/next", "a+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        number = int(file.read() or "100")
        file.truncate(0)
        file.write(str(number + 1))
    keep({
        "id": number, "batch_id": params.get("batch_id"), "user": params.get("user_name"),
        "nids": nids, "width": int(one.get("width")), "per_node": int(one.get("nppn")),
        "is_confirmed": False,
    })
    return tree.Element("Reserved", reservation_id=str(number))


def apbasil(_):
    request = tree.fromstring(sys.stdin.read())
    method = request.get("method")
    known = {str(reservation["id"]): reservation for reservation in reservations()}
    reservation = known.get(request.get("reservation_id"))
    answer, status = None, "SUCCESS"
    if method == "RESERVE":
        answer = reserve(request)
        status = "SUCCESS" if answer is not None else "FAILURE"
    elif method == "CONFIRM" and reservation and request.get("admin_cookie"):
        reservation["is_confirmed"] = True
        keep(reservation)
    elif method == "RELEASE" and reservation:
        os.unlink(f"{STATE}/{reservation['id']}.json")
    elif method == "QUERY":
        answer = tree.Element("Inventory")
        nodes = tree.SubElement(answer, "NodeArray")
        with open(f"{STATE}/nodes", encoding="utf-8") as file:
            for nid in file.read().split():
                tree.SubElement(nodes, "Node", node_id=nid, name=host(nid), state="UP")
    else:
        status = "FAILURE"
    response = tree.Element("BasilResponse", protocol="1.1")
    data = tree.SubElement(response, "ResponseData", status=status, method=str(method))
    if answer is not None:
        data.append(answer)
    print('<?xml version="1.0"?>\n' + tree.tostring(response, encoding="unicode"))


# --- apstat

def apstat(words):
    if words == ["-r"]:
        print("  ResId     ApId From            Arch   PEs N d Memory State")
        for reservation in reservations():
            batch = "batch:" + reservation["batch_id"].split(".")[0]
            state = "conf,claim" if reservation["is_confirmed"] else "pend"
            number, width = reservation["id"], reservation["width"]
            print(f"  {number:<9} {number + 5000} {batch:<15} XT {width:>6} - -   1333 {state}")
            if reservation["is_confirmed"]:
                # What runs in it is listed below, and begins with an A.
                print(f"A {number:<9} {number + 5001} {batch:<15} XT {width:>6} - -   1333 run")
    elif len(words) == 3 and words[:2] == ["-rvvv", "-R"]:
        found = [one for one in reservations() if str(one["id"]) == words[2]]
        if not found:
            fail(f"apstat: no reservation {words[2]}")
        print("Res[1]: " + words[2])
        print("  Placement list entries: " + str(found[0]["width"]))
        number = 0
        for nid in found[0]["nids"]:
            for _ in range(found[0]["per_node"]):
                print(f"    PE {number}, cmd 0, nid {nid}, CPU 0x1")
                number += 1
    else:
        fail("apstat: the stand-in knows -r and -rvvv -R RES")


# --- xtxqtcmd and pcmd

def everywhere(names, command):
    """Runs a command line in a shell on every node; yields (name, its end)."""
    def one(name):
        return name, subprocess.run(["ssh", name, command], stdin=subprocess.DEVNULL,
                                    capture_output=True, check=False)
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        yield from pool.map(one, names)


def xtxqtcmd(words):
    if len(words) != 2:
        fail("usage: xtxqtcmd NODELIST_FILE COMMAND", 2)
    with open(words[0], encoding="utf-8") as file:
        names = [host(name) if name.isdigit() else name for name in file.read().split()]
    for name, end in everywhere(names, words[1]):
        state = "(complete)" if end.returncode == 0 else f"(failed: {end.returncode})"
        print(f"{name} {state}")
        for line in (end.stdout + end.stderr).decode(errors="replace").splitlines():
            print(f"{name}:   {line}")


def pcmd(words):
    if len(words) != 5 or words[:3] != ["-r", "-q", "-n"]:
        fail("pcmd: the stand-in knows -r -q -n NIDS COMMAND", 2)
    for _, end in everywhere([host(nid) for nid in ranges(words[3])], words[4]):
        sys.stdout.buffer.write(end.stdout)
        sys.stderr.buffer.write(end.stderr)


# --- aprun

WITH_VALUE = {"-n": "width", "-N": "per_node", "-d": None, "-m": None, "-S": None, "-sn": None,
              "-cc": None, "-j": None, "-L": "nodes"}
WITHOUT = {"-ss": None, "-b": "is_there", "-B": "as_reserved", "-q": "is_quiet"}


def parse_aprun(words):
    """Returns the parts of an MPMD command line, each with its options and program."""
    parts, part, at = [], {"env": {}, "argv": []}, 0
    while at < len(words):
        word = words[at]
        if part["argv"]:
            if word == ":":
                parts.append(part)
                part = {"env": {}, "argv": []}
            else:
                part["argv"].append(word)
        elif word == "--":
            part["argv"].append(words[at + 1])
            at += 1
        elif word in WITHOUT:
            part[WITHOUT[word]] = True
        elif word == "-e":
            at += 1
            name, _, value = words[at].partition("=")
            part["env"][name] = value
        elif word in WITH_VALUE:
            at += 1
            part[WITH_VALUE[word]] = words[at]
        elif word.startswith("-"):
            fail(f"aprun: the stand-in does not know {word}", 2)
        else:
            part["argv"].append(word)
        at += 1
    parts.append(part)
    if not all(part["argv"] for part in parts):
        fail("aprun: no executable", 2)
    return parts


def aprun(words):
    """The user's half: hands over what the user may say."""
    parts = parse_aprun(words)
    order = {
        "parts": parts, "env": dict(os.environ), "cwd": os.getcwd(),
        "reservation": os.environ.get("BASIL_RESERVATION_ID"),
    }
    for part in parts:
        if not part.get("is_there"):
            # aprun sends the program itself along unless told that it is there.
            program = part["argv"][0]
            if not os.access(program, os.X_OK) or not os.path.isfile(program):
                fail(f"aprun: file {program} not found")
            part["program"] = os.path.realpath(program)
    done = subprocess.run(["sudo", "-n", HELPER], input=json.dumps(order).encode(), check=False)
    if not parts[0].get("is_quiet"):
        print("Application 5042 resources: utime ~0s, stime ~0s, Rss ~1, inblocks ~0, outblocks ~0")
    sys.exit(done.returncode)


def apsched(_):
    """As root beside aprun: places ranks on nodes of the caller's own reservation."""
    user = pwd.getpwuid(int(os.environ["SUDO_UID"]))
    order = json.load(sys.stdin)
    mine = [one for one in reservations() if one["user"] == user.pw_name and one["is_confirmed"]
            and order["reservation"] in (None, str(one["id"]))]
    if not mine:
        fail("apsched: claim exceeds reservation's node-count")
    reservation = mine[0]
    root = "/"
    wanted = order["env"].get("CRAY_ROOTFS")
    if wanted:
        root = root_of(wanted)
    ranks, placed = 0, {}
    for part in order["parts"]:
        if part.get("as_reserved"):
            width, per_node = reservation["width"], reservation["per_node"]
        else:
            width = int(part.get("width", 1))
            per_node = int(part.get("per_node", reservation["per_node"]))
        nids = [nid for nid in ranges(part["nodes"])] if "nodes" in part else reservation["nids"]
        free = [nid for nid in nids for _ in range(per_node) if nid in reservation["nids"]]
        if len(free) < width:
            fail("apsched: claim exceeds reservation's node-count")
        for nid in free[:width]:
            rank = {"rank": ranks, "argv": part["argv"], "env": part["env"],
                    "program": part.get("program")}
            placed.setdefault(nid, []).append(rank)
            ranks += 1
    work = []
    for nid, some in placed.items():
        message = json.dumps({
            "root": root, "uid": user.pw_uid, "gid": user.pw_gid, "env": order["env"],
            "groups": os.getgrouplist(user.pw_name, user.pw_gid), "cwd": order["cwd"],
            "ranks": some,
        })
        process = subprocess.Popen(["ssh", host(nid), OURSELVES], stdin=subprocess.PIPE)
        process.stdin.write(message.encode())
        process.stdin.close()
        work.append(process)
    sys.exit(max(process.wait() for process in work))


def root_of(name):
    with open(ROOTS, encoding="utf-8") as file:
        for line in file:
            key, _, path = line.strip().partition("=")
            if key == name:
                return path
    return fail(f"aprun: {ROOTS} has no root '{name}'")


def apinit(_):
    order = json.load(sys.stdin)
    children = [start_rank(order, rank) for rank in order["ranks"]]
    worst = 0
    for child in children:
        _, status = os.waitpid(child, 0)
        worst = max(worst, os.waitstatus_to_exitcode(status) % 256)
    sys.exit(worst)


def start_rank(order, rank):
    child = os.fork()
    if child:
        return child
    try:
        argv, program = rank["argv"], None
        if rank["program"]:
            program = os.open(rank["program"], os.O_RDONLY | os.O_CLOEXEC)
        os.setsid()
        if order["root"] != "/":
            os.chroot(order["root"])
            os.chdir("/")
        os.setgroups(order["groups"])
        os.setresgid(order["gid"], order["gid"], order["gid"])
        os.setresuid(order["uid"], order["uid"], order["uid"])
        try:
            os.chdir(order["cwd"])
        except OSError:
            pass
        env = {**order["env"], **rank["env"], "ALPS_APP_PE": str(rank["rank"])}
        if program is not None:
            os.execve(program, argv, env)
        os.execvpe(argv[0], argv, env)
    except BaseException as error:  # whatever it is, this process must not go on as another one
        print(f"apinit: {shlex.join(rank['argv'])}: {error}", file=sys.stderr)
    os._exit(127)


def main():
    name = os.path.basename(sys.argv[0]).removesuffix("-stand-in")
    programs = {"apbasil": apbasil, "apstat": apstat, "aprun": aprun, "apsched": apsched,
                "apinit": apinit, "xtxqtcmd": xtxqtcmd, "pcmd": pcmd}
    if name not in programs:
        fail(f"alps-stand-in: call me {', '.join(programs)}", 2)
    programs[name](sys.argv[1:])


main()
