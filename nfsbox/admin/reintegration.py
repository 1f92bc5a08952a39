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
from safekit.bus.endpoint import BusError, Request
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
        self._progress: dict[str, Any] = {}

    # --- from nfsadmin ------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Have reintegre run. A failure is told to heart."""
        self.active, self.verdict, self._restarts, self._progress = True, None, 0, {}
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

    def shown(self, box: dict[str, Any]) -> dict[str, Any] | None:
        """For `status`: our own progress, on the primary what the secondary sent, None when nothing runs."""
        if self.active:
            rule = self.verdict.rule if self.verdict else ""
            return {**self._progress, "rule": rule, "kind": self.verdict.kind.value if self.verdict else ""}
        progress = box.get("progress")
        return progress if progress and box.get("session") == "resync" else None

    # --- from reintegre -----------------------------------------------------------------------------------

    async def handle(self, request: Request) -> dict[str, Any] | None:
        """Requests of the process reintegre."""
        if not self.active:
            raise BusError("not_wanted", "no reintegration is under way")
        match request.op:
            case "rei_verdict":
                return self._found(request)[2]
            case "rei_begin":
                return await self._begin(request)
            case "rei_end":
                await self._end(request)
            case "rei_failed":
                self.fail(str(request.fields.get("reason", "unknown reason")))
            case "rei_progress":
                self._progress = {k: v for k, v in request.fields.items() if not k.startswith("_")}
        return None

    def _found(self, request: Request) -> tuple[generations.DataState, Verdict, dict[str, Any]]:
        """(state of the primary, verdict, what reintegre needs of both): nothing is changed by it. Raises BusError."""
        asking, standing = self._asking, self._standing
        try:
            source = generations.from_fields(request.fields.get("source"))
        except StateError as error:
            raise BusError("source", f"the primary's state cannot be used: {error}") from None
        state = standing.known_state()
        rfs = asking.context.config.rfs
        policy = rfs.namespacepolicy if rfs is not None else 4
        found = generations.verdict(source, state, namespacepolicy=policy, unsure=standing.unsure)
        if found.kind is Kind.REFUSED:
            raise BusError("refused", found.sentence)
        fields = {
            "kind": found.kind.value,
            "rule": found.rule,
            "sentence": found.sentence,
            "newer_than": found.newer_than,
            "overwrites": found.overwrites,
            "source_idle": source.idle_ns,
            "target_idle": generations.unproved_since(state),
            "server": state.server,
            "generation": state.current,
        }
        return source, found, fields

    async def _begin(self, request: Request) -> dict[str, Any]:
        asking, standing = self._asking, self._standing
        source, found, fields = self._found(request)
        state = standing.known_state()
        self._watch_process(int(request.fields.get("pid") or 0))
        marked = generations.receiving(state, found, source, time.time_ns())
        await asking.nfsbox("state_set", state=generations.to_fields(marked))
        standing.state, self.verdict = marked, found
        asking.set_resource("rfs.inconsistent", "up")
        code = "reintegration_overwrites" if found.overwrites else "reintegration_verdict"
        asking.context.log.event(code, kind=found.kind.value, rule=found.rule, sentence=found.sentence)
        return fields

    async def _end(self, request: Request) -> None:
        asking, standing = self._asking, self._standing
        source = generations.from_fields(request.fields.get("source"))
        state = generations.received(standing.known_state(), source, time.time(), ahead=not standing.durable)
        await asking.nfsbox("state_set", state=generations.to_fields(state))
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
