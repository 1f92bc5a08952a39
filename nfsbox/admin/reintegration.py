"""A reintegration as nfsadmin sees it: the verdict, the record around it, the process that does the work.

Order that must hold on the secondary: verdict, durable mark `inconsistent`, first change; and at the end: the
primary is paired durably, the durable record here, heart is told.
"""

from __future__ import annotations

import contextlib
import time
from typing import Any, Final

from nfsbox.admin.asking import Asking
from nfsbox.admin.standing import Standing
from nfsbox.admin.watch import Watch
from safekit.bus.asking import Ask, Serve, request_fields
from safekit.bus.endpoint import BusError
from safekit.bus.requests import nfsadmin, nfsbox
from safekit.rfs import generations
from safekit.rfs.generations import Kind, StateError, Verdict

#: Times that a reintegre which died is started again within one reintegration.
RESTARTS: Final = 3


class Reintegration:
    """State of the reintegration of this server; idle unless it is a secondary that is not equal yet."""

    def __init__(self, asking: Asking, standing: Standing) -> None:
        self._asking, self._standing = asking, standing
        self.active = False
        self.verdict: Verdict | None = None
        self._watch: Watch | None = None
        self._restarts = 0
        self._progress: nfsadmin.Progress | None = None

    # --- from nfsadmin ------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Have reintegre run. A failure is told to heart."""
        self.active, self.verdict, self._restarts, self._progress = True, None, 0, None
        with contextlib.suppress(BusError):
            # The one before may still be on its way out, and would be taken for the new one.
            await self._asking.process("reintegre", False)
        await self._run()

    async def _run(self) -> None:
        try:
            await self._asking.process("reintegre", True)
        except BusError as error:
            self.fail(f"reintegre cannot be started: {error.text}")

    async def abandon(self) -> None:
        """End the reintegration without a word to heart, which knows."""
        if not self.active:
            return
        self.active = False
        self._unwatch()
        with contextlib.suppress(BusError):
            await self._asking.process("reintegre", False)

    def lost(self, reason: str) -> None:
        """The stream to the primary broke."""
        if self.active:
            self.fail(reason or "the connection to the primary was lost")

    def fail(self, reason: str) -> None:
        """The reintegration cannot be completed now."""
        if not self.active:
            return
        self._asking.context.log.event("reintegration_failed", reason=reason)
        self._asking.spawn(self.abandon())
        self._asking.tell_heart("rfs_failed", reason)

    def shown(self, box: nfsbox.Status | None) -> dict[str, Any] | None:
        """For `status`: our own progress, on the primary what the secondary sent, None when nothing runs."""
        if self.active:
            rule = self.verdict.rule if self.verdict else ""
            told = request_fields(self._progress) if self._progress is not None else {}
            return {**told, "rule": rule, "kind": self.verdict.kind.value if self.verdict else ""}
        return box.progress if box is not None and box.progress and box.session == "resync" else None

    # --- from reintegre -----------------------------------------------------------------------------------

    def handlers(self) -> list[tuple[type[Ask[Any]], Serve]]:
        """Requests of the process reintegre."""
        return [
            (nfsadmin.FindVerdict, self._wanted(self._find_verdict)),
            (nfsadmin.Begin, self._wanted(self._begin)),
            (nfsadmin.End, self._wanted(self._end)),
            (nfsadmin.Failed, self._wanted(self._failed)),
            (nfsadmin.Progress, self._wanted(self._progressed)),
        ]

    def _wanted(self, serve: Serve) -> Serve:
        async def wanted(asked: Ask[Any]) -> Any:
            if not self.active:
                raise BusError("not_wanted", "no reintegration is under way")
            return await serve(asked)

        return wanted

    async def _find_verdict(self, asked: nfsadmin.FindVerdict) -> nfsadmin.Verdict:
        return self._found(asked)[2]

    async def _failed(self, asked: nfsadmin.Failed) -> None:
        self.fail(asked.reason)

    async def _progressed(self, asked: nfsadmin.Progress) -> None:
        self._progress = asked

    def _found(
        self, asked: nfsadmin.FindVerdict | nfsadmin.Begin
    ) -> tuple[generations.DataState, Verdict, nfsadmin.Verdict]:
        """(state of the primary, verdict, what reintegre needs of both): nothing is changed by it. Raises BusError."""
        asking, standing = self._asking, self._standing
        try:
            source = generations.from_fields(asked.source)
        except StateError as error:
            raise BusError("source", f"the primary's state cannot be used: {error}") from None
        state = standing.known_state()
        rfs = asking.context.config.rfs
        policy = rfs.namespacepolicy if rfs is not None else 4
        disks = {"primary": asked.refused, "secondary": standing.refused}
        refused = [where for where, has_refused in disks.items() if has_refused]
        found = generations.verdict(source, state, namespacepolicy=policy, unsure=standing.unsure, refused=refused)
        if found.kind is Kind.REFUSED:
            raise BusError("refused", found.sentence)
        told = nfsadmin.Verdict(
            found.kind.value,
            found.rule,
            found.sentence,
            found.newer_than,
            found.overwrites,
            source_idle=source.idle_ns,
            target_idle=generations.unproved_since(state),
            server=state.server,
            generation=state.current,
            uncached=standing.refused,
        )
        return source, found, told

    async def _begin(self, asked: nfsadmin.Begin) -> nfsadmin.Verdict:
        asking, standing = self._asking, self._standing
        source, found, told = self._found(asked)
        state = standing.known_state()
        self._watch_process(asked.pid)
        marked = generations.receiving(state, found, source, time.time_ns())
        await asking.nfsbox(nfsbox.SetState(generations.to_fields(marked)))
        standing.state, self.verdict = marked, found
        asking.set_resource("rfs.inconsistent", "up")
        code = "reintegration_overwrites" if found.overwrites else "reintegration_verdict"
        asking.context.log.event(code, kind=found.kind.value, rule=found.rule, sentence=found.sentence)
        return told

    async def _end(self, asked: nfsadmin.End) -> None:
        asking, standing = self._asking, self._standing
        source = generations.from_fields(asked.source)
        state = generations.received(standing.known_state(), source, time.time(), ahead=not standing.durable)
        await asking.nfsbox(nfsbox.SetState(generations.to_fields(state)))
        standing.state, standing.paired = state, True
        asking.set_resource("rfs.inconsistent", "down")
        self.active = False
        self._unwatch()
        # before heart knows, so that it stands before the state SECOND green in the log
        asking.context.log.event("reintegration_ended")
        asking.tell_heart("rfs_synced")

    # --- the process --------------------------------------------------------------------------------------

    def _watch_process(self, pid: int) -> None:
        self._unwatch()
        if pid:
            with contextlib.suppress(ProcessLookupError):
                self._watch = Watch(pid, self._died)

    def _unwatch(self) -> None:
        if self._watch is not None:
            self._watch.close()
            self._watch = None

    def _died(self, pid: int) -> None:
        self._watch = None
        if not self.active:
            return
        self._restarts += 1
        again = self._restarts <= RESTARTS
        self._asking.context.log.event(
            "process_died",
            name="reintegre",
            pid=pid,
            status="it ended unexpectedly",
            reaction="started again" if again else "the reintegration has failed",
        )
        if again:
            self._asking.spawn(self._run())
        else:
            self.fail("reintegre died several times: see log/reintegre.log")
