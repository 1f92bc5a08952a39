"""A nfsadmin that was restarted goes on with the nfsbox that it finds, or finds that it died meanwhile."""

from __future__ import annotations

from typing import Final

from nfsbox.admin.asking import Asking
from nfsbox.admin.record import read
from nfsbox.admin.reintegration import Reintegration
from nfsbox.admin.standing import Standing
from safekit.bus.endpoint import BusError, BusTimeout, UnknownTarget
from safekit.bus.requests import nfsbox
from safekit.disk import resources

#: What the state of the module says of our role, and whether the other server is equal.
_ROLES: Final = {"PRIM": ("primary", True), "ALONE": ("primary", False), "SECOND": ("secondary", True)}


async def adopt(asking: Asking, standing: Standing, reintegration: Reintegration) -> None:
    """Called once, before any request is served. Never raises BusError: whatever is missing is told by what follows."""
    context = asking.context
    try:
        while not context.stopping.is_set():
            try:
                status = await asking.nfsbox(nfsbox.GetStatus(), 2.0)
            except UnknownTarget:
                _missing(asking, standing)
                return
            except BusTimeout as error:
                context.log.debug(f"nfsadmin waits for the nfsbox that it finds: {error.text}")
                continue
            if status.role != "none":
                await _take_up(asking, standing, reintegration, status)
            return
    except BusError as error:
        context.log.debug(f"nfsadmin adopts nothing: {error.text}")


def _missing(asking: Asking, standing: Standing) -> None:
    """nfsbox does not run. While the module is in one of its roles it died with the nfsadmin before: nobody has
    told heart. Before and after, heart does not want it."""
    local = resources.load(asking.context.paths.resources).get("state.local")
    role = _ROLES.get(local.value if local is not None else "")
    if role is not None:
        standing.role, standing.paired = role
        asking.ended(None)


async def _take_up(asking: Asking, standing: Standing, reintegration: Reintegration, status: nfsbox.Status) -> None:
    standing.role = status.role
    # A state that was not written again since the start says nothing yet of a crash before it; `prepare` of what
    # is prepared changes nothing.
    found = (
        await asking.nfsbox(nfsbox.Prepare())
        if standing.role == "standby"
        else nfsbox.Prepared((await asking.nfsbox(nfsbox.GetState())).state)
    )
    prepared = read(found.state, found.journal, asking.context.paths.rfs / "state")
    standing.state = prepared.state
    standing.degraded, session = status.degraded, status.session
    standing.paired = session in ("paired", "handed_over")
    standing.unapplied = standing.role == "standby" and prepared.state.unapplied
    standing.peer, asking.attempt, standing.refused = status.peer, status.attempt, status.refused
    await asking.find()
    asking.context.log.debug(f"nfsadmin adopts the running nfsbox: {standing.role}, {session}")
    if standing.role == "secondary":
        _take_up_secondary(asking, standing, reintegration, session)


def _take_up_secondary(asking: Asking, standing: Standing, reintegration: Reintegration, session: str) -> None:
    """Nobody was there for what reintegre and nfsbox told meanwhile; heart takes what it knows already for
    nothing new."""
    if session == "resync":
        # The reintegre of before would be refused; what it has copied is not copied again.
        asking.spawn(reintegration.start())
    elif session == "paired" and standing.known_state().consistent:
        asking.tell_heart("rfs_synced")
    elif session != "handed_over":
        reason = "nfsadmin was restarted while the reintegration ended or its connection was lost"
        standing.paired = False
        asking.tell_heart("rfs_failed", reason)
        asking.tell_heart("secondary_lost", reason)
