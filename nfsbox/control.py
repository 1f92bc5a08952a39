"""What nfsbox offers to nfsadmin (bus) and to reintegre (TCP).

On the bus it serves `safekit.bus.requests.nfsbox`, and tells nfsadmin what that one has in
`safekit.bus.requests.nfsadmin`.

**TCP, the resynchronisation service of the primary** (a frame REQUEST with a msgpack map {op, ...}, answered by a
frame REPLY {ok, ...} or {ok: False, errno, text}). Every connection serves one request at a time; open one per thread.
`root` is the index of the replicated directory, paths are bytes. All but `info` wait until the secondary's nfsbox
takes the stream, so that nothing changes unseen between an answer and the stream.

====================  ==============================================================================================
info                  -> {state, zone_size, packet, session, roots: [dir], journal, refused: its disk has refused data}
dirty                 -> {reliable: bool, cursor} then `dirty_next` (cursor) -> {files: [[root, path, ino, [zones]|
                      None=all]], gens: of each, dirs: [[root, path]],
                      marks: [[root, path, since]], cursor|None}; dirs stand for something else than before: what
                      either server recorded below them is compared whole; entries of marks may have been made or
                      removed since a moment of the primary's clock, ns
list                  (root, path, cursor=0) -> {entries: [[name, mode, uid, gid, size, atime, mtime, ino, nlink, rdev,
                      blocks, extra, ctime, gen]], cursor|None}; ino and gen together are the file (a number of an
                      inode is used again); extra = {t: target, x: {name: value}} or None; at most
                      4096 entries a reply; the first reply has `self`: the same for the directory
stat                  (root, path) -> {entry: [...]|None}
hash                  (root, path, zones: [[off, len]]) -> {ino, gen, size, digests: [16 bytes]} blake2b; beyond
                      the end: b""
push_entry            (root, path, fresh=False) make or correct the entry at the secondary: type, mode, owner, times,
                      xattrs, link target, size (content is not sent); fresh: a file as a new object, without content.
                      -> {kind: "file"|"dir"|"other"|"gone", size, ino, gen, fresh: it has no content there}
push_files            (root, paths) make small regular files at the secondary, whole.
                      -> {files: [[kind, ino, size, errno]], gens: of each}; kind single: push it by itself
push_zone             (root, path, off, len) -> {sent: bytes, ino, gen}; holes stay holes
push_link             (root, existing, path) make path a hard link of existing. -> {open: bool}: written meanwhile,
                      by whichever name: its content must be compared once more
push_delete           (root, path) remove at the secondary if it does not exist here. -> {gone: bool}
finish                (root, path) times and size of a file whose zones are all pushed. -> {}
flush                 commit at the secondary (reicommit). -> {}
revisit               -> {paths: [[root, path, below: bool]], doubts: [[root, ino, gen]]} taken off the list: compare
                      these entries again, and everything below when `below`; of doubts the content, too, whatever
                      was found before (gen 0: of all files)
end                   (server=0) -> {done: bool, revisit: count, state: map|None}: True once the primary is paired
                      durably and the secondary works strictly; False when there are paths to revisit first
progress              (files, files_total, bytes, bytes_total, ...) shown by `status` of the primary. -> {}
====================  ==============================================================================================
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from nfsbox.box import Box
from nfsbox.place import BoxError
from safekit.bus.asking import Ask, Done, Serve, Service
from safekit.bus.endpoint import BusError, BusTimeout, Endpoint
from safekit.bus.requests import nfsadmin
from safekit.bus.requests import nfsbox as asked

log = logging.getLogger("nfsbox")

#: Seconds that nfsadmin may take to have the pair recorded durably.
PAIR_TIMEOUT = 15.0


class Control:
    """The bus side of a box. Operations run in a thread, one at a time; `GetStatus` and `GetState` are answered at
    once."""

    def __init__(self) -> None:
        self._box: Box | None = None
        self._busy = asyncio.Lock()

    def begin(self, box: Box) -> None:
        """Serve this one from now on."""
        self._box = box

    def requests(self) -> Service:
        """What nfsbox serves."""
        return Service(
            asked.NFSBOX,
            [
                (asked.GetStatus, self._status),
                (asked.GetState, self._state),
                (asked.Prepare, self._operation(lambda box, ask: box.prepare(degraded=ask.degraded))),
                (asked.Primary, self._operation(Box.primary)),
                (asked.Secondary, self._operation(Box.secondary)),
                (asked.Standby, self._operation(lambda box, ask: box.standby(state=ask.state))),
                (asked.Demote, self._operation(lambda box, ask: box.demote(ask.within))),
                (asked.Release, self._operation(lambda box, _: box.release())),
                (asked.SetState, self._operation(lambda box, ask: box.set_state(ask.state))),
                (asked.Configure, self._operation(lambda box, ask: box.configure(ask.durable, ask.listen))),
                # Not behind the lock: they must end a demotion or a release that waits for the lost peer.
                (asked.Alone, self._at_once(lambda box, ask: asked.Held(box.alone(state=ask.state)))),
                (asked.Cut, self._at_once(lambda box, _: box.engine.cut("the secondary was given up"))),
            ],
        )

    @property
    def box(self) -> Box:
        """Raises BusError while nfsbox is starting."""
        if self._box is None:
            raise BusError("starting", "nfsbox is starting")
        return self._box

    async def _status(self, _: asked.GetStatus) -> asked.Status:
        return self.box.status()

    async def _state(self, _: asked.GetState) -> asked.Kept:
        return asked.Kept(self.box.state())

    def _operation(self, operation: Callable[[Box, Any], Any]) -> Serve:
        at_once = self._at_once(operation)

        async def serve(ask: Ask[Any]) -> Any:
            async with self._busy:
                return await at_once(ask)

        return serve

    def _at_once(self, operation: Callable[[Box, Any], Any]) -> Serve:
        async def serve(ask: Ask[Any]) -> Any:
            try:
                return await asyncio.to_thread(operation, self.box, ask)
            except BoxError as error:
                raise BusError(error.code, error.text) from None
            except OSError as error:
                raise BusError("os", error.strerror or str(error)) from None

        return serve


class Announcer:
    """Carries what threads of the box have to say to nfsadmin, in order, through the loop of the process."""

    def __init__(self, module: str, bus: Endpoint, loop: asyncio.AbstractEventLoop) -> None:
        self._module = module
        self._bus = bus
        self._loop = loop
        self._queue: asyncio.Queue[Ask[Done]] = asyncio.Queue()

    def notify(self, news: Ask[Done]) -> None:
        """From any thread; returns at once."""
        self._loop.call_soon_threadsafe(self._queue.put_nowait, news)

    async def run(self) -> None:
        """Deliver; a loss is repeated until nfsadmin has it, because writes wait for what it decides."""
        while True:
            news = await self._queue.get()
            for _ in range(60):
                try:
                    await self._bus.ask(self._module, news, 2.0)
                    break
                except BusTimeout:
                    if isinstance(news, nfsadmin.Bandwidth):
                        break
                except BusError as error:
                    if error.code != "unknown_target":
                        log.debug("nfsadmin refused %s: %s", news.op, error.text)
                        break
                    await asyncio.sleep(0.5)

    def pair(self, peer: str, server: int, session: int) -> nfsadmin.State:
        """END: have the pair recorded durably; the state to write. Blocks; from a thread. Raises BoxError."""
        asking = asyncio.run_coroutine_threadsafe(
            self._bus.ask(self._module, nfsadmin.Pair(peer, server, session), PAIR_TIMEOUT), self._loop
        )
        try:
            return asking.result(PAIR_TIMEOUT + 5).state
        except BusError as error:
            raise BoxError("pair", f"the pair could not be recorded: {error.text}") from None
