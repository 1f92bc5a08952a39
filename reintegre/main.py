"""The process reintegre: runs on the secondary while there is something to reintegrate (guide 5.4, 13.6.3)."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable
from typing import Any

from reintegre.client import Address, Connection
from reintegre.copier import Stopped
from reintegre.local import LocalTree
from reintegre.plan import Trust
from reintegre.primary import Primary, ProtocolFault
from reintegre.primary import Service as Source
from reintegre.records import Records
from reintegre.session import Copied, Hooks, Limits, Session
from safekit.bus.asking import Answer, Ask, Service, request_fields
from safekit.bus.endpoint import BusError
from safekit.bus.requests import nfsadmin, nfsbox
from safekit.bus.requests.reintegre import REINTEGRE, Reconfigure
from safekit.model.types import Rfs
from safekit.process.frame import Context, run
from safekit.rfs import journal, quarantine
from safekit.rfs.exclusions import Exclusions
from safekit.rfs.generations import Kind, Verdict

PROGRESS_S = 1.0
#: Names of files that a reintegration after a split brain overwrites and that are told one by one.
MAX_TOLD = 100


def size_text(size: int) -> str:
    """Bytes for people: 512 bytes, 1.5 MB."""
    value, unit = float(size), "bytes"
    for larger in ("KB", "MB", "GB", "TB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{size} bytes" if unit == "bytes" else f"{value:.1f} {unit}"


def local_records(context: Context, trees: list[LocalTree]) -> Records:
    """What this server changed itself while it was primary, and the peer or its own disk may lack."""
    changes = journal.load(context.paths.rfs).changes
    found = Records(moved=set(changes.moved), entered_here=changes.directories)
    for item in journal.expand(changes, [tree.data for tree in trees]):
        found.add(item, ours=True)
    return found


class Run:
    """One reintegration."""

    def __init__(self, context: Context, rfs: Rfs) -> None:
        self.context = context
        self.rfs = rfs
        self.session: Session | None = None
        self.trees = [
            LocalTree(rfs.backing(r), Exclusions(r.notreplicated_paths, r.notreplicated_regex).match, acl=rfs.acl)
            for r in rfs.replicated
        ]
        self._address: Address | None = None

    def connect(self) -> Source:
        """One more connection to the primary."""
        assert self._address is not None
        return Connection(self._address, self.rfs.reitimeout)

    async def ask(self, ask: Ask[Answer], timeout: float = 60.0) -> Answer:
        """A request to our nfsadmin or nfsbox. Raises BusError."""
        return await self.context.bus.ask(self.context.module, ask, timeout)

    async def main(self) -> None:
        """All of it. Raises BusError, OSError, ProtocolFault, Stopped."""
        self._address = self._primary_address(await self.ask(nfsbox.GetStatus(), 10.0))
        control = Primary(await asyncio.to_thread(self.connect))
        info = await asyncio.to_thread(control.info)
        refused = info.get("refused") is True  # a release before does not tell
        await self._keep_what_is_overwritten(await self.ask(nfsadmin.FindVerdict(info["state"], refused)))
        answer = await self.ask(nfsadmin.Begin(info["state"], os.getpid(), refused))
        for tree in self.trees:
            tree.uncached = answer.uncached
        verdict = Verdict(Kind(answer.kind), answer.rule, answer.sentence, answer.newer_than, answer.overwrites)
        trust = Trust(verdict, answer.source_idle, answer.target_idle)
        records = await asyncio.to_thread(self._records, control, verdict)
        zone = int(info["zone_size"])
        packet = min(self.rfs.reipacketsize, int(info.get("packet") or self.rfs.reipacketsize), zone)
        self.session = Session(self.connect, self.trees, trust, records, self._limits(zone, packet), self._hooks())
        control.close()
        shown = asyncio.create_task(self._show())
        try:
            state = await asyncio.to_thread(self.session.run, answer.server)
        finally:
            shown.cancel()
        await self.ask(nfsadmin.End(state if state is not None else info["state"]))

    async def _keep_what_is_overwritten(self, verdict: nfsadmin.Verdict) -> None:
        """Before nfsbox takes the first change of the primary: afterwards it may be gone."""
        if not verdict.overwrites:
            return
        log, paths = self.context.log, self.context.paths
        try:
            kept = await asyncio.to_thread(self._quarantine, verdict)
        except OSError as error:
            log.event("quarantine_failed", dir=paths.var / "quarantine", reason=error.strerror or str(error))
            return
        if kept.entries:
            log.event(
                "quarantined",
                files=len(kept.kept),
                size=size_text(kept.bytes),
                dir=paths.var / "quarantine" / kept.id,
                left=len(kept.entries) - len(kept.kept),
                module=self.context.module,
                id=kept.id,
            )

    def _quarantine(self, verdict: nfsadmin.Verdict) -> quarantine.Quarantine:
        changes = journal.load(self.context.paths.rfs).changes
        trees = [tree.data for tree in self.trees]
        items = (item[:4] for item in journal.expand(changes, trees) if not self.trees[item[0]].excluded(item[1]))
        named = [(r.dir, tree) for r, tree in zip(self.rfs.replicated, trees, strict=True)]
        return quarantine.keep(
            self.context.paths.var / "quarantine",
            named,
            items,
            self.rfs.ruzone_blocksize,
            generation=verdict.generation,
            rule=verdict.rule,
            sentence=verdict.sentence,
        )

    def _primary_address(self, status: nfsbox.Status) -> Address:
        peer = status.peer or self.context.config.peer(self.context.cluster, self.context.node)
        host = status.address or (self.context.cluster.address(self.rfs.flow, peer) if peer else None)
        if not host:
            raise BusError("peer", f"{peer} has no address on the network of the replication flow")
        return Address(
            host,
            status.port or self.rfs.port,
            self.context.cluster.bind_address(self.rfs.flow, self.context.node),
            self.context.module,
            self.context.node,
            status.session_id,
        )

    def _records(self, control: Primary, verdict: Verdict) -> Records:
        """The union of what both servers recorded; a full copy needs none."""
        everything = verdict.kind in (Kind.FULL, Kind.RESUME)
        records = Records() if everything and not verdict.overwrites else local_records(self.context, self.trees)
        if verdict.overwrites:
            for root, path in list(records.names)[:MAX_TOLD]:
                name = os.fsdecode(self.rfs.replicated[root].dir.encode() + b"/" + path)
                self.context.log.event("reintegration_lost_file", path=name)
        if everything:
            return Records()
        theirs = control.dirty()
        for item in theirs.files:
            records.add(item, ours=False)
        records.moved |= theirs.moved
        records.entered_there = theirs.entered
        return records

    def _limits(self, zone: int, packet: int) -> Limits:
        return Limits(self.rfs.nbrei, zone, packet, self.rfs.reicommit)

    def _hooks(self) -> Hooks:
        replicated, log = self.rfs.replicated, self.context.log

        def done(root: int, copied: Copied) -> None:
            log.event(
                "copied",
                files=copied.files,
                size=size_text(copied.bytes),
                seconds=f"{copied.seconds:.1f}",
                rate=copied.rate,
            )

        def detail(text: str) -> None:
            rfs = self.context.config.rfs  # may change while we run
            if rfs is not None and rfs.reidetail:
                log.event("reintegration_detail", dir=self.context.module, text=text)

        return Hooks(lambda root: log.event("updating_tree", dir=replicated[root].dir), done, detail)

    async def _show(self) -> None:
        """Progress, to our nfsadmin and to the primary, about once a second."""
        try:
            reporting = Primary(await asyncio.to_thread(self.connect))
        except OSError:
            return
        try:
            while True:
                assert self.session is not None
                progress = self.session.meter.progress()
                self.context.bus.tell(self.context.module, progress)
                await asyncio.to_thread(reporting.progress, request_fields(progress))
                await asyncio.sleep(PROGRESS_S)
        except OSError:
            return  # the session meets the same loss and says so
        finally:
            reporting.close()


async def serve(context: Context) -> int:
    """Run once; the exit status tells the supervisor nothing that nfsadmin does not know."""
    rfs = context.config.rfs
    if rfs is None:
        context.log.event("internal", text="reintegre: the module replicates no directory")
        return 2
    job = Run(context, rfs)
    working = asyncio.create_task(job.main())
    stopping = asyncio.create_task(context.stopping.wait())
    await asyncio.wait((working, stopping), return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if not working.done():
        if job.session is not None:
            job.session.stop(Stopped("the module leaves the reintegration"))
        else:
            working.cancel()
        # What it meets after we have left is no news to anybody.
        working.add_done_callback(lambda left: left.cancelled() or left.exception())
        await asyncio.wait((working,), timeout=5.0)
        error = working.exception() if working.done() and not working.cancelled() else None
        if error is not None and not isinstance(error, Stopped | OSError):
            raise error
        return 0
    error = working.exception()
    if error is None:
        return 0
    if not isinstance(error, OSError | BusError | ProtocolFault | Stopped | ValueError):
        raise error
    told = error.strerror if isinstance(error, OSError) else ""
    reason = error.text if isinstance(error, BusError) else told or str(error)
    with contextlib.suppress(BusError):
        await job.ask(nfsadmin.Failed(reason), 5.0)
    return 1


def reload_on_order(context: Context) -> Callable[..., Any]:
    """A dynamic configuration changes reidetail while we run."""

    async def reconfigure(_: Reconfigure) -> None:
        context.reload()

    return Service(REINTEGRE, [(Reconfigure, reconfigure)]).handle


def main() -> None:
    """Entry point."""
    run("reintegre", serve, handler=reload_on_order)


if __name__ == "__main__":
    main()
