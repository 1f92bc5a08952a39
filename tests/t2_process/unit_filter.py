"""Runs a program under the filter of system calls of a unit, without systemd: `unit_filter.py UNIT COMMAND...`.

A call that the unit refuses ends the program with SIGSYS, so that none stays unseen; in the unit it is an error.
"""

from __future__ import annotations

import ctypes
import functools
import os
import re
import subprocess
import sys
from pathlib import Path

ALLOW, KILL = 0x7FFF0000, 0x80000000
PR_SET_NO_NEW_PRIVS, PR_SET_MDWE = 38, 65
ALWAYS = frozenset({"execve", "exit", "exit_group", "rt_sigreturn", "getrlimit", "prlimit64", "sigreturn"})


UNITS = Path(__file__).resolve().parents[2] / "private/conf/systemd"


def under(unit: str) -> tuple[str, ...]:
    """What a process of that unit is started through."""
    return sys.executable, str(Path(__file__).resolve()), str(UNITS / f"{unit}.service")


@functools.cache
def calls_of(name: str) -> frozenset[str]:
    """The system calls of a group of systemd's, or the one of that name."""
    if not name.startswith("@"):
        return frozenset({name})
    done = subprocess.run(["systemd-analyze", "syscall-filter", name], capture_output=True, text=True, check=True)
    found = [line.strip() for line in done.stdout.splitlines()[1:] if line.startswith("    ") and "#" not in line]
    return frozenset().union(*map(calls_of, found))


def allowed(unit: Path) -> frozenset[str]:
    """What the lines SystemCallFilter= leave, in their order."""
    found: frozenset[str] = ALWAYS
    for line in re.findall(r"^SystemCallFilter=(.*)$", unit.read_text(), re.MULTILINE):
        names = frozenset().union(*map(calls_of, line.removeprefix("~").split()))
        found = found - names if line.startswith("~") else found | names
    return found | ALWAYS


def restrict(unit: Path) -> None:
    """This process, and what it executes."""
    seccomp = ctypes.CDLL("libseccomp.so.2", use_errno=True)
    libc = ctypes.CDLL(None, use_errno=True)
    seccomp.seccomp_init.restype = ctypes.c_void_p
    context = ctypes.c_void_p(seccomp.seccomp_init(ctypes.c_uint32(KILL)))
    for name in allowed(unit):
        number = seccomp.seccomp_syscall_resolve_name(name.encode())
        if number >= 0:
            assert seccomp.seccomp_rule_add(context, ctypes.c_uint32(ALLOW), number, 0) == 0, name
    if "MemoryDenyWriteExecute=yes" in unit.read_text():
        libc.prctl(PR_SET_MDWE, 1, 0, 0, 0)  # where this kernel has it; it stays over execve
    assert libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
    assert seccomp.seccomp_load(context) == 0


if __name__ == "__main__":
    restrict(Path(sys.argv[1]))
    os.execvp(sys.argv[2], sys.argv[2:])
