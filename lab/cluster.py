"""Labs as Python objects, for the command, the tests and the demonstration."""

from __future__ import annotations

import contextlib
import io
import json
import os
import secrets
import shlex
import signal
import socket
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from lab import kernel
from lab.errors import LabError
from lab.ground import PATH, check_host, check_place, free_name, remove_dead, start_keeper
from lab.plan import CLIENT, Plan
from lab.state import (
    SOCKET,
    Process,
    State,
    changing_labs,
    choose,
    lab_directory,
    lab_names,
    labs_directory,
    load,
    remove_directory,
)
from lab.steps import Steps
from lab.waiting import wait_until

DEFAULT_LANS = ("default", "repli")
_SHUTDOWN_TIMEOUT = 300.0
_REQUEST_TIMEOUT = 120.0
_T = TypeVar("_T")

Completed = subprocess.CompletedProcess[str]


def inside(process: Process, command: Sequence[str], env: Mapping[str, str], cwd: str | None = None) -> list[str]:
    """The command line that runs `command` in all namespaces of a node, with an environment of the node's own."""
    clean = {"PATH": PATH, "HOME": "/root", "USER": "root", "LANG": "C.UTF-8", "TERM": os.environ.get("TERM", "dumb")}
    words = ["nsenter", "-t", str(process.pid), "-m", "-u", "-i", "-n", "-p", "--", "env", "-i", "-C", cwd or "/root"]
    return [*words, *(f"{name}={value}" for name, value in {**clean, **env}.items()), *command]


class Node:
    """One machine of a lab."""

    def __init__(self, lab: Lab, name: str) -> None:
        self.lab = lab
        self.name = name

    def __repr__(self) -> str:
        return f"<{self.lab.name}/{self.name}>"

    @property
    def process(self) -> Process:
        """Process 1 of the node, as the host sees it. Raises LabError when the node is off."""
        process = self.lab.state.machines.get(self.name)
        if process is None or not process.alive:
            raise LabError(f"{self.name} of lab {self.lab.name} is off", f"safelab poweron {self.name}")
        return process

    @property
    def is_on(self) -> bool:
        process = self.lab.state.machines.get(self.name)
        return process is not None and process.alive

    def address(self, lan: str | None = None) -> str:
        """IPv4 address on `lan`, the first one by default."""
        return self.lab.plan.cable(self.name, lan or self.lab.plan.lans[0]).ipv4

    def address6(self, lan: str | None = None) -> str:
        return self.lab.plan.cable(self.name, lan or self.lab.plan.lans[0]).ipv6

    # --- commands

    def run(
        self,
        command: str | Sequence[str],
        *,
        check: bool = True,
        timeout: float = 60.0,
        input: str | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
    ) -> Completed:
        """Run a command in the node; a string is given to sh. Output is captured as text.

        The command is killed after `timeout` seconds. Raises TimeoutExpired, and with `check` CalledProcessError
        whose text shows what the command said.
        """
        words = ["sh", "-c", command] if isinstance(command, str) else list(command)
        limited = ["timeout", "-k", "2", f"{timeout:g}", *words]
        done = subprocess.run(
            inside(self.process, limited, env or {}, cwd),
            input=input,
            stdin=subprocess.DEVNULL if input is None else None,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=timeout + 15,
        )
        if done.returncode == 124:
            raise subprocess.TimeoutExpired(words, timeout, done.stdout, done.stderr)
        if check and done.returncode != 0:
            raise CommandFailed(self, words, done)
        return done

    def popen(
        self, command: str | Sequence[str], *, env: Mapping[str, str] | None = None, **options: Any
    ) -> subprocess.Popen[Any]:
        """Start a command in the node; killing the returned process kills the command too."""
        words = ["sh", "-c", command] if isinstance(command, str) else list(command)
        return subprocess.Popen(inside(self.process, ["setpriv", "--pdeathsig", "KILL", *words], env or {}), **options)

    def safekit(self, *arguments: str, check: bool = True, timeout: float = 60.0) -> Completed:
        """`safekit ARGUMENTS` in the node."""
        return self.run(["/opt/safekit/safekit", *arguments], check=check, timeout=timeout)

    def read(self, path: str) -> str:
        """Content of a file of the node. Raises FileNotFoundError."""
        done = self.run(["cat", "--", path], check=False)
        if done.returncode != 0:
            raise FileNotFoundError(f"{self.name}:{path}: {done.stderr.strip()}")
        return done.stdout

    def write(self, path: str, text: str, *, mode: int | None = None) -> None:
        """Make a file of the node hold `text`; its directory is made when missing."""
        quoted = shlex.quote(path)
        change = f" && chmod {mode:o} {quoted}" if mode is not None else ""
        self.run(f'mkdir -p -- "$(dirname -- {quoted})" && cat > {quoted}{change}', input=text)

    # --- processes

    def processes(self) -> dict[int, str]:
        """Host pid -> name of every process of the node."""
        return dict(kernel.processes_of(self.process.pid))

    def pids(self, name: str) -> list[int]:
        """Host pids of the node's processes called `name`."""
        return sorted(pid for pid, comm in self.processes().items() if comm == name[:15])

    def kill(self, name: str, number: int = signal.SIGKILL) -> list[int]:
        """Send a signal to the node's processes called `name`. Raises LabError when there is none."""
        pids = self.pids(name)
        if not pids:
            names = ", ".join(sorted(set(self.processes().values())))
            raise LabError(f"no process called {name!r} runs on {self.name}", f"its processes: {names}")
        for pid in pids:
            kernel.send_signal(pid, number)
        return pids

    def freeze(self, process: str | None = None) -> None:
        """SIGSTOP the processes called `process`, or all of the node."""
        if process is not None:
            self.kill(process, signal.SIGSTOP)
            return
        stopped: set[int] = set()
        for _ in range(100):  # until a look finds no new one: a process may fork while we stop the others
            fresh = set(self.processes()) - stopped
            if not fresh:
                return
            for pid in fresh:
                kernel.send_signal(pid, signal.SIGSTOP)
            stopped |= fresh
        raise LabError(f"{self.name} makes processes faster than they can be stopped", "try again")

    def thaw(self, process: str | None = None) -> None:
        for pid in self.pids(process) if process is not None else self.processes():
            kernel.send_signal(pid, signal.SIGCONT)

    # --- power and cables

    def poweroff(self) -> None:
        """Pull the cables and kill everything, as when the power fails."""
        self.lab.poweroff(self)

    def poweron(self) -> None:
        self.lab.request("boot", node=self.name)

    def shutdown(self, timeout: float = _SHUTDOWN_TIMEOUT) -> None:
        """Orderly: services are stopped as by the system's shutdown, then the power goes off."""
        self.lab.request("shutdown", node=self.name)
        try:
            wait_until(lambda: self.name not in self.lab.state.machines, timeout, f"orderly shutdown of {self.name}")
        except TimeoutError as error:
            log = lab_directory(self.lab.name) / "nodes" / self.name / "console.log"
            raise LabError(str(error), f"see {log}, or safelab poweroff {self.name}") from None

    def cut(self, lan: str | None = None) -> None:
        """Unplug the cable of `lan`, or all."""
        self.lab.request("cut", node=self.name, lan=lan)

    def join(self, lan: str | None = None) -> None:
        self.lab.request("join", node=self.name, lan=lan)


class CommandFailed(subprocess.CalledProcessError):
    """A command in a node ended with an error; the text shows what it said."""

    def __init__(self, node: Node, command: Sequence[str], done: Completed) -> None:
        super().__init__(done.returncode, command, done.stdout, done.stderr)
        self.node = node

    def __str__(self) -> str:
        said = "\n".join(part.strip() for part in (self.stdout, self.stderr) if part and part.strip())
        return f"{self.node.name}: {shlex.join(self.cmd)} -> {self.returncode}\n{said[-4000:]}"


class Lab:
    """A lab that is up. Use `Lab.up()` or `Lab.attach()`."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.name = plan.name
        self.nodes = {name: Node(self, name) for name in plan.nodes}
        self.client = Node(self, CLIENT)

    @classmethod
    def up(
        cls,
        name: str | None = None,
        *,
        nodes: int = 2,
        lans: Sequence[str] = DEFAULT_LANS,
        binds: Sequence[str] = (),
        disks: bool = False,
        bare: bool = False,
        steps: Steps | None = None,
    ) -> Lab:
        """Make a lab: nodes with the product installed, the cluster configured (not when `bare`), safeadmin running.
        `steps` tells how far it is.

        Raises LabError; nothing is left behind then, nor when the calling process is killed.
        """
        from lab import image  # late: a command in a node shall not wait for the installer's code

        check_host(disks)
        steps = steps or Steps()
        with changing_labs() as labs:
            check_place(labs)
            plan = Plan(name or free_name(), nodes, tuple(lans), tuple(binds), disks)
            remove_dead(plan.name)
            directory = lab_directory(plan.name)
            directory.mkdir(mode=0o755)
            place = image.place(labs)
            new = not place.is_dir()
            steps.expect(*(("image",) if new else ()), "boot", *(() if bare else ("cluster",)))
            try:
                with steps.step("image") if new else contextlib.nullcontext():
                    made = image.provide(place, labs)
                start_keeper(plan, made, directory)
                lab = cls(plan)
                guard = lab._connect()
                guard.sendall(b'{"op": "guard"}\n')
                guard.makefile().readline()
            except BaseException:
                remove_dead(plan.name, kill=True)
                raise
        try:
            with steps.step("boot"):
                for machine in plan.machines:
                    lab.request("boot", node=machine)
            if not bare:
                with steps.step("cluster"):
                    lab.configure_cluster()
            guard.sendall(b"complete\n")
        except BaseException:
            lab.down()
            raise
        finally:
            guard.close()
        wait_until(lambda: lab.state.complete, 10, "the keeper's note that the lab is complete")
        return lab

    @classmethod
    def attach(cls, name: str | None = None) -> Lab:
        """The lab of that name, or the only one that is up. Raises LabError."""
        return cls(choose(name).plan)

    @property
    def state(self) -> State:
        state = load(lab_directory(self.name))
        if state is None or not state.alive:
            raise LabError(f"lab {self.name} is gone", f"safelab up --name {self.name}")
        return state

    def node(self, name: str) -> Node:
        """A node, or the client. Raises LabError."""
        self.plan.require_machine(name)
        return self.client if name == CLIENT else self.nodes[name]

    def __iter__(self) -> Iterator[Node]:
        return iter(self.nodes.values())

    @property
    def vip(self) -> str:
        """A free IPv4 address of the first lan."""
        return self.plan.virtual_ipv4

    @property
    def vip6(self) -> str:
        return self.plan.virtual_ipv6

    # --- faults

    def poweroff(self, *nodes: Node) -> None:
        """Power off several nodes at the same moment."""
        self.request("poweroff", nodes=[node.name for node in nodes])

    def block(self, source: Node | str, destination: Node | str, lan: str | None = None) -> None:
        """Drop what `source` sends to `destination`; the other direction works."""
        self.request("block", source=_name(source), destination=_name(destination), lan=lan)

    def unblock(self, source: Node | str, destination: Node | str, lan: str | None = None) -> None:
        self.request("unblock", source=_name(source), destination=_name(destination), lan=lan)

    def delay(self, node: Node | str, milliseconds: float, lan: str | None = None) -> None:
        """Every frame from and to the node takes that much longer; 0 takes the delay away."""
        self.request("delay", node=_name(node), lan=lan, value=milliseconds or None)

    def loss(self, node: Node | str, percent: float, lan: str | None = None) -> None:
        """That share of the frames from and to the node is lost; 0 takes the loss away."""
        self.request("loss", node=_name(node), lan=lan, value=percent or None)

    def limit(self, node: Node | str, rate: str | None, lan: str | None = None) -> None:
        """Limit the node's link in both directions (`10mbit`); None takes the limit away."""
        self.request("limit", node=_name(node), lan=lan, value=rate)

    # --- life

    def down(self) -> None:
        """Remove the lab and all that belongs to it."""
        with changing_labs():
            try:
                self.request("down")
            except LabError:
                remove_dead(self.name, kill=True)
                return
            state = load(lab_directory(self.name))
            assert state is None, "the keeper removes the lab's directory"

    def summary(self) -> dict[str, Any]:
        """What `up` and `status --json` print."""
        state = self.state
        return {
            "name": self.name,
            "keeper": state.keeper.pid,
            "lans": list(self.plan.lans),
            "nodes": {name: self._describe(state, name) for name in self.plan.nodes},
            "client": self._describe(state, CLIENT),
            "vip": {"ipv4": self.vip, "ipv6": self.vip6},
            "faults": state.faults,
        }

    def _describe(self, state: State, name: str) -> dict[str, Any]:
        process = state.machines.get(name)
        addresses = {cable.lan: [cable.ipv4, cable.ipv6] for cable in self.plan.cables(name)}
        power = process is not None and process.alive
        return {"power": "on" if power else "off", "pid": process.pid if process else None, "addresses": addresses}

    # --- the keeper

    def _connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(_REQUEST_TIMEOUT)
        try:
            connection.connect(str(lab_directory(self.name) / SOCKET))
        except OSError as error:
            connection.close()
            raise LabError(
                f"lab {self.name} does not answer: {error}",
                f"remove what is left with: safelab down --name {self.name}",
            ) from error
        return connection

    def request(self, op: str, **fields: object) -> None:
        """Ask the keeper. Raises LabError with its refusal."""
        with contextlib.closing(self._connect()) as connection:
            connection.sendall(json.dumps({"op": op, **fields}).encode() + b"\n")
            try:
                with connection.makefile() as stream:
                    line = stream.readline()
            except TimeoutError:
                line = ""
        if not line:
            raise LabError(f"lab {self.name}: no answer to {op}", f"see {lab_directory(self.name)}/keeper.log")
        answer = json.loads(line)
        if not answer["ok"]:
            raise LabError(answer["cause"], answer["next_step"])

    def configure_cluster(self) -> None:
        """As an administrator does it: one cluster.zip with the configuration and the key, applied on every node."""
        import zipfile

        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w") as bundle:
            bundle.writestr("cluster.xml", self.plan.cluster_xml())
            bundle.writestr("cluster.key", secrets.token_hex(32) + "\n")
        for node in self:
            place = Path(f"/proc/{node.process.pid}/root/root/cluster.zip")
            place.write_bytes(archive.getvalue())
            place.chmod(0o600)
            try:
                node.safekit("cluster", "config", "/root/cluster.zip", timeout=90)
            except (subprocess.SubprocessError, OSError) as error:
                raise LabError(
                    f"the cluster could not be configured: {error}", "see the message of the node"
                ) from error
            finally:
                place.unlink()


def _name(node: Node | str) -> str:
    return node.name if isinstance(node, Node) else node


def remove(name: str | None) -> str:
    """`safelab down`: remove the lab that is meant, dead or alive. Returns its name. Raises LabError."""
    if name is None:
        name = os.environ.get("SAFELAB_NAME") or choose(None).plan.name
    if name not in lab_names():
        raise LabError(f"there is no lab {name!r}", f"labs: {', '.join(lab_names()) or 'none'}")
    state = load(lab_directory(name))
    if state is not None and state.alive:
        Lab(state.plan).down()
    else:
        with changing_labs():
            remove_dead(name)
    return name


def collect_garbage() -> list[str]:
    """`safelab gc`: remove what dead labs and old images left. Returns what was removed."""
    from lab import image

    removed = []
    with changing_labs() as labs:
        for name in lab_names():
            state = load(lab_directory(name))
            if state is None or not state.alive:
                remove_dead(name)
                removed.append(f"lab {name}")
        for grave in labs.glob(".removed-*"):
            remove_directory(grave)
            removed.append(f"{grave.name}")
        removed += [f"image {entry}" for entry in image.prune(labs_directory())]
    return removed
