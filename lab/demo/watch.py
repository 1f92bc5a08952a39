"""What the demonstration looks at while it runs, and how it is shown."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from installation.environment import interpreter
from lab.cluster import Lab, Node
from safekit.disk.resources import parse

MODULE = "postgresql"
_COLORS = {"green": "32", "magenta": "35", "red": "31"}


class Screen:
    """Lines with the seconds since the beginning, and one line at the bottom that is rewritten (on a terminal)."""

    def __init__(self) -> None:
        self.begin = time.monotonic()
        self._terminal = sys.stdout.isatty()
        self._open = False

    def paint(self, text: str, color: str) -> str:
        return f"\033[{color}m{text}\033[0m" if self._terminal else text

    def say(self, text: str) -> None:
        """A line that stays."""
        self._clear()
        print(f"{time.monotonic() - self.begin:6.1f} s  {text}", flush=True)

    def title(self, text: str) -> None:
        self._clear()
        print(f"\n{self.paint(text, '1')}", flush=True)

    def plain(self, text: str = "") -> None:
        self._clear()
        print(text, flush=True)

    def progress(self, text: str) -> None:
        """The line that is rewritten; shown on a terminal only."""
        if self._terminal:
            print(f"\r\033[2K{time.monotonic() - self.begin:6.1f} s  {text}", end="", flush=True)
            self._open = True

    def _clear(self) -> None:
        if self._open:
            print("\r\033[2K", end="")
            self._open = False


@dataclass(frozen=True)
class ServerState:
    """What a node's resource file says."""

    state: str
    color: str

    def __str__(self) -> str:
        return f"{self.state} {self.color}".strip()


def server_state(node: Node, booted: float) -> ServerState:
    """Read from outside: it costs the node nothing. `booted`: Unix time; older states are from another life."""
    if not node.is_on:
        return ServerState("power off", "")
    var = Path(f"/proc/{node.process.pid}/root/var/safekit/modules/{MODULE}")
    try:
        resources = parse((var / "resources").read_text())
    except OSError:  # not started yet, or the power just failed
        return ServerState("STOP", "red")
    state, color = resources.get("state.local"), resources.get("state.color")
    if state is None:
        return ServerState("STOP", "red")
    if max(state.since, color.since if color else 0.0) < booted:
        return ServerState("booting", "")
    return ServerState(state.value, color.value if color else "red")


class StateWatcher:
    """Says on the screen when the state of a server changes."""

    def __init__(self, lab: Lab, screen: Screen) -> None:
        self.lab = lab
        self.screen = screen
        self.last: dict[str, ServerState] = {}
        self._booted = dict.fromkeys(lab.nodes, 0.0)

    def booting(self, node: Node) -> None:
        """The node is being powered on."""
        self._booted[node.name] = time.time()

    def look(self) -> dict[str, ServerState]:
        now = {node.name: server_state(node, self._booted[node.name]) for node in self.lab}
        for name, state in now.items():
            if self.last.get(name) != state:
                others = ", ".join(f"{other} {now[other]}" for other in now if other != name)
                shown = self.screen.paint(f"{state!s:<15}", _COLORS.get(state.color, "1"))
                self.screen.say(f"{name}  {shown}  ({others})")
        self.last = now
        return now


class Load:
    """The client program in the client node, and what it last reported."""

    def __init__(self, lab: Lab, host: str, workers: int, kept: str) -> None:
        program = str(Path(__file__).with_name("client.py"))
        self.acknowledged = 0
        self.pause = 0.0
        self.longest = 0.0
        self._process: subprocess.Popen[str] = lab.client.popen(
            [str(interpreter()), program, host, str(workers), kept],
            env={"PGPASSWORD": "demo"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        stream: IO[str] | None = self._process.stdout
        assert stream is not None
        for line in stream:
            report = json.loads(line)
            self.acknowledged, self.pause, self.longest = report["acknowledged"], report["pause"], report["longest"]

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def stop(self) -> None:
        """The client ends when its input does. Raises TimeoutExpired."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(20)
        self._reader.join(5)


def reintegration(node: Node) -> str | None:
    """Progress of the reintegration on a node in one line; None when there is none."""
    done = node.safekit("state", "-m", MODULE, "--json", check=False, timeout=10)
    if done.returncode != 0:
        return None
    data = json.loads(done.stdout)
    entries = data.get("modules", [data]) if isinstance(data, dict) else data
    for entry in entries:
        progress = entry.get("reintegration")
        if progress:
            left = progress["seconds_left"]
            return (
                f"{progress['files']}/{progress['files_total']} files, "
                f"{progress['bytes'] / 1e6:.1f} of {progress['bytes_total'] / 1e6:.1f} MB, "
                f"{progress['bytes_per_second'] / 1e6:.1f} MB/s" + (f", {left:.0f} s left" if left is not None else "")
            )
    return None


def tree(node: Node, directory: str) -> dict[str, str]:
    """Relative path -> kind, mode, owner and content of everything below a directory of a node.

    Read from outside through the node's root; the directory must not be reached over a symbolic link.
    """
    import hashlib
    import stat

    root = Path(f"/proc/{node.process.pid}/root{directory}")
    found: dict[str, str] = {}
    for folder, folders, names in os.walk(root):
        for name in [*folders, *names]:
            path = Path(folder) / name
            about = path.lstat()
            text = f"{stat.filemode(about.st_mode)} {about.st_uid}:{about.st_gid}"
            if stat.S_ISREG(about.st_mode):
                with path.open("rb") as content:
                    text += f" {about.st_size} {hashlib.file_digest(content, 'sha256').hexdigest()}"
            elif stat.S_ISLNK(about.st_mode):
                text += f" -> {path.readlink()}"
            found[str(path.relative_to(root))] = text
    return found
