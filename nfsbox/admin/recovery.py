"""nfsbox has died: a new one over the same directories, however often it dies.

A primary that was ALONE goes on at once; a PRIM waits for heart to record that it is ALONE (`alone`).
"""

from __future__ import annotations

import asyncio
import time
from typing import Final

from nfsbox.admin.asking import Asking
from nfsbox.admin.record import new_number
from nfsbox.admin.standing import TRIES, Standing, opened
from safekit.bus.endpoint import BusError
from safekit.bus.requests import nfsbox
from safekit.rfs import generations

#: Seconds that the next operation waits for a recovery.
PATIENCE_S: Final = 140.0


class Recovery:
    """One recovery at a time. `remade`: the directories are mounted again after a death in a pair, and wait for
    `alone`."""

    def __init__(self, asking: Asking, standing: Standing) -> None:
        self._asking, self._standing = asking, standing
        self._task: asyncio.Task[None] | None = None
        self._of: tuple[str, bool] = ("none", False)
        self.remade = False

    @property
    def active(self) -> bool:
        """Whether a new nfsbox is being prepared: its own death is dealt with there."""
        return self._task is not None and not self._task.done()

    def begin(self, role: str, paired: bool) -> None:
        """nfsbox died in this role."""
        paired, self.remade = paired or self.remade, False
        self._of = (role, paired)
        self._task = self._asking.spawn(self._run(role, paired))

    def cancel(self) -> None:
        """The directories are being left."""
        if self._task is not None:
            self._task.cancel()
        self._task, self.remade = None, False

    async def ended(self) -> None:
        """Let the recovery end before the next operation; one that failed is tried again then. Raises BusError when
        that fails too."""
        if self._task is None:
            return
        if self._task.done() and self._failed(self._task):
            self.begin(*self._of)
        task = self._task
        try:
            await asyncio.wait_for(asyncio.shield(task), PATIENCE_S)
        except BusError as error:
            raise BusError("nfsbox", f"nfsbox could not be started again: {error.text}") from None
        except TimeoutError:
            raise BusError("nfsbox", "nfsbox could not be started again: see log/nfsbox.log") from None
        self._task = None

    @staticmethod
    def _failed(task: asyncio.Task[None]) -> bool:
        return task.cancelled() or task.exception() is not None

    async def _run(self, role: str, paired: bool) -> None:
        asking, standing = self._asking, self._standing
        for _ in range(TRIES):
            await asking.process("nfsbox", True)
            state = await opened(asking, standing, degraded=role == "primary")
            if role == "secondary":
                standing.unapplied = state.unapplied
            if role == "primary" and paired:
                self.remade = True
                return
            if role == "primary":
                state = generations.left_peer(state, new_number(), time.time())
            fields = generations.to_fields(state)
            again = nfsbox.Primary(state=fields) if role == "primary" else nfsbox.Standby(fields)
            if await asking.unless_it_dies(again) is None:
                continue
            standing.state = state
            if role == "primary":
                asking.tell_heart("nfsbox_died", "nfsbox ended unexpectedly; the mount is remade")
            else:
                standing.role = "standby"
            return
        raise BusError("nfsbox", "nfsbox dies again and again: see log/nfsbox.log")
