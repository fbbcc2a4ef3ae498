#!/usr/bin/python3
"""A stand-in for what OpenPBS 23.06 does around a hook of execjob_begin or execjob_end.

Its argument is the hook's file, in which the module `pbs` is this one's. Standard input is one JSON
object: `event` ("execjob_begin", "execjob_end"), `is_first` (whether this is the job's first mom),
`has_gres` (whether the server knows a resource gres), `id`, `user`, `gres` (or null), `exec_host`,
`run_count`, `variables` (as qsub has them).
Prints one: `is_accepted`, `message`, `is_rerun`, `is_deleted`, `log`.

After the sources of its module pbs.v1: a resource that the server does not know is no attribute,
one that the job did not ask for is None; the values of variables keep the backslashes with which
PBS has them in its list; accept() and reject() end the hook; and one that fails in any other way,
or ends without a word, rejects and accepts.
"""

import json
import sys
import types


class Resources:
    def __init__(self, order):
        if order["has_gres"]:
            self.gres = order["gres"]
        self.nodect = 1

    def __getitem__(self, name):
        return getattr(self, name)

    def __contains__(self, name):
        return hasattr(self, name)


class Job:
    def __init__(self, order):
        self.id = order["id"]
        self.euser = self.egroup = order["user"]
        self.exec_host = order["exec_host"]
        self.run_count = order["run_count"]
        self.Resource_List = Resources(order)
        self.Variable_List = {name: escaped(value) for name, value in order["variables"]}
        self._is_first = order["is_first"]
        self.is_rerun = self.is_deleted = False

    def in_ms_mom(self):
        return self._is_first

    def rerun(self):
        self.is_rerun = True

    def delete(self):
        self.is_deleted = True


class Event:
    def __init__(self, kind, job):
        self.type, self.job = kind, job
        self.is_accepted, self.message = None, ""

    def accept(self):
        self.is_accepted = True
        raise SystemExit

    def reject(self, message="", code=255):
        self.is_accepted, self.message = False, message
        raise SystemExit


def escaped(value):
    return "".join("\\" + c if c in ",\\'\"" else c for c in value)


def main():
    order = json.load(sys.stdin)
    log = []
    pbs = types.ModuleType("pbs")
    pbs.EXECJOB_BEGIN, pbs.EXECJOB_END, pbs.LOG_WARNING = 0x80, 0x200, 4
    kind = {"execjob_begin": pbs.EXECJOB_BEGIN, "execjob_end": pbs.EXECJOB_END}[order["event"]]
    event = Event(kind, Job(order))
    pbs.event = lambda: event
    pbs.logmsg = lambda level, message: log.append(message)
    sys.modules["pbs"] = pbs
    with open(sys.argv[1], encoding="utf-8") as file:
        code = compile(file.read(), sys.argv[1], "exec")
    try:
        exec(code, {"__name__": "__main__"})
        event.is_accepted = True if event.is_accepted is None else event.is_accepted
    except SystemExit:
        pass
    except Exception as error:
        event.is_accepted, event.message = False, f"the hook failed: {error!r}"
    json.dump({
        "is_accepted": event.is_accepted,
        "message": event.message,
        "is_rerun": event.job.is_rerun,
        "is_deleted": event.job.is_deleted,
        "log": log,
    }, sys.stdout)


main()
