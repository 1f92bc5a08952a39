"""Servers whose process 1 is systemd, for what a lab's own process 1 cannot show: systemd-nspawn over an overlay of
this host's file system or of another distribution's tree, in a network of the test's own.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from lab.waiting import wait_until

CHECKOUT = Path(__file__).resolve().parents[2]
HOST = Path("/")
_READY = {"running", "degraded"}
T = TypeVar("T")


def why_not() -> str:
    """Why this host cannot boot such a server; empty when it can."""
    if shutil.which("systemd-nspawn") is None:
        return "systemd-nspawn is missing (package systemd-container)"
    if not Path("/usr/lib/systemd/systemd").exists():
        return "systemd is missing"
    groups = Path("/sys/fs/cgroup")
    if not any((place / "cgroup.procs").exists() for place in (groups, groups / "systemd", groups / "unified")):
        return "no control groups are mounted, which systemd needs"
    return ""


class Network:
    """A network name space for each server, each joined by a cable to the first one."""

    def __init__(self, *addresses: str) -> None:
        self.holders = [self._space() for _ in addresses]
        for number, (address, holder) in enumerate(zip(addresses, self.holders, strict=True)):
            if number == 0:
                self._ip(holder, "link", "add", "default0", "type", "bridge")
            else:
                name = f"to{number}"
                peer = ("peer", "name", "default0", "netns", str(holder.pid))
                self._ip(self.holders[0], "link", "add", name, "type", "veth", *peer)
                self._ip(self.holders[0], "link", "set", name, "master", "default0", "up")
            self._ip(holder, "addr", "add", f"{address}/24", "dev", "default0")
            self._ip(holder, "link", "set", "default0", "up")

    @staticmethod
    def _space() -> subprocess.Popen[str]:
        words = ["unshare", "--net", "setpriv", "--pdeathsig", "KILL", "sh", "-c", "ip link set lo up; echo; exec cat"]
        holder = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert holder.stdout is not None and holder.stdout.readline() == "\n"
        return holder

    @staticmethod
    def _ip(holder: subprocess.Popen[str], *words: str) -> None:
        subprocess.run(["nsenter", "-t", str(holder.pid), "-n", "ip", *words], check=True, capture_output=True)

    def close(self) -> None:
        for holder in self.holders:
            holder.kill()
            holder.wait(10)


class Machine:
    """One server. `tree`: the root of a distribution, or the host's; what the server writes stays in `directory`."""

    def __init__(self, directory: Path, name: str, holder: subprocess.Popen[str], tree: Path = HOST) -> None:
        directory.mkdir()
        self.directory, self.name, self.holder, self.tree = directory, name, holder, tree
        self.process: subprocess.Popen[bytes] | None = None
        self.pid = 0  # of systemd, as the host sees it

    def boot(self, timeout: float = 60.0) -> None:
        """Power on, and wait until systemd has started what it should."""
        description = {
            "directory": str(self.directory), "name": self.name, "tree": str(self.tree),
            "network": f"/proc/{self.holder.pid}/ns/net", "checkout": str(CHECKOUT),
        }  # fmt: skip
        words = ["unshare", "--mount", "--propagation", "private", sys.executable, "-m", "tests.t3_cluster.machines"]
        with (self.directory / "console").open("ab") as console:
            self.process = subprocess.Popen(
                [*words, json.dumps(description)], cwd=CHECKOUT, stdin=subprocess.DEVNULL, stdout=console,
                stderr=console, start_new_session=True,
            )  # fmt: skip
        self.pid = wait_until(self._systemd, timeout, f"systemd of {self.name} runs")
        wait_until(lambda: self._system_state() in _READY, timeout, f"{self.name} has booted")

    def _systemd(self) -> int:
        assert self.process is not None
        assert self.process.poll() is None, self.console()
        for task in Path(f"/proc/{self.process.pid}/task").iterdir():
            for pid in (task / "children").read_text().split():
                comm = Path(f"/proc/{pid}/comm")
                if comm.exists() and comm.read_text() == "systemd\n":
                    return int(pid)
        return 0

    def _system_state(self) -> str:
        assert self.process is not None and self.process.poll() is None, self.console()
        return self.run(["systemctl", "is-system-running"], check=False).stdout.strip()

    def run(
        self, command: str | Sequence[str], *, check: bool = True, timeout: float = 60.0, input: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """A command in the server; a string is given to sh."""
        words = ["sh", "-c", command] if isinstance(command, str) else list(command)
        path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        enter = ["nsenter", "-t", str(self.pid), "-m", "-u", "-i", "-n", "-p", "--", "env", "-i", "-C", "/root"]
        done = subprocess.run(
            [*enter, path, "HOME=/root", "LANG=C.UTF-8", *words], input=input, capture_output=True, text=True,
            errors="replace", check=False, timeout=timeout, stdin=subprocess.DEVNULL if input is None else None,
        )  # fmt: skip
        assert not check or done.returncode == 0, (
            f"{self.name}: {words} -> {done.returncode}\n{done.stdout}{done.stderr}\n{self.console()}"
        )
        return done

    def safekit(self, *words: str, check: bool = True, timeout: float = 60.0) -> subprocess.CompletedProcess[str]:
        return self.run(["/opt/safekit/safekit", *words], check=check, timeout=timeout)

    def state(self, module: str) -> str:
        """PRIM, SECOND and so on; empty when there is no answer."""
        return self.safekit("state", "-lq", "-m", module, check=False).stdout.strip()

    def write(self, path: str, text: str) -> None:
        self.run(["sh", "-c", f'mkdir -p "$(dirname {path})" && cat >{path}'], input=text)

    def read(self, path: str) -> str:
        return self.run(["cat", path]).stdout

    def outside(self, path: str) -> Path:
        """Where this process sees a file of the server."""
        return Path(f"/proc/{self.pid}/root{path}")

    def shutdown(self, timeout: float = 90.0) -> None:
        """In order, as `systemctl poweroff` does it."""
        assert self.process is not None
        os.kill(self.pid, signal.SIGRTMIN + 4)
        self.process.wait(timeout)
        self.process, self.pid = None, 0

    def poweroff(self) -> None:
        """All at once."""
        if self.process is None:
            return
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(10)
        self.process, self.pid = None, 0

    def console(self) -> str:
        return (self.directory / "console").read_text(errors="replace")[-3000:]

    def journal(self) -> list[str]:
        """Messages of all boots, oldest first, also while the server is off."""
        place = self.directory / "changes/upper/root/var/log/journal"
        words = ["journalctl", "--no-pager", "-q", "-o", "cat", "-D", str(place)]
        return subprocess.run(words, check=True, capture_output=True, text=True).stdout.splitlines()


def _lay_out(root: Path, name: str) -> None:
    """A server of its own: nothing of the host's services, names and mounts."""
    for wanted in (root / "etc/systemd/system").glob("*.wants/*"):
        wanted.unlink()
    for path, text in (
        ("hostname", f"{name}\n"),
        ("machine-id", ""),
        ("fstab", ""),
        ("hosts", "127.0.0.1 localhost\n"),
    ):
        place = root / "etc" / path
        place.unlink(missing_ok=True)
        place.write_text(text)
    (root / "var/log/journal").mkdir(parents=True, exist_ok=True)
    for left in ("opt/safekit", "var/safekit"):
        shutil.rmtree(root / left, ignore_errors=True)
    (root / "etc/safeini.xml").unlink(missing_ok=True)


def _start(description: dict[str, str]) -> None:
    """Becomes systemd-nspawn, in a mount name space of its own."""
    from lab import kernel, rootfs
    from lab.state import labs_directory

    directory, tree = Path(description["directory"]), Path(description["tree"])
    root, changes = directory / "root", directory / "changes"
    root.mkdir(exist_ok=True)
    first = not changes.exists()
    if tree == HOST:
        rootfs.mount_overlays(root, changes, rootfs.host_mounts(labs_directory()))
    else:
        upper, work = changes / "upper/root", changes / "work/root"
        upper.mkdir(parents=True, exist_ok=True)
        work.mkdir(parents=True, exist_ok=True)
        kernel.mount("overlay", root, "overlay", 0, f"lowerdir={tree},upperdir={upper},workdir={work}")
    if first:
        _lay_out(root, description["name"])
    kernel.mount("tmpfs", "/run", "tmpfs", 0, "mode=0755")  # nspawn leaves something there
    os.environ["SYSTEMD_NSPAWN_UNIFIED_HIERARCHY"] = "1"
    options = ["--quiet", "--register=no", "--keep-unit", "--console=pipe", "--boot", "--link-journal=no",
               "--resolv-conf=off", "--timezone=off", "--capability=all", "--bind=/dev/fuse"]  # fmt: skip
    os.execvp(
        "systemd-nspawn",
        ["systemd-nspawn", *options, f"--machine={description['name']}", f"--directory={root}",
         f"--network-namespace-path={description['network']}"],
    )  # fmt: skip


if __name__ == "__main__":
    _start(json.loads(sys.argv[1]))
