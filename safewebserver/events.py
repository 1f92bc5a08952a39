"""One stream of everything that a console shows: this server and the others of cluster.xml.

A snapshot first, then what changes, each with a number; whoever comes again with the last number that he saw gets
what he missed, or a new snapshot. The other servers are asked, signed, to answer when something changes there; only
while somebody looks.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections import deque
from typing import Any

from aiohttp import web

from safekit.disk.paths import node_name
from safekit.model.cluster import ClusterError, load_cluster
from safewebserver.api import (
    COMMENT_SECONDS,
    ENDED,
    PREFIX,
    STREAM_SECONDS,
    ApiError,
    Still,
    need,
    number_of,
    reply,
    stream_of,
)
from safewebserver.identity import Caller, Unauthorized
from safewebserver.look import Look, about_cluster
from safewebserver.permissions import Role
from safewebserver.relay import Relay, Unreachable, here, targets_of
from safewebserver.streams import Streams

WAIT_SECONDS = 5.0
AGAIN_SECONDS = 2.0
GATHER_SECONDS = 0.05
"""Changes that come together are told together."""
KEPT = 1000
LINGER_SECONDS = 15.0
MAX_FOLLOWERS = 100
QUEUE = 500

Row = dict[str, Any]


class Follower:
    """One open stream. Its queue is bounded: who does not read for long begins anew."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[tuple[int, Row]] = asyncio.Queue(QUEUE)
        self.lost = False

    def give(self, number: int, change: Row) -> None:
        """Put a change into the queue."""
        try:
            self.queue.put_nowait((number, change))
        except asyncio.QueueFull:
            self.lost = True


class Hub:
    """The state of all servers, kept while somebody follows it."""

    def __init__(self, look: Look, relay: Relay) -> None:
        self._look = look
        self._relay = relay
        self.epoch = secrets.token_hex(4)
        self.number = 0
        self.nodes: dict[str, Row] = {}
        self._kept: deque[tuple[int, Row]] = deque(maxlen=KEPT)
        self._followers: set[Follower] = set()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._place: tuple[str, int] = ("http", 9010)
        self._end: asyncio.TimerHandle | None = None

    async def join(self, place: tuple[str, int]) -> Follower:
        """Begin to follow; the others are asked with that protocol and port."""
        follower = Follower()
        self._followers.add(follower)
        if self._end is not None:
            self._end.cancel()
        if not self._tasks:
            self._place = place
            await self._own("")
            self._watch_all()
        return follower

    def leave(self, follower: Follower) -> None:
        """The stream has ended; after the last one the others are asked for a little while only, so that a page that
        lost its connection finds what it missed."""
        self._followers.discard(follower)
        if not self._followers:
            self._end = asyncio.get_running_loop().call_later(LINGER_SECONDS, self._forget)

    def _forget(self) -> None:
        if self._followers:
            return
        for task in self._tasks.values():
            task.cancel()
        self._tasks.clear()
        self.nodes.clear()
        self._kept.clear()
        self.epoch = secrets.token_hex(4)

    async def close(self) -> None:
        """End all that runs."""
        if self._end is not None:
            self._end.cancel()
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def since(self, mark: str) -> list[tuple[int, Row]] | None:
        """What came after the change of that number; None when it is not known any more."""
        epoch, _, number = mark.partition("-")
        if epoch != self.epoch or not number.isdecimal() or int(number) > self.number:
            return None
        if int(number) == self.number:
            return []
        if not self._kept or self._kept[0][0] > int(number) + 1:
            return None
        return [entry for entry in self._kept if entry[0] > int(number)]

    def _watch_all(self) -> None:
        names, _ = about_cluster()
        me = node_name()
        for name in [*names, me]:
            if name not in self._tasks:
                self._tasks[name] = asyncio.create_task(self._watch_me() if name == me else self._watch(name))
        for name in [n for n in self._tasks if n not in names and n != me]:
            self._tasks.pop(name).cancel()
            self._gone(name)

    async def _watch_me(self) -> None:
        seq = ""
        while True:
            seq = await self._own(seq)
            self._watch_all()
            await asyncio.sleep(GATHER_SECONDS)

    async def _own(self, seq: str) -> str:
        view = await self._look.current(seq, WAIT_SECONDS if seq else 0.0)
        self._take(node_name(), view, 0.0)
        return str(view["seq"])

    async def _watch(self, node: str) -> None:
        seq = ""
        while True:
            began = time.monotonic()
            try:
                targets = targets_of(load_cluster(), node, *self._place)
                path = f"{PREFIX}/view?after={seq}&wait={WAIT_SECONDS if seq else 0:g}"
                answer = await self._relay.ask(targets, "GET", path, seconds=2 * WAIT_SECONDS, silent=WAIT_SECONDS + 3)
                view = answer.json()
                if answer.status != 200 or not isinstance(view.get("modules"), dict):
                    # A server of an older version has no such view.
                    text = f"it answers with status {answer.status}: {view.get('text', 'another version')}"
                    raise Unreachable("version", text, "install the same version there")
                self._take(node, view, time.monotonic() - began if not seq else None)
                seq = str(view.get("seq", ""))
                await asyncio.sleep(GATHER_SECONDS)
            except (Unreachable, ClusterError) as error:
                seq = ""
                kind = error.kind if isinstance(error, Unreachable) else "cluster"
                step = error.next_step if isinstance(error, Unreachable) else ""
                self._put(node, {"reachable": False, "problem": {"kind": kind, "text": str(error), "next_step": step}})
                await asyncio.sleep(AGAIN_SECONDS)

    def _take(self, node: str, view: Row, way: float | None) -> None:
        about = {k: v for k, v in view.items() if k not in ("time", "seq")}
        if way is not None:
            # Only an answer that nobody waited for tells the clock: half of its way is the doubt.
            ahead = float(view.get("time", 0.0)) - time.time() + way / 2
            about["ahead"] = 0.0 if abs(ahead) <= max(way, 0.25) else round(ahead, 1)
        self._put(node, {**about, "reachable": True, "problem": None})

    def _put(self, node: str, fields: Row) -> None:
        """Tell what differs from what was known of a server."""
        known = self.nodes.get(node)
        if known is None:
            base: Row = {"node": node, "reachable": True, "problem": None, "modules": {}, "ahead": 0.0, "at": 0.0}
            self.nodes[node] = base | {"version": "", "cluster": "", "configured": True, "nodes": []}
            self.nodes[node] |= fields
            self._tell({"node": node, "whole": self.nodes[node]})
            return
        change: Row = {k: v for k, v in fields.items() if k not in ("modules", "node") and known.get(k) != v}
        if fields.get("reachable") is False and known["reachable"]:
            change["at"] = round(time.time(), 3)
        old: Row = known["modules"]
        new: Row = fields.get("modules", old)
        modules = {name: row for name, row in new.items() if old.get(name) != row}
        gone = [name for name in old if name not in new]
        known |= {**change, "modules": new}
        if change or modules or gone:
            self._tell({"node": node, "about": change, "modules": modules, "gone": gone})

    def _gone(self, node: str) -> None:
        if self.nodes.pop(node, None) is not None:
            self._tell({"node": node, "removed": True})

    def _tell(self, change: Row) -> None:
        self.number += 1
        self._kept.append((self.number, change))
        for follower in self._followers:
            follower.give(self.number, change)


class EventApi:
    """The stream, and the view that the servers ask each other for."""

    def __init__(self, look: Look, hub: Hub) -> None:
        self._look = look
        self._hub = hub
        self._open = Streams(MAX_FOLLOWERS, "consoles are followed")

    def routes(self) -> list[web.RouteDef]:
        """Its routes."""
        return [web.get(f"{PREFIX}/view", self.view), web.get(f"{PREFIX}/events", self.events)]

    async def view(self, request: web.Request) -> web.StreamResponse:
        """This server's modules; with `after`, when they are not any more what they were."""
        need(request, Role.MONITOR)
        wait = number_of(request.query.get("wait"), 0.0, 0.0, 30.0, "wait")
        return reply(request, await self._look.current(request.query.get("after", ""), wait))

    async def events(self, request: web.Request) -> web.StreamResponse:
        """The stream (server-sent events: snapshot, change)."""
        who = need(request, Role.MONITOR)
        if request.query.get("level") is not None:
            raise ApiError(400, "malformed", "this stream has no level")
        with stream_of(who, self._open):
            return await self._follow(request, who)

    async def _follow(self, request: web.Request, who: Caller) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Cache-Control": "no-store", "Content-Type": "text/event-stream"})
        await response.prepare(request)
        follower = None
        try:
            follower = await self._hub.join(here(request))
            await self._tell(request, response, follower, who)
        except (ConnectionResetError, TimeoutError):
            if request.transport is not None:
                request.transport.abort()
        except Unauthorized:
            await response.write(ENDED)
        finally:
            if follower is not None:
                self._hub.leave(follower)
        return response

    async def _tell(self, request: web.Request, response: web.StreamResponse, follower: Follower, who: Caller) -> None:
        missed = self._hub.since(request.headers.get("Last-Event-ID", ""))
        # What is in the queue already is in the snapshot too: the numbers say so.
        told, still = self._hub.number, Still(request)
        await _write(response, b"retry: 1000\n\n")
        if missed is None:
            await self._snapshot(response, who)
        else:
            for number, change in missed:
                await self._event(response, "change", number, change)
        while True:
            await still.check()
            try:
                number, change = await asyncio.wait_for(follower.queue.get(), COMMENT_SECONDS)
            except TimeoutError:
                await _write(response, b": alive\n\n")
                continue
            if follower.lost:
                follower.lost = False
                while not follower.queue.empty():
                    follower.queue.get_nowait()
                told = self._hub.number
                await self._snapshot(response, who)
            elif number > told:
                await self._event(response, "change", number, change)

    async def _snapshot(self, response: web.StreamResponse, who: Caller) -> None:
        names, _ = about_cluster()
        data = {
            "me": node_name(),
            "user": who.user or who.name,
            "role": who.role.label,
            "time": time.time(),
            "order": names,
            "nodes": self._hub.nodes,
        }
        await self._event(response, "snapshot", self._hub.number, data)

    async def _event(self, response: web.StreamResponse, kind: str, number: int, data: Row) -> None:
        text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
        await _write(response, f"id: {self._hub.epoch}-{number}\nevent: {kind}\ndata: {text}\n\n".encode())


async def _write(response: web.StreamResponse, data: bytes) -> None:
    async with asyncio.timeout(STREAM_SECONDS):
        await response.write(data)
