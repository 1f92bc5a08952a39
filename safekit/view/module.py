"""What one server knows about a module, put together for whoever shows it: the command and the web service."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from safekit.disk.files import of_another_boot
from safekit.disk.paths import ModulePaths
from safekit.disk.resources import Resource, load
from safekit.view.verdict import Situation, Verdict, judge


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
    given_up: str = ""
    """The newest quarantine: what this server gave up after a split brain; "" for none."""
    boot: bool = True
    """Whether it is started at boot, or nobody knows."""

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
                self.given_up,
                self.boot,
                {name: resource.since for name, resource in self.resources.items()},
                _next_synchronisation(self.resources),
            )
        )


def _next_synchronisation(resources: Mapping[str, Resource]) -> str:
    planned = resources.get("rfs.schedule")
    if planned is None:
        return ""
    from datetime import datetime

    from safekit.model.schedule import ScheduleError, next_time
    from safekit.spelling import from_word

    try:
        return f"{next_time(from_word(planned.value), datetime.now()):%Y-%m-%d %H:%M}"
    except ScheduleError:
        return ""  # the schedule of another release


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
        str(known.get("given_up") or ""),
        known.get("boot") != "off",
    )


def _given_up(paths: ModulePaths) -> str:
    try:
        names = os.listdir(paths.var / "quarantine")
    except OSError:
        return ""  # there is none, or it is not for this user
    return max((name for name in names if not name.startswith(".")), default="")


def read_module(module: str, known: Mapping[str, Any]) -> ModuleView:
    """The view now, without progress."""
    paths = ModulePaths(module)
    told = {**known, "past": of_another_boot(paths.marker), "given_up": _given_up(paths)}
    return view_of(module, told, load(paths.resources))


def as_data(view: ModuleView, running: Progress | None, *, resources: bool) -> dict[str, Any]:
    """The JSON form of a view."""
    verdict = view.verdict
    data: dict[str, Any] = {
        "module": view.module,
        "id": view.id,
        "mode": view.mode,
        "state": view.state,
        "color": view.color,
        "remote_state": view.remote_state,
        "remote_color": view.remote_color,
        "since": view.since,
        "running": view.running,
        "heart": view.heart,
        "verdict": {
            "kind": verdict.kind.value,
            "since": verdict.since,
            "reason": verdict.reason,
            "next_step": verdict.next_step,
        },
        "reintegration": None,
    }
    if running is not None:
        data["reintegration"] = {
            "files": running.files,
            "files_total": running.files_total,
            "bytes": running.done,
            "bytes_total": running.total,
            "bytes_per_second": running.rate,
            "seconds_left": running.eta,
            "kind": running.kind,
        }
    if resources:
        data["resources"] = {
            r.name: {"value": r.value, "since": r.since, "setter": r.setter} for r in view.resources.values()
        }
    return data


def progress_of(answer: dict[str, Any]) -> Progress | None:
    """The reintegration in an answer of nfsadmin to `status`; None when none runs."""
    found = answer.get("reintegration")
    if not isinstance(found, dict):
        return None

    def number(name: str) -> float:
        value = found.get(name)
        return float(value) if isinstance(value, int | float) else 0.0

    left = found.get("left")
    return Progress(
        int(number("files")),
        int(number("files_total")),
        int(number("bytes")),
        int(number("bytes_total")),
        number("rate") * 1024,
        float(left) if isinstance(left, int | float) else None,
        str(found.get("kind") or ""),
    )
