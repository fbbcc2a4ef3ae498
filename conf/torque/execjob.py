"""Hook of OpenPBS for Shifter; one file for both events:

    qmgr -c 'create hook shifter_begin event=execjob_begin,alarm=300'
    qmgr -c 'import hook shifter_begin application/x-python default execjob.py'
    qmgr -c 'create hook shifter_end event=execjob_end,alarm=300'
    qmgr -c 'import hook shifter_end application/x-python default execjob.py'

It tells the programs what the job is and passes their answer on. All decisions are theirs. They run
on the job's first node and reach the others with the site's own tool.
"""
import json
import subprocess

import pbs

PROGRAMS = "/usr/lib/shifter/torque"


def facts(job):
    """What the programs want to know, as the server has it."""
    # A server that has no such resource must not fail everybody's jobs.
    gres = getattr(job.Resource_List, "gres", None)
    return {
        "job": str(job.id),
        "user": str(job.euser),
        "group": str(job.egroup),
        "gres": None if gres is None else str(gres),
        "exec_host": None if job.exec_host is None else str(job.exec_host),
        "run_count": None if job.run_count is None else int(job.run_count),
        "variables": {str(name): str(value) for name, value in job.Variable_List.items()},
    }


def main():
    event = pbs.event()
    job = event.job
    if not job.in_ms_mom():
        event.accept()
        return
    told = facts(job)
    if told["gres"] is None:
        # Not ours, and not to suffer where our programs are missing.
        event.accept()
        return
    begins = event.type == pbs.EXECJOB_BEGIN
    role = "execjob_begin" if begins else "execjob_end"
    program = PROGRAMS + ("/prologue" if begins else "/epilogue")
    done = subprocess.run(
        [program, "--as=" + role],
        input=json.dumps(told).encode(),
        stderr=subprocess.PIPE,
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
        check=False,
    )
    said = done.stderr.decode("utf-8", "replace").strip()
    if done.returncode == 0:
        event.accept()
    elif begins and done.returncode == 2:
        job.rerun()
        event.reject(said)
    elif begins:
        job.delete()
        event.reject(said)
    else:
        pbs.logmsg(pbs.LOG_WARNING, said)
        event.accept()


main()
