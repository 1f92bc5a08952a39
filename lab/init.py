"""Process 1 of a lab node: mounts the node's file system, brings its network up, runs its services, reaps orphans.

Started by the keeper inside new namespaces, with a description of the node as JSON on standard input. It answers
`pid N` (as seen from the host), waits for a line that says that the cables are plugged in, and answers `ready`.
"""

from __future__ import annotations

import faulthandler
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from installation.environment import interpreter
from lab import disk, rootfs
from lab.units import Phase, Service, parse
from safekit import syscalls

CONTROL = "/run/safelab.sock"
DATA = "/data"
UNITS = Path("/etc/systemd/system")
WANTED = UNITS / "multi-user.target.wants"


@dataclass(frozen=True)
class Machine:
    """What the keeper tells about the node to boot."""

    name: str
    directory: str
    places: list[str]
    checkout: str
    labs: str
    binds: list[str]
    hosts: str
    image: str | None
    disk: bool
    interfaces: list[dict[str, str]] = field(default_factory=list)


def build_root(machine: Machine) -> Path:
    """Mount everything below the directory `root` of the node."""
    directory = Path(machine.directory)
    root = directory / "root"
    root.mkdir(exist_ok=True)
    changes = disk.attach(directory) if machine.disk else directory
    if machine.image is not None and not (changes / "upper").exists():
        rootfs.copy_changes(Path(machine.image), changes)
    rootfs.mount_overlays(root, changes, machine.places)
    rootfs.mount_kernel_file_systems(root)
    # Before /tmp and the labs are covered: the checkout may lie below them.
    checkout = os.open(machine.checkout, os.O_PATH)
    rootfs.bind_into(root, "/tmp", rootfs.empty(directory / "tmp", 0o1777))
    for place in (DATA, *machine.binds):
        source = (changes if place == DATA else directory) / "bind" / place.strip("/").replace("/", "_")
        source.mkdir(parents=True, exist_ok=True)
        rootfs.bind_into(root, place, source)
    rootfs.hide(root, Path(machine.labs))
    rootfs.bind_into(root, machine.checkout, Path(f"/proc/self/fd/{checkout}"), read_only=True)
    os.close(checkout)
    (root / "etc/hostname").write_text(f"{machine.name}\n")
    (root / "etc/hosts").write_text(machine.hosts)
    if not (root / "etc/machine-id").is_symlink():
        digits = "".join(f"{ord(character):02x}" for character in machine.name)
        (root / "etc/machine-id").write_text(f"{digits:0>32.32}\n")
    for name in ("systemctl", "service"):
        tool = root / "usr/local/sbin" / name
        tool.parent.mkdir(parents=True, exist_ok=True)
        # a distribution may have a python3.13 and no python3
        _, _, code = (Path(machine.checkout) / "lab/nodectl.py").read_text().partition("\n")
        tool.write_text(f"#!{interpreter()} -I\n{code}")
        tool.chmod(0o755)
    return root


def enter_root(root: Path) -> None:
    os.chdir(root)
    subprocess.run(["pivot_root", ".", "."], check=True)
    syscalls.detach(".")
    os.chdir("/")


def bring_network_up(machine: Machine) -> None:
    """Addresses are there at once: duplicate detection would make the first second of every boot useless."""
    for scope in ("all", "default", *(interface["name"] for interface in machine.interfaces)):
        folder = Path("/proc/sys/net/ipv6/conf") / scope
        if folder.is_dir():
            (folder / "accept_dad").write_text("0")
            (folder / "accept_ra").write_text("0")
    lines = ["link set lo up"]
    for interface in machine.interfaces:
        name = interface["name"]
        lines += [
            f"addr add {interface['ipv4']}/24 brd + dev {name}",
            f"addr add {interface['ipv6']}/64 dev {name} nodad",
            f"link set {name} up",
        ]
    subprocess.run(["ip", "-batch", "-"], input="\n".join(lines) + "\n", text=True, check=True)


class Init:
    """The loop of process 1."""

    def __init__(self) -> None:
        self.services: dict[str, Service] = {}
        self.selector = selectors.DefaultSelector()
        self.halting = False
        read, self._wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(self._wake)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, self._halt)
        self.selector.register(read, selectors.EVENT_READ, lambda: os.read(read, 4096))
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listener.bind(CONTROL)
        os.chmod(CONTROL, 0o600)
        self.listener.listen()
        self.selector.register(self.listener, selectors.EVENT_READ, self._accept)

    def _halt(self, *_: object) -> None:
        self.halting = True

    def service(self, name: str) -> Service:
        """Raises FileNotFoundError when there is no such unit, ValueError when it cannot be read."""
        text = (UNITS / f"{name}.service").read_text()
        service = self.services.get(name)
        if service is None:
            service = self.services[name] = Service(parse(name, text), Path(f"/var/log/{name}.log"))
        elif service.pid == 0:
            service.unit = parse(name, text)
        return service

    def start_enabled(self) -> None:
        for link in sorted(WANTED.glob("safe*.service")) if WANTED.is_dir() else ():
            self.service(link.stem).start()

    def _accept(self) -> None:
        connection, _ = self.listener.accept()
        connection.settimeout(2)
        try:
            with connection.makefile() as stream:
                request = json.loads(stream.readline(4096))
            self._serve(connection, str(request["verb"]), str(request["unit"]))
        except (OSError, ValueError, KeyError) as error:
            self._answer(connection, {"error": f"bad request: {error}"})

    def _answer(self, connection: socket.socket, answer: dict[str, Any]) -> None:
        try:
            connection.sendall(json.dumps(answer).encode() + b"\n")
        except OSError as error:  # the asker gave up; what it asked for is done all the same
            print(f"safelab: an answer was not taken: {error}", file=sys.stderr, flush=True)
        connection.close()

    def _serve(self, connection: socket.socket, verb: str, name: str) -> None:
        try:
            service = self.service(name)
        except (FileNotFoundError, ValueError):
            self._answer(connection, {"error": f"Unit {name}.service could not be found.", "code": "5"})
            return

        def done() -> None:
            link = WANTED / f"{name}.service"
            state = {"phase": service.phase.value, "pid": str(service.pid)}
            self._answer(connection, {**state, "enabled": "enabled" if link.is_symlink() else "disabled"})

        def start() -> None:
            service.start()
            done()

        if verb == "start":
            service.start()
            done()
        elif verb in ("stop", "restart", "try-restart"):
            then: Callable[[], None] = done if verb == "stop" else start
            service.stop()
            if service.phase is Phase.STOPPING:
                service.when_settled.append(then)
            else:
                then()
        elif verb == "kill":
            if service.pid:
                os.kill(service.pid, signal.SIGTERM)
            done()
        elif verb in ("enable", "disable"):
            link = WANTED / f"{name}.service"
            link.unlink(missing_ok=True)
            if verb == "enable":
                link.symlink_to(UNITS / f"{name}.service")
            done()
        elif verb in ("status", "show", "is-active", "is-enabled"):
            done()
        else:
            self._answer(connection, {"error": f"Unknown command verb {verb}."})

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            for service in self.services.values():
                if service.pid == pid:
                    what = f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else f"{os.WEXITSTATUS(status)}"
                    print(f"safelab: {service.unit.name} (pid {pid}) ended: {what}", file=sys.stderr, flush=True)
                    service.ended(status)

    def run(self) -> None:
        """Until the node is shut down in order: services stopped first, as at the shutdown of a server."""
        stopping = False
        while True:
            self._reap()
            now = time.monotonic()
            due = [when for service in self.services.values() if (when := service.tick(now)) is not None]
            if self.halting and not stopping:
                stopping = True
                for service in self.services.values():
                    service.stop()
            if stopping and not any(service.pid for service in self.services.values()):
                return
            timeout = max(0.0, min(due) - now) if due else None
            for key, _ in self.selector.select(timeout):
                key.data()


def main() -> int:
    machine = Machine(**json.loads(sys.stdin.readline()))
    host_pid = os.readlink("/proc/self")  # the host's /proc is still the one that is mounted
    syscalls.name_process("safelab-init")
    faulthandler.register(signal.SIGUSR1)
    os.umask(0o022)
    socket.sethostname(machine.name)
    enter_root(build_root(machine))
    print(f"pid {host_pid}", flush=True)
    if sys.stdin.readline() != "plugged\n":
        return 1
    bring_network_up(machine)
    init = Init()
    init.start_enabled()
    print("ready", flush=True)
    null = os.open("/dev/null", os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(2, 1)
    init.run()
    os.sync()
    return 0


if __name__ == "__main__":
    sys.exit(main())
