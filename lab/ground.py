"""The ground that a lab stands on: what this host must have, names that are free, the keeper, what dead labs leave."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Final

from lab import disk, kernel
from lab.errors import LabError
from lab.plan import Plan
from lab.state import lab_directory, lab_names, load, remove_directory

PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/opt/safekit"


def check_host(disks: bool) -> None:
    """Raises LabError when this host cannot hold a lab."""
    if os.geteuid() != 0:
        raise LabError("safelab must be run as root: it makes namespaces and mounts", "sudo bin/safelab ...")
    for tool in ("unshare", "nsenter", "setpriv", "ip", "tc", "nft", "pivot_root", "timeout"):
        if not any(Path(folder, tool).exists() for folder in PATH.split(":")):
            raise LabError(f"the command {tool} is missing", "bin/setup lab")
    if disks:
        disk.check_host(PATH.split(":"))
    for namespace in ("net", "mnt", "pid", "uts", "ipc"):
        if not Path("/proc/self/ns", namespace).exists():
            raise LabError(f"this kernel has no {namespace} namespaces", "use a kernel with CONFIG_NAMESPACES")
    if not Path("/dev/fuse").exists():
        raise LabError("/dev/fuse is missing: no FUSE in this kernel", "modprobe fuse")


_ATTEMPT: Final = """
base=$1
mount -t tmpfs tmpfs "$base"
cd "$base" && mkdir lower upper work seen
mount -t overlay -o lowerdir=lower,upperdir=upper,workdir=work overlay seen
mount -t proc proc /proc
ip link add one type veth peer name two
ip link add bridge type bridge
ip link set one master bridge
nft add table inet attempt
"""
"""One of each thing that a lab is made of, in namespaces that end with the shell."""


def try_host() -> None:
    """Whether a lab could be made now: the tools are here, and the kernel lets us. Leaves nothing. Raises LabError
    with what was refused."""
    check_host(disks=False)
    with tempfile.TemporaryDirectory(prefix="safelab-") as base:
        words = ["unshare", "--mount", "--net", "--uts", "--ipc", "--pid", "--fork"]
        done = subprocess.run(
            [*words, "sh", "-ec", _ATTEMPT, "attempt", base],
            capture_output=True, text=True, timeout=60, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    if done.returncode != 0:
        said = " ".join(done.stderr.split()) or f"status {done.returncode}"
        raise LabError(
            f"this kernel or container refuses what a lab is made of: {said}",
            "use a machine (not a container without privileges) with overlay, veth, bridge and nftables",
        )


def check_place(labs: Path) -> None:
    """Raises LabError when labs cannot be kept there."""
    if not os.access(labs, os.W_OK):
        raise LabError(f"{labs} cannot be written", "export SAFELAB_DIR=DIRECTORY on a disk (ext4, xfs, btrfs)")
    if kernel.on_overlay(labs):
        raise LabError(
            f"{labs} lies on an overlay, which cannot carry the nodes' file systems",
            "export SAFELAB_DIR=DIRECTORY on a disk (ext4, xfs, btrfs) or a tmpfs",
        )


def free_name() -> str:
    """A name that no lab has."""
    taken = set(lab_names())
    return next(name for number in range(1, 10_000) if (name := f"lab{number}") not in taken)


def remove_dead(name: str, *, kill: bool = False) -> None:
    """Remove what is left of a lab of that name. Raises LabError when it lives, unless `kill`."""
    directory = lab_directory(name)
    state = load(directory)
    if state is not None and state.alive:
        if not kill:
            raise LabError(
                f"lab {name!r} is up already",
                f"use it, choose another --name, or remove it: safelab down --name {name}",
            )
        kernel.send_signal(state.keeper.pid, signal.SIGKILL)
        kernel.wait_gone(state.keeper.pid, state.keeper.start, 10)
    for process in state.machines.values() if state is not None else ():
        # Its machines die with the keeper; the kernel may still be busy with that.
        if process.alive:
            kernel.send_signal(process.pid, signal.SIGKILL)
        kernel.wait_gone(process.pid, process.start, 20)
    remove_directory(directory)


def start_keeper(plan: Plan, image_path: str, directory: Path) -> None:
    """Start the process that holds the lab. Raises LabError with what it said."""
    with (directory / "keeper.log").open("a") as log:
        keeper = subprocess.Popen(
            [sys.executable, "-m", "lab.keeper"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            cwd=Path(__file__).resolve().parents[1],
            start_new_session=True,
        )
    assert keeper.stdin is not None and keeper.stdout is not None
    description = {"plan": asdict(plan), "image": image_path}
    try:
        keeper.stdin.write(json.dumps(description) + "\n")
        keeper.stdin.close()
    except BrokenPipeError:
        pass  # the keeper died; the next lines say why
    ready, _, _ = select.select([keeper.stdout], [], [], 20)
    line = keeper.stdout.readline() if ready else ""
    keeper.stdout.close()
    if line != "ready\n":
        keeper.kill()
        keeper.wait(10)
        said = (directory / "keeper.log").read_text(errors="replace").strip()[-1500:]
        raise LabError(f"the lab's keeper did not start: {said}", "see the message")
