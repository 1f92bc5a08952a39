"""What the console gives to several servers at once: the configuration of the cluster, and a module.

As `safekit -G` and `safekit -E` do it: each server takes all or nothing, and tells how it went.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from aiohttp import web

from safekit.bus.keyholders import key_holders
from safekit.configuration import ConfigureError, module_id
from safekit.disk.archive import pack
from safekit.disk.paths import cluster_dir, node_name, safevar
from safekit.wire.keys import asking_keys, cluster_key, next_key
from safekit.wire.targets import Credentials, Target
from safekit.wire.webclient import Ask, CallError, call
from safewebserver.api import DEFAULT_TIMEOUT, PREFIX, ApiError, caller, json_of, need, reply
from safewebserver.child import Commands
from safewebserver.modules import paths_of
from safewebserver.permissions import Role
from safewebserver.relay import MAX_ANSWER, described_cluster, here, targets_of
from safewebserver.roles import BEHALF, ROLE

MAX_SERVERS = 64
Row = dict[str, Any]


class Deploy:
    """The handlers."""

    def __init__(self, commands: Commands) -> None:
        self._commands = commands
        self._snapshot = asyncio.Lock()

    def routes(self) -> list[web.RouteDef]:
        """Their routes."""
        return [
            web.post(f"{PREFIX}/cluster/apply", self.cluster),
            web.post(PREFIX + "/modules/{module}/deploy", self.module),
            web.get(PREFIX + "/modules/{module}/snapshot", self.snapshot),
        ]

    async def cluster(self, request: web.Request) -> web.StreamResponse:
        """A cluster.xml: applied here, then given with its key to every server that it names."""
        need(request, Role.ADMIN)
        data = await json_of(request)
        xml, before, renew, people = data.get("xml"), data.get("before"), data.get("renew"), data.get("people", {})
        if not isinstance(xml, str) or not isinstance(before, str) or not isinstance(people, dict):
            raise ApiError(400, "malformed", "expected xml, before (the text that it replaces) and people")
        path = cluster_dir() / "cluster.xml"
        if before != (path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""):
            raise ApiError(412, "changed", "cluster.xml was changed meanwhile", "load it again")
        results = [await self._own_cluster(request, xml)]
        if results[0]["status"] == 0 and renew is True:
            key = await self._words(request, ("cluster", "genkey"))
            results[0] = key | {"output": results[0]["output"] + key["output"]}
        if results[0]["status"] == 0:
            results += await self._give_cluster(request, people)
        return reply(request, {"results": results})

    async def _own_cluster(self, request: web.Request, xml: str) -> Row:
        with tempfile.TemporaryDirectory(prefix="console-", dir=_workplace()) as directory:
            file = Path(directory) / "cluster.xml"
            try:
                file.write_text(xml, encoding="utf-8")
            except UnicodeEncodeError:
                raise ApiError(400, "malformed", "the text has half a character") from None
            return await self._words(request, ("cluster", "config", str(file)))

    async def _words(self, request: web.Request, words: tuple[str, ...]) -> Row:
        """A command of this server."""
        result = await self._commands.run(("-u", caller(request).name, *words), DEFAULT_TIMEOUT)
        if result is None:
            return _row(node_name(), 1, "it has not ended yet and goes on", "slow")
        return _row(node_name(), result.status, result.output)

    async def _give_cluster(self, request: web.Request, people: Row) -> list[Row]:
        xml = (cluster_dir() / "cluster.xml").read_text(encoding="utf-8")
        waiting = next_key()
        key = waiting or cluster_key()
        body = json.dumps({"cluster.xml": xml, "cluster.key": key.hex()}).encode()
        ask = Ask("PUT", f"{PREFIX}/cluster", body, secret=True, seconds=DEFAULT_TIMEOUT)
        targets = _others(request)
        results = await _all(targets, lambda _: ask, people)
        if waiting is not None:
            # Last here: until it is in force on the others, this server must still speak with the old one.
            own = await asyncio.to_thread(_own_target, request)
            results += await _all([own] if own is not None else [], lambda _: ask, people)
        return results

    async def module(self, request: web.Request) -> web.StreamResponse:
        """A module of this server: configured here, then installed and configured on the others."""
        need(request, Role.ADMIN)
        paths = paths_of(request.match_info["module"])
        data = await json_of(request)
        nodes = data.get("nodes")
        if not isinstance(nodes, list) or not all(isinstance(n, str) for n in nodes) or len(nodes) > MAX_SERVERS:
            raise ApiError(400, "malformed", "nodes is no list of names")
        results: list[Row] = []
        others = [target for target in _others(request) if target.node in nodes]
        if node_name() in nodes:
            results.append(await self._words(request, ("config", "-m", paths.module)))
        if not results or results[0]["status"] == 0:
            content = await asyncio.to_thread(_packed, paths)
            number = 0
            with contextlib.suppress(ConfigureError):  # without an id of its own the others choose one
                number = module_id(paths.module)
            path = f"{PREFIX}/modules/{quote(paths.module)}/archive?id={number}&configure=1&{_behalf(request)}"
            ask = Ask("PUT", path, content, "application/zip", secret=True, seconds=DEFAULT_TIMEOUT)
            results += await _all(others, lambda _: ask, {})
        return reply(request, {"results": results})

    async def snapshot(self, request: web.Request) -> web.StreamResponse:
        """What support needs of a module on this server, as a zip (guide 3.6). One at a time."""
        need(request, Role.MONITOR)
        paths = paths_of(request.match_info["module"])
        async with self._snapshot:
            with tempfile.TemporaryDirectory(prefix="console-", dir=_workplace()) as directory:
                file = Path(directory) / f"snapshot_{node_name()}_{paths.module}.zip"
                result = await self._words(request, ("snapshot", "-m", paths.module, str(file)))
                if result["status"] != 0:
                    raise ApiError(409, "snapshot", result["output"][-500:] or "the snapshot could not be made")
                if file.stat().st_size > MAX_ANSWER:
                    raise ApiError(413, "too_large", "the snapshot is too large for the browser",
                                   f"on the server: safekit snapshot -m {paths.module} /tmp/snapshot.zip")  # fmt: skip
                content = await asyncio.to_thread(file.read_bytes)
        return reply(request, {"node": node_name(), "name": file.name, "base64": base64.b64encode(content).decode()})


def _workplace() -> Path:
    base = safevar() / "web"
    base.mkdir(mode=0o750, parents=True, exist_ok=True)
    return base


def _behalf(request: web.Request) -> str:
    who = caller(request)
    return urlencode({BEHALF: who.name, ROLE: who.role.label})


def _packed(paths: Any) -> bytes:
    with tempfile.TemporaryDirectory(prefix="console-", dir=_workplace()) as directory:
        archive = Path(directory) / "module.safe"
        pack(paths.root, archive)
        return archive.read_bytes()


def _others(request: web.Request) -> list[Target]:
    """The other servers of cluster.xml, with the protocol and the port of the page."""
    cluster = described_cluster()
    names = dict.fromkeys(node.name for lan in cluster.lans for node in lan.nodes if node.name != node_name())
    found = [targets_of(cluster, name, *here(request)) for name in names]
    return [targets[0] for targets in found if targets]


def _own_target(request: web.Request) -> Target | None:
    targets = targets_of(described_cluster(), node_name(), *here(request))
    return targets[0] if targets else None


async def _all(targets: list[Target], ask_of: Callable[[Target], Ask], people: Row) -> list[Row]:
    """Ask all at once. `people`: name and password for a server that is not of this cluster yet."""
    keys, holders = asking_keys(), await asyncio.to_thread(key_holders)

    def one(target: Target) -> Row:
        given = people.get(target.node)
        credentials = None
        if isinstance(given, dict) and isinstance(given.get("user"), str) and isinstance(given.get("password"), str):
            credentials = Credentials(given["user"], given["password"])
        try:
            ask = replace(ask_of(target), only_sealed=target.node in holders)
            answer, in_clear = call(target, ask, keys, credentials)
        except CallError as error:
            return _row(target.node, 1, error.text, error.kind, error.next_step)
        row = _row(target.node, int(answer.get("status", 1)), str(answer.get("output", "")))
        return row | {"in_clear": in_clear}

    return list(await asyncio.gather(*(asyncio.to_thread(one, target) for target in targets)))


def _row(node: str, status: int, output: str, kind: str = "", step: str = "") -> Row:
    return {"node": node, "status": status, "output": output, "kind": kind, "next_step": step, "in_clear": False}
