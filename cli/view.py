"""What one server knows about a module, put together for the commands that show it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cli.verdict import Situation, Verdict, judge
from safekit.disk.files import of_another_boot
from safekit.disk.paths import ModulePaths
from safekit.disk.resources import Resource, load


@dataclass(frozen=True)
class Progress:
    """A reintegration that runs: counts of files and bytes, rate in bytes per second, seconds left (None:
    not known yet). `kind` says which resynchronisation it is, '' when that is not settled yet."""

    files: int
    files_total: int
    done: int
    total: int
    rate: float
    eta: float | None
    kind: str = ""


@dataclass(frozen=True)
class ModuleView:
    """One line of `safekit state`. Times are Unix seconds, 0 when not known."""

    module: str
    id: int
    mode: str
    state: str
    color: str
    remote_state: str
    remote_color: str
    since: float
    remote_since: float
    running: bool
    heart: bool
    resources: Mapping[str, Resource]
    peer_server: str = "unknown"
    """The other server as safeadmin sees it: up, down or unknown."""

    @property
    def transient(self) -> bool:
        """Magenta: scripts or a reintegration run."""
        return self.color == "magenta"

    @property
    def verdict(self) -> Verdict:
        """The verdict on what this server knows."""
        uptodate = self.resources.get("rfs.uptodate")
        return judge(
            Situation(
                self.module,
                self.mode,
                self.state,
                self.color,
                self.remote_state,
                self.remote_color,
                self.since,
                self.remote_since,
                {name: resource.value for name, resource in self.resources.items()},
                self.heart,
                uptodate is not None
                and (uptodate.value, uptodate.setter) == ("down", "config")
                and "state.local" not in self.resources,
                self.peer_server == "up",
            )
        )


def view_of(module: str, known: Mapping[str, Any], resources: Mapping[str, Resource]) -> ModuleView:
    """Pure part of `read_module`. `known` is what safeadmin says; `resources` the resource file.

    A module whose processes do not run is STOP red whatever the file says: after a power failure the file
    still tells the state before it. `known["past"]`: it does so still, although the module is being started.
    """
    running, heart = bool(known.get("running")), bool(known.get("heart"))
    local, color = resources.get("state.local"), resources.get("state.color")
    remote, remote_color = resources.get("state.remote"), resources.get("state.remotecolor")
    mode = str(known.get("mode") or "")
    since = max((r.since for r in (local, color) if r is not None), default=0.0)
    remote_since = max((r.since for r in (remote, remote_color) if r is not None), default=0.0)
    if running and known.get("past"):
        state, shade, far, far_shade, since = "WAIT", "magenta", "UNKNOWN", "grey", 0.0
    elif running:
        state = local.value if local is not None else "WAIT"
        shade = color.value if color is not None else "magenta"
        far = remote.value if remote is not None else "UNKNOWN"
        far_shade = remote_color.value if remote_color is not None else "grey"
    else:
        state, shade, far, far_shade = "STOP", "red", "UNKNOWN", "grey"
    return ModuleView(
        module,
        int(known.get("id") or 0),
        mode,
        state,
        shade,
        far if mode == "mirror" else "",
        far_shade if mode == "mirror" else "",
        since,
        remote_since,
        running,
        heart,
        resources,
        str(known.get("cluster") or "unknown"),
    )


def read_module(module: str, known: Mapping[str, Any]) -> ModuleView:
    """The view now, without progress."""
    paths = ModulePaths(module)
    return view_of(module, {**known, "past": of_another_boot(paths.marker)}, load(paths.resources))


def duration(seconds: float) -> str:
    """A time span in at most two units: 42 s, 3 min 20 s, 2 h 5 min, 4 d 3 h."""
    left = max(round(seconds), 0)
    for size, name, smaller, small in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if left >= size:
            rest = left % size // smaller
            return f"{left // size} {name}" + (f" {rest} {small}" if rest else "")
    return f"{left} s"


def size(count: float) -> str:
    """A number of bytes for people (1 KB is 1024 bytes, as everywhere in the product)."""
    for unit in ("bytes", "KB", "MB", "GB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TB"


def moment(when: float, now: float | None = None) -> str:
    """A local time: without the date when it is today."""
    if when <= 0:
        return ""
    current = time.localtime(now)
    then = time.localtime(when)
    same_day = (then.tm_year, then.tm_yday) == (current.tm_year, current.tm_yday)
    return time.strftime("%H:%M:%S" if same_day else "%Y-%m-%d %H:%M:%S", then)


def progress_line(p: Progress) -> str:
    """Progress of a reintegration in one line, which a narrow terminal may cut: the time left comes first."""
    if not p.files_total:
        return "reintegration: comparing the directory trees"
    percent = f"{100 * p.done / p.total:.0f}%" if p.total else "-"
    left = f", {duration(p.eta)} left" if p.eta is not None else ""
    kind = f" ({p.kind})" if p.kind else ""
    return (
        f"reintegration{kind} {percent}{left}: {size(p.done)} of {size(p.total)}, {size(p.rate)}/s,"
        f" {p.files}/{p.files_total} files"
    )
