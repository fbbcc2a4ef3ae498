#!/usr/bin/python3
"""A stand-in for the part of Torque 6.1.3's pbs_mom that runs a hook (run_pelog).

Reads one JSON object from standard input: `path`, `argv`, `env`, `cwd`, `groups` (the user's),
`uid` and `gid` (of a hook that runs as the user, else 0), `is_deaf` (whether HUP INT TERM CHLD are
blocked and descriptors 1 and 2 closed, as for epilogue.parallel), `output` (prefix of the job's
files, or null for a terminal), `limit` and `kill_at` (seconds until the session is killed, the
second one null or a moment of the test's choice).
Prints one: `exit`, `signal`, `is_late` (the limit was reached), `secs`, `terminal` (what came there).

What a hook finds, as seen in a real mom: a session of its own, umask 0077, SIGPIPE ignored, the
user's supplementary groups, descriptors that the mom forgot to close, standard input /dev/null.
"""

import fcntl
import json
import os
import pty
import signal
import socket
import sys
import time

# What the mom had open and did not mark: its lock, sockets to its server, a directory, a job's file.
LEAKED = (5, 7, 8, 11, 19, 64)


def session(leader):
    """Returns the processes of a session."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat", "rb") as file:
                    fields = file.read().rsplit(b")", 1)[1].split()
            except OSError:
                continue
            if int(fields[3]) == leader:
                found.append(int(entry))
    return found


def kill_session(leader):
    for pid in session(leader):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


def become_hook(order, output, errors):
    os.setsid()
    null = os.open("/dev/null", os.O_RDONLY)
    # Far up, so that the places below are free to be filled.
    high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 200) for fd in (null, output, errors)]
    os.closerange(3, 200)
    for at, fd in enumerate(high):
        os.dup2(fd, at)
    left, right = socket.socketpair()
    kept = [left.fileno(), right.fileno(), os.open("/proc/self/stat", os.O_RDONLY),
            os.open("/", os.O_RDONLY | os.O_DIRECTORY)]
    kept = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 200) for fd in kept]
    left.detach(), right.detach()
    os.closerange(3, 200)
    for at, place in enumerate(LEAKED):
        os.dup2(kept[at % len(kept)], place)
    if order["is_deaf"]:
        os.close(1)
        os.close(2)
        signal.pthread_sigmask(signal.SIG_BLOCK, {
            signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGCHLD})
    for number in signal.valid_signals():
        if number not in (signal.SIGKILL, signal.SIGSTOP):
            try:
                signal.signal(number, signal.SIG_DFL)
            except (OSError, ValueError):
                pass
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    os.umask(0o077)
    os.chdir(order["cwd"])
    os.setgroups(order["groups"])
    os.setresgid(order["gid"], order["gid"], order["gid"])
    os.setresuid(order["uid"], order["uid"], order["uid"])
    os.execve(order["path"], order["argv"], order["env"])


def main():
    order = json.load(sys.stdin)
    terminal = None
    if order["output"] is None:
        terminal, output = pty.openpty()
        errors = output
    else:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        output, errors = (os.open(order["output"] + end, flags, 0o600) for end in (".OU", ".ER"))
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        try:
            become_hook(order, output, errors)
        except BaseException as error:
            print(f"mom-stand-in: cannot become the hook: {error}", file=sys.stderr)
        finally:
            os._exit(254)
    os.close(output)
    if terminal is not None:
        os.set_blocking(terminal, False)
    is_late, shown = False, b""
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if terminal is not None:
            try:
                shown += os.read(terminal, 65536)
            except OSError:
                pass
        if pid:
            break
        spent = time.monotonic() - began
        if spent >= order["limit"]:
            is_late = True
            kill_session(child)
        elif order["kill_at"] is not None and spent >= order["kill_at"]:
            kill_session(child)
        time.sleep(0.002)
    json.dump({
        "exit": os.WEXITSTATUS(status) if os.WIFEXITED(status) else None,
        "signal": os.WTERMSIG(status) if os.WIFSIGNALED(status) else None,
        "is_late": is_late,
        "secs": time.monotonic() - began,
        "terminal": shown.decode(errors="replace"),
    }, sys.stdout)


main()
