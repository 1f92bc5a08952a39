"""A process that strangers speak to gives up whatever it does not need, before it reads the first byte of theirs."""

from __future__ import annotations

import errno
import os
import pwd
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

from safekit import syscalls

USER = "safekit-web"
"""Made by the installer. It owns no file, and is in no other group."""
NOBODY = 65534
REFUSED = tuple(
    """
    execve execveat fork vfork clone clone3 ptrace process_vm_readv process_vm_writev pidfd_open pidfd_getfd kcmp
    socket connect bind listen accept accept4
    unshare setns chroot pivot_root mount umount umount2 mount_setattr move_mount open_tree fsopen fsmount fspick
    fsconfig open_by_handle_at name_to_handle_at fanotify_init quotactl quotactl_fd swapon swapoff acct
    bpf perf_event_open userfaultfd io_uring_setup io_uring_enter io_uring_register keyctl add_key request_key
    init_module finit_module delete_module kexec_load kexec_file_load reboot iopl ioperm syslog lookup_dcookie
    kill tkill tgkill rt_sigqueueinfo rt_tgsigqueueinfo pidfd_send_signal
    setuid setgid setreuid setregid setresuid setresgid setgroups setfsuid setfsgid capset personality
    sched_setscheduler sched_setattr setpriority mlock mlockall shmget shmat msgget semget mq_open
    """.split()  # noqa: SIM905 - a table to read
)
"""System calls that a process which only passes bytes on needs none of: most of what the kernel was ever broken by."""
_CLONE_NEWUTS, _CLONE_NEWIPC, _CLONE_NEWNET = 0x04000000, 0x08000000, 0x40000000


def account() -> tuple[int, int]:
    """User and group to run as; nobody where the product is not installed."""
    for name in (USER, "nobody"):
        try:
            found = pwd.getpwnam(name)
        except KeyError:
            continue
        return found.pw_uid, found.pw_gid
    return NOBODY, NOBODY


def confine() -> list[str]:
    """What this process has from now on: descriptors that are open or are sent to it, and its own code to read.

    It is another user, in a network with no interface; it starts no process, makes no socket, opens no file but those
    of Python for reading, sends signals to nobody, and no process of its user can look into it. What the kernel of this
    system cannot do is left out, and told: one line each. Raises OSError when not even the user can be changed.
    """
    lacks = []
    if os.geteuid() == 0:
        uid, gid = account()
        try:
            syscalls.unshare(_CLONE_NEWNET | _CLONE_NEWIPC | _CLONE_NEWUTS)
        except OSError as error:  # in a container without CAP_SYS_ADMIN
            lacks.append(f"no network of its own: {error.strerror}")
        os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
    else:
        lacks.append("it runs as the user of the web service, which is not root")
    syscalls.forgo_privileges()
    syscalls.hide_memory()
    for limit in (resource.RLIMIT_CORE, resource.RLIMIT_NPROC):
        resource.setrlimit(limit, (0, 0))
    try:
        syscalls.restrict_files(_own_code())
    except OSError as error:
        # EPERM: the filter of a container (systemd-nspawn, Docker) that does not know these calls.
        if error.errno not in (errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EPERM):
            raise
        lacks.append(f"it can read what everybody can: no Landlock in this kernel or container ({error.strerror})")
    try:
        syscalls.refuse_calls(REFUSED)
    except OSError as error:
        lacks.append(f"no filter of system calls: {error.strerror}")
    return lacks


def _own_code() -> Iterator[Path]:
    """Where Python finds what is imported late."""
    return (path for path in {Path(each) for each in (sys.prefix, sys.base_prefix, *sys.path) if each} if path.exists())
