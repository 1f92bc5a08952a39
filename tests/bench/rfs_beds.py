"""Where the workloads run: a plain directory, the mount of a server alone, a replicated pair over veth, and
GlusterFS replica 2 when it is installed."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from safekit.model.types import AsyncMode, Replicated, Rfs
from tests.t2_process.rfs_pair import Pair

TICK = os.sysconf("SC_CLK_TCK")
_numbers = count(1)


@dataclass
class Bed:
    """A place to measure in; `pids` are the processes whose cost counts, `backing` is where its files really are."""

    name: str
    directory: Path
    pids: tuple[int, ...] = ()
    enter: tuple[str, ...] = ()
    backing: Path | None = None

    def cpu_seconds(self) -> float:
        """User and system time of the processes so far."""
        total = 0.0
        for pid in self.pids:
            with contextlib.suppress(FileNotFoundError):
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                total += (int(fields[11]) + int(fields[12])) / TICK
        return total

    def memory_mb(self) -> float:
        """Proportional set size of the processes."""
        total = 0
        for pid in self.pids:
            with contextlib.suppress(FileNotFoundError, StopIteration):
                lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
                total += int(next(line.split()[1] for line in lines if line.startswith("Pss:")))
        return total / 1024


def run(*words: str) -> None:
    """A system command that must succeed."""
    subprocess.run(words, check=True, capture_output=True, timeout=60)


@contextlib.contextmanager
def veth() -> Iterator[tuple[dict[str, str], tuple[str, str]]]:
    """Two network namespaces and a cable between them: their files and addresses."""
    number = next(_numbers)
    one, two = f"skb{os.getpid()}-{number}a", f"skb{os.getpid()}-{number}b"
    try:
        for name in (one, two):
            run("ip", "netns", "add", name)
        run("ip", "link", "add", "sk0", "netns", one, "type", "veth", "peer", "name", "sk0", "netns", two)
        for name, address in ((one, "10.77.1.1/24"), (two, "10.77.1.2/24")):
            run("ip", "-n", name, "addr", "add", address, "dev", "sk0")
            for device in ("lo", "sk0"):
                run("ip", "-n", name, "link", "set", device, "up")
        yield {"n1": f"/run/netns/{one}", "n2": f"/run/netns/{two}"}, ("10.77.1.1", "10.77.1.2")
    finally:
        for name in (one, two):
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


@contextlib.contextmanager
def native(base: Path) -> Iterator[Bed]:
    """The file system itself."""
    directory = base / "native"
    directory.mkdir(mode=0o755)
    yield Bed("native", directory)


@contextlib.contextmanager
def alone(base: Path) -> Iterator[Bed]:
    """The mount of an ALONE server: every change is recorded, nothing is sent."""
    with Pair(base / "alone", Rfs((Replicated("/replicated"),))) as pair:
        pair.start_primary(pair.n1)
        yield Bed("mount alone", pair.n1.dir, (_pid(pair.n1.processes["nfsbox"]),), backing=pair.n1.backing)


@contextlib.contextmanager
def replicated(base: Path, mode: AsyncMode = "second") -> Iterator[Bed]:
    """PRIM and SECOND over a veth cable."""
    with (
        veth() as (namespaces, addresses),
        Pair(
            base / f"replicated-{mode}", Rfs((Replicated("/replicated"),), async_mode=mode), addresses, 5600, namespaces
        ) as pair,
    ):
        pair.start_primary(pair.n1)
        pair.start_secondary(pair.n2)
        yield Bed(
            f"replicated, async={mode}",
            pair.n1.dir,
            (_pid(pair.n1.processes["nfsbox"]), _pid(pair.n2.processes["nfsbox"])),
            backing=pair.n1.backing,
        )


def _pid(process: subprocess.Popen[bytes]) -> int:
    return process.pid


def gluster_installed() -> bool:
    """Whether the server of GlusterFS is there."""
    return shutil.which("glusterd") is not None and shutil.which("gluster") is not None


@contextlib.contextmanager
def gluster(base: Path) -> Iterator[Bed]:
    """GlusterFS replica 2: two glusterd, each in a network and mount namespace of its own, joined by veth."""
    top = base / "gluster"
    keepers: list[subprocess.Popen[bytes]] = []
    daemons: list[subprocess.Popen[bytes]] = []
    with veth() as (namespaces, addresses):
        try:
            for name in ("n1", "n2"):
                home = top / name
                for sub in ("lib", "log", "brick"):
                    (home / sub).mkdir(parents=True)
                keepers.append(
                    subprocess.Popen(
                        [
                            "nsenter",
                            f"--net={namespaces[name]}",
                            "unshare",
                            "-m",
                            "--propagation",
                            "private",
                            "sleep",
                            "100000",
                        ]
                    )
                )
            time.sleep(0.3)
            for keeper, name in zip(keepers, ("n1", "n2"), strict=True):
                home = top / name
                # Its sockets have fixed names under /run.
                run(*_in(keeper), "mount", "-t", "tmpfs", "tmpfs", "/run")
                run(*_in(keeper), "mkdir", "/run/gluster")
                for source, target in (("lib", "/var/lib/glusterd"), ("log", "/var/log/glusterfs")):
                    Path(target).mkdir(parents=True, exist_ok=True)
                    run(*_in(keeper), "mount", "--bind", str(home / source), target)
                daemons.append(
                    subprocess.Popen(
                        [*_in(keeper), "glusterd", "--no-daemon", "--pid-file", "/run/glusterd.pid"],
                        stderr=subprocess.DEVNULL,
                    )
                )
            _eventually(lambda: run(*_in(keepers[0]), "gluster", "--mode=script", "peer", "probe", addresses[1]))
            bricks = [
                f"{address}:{top / name / 'brick'}" for address, name in zip(addresses, ("n1", "n2"), strict=True)
            ]
            _eventually(
                lambda: run(
                    *_in(keepers[0]),
                    "gluster",
                    "--mode=script",
                    "volume",
                    "create",
                    "gv",
                    "replica",
                    "2",
                    *bricks,
                    "force",
                )
            )
            run(*_in(keepers[0]), "gluster", "--mode=script", "volume", "start", "gv")
            directory = top / "mounted"
            directory.mkdir()
            _eventually(
                lambda: run(*_in(keepers[0]), "mount", "-t", "glusterfs", f"{addresses[0]}:/gv", str(directory))
            )
            pids = tuple(pid for namespace in namespaces.values() for pid in _all_in(namespace))
            yield Bed("GlusterFS replica 2", directory, pids, tuple(_in(keepers[0])), top / "n1" / "brick")
        finally:
            for keeper in keepers:
                subprocess.run([*_in(keeper), "umount", "-l", str(top / "mounted")], check=False, capture_output=True)
            for namespace in namespaces.values():
                for pid in _all_in(namespace):  # GlusterFS leaves daemons of its own behind
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            for process in (*daemons, *keepers):
                process.kill()
                process.wait()


def _all_in(namespace: str) -> list[int]:
    """Everything that runs in a network namespace of ours."""
    number = os.stat(namespace).st_ino
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if os.stat(entry / "ns/net").st_ino == number:
                    found.append(int(entry.name))
    return found


def _in(keeper: subprocess.Popen[bytes]) -> list[str]:
    # nsenter has become unshare, which has become sleep: the pid is the one of the namespaces
    return ["nsenter", "-t", str(keeper.pid), "-m", "-n"]


def _eventually(call: object, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            call()  # type: ignore[operator]
            return
        except subprocess.CalledProcessError as error:
            if time.monotonic() > deadline:
                raise RuntimeError(f"{error.cmd}: {error.stderr.decode()[-300:]}") from None
            time.sleep(0.5)
