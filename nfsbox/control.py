"""What nfsbox offers to nfsadmin (bus) and to reintegre (TCP). The two lists are the contract.

**Bus, target "AM/nfsbox"** (requests of nfsadmin; the reply comes when it is done; durable means fsynced).
`state` is an optional map that is written durably to SAFEVAR/modules/AM/rfs/state before the operation has any
effect; nfsadmin computes it with safekit.rfs.generations, nfsbox only keeps it.

====================  ==============================================================================================
prepare               (degraded=False) repair what a crash left, check `tocheck`, replace the links by mounts,
                      role standby (read-only). -> {state: map|None, journal: "clean"|"crash"|"none"|"bad",
                      dirty: count, roots: [dir]}. Errors: tocheck, mount, root, held: by whom, and what ends that
primary               (peer=None, paired=False, state=None) writable. paired=True: the peer was up to date at the
                      hand-over and comes back with its token; writes wait for it. paired=False: changes are
                      tracked; a secondary may connect and resynchronise. -> {}
secondary             (peer, address, port, source=None, paired=False, state=None) read-only; connects to the peer's
                      nfsbox. -> {session: id, durable: it acknowledges nothing before it is on disk} once it has
                      accepted. Errors: connect, refused
standby               (state=None) read-only, stream closed. -> {}
alone                 (state=None) the peer is gone: durable record first, then waiting writes go on. -> {held: n}
demote                (timeout=60) read-only, every write acknowledged, both sides on disk. -> {token: bytes|None}
                      Error: not_paired, timeout (the role is then primary again)
cut                   the peer is given up: a demote, standby or release that waits for it ends now. -> {}
release               unmount, links restored, journal closed cleanly. -> {}
state_get             -> {state: map|None}
state_set             (state) durable. -> {} On a secondary a state with consistent=False begins the stream: no
                      operation is applied before the mark is on disk. consistent=True after the end of the
                      reintegration makes this server forget what it had changed on its own.
status                -> {role: none|standby|primary|secondary, degraded, peer, address, port, session_id, session:
                      none|resync|paired|lost|awaited, held, pending, revisit, dirty_files, dirty_dirs, replication_kbs,
                      reintegration_kbs, bytes_sent, frames_sent, applied, mounts: [dir], journal_reliable, progress,
                      durable}
configure             (rfs=map, listen) dynamic attributes changed: nbrei, reitimeout, reidetail, async; the address
                      of this server on the replication network. -> {}
====================  ==============================================================================================

Notifications and requests of nfsbox to "AM/nfsadmin":

- notify `replication_lost` (reason, since): primary with a paired peer; writes are held until `alone`.
- notify `session_lost` (reason, role): a stream that was not paired broke (no write waits), or, on the secondary,
  any stream broke.
- notify `session_open` (peer, paired, role).
- request `pair` (peer, server, session) during END; nfsadmin has heart record paired=up durably, then replies
  {state: map}; nfsbox writes that state, forgets the tracked changes and tells the secondary.
- notify `rfs_bandwidth` (replication, reintegration): KB/s over 3 seconds, on change, primary only.

**TCP, the resynchronisation service of the primary** (a frame REQUEST with a msgpack map {op, ...}, answered by a
frame REPLY {ok, ...} or {ok: False, errno, text}). Every connection serves one request at a time; open one per thread.
`root` is the index of the replicated directory, paths are bytes. All but `info` wait until the secondary's nfsbox
takes the stream, so that nothing changes unseen between an answer and the stream.

====================  ==============================================================================================
info                  -> {state, zone_size, packet, session, roots: [dir], journal}
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

from nfsbox.box import Box, BoxError
from safekit.bus.endpoint import BusError, BusTimeout, Request

log = logging.getLogger("nfsbox")

Fields = dict[str, Any]

#: Seconds that nfsadmin may take to have the pair recorded durably.
PAIR_TIMEOUT = 15.0


def guarded(name: str, value: Any, kind: type | tuple[type, ...]) -> Any:
    """A field of a request, checked. Raises BusError('bad_request')."""
    if not isinstance(value, kind):
        raise BusError("bad_request", f"field {name!r} is missing or of the wrong type")
    return value


class Control:
    """The bus side of a box. Operations run in a thread, one at a time; `status` and states are answered at once."""

    def __init__(self, box: Box) -> None:
        self._box = box
        self._busy = asyncio.Lock()
        self._operations: dict[str, Callable[[Fields], Fields | None]] = {
            "prepare": lambda f: box.prepare(degraded=bool(f.get("degraded"))),
            "primary": self._primary,
            "secondary": self._secondary,
            "standby": lambda f: box.standby(state=f.get("state")),
            "alone": lambda f: {"held": box.alone(state=f.get("state"))},
            "cut": lambda f: box.engine.cut("the secondary was given up"),
            "demote": lambda f: box.demote(float(f.get("timeout") or 60.0)),
            "release": lambda f: box.release(),
            "state_set": lambda f: box.set_state(guarded("state", f.get("state"), dict)),
            "configure": lambda f: box.configure(guarded("rfs", f.get("rfs"), dict), f.get("listen")),
        }

    async def handle(self, request: Request) -> Fields | None:
        """Serve one request. Raises BusError."""
        fields = request.fields
        match request.op:
            case "status":
                return self._box.status()
            case "state_get":
                return {"state": self._box.state()}
        operation = self._operations.get(request.op)
        if operation is None:
            raise BusError("unknown_op", f"nfsbox does not serve {request.op!r}")
        if request.op in ("alone", "cut"):
            # Not behind the lock: they must end a demotion or a release that waits for the lost peer.
            return await self._run(operation, fields)
        async with self._busy:
            return await self._run(operation, fields)

    @staticmethod
    async def _run(operation: Callable[[Fields], Fields | None], fields: Fields) -> Fields | None:
        try:
            return await asyncio.to_thread(operation, fields)
        except BoxError as error:
            raise BusError(error.code, error.text) from None
        except OSError as error:
            raise BusError("os", error.strerror or str(error)) from None

    def _primary(self, fields: Fields) -> None:
        self._box.primary(
            peer=str(fields.get("peer") or ""), paired=bool(fields.get("paired")), state=fields.get("state")
        )

    def _secondary(self, fields: Fields) -> Fields:
        source = fields.get("source")
        return self._box.secondary(
            str(fields.get("peer") or ""),
            guarded("address", fields.get("address"), str),
            guarded("port", fields.get("port"), int),
            source=source if isinstance(source, str) else None,
            paired=bool(fields.get("paired")),
            state=fields.get("state"),
            attempt=str(fields.get("attempt") or ""),
        )


class Announcer:
    """Carries what threads of the box have to say to nfsadmin, in order, through the loop of the process."""

    def __init__(self, module: str, bus: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._target = f"{module}/nfsadmin"
        self._bus = bus
        self._loop = loop
        self._queue: asyncio.Queue[tuple[str, Fields]] = asyncio.Queue()

    def notify(self, what: str, fields: Fields) -> None:
        """From any thread; returns at once."""
        self._loop.call_soon_threadsafe(self._queue.put_nowait, (what, fields))

    async def run(self) -> None:
        """Deliver; a loss is repeated until nfsadmin has it, because writes wait for what it decides."""
        while True:
            what, fields = await self._queue.get()
            for _ in range(60):
                try:
                    await self._bus.request(self._target, what, 2.0, **fields)
                    break
                except BusTimeout:
                    if what == "rfs_bandwidth":
                        break
                except BusError as error:
                    if error.code != "unknown_target":
                        log.debug("nfsadmin refused %s: %s", what, error.text)
                        break
                    await asyncio.sleep(0.5)

    def pair(self, peer: str, server: int, session: int) -> Fields:
        """END: have the pair recorded durably; the state to write. Blocks; from a thread. Raises BoxError."""
        asked = asyncio.run_coroutine_threadsafe(
            self._bus.request(self._target, "pair", PAIR_TIMEOUT, peer=peer, server=server, session=session),
            self._loop,
        )
        try:
            answer = asked.result(PAIR_TIMEOUT + 5)
        except BusError as error:
            raise BoxError("pair", f"the pair could not be recorded: {error.text}") from None
        state = answer.get("state")
        if not isinstance(state, dict):
            raise BoxError("pair", "the pair could not be recorded: nfsadmin sent no state")
        return state
