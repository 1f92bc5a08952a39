"""The process that holds a lab: its network namespace is the lab's switch, the nodes are its children.

When it dies, however it dies, the kernel kills all of the lab. It serves one request after the other on a socket in
the lab's directory: one JSON object a line each way.
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
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from lab import disk, init, kernel, rootfs
from lab.errors import LabError
from lab.faults import Faults
from lab.plan import CLIENT, Plan
from lab.state import SOCKET, Process, State, labs_directory, remove_directory
from lab.switch import Switch
from safekit import syscalls

BOOT_TIMEOUT = 30.0
OFF_TIMEOUT = 20.0
_NAMESPACES = ["--net", "--mount", "--pid", "--uts", "--ipc", "--propagation", "private"]


class Keeper:
    """A lab while it is up."""

    def __init__(self, plan: Plan, image: str | None) -> None:
        self.plan = plan
        self.directory = labs_directory() / plan.name
        self.state = State(plan=plan, keeper=Process.of(os.getpid()), image=image)
        self.switch = Switch(plan, self.directory / "keeper.log")
        self.children: dict[str, subprocess.Popen[str]] = {}
        self.selector = selectors.DefaultSelector()
        self.guard: socket.socket | None = None
        self.ended = False

    # --- power

    def boot(self, name: str) -> None:
        """Power a machine on and wait until its process 1 has started the services. Raises LabError."""
        self.plan.require_machine(name)
        if name in self.state.machines:
            raise LabError(f"{name} is on already", f"safelab poweroff {name}")
        directory = self.directory / "nodes" / name
        directory.mkdir(parents=True, exist_ok=True)
        if self.plan.disks and name != CLIENT:
            disk.make(directory)
        machine = init.Machine(
            name=name,
            directory=str(directory),
            places=rootfs.host_mounts(labs_directory()),
            checkout=str(Path(__file__).resolve().parents[1]),
            labs=str(labs_directory()),
            binds=list(self.plan.binds),
            image=None if name == CLIENT else self.state.image,
            disk=self.plan.disks and name != CLIENT,
            hosts=self.plan.hosts(),
            interfaces=[
                {"name": cable.interface, "ipv4": cable.ipv4, "ipv6": cable.ipv6} for cable in self.plan.cables(name)
            ],
        )
        console = directory / "console.log"
        with console.open("a") as log:
            child = subprocess.Popen(
                ["unshare", *_NAMESPACES, "--fork", "--kill-child", sys.executable, "-m", "lab.init"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                preexec_fn=syscalls.die_with_parent,
                start_new_session=True,
            )
        self.children[name] = child
        try:
            self._bring_up(name, child, json.dumps(asdict(machine)))
        except (LabError, OSError) as error:
            child.kill()
            self._collect(name)
            tail = console.read_text(errors="replace")[-800:].strip()
            cause = error.cause if isinstance(error, LabError) else str(error)
            raise LabError(f"{name} did not boot: {cause}", f"the end of {console}:\n{tail}") from error

    def _bring_up(self, name: str, child: subprocess.Popen[str], description: str) -> None:
        assert child.stdin is not None and child.stdout is not None
        child.stdin.write(description + "\n")
        child.stdin.flush()
        word, _, pid = self._line(child).partition(" ")
        if word != "pid":
            raise LabError("its file system could not be mounted", "")
        process = Process.of(int(pid))
        self._note(name, process)
        self.switch.plug(name, process)
        child.stdin.write("plugged\n")
        child.stdin.flush()
        if self._line(child) != "ready":
            raise LabError("its network or services could not be started", "")
        child.stdin.close()
        child.stdout.close()

    def _line(self, child: subprocess.Popen[str]) -> str:
        assert child.stdout is not None
        with selectors.DefaultSelector() as waiting:
            waiting.register(child.stdout, selectors.EVENT_READ)
            if not waiting.select(BOOT_TIMEOUT):
                raise LabError(f"no answer from its process 1 within {BOOT_TIMEOUT:g} s", "")
        return child.stdout.readline().rstrip("\n")

    def poweroff(self, names: list[str]) -> None:
        """Silence first, on all of them: no packet of the first one dying may reach the last one alive."""
        for name in names:
            self.plan.require_machine(name)
            if name not in self.state.machines:
                raise LabError(f"{name} is off already", f"safelab poweron {name}")
        for name in names:
            self.switch.isolate(name)
        processes = [self.state.machines[name] for name in names]
        # The disk goes before the processes: what they write while they are being killed was never written.
        for name, process in zip(names, processes, strict=True):
            if self.plan.disks and name != CLIENT:
                with suppress(FileNotFoundError):  # the process has just ended by itself
                    disk.power_off(Path(f"/proc/{process.pid}/root{init.DATA}"))
        for process in processes:
            kernel.send_signal(process.pid, signal.SIGKILL)
        for process in processes:
            kernel.wait_gone(process.pid, process.start, OFF_TIMEOUT)
        for name in names:
            self._collect(name)

    def shutdown(self, name: str) -> None:
        """Ask a node's process 1 for an orderly halt; the node shows as off when it has ended."""
        self.plan.require_node(name)
        if name not in self.state.machines:
            raise LabError(f"{name} is off already", f"safelab poweron {name}")
        kernel.send_signal(self.state.machines[name].pid, signal.SIGTERM)

    def _collect(self, name: str) -> None:
        """A machine has ended: reap it and take its cables away."""
        self.switch.unplug(name)
        child = self.children.pop(name)
        try:
            child.wait(OFF_TIMEOUT)
        except subprocess.TimeoutExpired as error:
            raise LabError(f"{name} does not end", f"see: ps -o pid,stat,wchan,cmd --ppid {child.pid}") from error
        for stream in (child.stdin, child.stdout):
            if stream is not None and not stream.closed:
                try:
                    stream.close()
                except BrokenPipeError:  # the last line was never read
                    continue
        if self.plan.disks and name != CLIENT:
            disk.wait_released(self.directory / "nodes" / name, OFF_TIMEOUT)
        self._note(name, None)

    def _note(self, name: str, process: Process | None) -> None:
        machines = dict(self.state.machines)
        machines.pop(name, None)
        if process is not None:
            machines[name] = process
        self._save(replace(self.state, machines=machines))

    def _save(self, state: State) -> None:
        self.state = state
        state.save(self.directory)

    def reap(self) -> None:
        """Notice machines that ended by themselves."""
        for name, child in list(self.children.items()):
            if child.poll() is not None:
                try:
                    self._collect(name)
                except LabError as error:  # whatever one node leaves behind, the others go on
                    print(f"{name} ended: {error.cause}", file=sys.stderr, flush=True)

    # --- faults

    def change_faults(self, faults: Faults) -> None:
        self.switch.change(faults)
        self._save(replace(self.state, faults=faults.to_json()))

    def cut(self, name: str, lan: str | None, *, join: bool = False) -> None:
        links = {(name, cable.lan) for cable in self.plan.cables(name, lan)}
        cut = self.switch.faults.cut - links if join else self.switch.faults.cut | links
        self.change_faults(replace(self.switch.faults, cut=frozenset(cut)))

    def block(self, source: str, destination: str, lan: str | None, *, unblock: bool = False) -> None:
        shared = [cable.lan for cable in self.plan.cables(source, lan)]
        if CLIENT in (source, destination):
            shared = [name for name in shared if name == self.plan.lans[0]]
        self.plan.require_machine(destination)
        pairs = {(source, destination, name) for name in shared}
        blocked = self.switch.faults.blocked - pairs if unblock else self.switch.faults.blocked | pairs
        self.change_faults(replace(self.switch.faults, blocked=frozenset(blocked)))

    def degrade(self, kind: str, name: str, lan: str | None, value: float | str | None) -> None:
        faults = self.switch.faults
        for cable in self.plan.cables(name, lan):
            faults = faults.with_value(kind, (name, cable.lan), value)
        self.change_faults(faults)

    # --- life

    def down(self) -> None:
        """Kill everything and remove the directory."""
        self.reap()
        if self.state.machines:
            self.poweroff(list(self.state.machines))
        self.ended = True
        remove_directory(self.directory)

    def listen(self) -> socket.socket:
        """The socket that commands find us by."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(str(self.directory / SOCKET))
        os.chmod(self.directory / SOCKET, 0o600)
        listener.listen(16)
        self._save(self.state)
        return listener

    def serve(self, listener: socket.socket) -> None:
        """Until `down`, or until the command that makes the lab dies before it is complete."""
        read, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self.selector.register(listener, selectors.EVENT_READ)
        self.selector.register(read, selectors.EVENT_READ)
        while not self.ended:
            for key, _ in self.selector.select():
                if key.fileobj is listener:
                    self._accept(listener)
                elif key.fileobj is self.guard:
                    self._guard_event()
                else:
                    os.read(read, 4096)
            if not self.ended:
                self.reap()

    def _accept(self, listener: socket.socket) -> None:
        connection, _ = listener.accept()
        connection.settimeout(5)
        answer: dict[str, Any] = {"ok": True}
        request: dict[str, Any] = {}
        try:
            with connection.makefile() as stream:
                request = json.loads(stream.readline(1 << 16))
            self._do(request.pop("op"), request, connection)
        except LabError as error:
            answer = {"ok": False, "cause": error.cause, "next_step": error.next_step}
        except (OSError, ValueError, KeyError, TypeError, subprocess.SubprocessError) as error:
            answer = {
                "ok": False,
                "cause": f"{type(error).__name__}: {error}",
                "next_step": f"see {self.directory}/keeper.log",
            }
        try:
            connection.sendall(json.dumps(answer).encode() + b"\n")
        except OSError as error:
            print(f"an answer was not taken: {error}", file=sys.stderr, flush=True)
        if connection is not self.guard:
            connection.close()

    def _do(self, op: str, fields: dict[str, Any], connection: socket.socket) -> None:
        if op == "guard":
            self.guard = connection
            self.selector.register(connection, selectors.EVENT_READ)
        elif op == "boot":
            self.boot(fields["node"])
        elif op == "poweroff":
            self.poweroff(fields["nodes"])
        elif op == "shutdown":
            self.shutdown(fields["node"])
        elif op in ("cut", "join"):
            self.cut(fields["node"], fields["lan"], join=op == "join")
        elif op in ("block", "unblock"):
            self.block(fields["source"], fields["destination"], fields["lan"], unblock=op == "unblock")
        elif op in ("delay", "loss", "limit"):
            self.degrade(op, fields["node"], fields["lan"], fields["value"])
        elif op == "down":
            self.down()
        else:
            raise LabError(f"the keeper knows no operation {op!r}", "use the safelab of the version that made this lab")

    def _guard_event(self) -> None:
        """The command that makes the lab says that it is complete, or is gone."""
        assert self.guard is not None
        try:
            word = self.guard.recv(64)
        except OSError:
            word = b""
        self.selector.unregister(self.guard)
        self.guard.close()
        self.guard = None
        if word == b"complete\n":
            self._save(replace(self.state, complete=True))
        else:
            self.down()


def main() -> int:
    description = json.loads(sys.stdin.readline())
    plan = Plan.from_json(description["plan"])
    syscalls.name_process("safelab-keeper")
    faulthandler.register(signal.SIGUSR1)
    os.umask(0o022)
    kernel.unshare(kernel.CLONE_NEWNET)
    keeper = Keeper(plan, description["image"])
    keeper.switch.build()
    listener = keeper.listen()
    null = os.open("/dev/null", os.O_RDWR)
    os.dup2(null, 0)
    ready = os.dup(1)
    os.dup2(2, 1)
    os.set_inheritable(ready, False)
    os.write(ready, b"ready\n")
    os.close(ready)
    keeper.serve(listener)
    return 0


if __name__ == "__main__":
    sys.exit(main())
