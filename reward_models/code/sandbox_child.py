"""The program that `sandbox.py` starts: it isolates itself, then runs the code. Standard library only.

It consists of three processes. The first gives up root, makes the namespaces and waits. The second is process 1 of the
new process namespace: it mounts the file systems, starts the third, watches its time and output, and reports the
verdict. The third (the worker) sets its limits, gives up all privileges and runs the code.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import select
import signal
import sys
import time
import traceback
from typing import Any

NOBODY = 65534
# Flags of unshare, mount, prctl, mount_setattr and capset (linux/sched.h, mount.h, prctl.h, capability.h)
NEW_MOUNT, NEW_UTS, NEW_IPC = 0x20000, 0x4000000, 0x8000000
NEW_USER, NEW_PID, NEW_NET = 0x10000000, 0x20000000, 0x40000000
NO_SUID, NO_DEVICES, RECURSIVE, PRIVATE = 0x2, 0x4, 0x4000, 0x40000
SET_DEATH_SIGNAL, SET_DUMPABLE, DROP_BOUND, NO_NEW_PRIVILEGES = 1, 4, 24, 38
SYS_MOUNT_SETATTR, AT_RECURSIVE, READ_ONLY = 442, 0x8000, 0x1
CAPABILITIES_V3 = 0x20080522
libc = ctypes.CDLL(None, use_errno=True)


def call(name: str, *arguments: Any) -> None:
    """Call a function of the C library that returns 0.

    Raises:
        OSError: it returned another number.
    """
    if getattr(libc, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def leave_root() -> None:
    """Become nobody if the user is root; another user keeps its id."""
    if os.geteuid() == 0:
        library = {path: os.open(path, os.O_RDONLY | os.O_DIRECTORY) for path in sys.path if os.path.isdir(path)}
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        call("prctl", SET_DUMPABLE, 1, 0, 0, 0)  # else /proc/self belongs to root
        keep_library(library)


def keep_library(library: dict[str, int]) -> None:
    """Import the standard library through open folders if nobody may not read its path (a Python below /root)."""
    packages = [
        module.__path__ for module in list(sys.modules.values()) if isinstance(getattr(module, "__path__", 0), list)
    ]
    for path, number in library.items():
        if os.access(path, os.R_OK | os.X_OK):
            os.close(number)
            continue
        for paths in (sys.path, *packages):
            paths[:] = [
                one.replace(path, f"/proc/self/fd/{number}", 1) if one.startswith(path) else one for one in paths
            ]
    sys.path_importer_cache.clear()


def enter_namespaces() -> None:
    """Enter new namespaces of every kind; user and group ids are the same inside."""
    user, group = os.getuid(), os.getgid()
    call("unshare", NEW_USER | NEW_MOUNT | NEW_PID | NEW_NET | NEW_IPC | NEW_UTS)
    for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
        with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
            file.write(text)


def mount_all(folder: str, mib: int) -> None:
    """Mount everything read-only, an empty directory in memory at `folder`, and a /proc of the new namespace."""
    call("mount", None, b"/", None, RECURSIVE | PRIVATE, None)
    attributes = (ctypes.c_uint64 * 4)(READ_ONLY, 0, 0, 0)
    call("syscall", SYS_MOUNT_SETATTR, -100, b"/", AT_RECURSIVE, ctypes.byref(attributes), ctypes.sizeof(attributes))
    size = f"size={mib}m,nr_inodes=1000,mode=700".encode()
    call("mount", b"tmpfs", folder.encode(), b"tmpfs", NO_SUID | NO_DEVICES, size)
    call("mount", b"proc", b"/proc", b"proc", NO_SUID | NO_DEVICES, None)


def give_up_privileges() -> None:
    """Drop all capabilities, also those that an execve could give."""
    for capability in range(64):
        libc.prctl(DROP_BOUND, capability, 0, 0, 0)  # returns an error beyond the last capability, which is ignored
    call("prctl", NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    header, none = (ctypes.c_uint32 * 2)(CAPABILITIES_V3, 0), (ctypes.c_uint32 * 6)()
    call("capset", ctypes.byref(header), ctypes.byref(none))


def set_limits(limits: dict[str, Any]) -> None:
    """Limit this process and its children, and the number of processes."""
    seconds, mib = max(1, round(limits["seconds"])), 2**20
    for kind, value in (
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_AS, limits["memory_mib"] * mib),
        (resource.RLIMIT_FSIZE, limits["file_mib"] * mib),
        (resource.RLIMIT_NPROC, limits["processes"] + 2),  # beside the two processes above
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (value, value))


def run_code(code: str, folder: str, limits: dict[str, Any], pipes: tuple[int, int, int]) -> None:
    """The worker: run the code, then copy the token from one pipe to another.

    Args:
        code: the program.
        folder: its directory in memory.
        limits: fields of `sandbox.Limits`.
        pipes: file descriptors: for the output, to read the token, to hand it back.
    """
    output, token, handed_back = pipes
    os.setsid()
    os.chdir(folder)
    nothing = os.open("/dev/null", os.O_RDONLY)
    for own, theirs in ((nothing, 0), (output, 1), (output, 2)):
        os.dup2(own, theirs)
    environment = {"HOME": folder, "TMPDIR": folder, "PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"}
    os.environ.clear()
    os.environ.update(environment)
    set_limits(limits)
    give_up_privileges()
    worker, status = os.getpid(), 0
    try:
        exec(compile(code, "<code>", "exec"), {"__name__": "__main__"})
        if os.getpid() == worker:  # a fork of the worker reaches this line too
            os.write(handed_back, os.read(token, 64))
    except SystemExit:
        status = 3  # exited before the last line, whatever the exit status
    except BaseException as error:
        own, status = error.__traceback__, 1
        traceback.print_exception(error.with_traceback(None if own is None else own.tb_next), limit=-3)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(status)


def watch(worker: int, output: int, handed_back: int, limits: dict[str, Any], token: str) -> dict[str, str]:
    """Wait for the worker to end or for its time to be used up; returns its status and its output."""
    kept, deadline, status = b"", time.monotonic() + limits["seconds"], None
    while status is None and time.monotonic() < deadline:
        for source in select.select([output], [], [], 0.02)[0]:
            kept = (kept + os.read(source, 65536))[: limits["output_bytes"]]
        done, code = os.waitpid(worker, os.WNOHANG)
        status = os.waitstatus_to_exitcode(code) if done else None
    while (
        select.select([output], [], [], 0)[0]
        and (rest := os.read(output, 65536))
        and len(kept) < limits["output_bytes"]
    ):
        kept = (kept + rest)[: limits["output_bytes"]]
    received = os.read(handed_back, 64).decode(errors="replace") if select.select([handed_back], [], [], 0)[0] else ""
    if status is None:
        verdict = "timed_out"
    elif received == token and status == 0:
        verdict = "passed"
    else:
        verdict = "killed" if status < 0 else "failed" if status == 1 else "exited"
    return {"status": verdict, "output": kept.decode(errors="replace")}


def first_process(request: dict[str, Any]) -> dict[str, str]:
    """Process 1 of the namespace: mount, start the worker and watch it."""
    call("prctl", SET_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
    limits = request["limits"]
    mount_all(request["folder"], limits["file_mib"])
    output_read, output_write = os.pipe()
    token_read, token_write = os.pipe()
    back_read, back_write = os.pipe()
    worker = os.fork()
    if worker == 0:
        for unused in (output_read, token_write, back_read):
            os.close(unused)
        run_code(request.pop("code"), request["folder"], limits, (output_write, token_read, back_write))
    token = os.urandom(16).hex()  # made after the fork, so that it is not in the worker's memory
    os.write(token_write, token.encode())
    for unused in (output_write, token_read, back_write):  # after the write: the worker may have ended already
        os.close(unused)
    return watch(worker, output_read, back_read, limits, token)


def main() -> None:
    """Read the request from stdin, run it in isolation, and print the verdict as JSON."""
    request = json.loads(sys.stdin.buffer.read())
    try:
        leave_root()
        enter_namespaces()
    except OSError as error:
        print(json.dumps({"refused": str(error)}))  # noqa: T201
        return
    first = os.fork()
    if first == 0:
        try:
            verdict: dict[str, str] = first_process(request)
        except OSError as error:
            verdict = {"refused": str(error)}
        os.write(1, json.dumps(verdict).encode())
        os._exit(0)
    os.waitpid(first, 0)


if __name__ == "__main__":
    main()
