"""What this server shows of itself to a console: its modules as rows, with a number that changes with them.

The resource files are looked at several times a second, but only while somebody wants to know.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import time
from collections.abc import Mapping
from typing import Any

from safekit import __version__
from safekit.bus.endpoint import BusError, Endpoint
from safekit.bus.requests.nfsadmin_status import GetStatus
from safekit.configuration import list_modules
from safekit.disk.paths import ModulePaths, cluster_dir, node_name
from safekit.disk.resources import load
from safekit.model.cluster import ClusterError, load_cluster
from safekit.view.module import progress_of
from safewebserver.modules import Modules

LOOK_SECONDS = 0.2
CALM_SECONDS = 2.0
"""Between two looks without a changed file: what safeadmin alone knows may have changed."""
MOVING_SECONDS = 1.0
"""Between two looks at a reintegration."""
INTEREST_SECONDS = 12.0
"""Whoever waits for changes asks again sooner; after that nobody is there."""

Row = dict[str, Any]


def about_cluster() -> tuple[list[str], str]:
    """Names of the servers, and the signature of the cluster's configuration; nothing without one."""
    try:
        cluster = load_cluster()
    except ClusterError:
        return [node_name()], ""
    names = list(dict.fromkeys(node.name for lan in cluster.lans for node in lan.nodes))
    return names or [node_name()], cluster.signature


class Look:
    """The rows, and whoever waits for their change."""

    def __init__(self, modules: Modules, bus: Endpoint | None) -> None:
        self._modules = modules
        self._bus = bus
        self.epoch = secrets.token_hex(4)
        self.number = 0
        self.view: Row = {}
        self._changed = asyncio.Event()
        self._wanted = 0.0
        self._task: asyncio.Task[None] | None = None
        self._signatures: dict[str, tuple[object, Row]] = {}

    @property
    def seq(self) -> str:
        """Changes when anything of the view did."""
        return f"{self.epoch}.{self.number}"

    async def current(self, after: str = "", wait: float = 0.0) -> Row:
        """The view; when it is still that of `after`, only after a change or `wait` seconds."""
        self._wanted = time.monotonic() + max(INTEREST_SECONDS, wait + INTEREST_SECONDS)
        if self._task is None or self._task.done():
            await self._look()
            self._task = asyncio.create_task(self._run())
        deadline = time.monotonic() + wait
        while self.seq == after and (left := deadline - time.monotonic()) > 0:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), left)
        return {**self.view, "seq": self.seq, "time": time.time()}

    async def close(self) -> None:
        """Look no more."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _run(self) -> None:
        stamp, last = self._stamp(), time.monotonic()
        while time.monotonic() < self._wanted:
            await asyncio.sleep(LOOK_SECONDS)
            now = self._stamp()
            pause = MOVING_SECONDS if self._moves() else CALM_SECONDS
            if now != stamp or time.monotonic() - last >= pause:
                stamp, last = now, time.monotonic()
                await self._look()

    def _moves(self) -> bool:
        return any(row.get("reintegration") for row in self.view.get("modules", {}).values())

    @staticmethod
    def _stamp() -> object:
        """Of the files that tell the states."""
        found: list[object] = [_time(cluster_dir() / "cluster.json")]
        for name in list_modules():
            paths = ModulePaths(name)
            found += [name, _time(paths.resources), _time(paths.marker), _time(paths.active_json)]
        return found

    async def _look(self) -> None:
        rows = {name: await self._row(ModulePaths(name)) for name in list_modules()}
        nodes, signature = about_cluster()
        view: Row = {
            "node": node_name(),
            "version": __version__,
            "configured": bool(signature),
            "cluster": signature,
            "nodes": nodes,
            "modules": rows,
        }
        if view != self.view:
            self.view = view
            self.number += 1
            self._changed.set()
            self._changed = asyncio.Event()

    async def _row(self, paths: ModulePaths) -> Row:
        row: Row = await self._modules.describe(paths)
        found = load(paths.resources)
        values = {name: resource.value for name, resource in found.items()}
        running = bool(row["running"])
        row |= {
            "degraded": running and values.get("rfs.degraded") == "up",
            "failover": values.get("usersetting.failover", "on"),
            "encryption": values.get("encryption.module", "") if running else "",
            "uptodate": values.get("rfs.uptodate", ""),
            "stamp": str(_time(paths.resources) or ""),
            "down": sorted(n for n, v in values.items() if v == "down" and _matters(n)) if running else [],
            "shares": _shares(values) if running else {},
            "reintegration": await self._reintegration(row),
            **self._configuration(paths),
        }
        return row

    async def _reintegration(self, row: Row) -> Row | None:
        moves = (row["state"] == "SECOND" and row["color"] == "magenta") or (
            row["state"] in ("ALONE", "PRIM") and row["remote_state"] == "SECOND" and row["remote_color"] == "magenta"
        )
        if not moves or self._bus is None:
            return None
        try:
            found = progress_of(await self._bus.ask(row["module"], GetStatus(), 0.5))
        except BusError:
            return None
        if found is None:
            return None
        return {
            "files": found.files,
            "files_total": found.files_total,
            "bytes": found.done,
            "bytes_total": found.total,
            "bytes_per_second": round(found.rate),
            "seconds_left": None if found.eta is None else round(found.eta),
            "kind": found.kind,
        }

    def _configuration(self, paths: ModulePaths) -> Row:
        """What the active configuration says; read again when it changes."""
        stamp = _time(paths.active_json)
        kept = self._signatures.get(paths.module)
        if kept is not None and kept[0] == stamp:
            return kept[1]
        facts: Row = {"signature": "", "virtual": [], "replicated": []}
        with contextlib.suppress(OSError, ValueError, TypeError, AttributeError, KeyError):
            data = json.loads(paths.active_json.read_text())
            facts["signature"] = str(data.get("signature") or "")
            facts["replicated"] = [str(each["dir"]) for each in (data.get("rfs") or {}).get("replicated", [])]
            facts["virtual"] = sorted(set(_addresses(data.get("vip"))))
        self._signatures[paths.module] = (stamp, facts)
        return facts


def _addresses(data: object) -> list[str]:
    """Every `addr` of a virtual address in the compiled configuration."""
    if isinstance(data, Mapping):
        own = [str(data["addr"])] if isinstance(data.get("addr"), str) and data.get("addr") else []
        return own + [each for value in data.values() for each in _addresses(value)]
    return [each for value in data for each in _addresses(value)] if isinstance(data, list) else []


def _matters(name: str) -> bool:
    return not name.startswith(("rfs.", "usersetting.", "state.", "remote."))


def _shares(values: Mapping[str, str]) -> dict[str, str]:
    """The part of the load of a farm that this server takes, by group."""
    return {name.removeprefix("farm."): value for name, value in values.items() if name.startswith("farm.")}


def _time(path: os.PathLike[str]) -> int | None:
    try:
        return os.stat(path).st_mtime_ns
    except (FileNotFoundError, NotADirectoryError):
        return None
