"""Plans: the order of scripts, replication, addresses and processes for every change of state.

The script order is that of guide 14.2.  Around the scripts the order that must
hold is: the data is writable and the address is set before the application
starts; checkers of the application stop before it stops; the data is given up
only after the application has stopped; the peer is told last.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from heart.core.actions import Do, Hold, Processes, Rfs, ScriptCall, Scripts, Step, Vip
from heart.core.values import ADDRESSES, Role

ACTION_WORDS = ("start", "stop", "stopstart", "stopwait", "restart", "swap")
"""Third argument of the user scripts."""


def action_word(word: str) -> str:
    """The word given to scripts; never empty (anything unknown becomes start)."""
    return word if word in ACTION_WORDS else "start"


def scripts(names: Iterable[str], origin: Role, target: Role, action: str) -> tuple[Scripts, ...]:
    """Script steps: stop scripts nice then force, each before the next; others once.

    Stop and start scripts are separate steps: a start script may be killed by
    a stop, a stop script has its own time-outs.
    """
    args = (origin.value, target.value, action)
    steps: list[Scripts] = []
    calls: list[ScriptCall] = []
    for name in names:
        stops = name.startswith("stop_")
        if calls and calls[-1].stops != stops:
            steps.append(Scripts(tuple(calls)))
            calls = []
        calls.append(ScriptCall(name, args))
        if stops:
            calls.append(ScriptCall(name, ("force", *args)))
    if calls:
        steps.append(Scripts(tuple(calls)))
    return tuple(steps)


def force_pass(origin: Role, target: Role, action: str) -> Scripts:
    """The rapid stop of everything, at the end of a stop."""
    args = ("force", origin.value, target.value, action)
    return Scripts(tuple(ScriptCall(n, args) for n in ("stop_sec", "stop_prim", "stop_second", "stop_both")))


def once(names: Iterable[str], origin: Role, target: Role, action: str) -> Scripts:
    """Scripts called once each, without force."""
    args = (origin.value, target.value, action)
    return Scripts(tuple(ScriptCall(name, args) for name in names))


def start(action: str) -> tuple[Step, ...]:
    """STOP -> WAIT: pre checkers come after prestart (guide 13.15)."""
    return (
        once(("transition", "prestart"), Role.STOP, Role.WAIT, action),
        *resume(),
    )


def resume(*, adopted: bool = False) -> tuple[Step, ...]:
    """The part of a start that a heart restarted in WAIT does again (`adopted`: on what still runs)."""
    return (
        Processes(True, "base"),
        Vip("init"),
        Rfs("prepare", on_failure="prepare_failed"),
        Processes(True, "pre", keep=adopted),
        Do("listen"),
    )


def stop_from_wait(action: str) -> tuple[Step, ...]:
    """WAIT -> STOP: the forced pass, then poststop, which still finds the processes of the module."""
    return (
        force_pass(Role.WAIT, Role.STOP, action),
        Processes(False, "pre"),
        Rfs("release"),
        once(("poststop", "transition"), Role.WAIT, Role.STOP, action),
        Processes(False, "base"),
        Do("end_of_stop"),
    )


def forced_stop(role: Role, action: str, within: float = 0.0) -> tuple[Step, ...]:
    """Any state -> STOP without waiting for anybody's goodwill; `within`: see `leave_hurriedly`."""
    return (
        *(() if within else (Processes(False, phase) for phase in ("sec", "prim", "second", "both"))),
        replace(force_pass(role, Role.STOP, action), within=within),
        Vip("unset", within=ADDRESSES if within else 0.0),
        *((Processes(False, phase) for phase in ("sec", "prim", "second", "both")) if within else ()),
        Do("leave_now"),
        Processes(False, "pre"),
        Rfs("release", (("force", True),)),
        once(("poststop", "transition"), Role.WAIT, Role.STOP, action),
        Processes(False, "base"),
        Do("end_of_stop"),
    )


_STOPS = {
    Role.ALONE: ("stop_prim", "stop_both"),
    Role.PRIM: ("stop_sec", "stop_prim", "stop_both"),
    Role.SECOND: ("stop_sec", "stop_second", "stop_both"),
    Role.UP: ("stop_both",),
}
_STARTS = {
    Role.ALONE: ("start_both", "start_prim"),
    Role.PRIM: ("start_both", "start_prim", "start_sec"),
    Role.SECOND: ("start_both", "start_second", "start_sec"),
    Role.UP: ("start_both",),
}
_PHASES = {
    Role.ALONE: ("prim", "both"),
    Role.PRIM: ("sec", "prim", "both"),
    Role.SECOND: ("sec", "second", "both"),
    Role.UP: ("both",),
}
"""What runs in a role, in the order of its stop; the start is in the opposite order, as the scripts are."""


def phases(role: Role) -> tuple[str, ...]:
    """The phases of a running role, in the order of their stop."""
    return _PHASES.get(role, ())


def _begin(role: Role) -> tuple[Processes, ...]:
    return tuple(Processes(True, phase) for phase in reversed(_PHASES[role]))


def _end(role: Role) -> tuple[Processes, ...]:
    return tuple(Processes(False, phase) for phase in _PHASES[role])


def _share(role: Role, operation: str) -> tuple[Vip, ...]:
    """In a farm clients come only while the application runs; the others serve them meanwhile."""
    return (Vip(operation),) if role is Role.UP else ()


def leave(role: Role, action: str, *, revoke: bool = False) -> tuple[Step, ...]:
    """ALONE, PRIM, SECOND or UP -> WAIT.

    With `revoke` the data is made read-only first: writes that wait for a
    secondary that went on alone fail now, instead of holding up stop scripts.
    """
    return (
        *((Rfs("standby"),) if revoke else ()),
        *_end(role),
        *_share(role, "leave"),
        *scripts(_STOPS[role], role, Role.WAIT, action),
        *((Vip("unset"),) if role is not Role.SECOND else ()),
        *((Do("settle_pair"), Hold("pair_settled")) if role.primary else ()),
        Do("leave_memory"),
        Rfs("standby"),
        once(("transition",), role, Role.WAIT, action),
        Do("arrive_in_wait"),
    )


def leave_hurriedly(role: Role, action: str, within: float) -> tuple[Step, ...]:
    """ALONE or PRIM -> WAIT of a server that is cut off: the stop scripts end within so many seconds, or are ended,
    then the addresses go; what may take its time comes after that."""
    return (
        *(replace(step, within=within) for step in scripts(_STOPS[role], role, Role.WAIT, action)),
        Vip("unset", within=ADDRESSES),
        *_end(role),
        Do("leave_memory"),
        Rfs("standby"),
        once(("transition",), role, Role.WAIT, action),
        Do("arrive_in_wait"),
    )


def to_alone(origin: Role, action: str, *, stops: tuple[str, ...], starts: tuple[str, ...]) -> tuple[Step, ...]:
    """WAIT or SECOND -> ALONE; the role and the memory were changed before."""
    return (
        *((Processes(False, "sec"), Processes(False, "second")) if origin is Role.SECOND else ()),
        *scripts(stops, origin, Role.ALONE, action),
        Hold("peer_fenced"),
        Rfs("primary", on_failure="primary_failed"),
        Do("serve"),
        Vip("set"),
        *scripts(("transition", *starts), origin, Role.ALONE, action),
        *((Processes(True, "both"),) if origin is Role.WAIT else ()),
        Processes(True, "prim"),
        Do("stable"),
    )


def second_scripts(action: str) -> tuple[Step, ...]:
    """WAIT -> SECOND once the data is the same as on the primary."""
    return (
        *scripts(("transition", "start_both", "start_second", "start_sec"), Role.WAIT, Role.SECOND, action),
        *_begin(Role.SECOND),
        Do("stable"),
    )


def to_up(action: str) -> tuple[Step, ...]:
    """WAIT -> UP of a farm or light module; the role was changed before."""
    return (
        Vip("set"),
        *scripts(("transition", "start_both"), Role.WAIT, Role.UP, action),
        *_share(Role.UP, "join"),
        *_begin(Role.UP),
        Do("stable"),
    )


def restart(role: Role) -> tuple[Step, ...]:
    """Stop and start scripts of the current role, nothing else."""
    return (
        *_end(role),
        *_share(role, "leave"),
        *scripts(_STOPS[role], role, role, "restart"),
        *scripts(_STARTS[role], role, role, "restart"),
        *_share(role, "join"),
        *_begin(role),
        Do("stable"),
    )


def adopted(role: Role, *, paired: bool) -> tuple[Step, ...]:
    """A heart was restarted in the middle of starting or restarting the application: do it again, whole. In a pair the
    file system stays, or becomes again, that of a pair: the peer was not told that it is out of date."""
    return (
        Rfs("primary", (("swap", True),) if paired else (), on_failure="primary_failed"),
        Do("serve"),
        Vip("set"),
        *restart(role),
    )


def standing_by() -> tuple[Step, ...]:
    """The processes that a started module has in every state."""
    return (Processes(True, "base", keep=True), Processes(True, "pre", keep=True))


def repaired(role: Role) -> tuple[Step, ...]:
    """Parts of an adopted role had died beside the application, which goes on: what lives is not touched."""
    return (
        *standing_by(),
        *((Vip("set"),) if role is not Role.SECOND else ()),
        *_share(role, "join"),
        *(Processes(True, phase, keep=True) for phase in reversed(_PHASES[role])),
        Do("stable"),
    )


def without_data() -> tuple[Step, ...]:
    """The file system of an adopted role had died: it is mounted again, so that stop scripts find their files, and the
    role is left."""
    return (Processes(True, "base", keep=True), Rfs("prepare"), Do("leave_without_data"))


def degraded(role: Role) -> tuple[Step, ...]:
    """nfsbox died under a primary: the application starts again on the mount that was remade without
    replication.  The second `alone` waits for that mount."""
    stops, starts = scripts(_STOPS[role], role, role, "restart"), scripts(_STARTS[Role.ALONE], role, role, "restart")
    return (
        *_end(role),
        *stops,
        Hold("pair_settled"),
        Rfs("alone", on_failure="primary_failed"),
        Do("serve"),
        *starts,
        *_begin(Role.ALONE),
        Do("stable"),
    )


def pair_complete(action: str) -> tuple[Step, ...]:
    """ALONE -> PRIM; the application goes on."""
    return (once(("transition", "start_sec"), Role.ALONE, Role.PRIM, action), Processes(True, "sec"))


def pair_broken(action: str) -> tuple[Step, ...]:
    """PRIM -> ALONE; the application goes on."""
    return (Processes(False, "sec"), *scripts(("stop_sec", "transition"), Role.PRIM, Role.ALONE, action))


def give(role: Role, nosync: bool) -> tuple[Step, ...]:
    """Swap, on the server that gives the application away."""
    starts = ("transition", "start_second") if role is Role.PRIM else ("transition", "start_second", "start_sec")
    options = (("nosync", True),) if nosync else ()
    return (
        Hold("swap_joined"),
        Do("swap_begins"),
        Processes(False, "prim"),
        *scripts(("stop_prim",), role, Role.SECOND, "swap"),
        Vip("unset"),
        Do("swap_gate"),
        Rfs("demote", options, on_failure="swap_refused_by_rfs"),
        Do("swap_release"),
        Hold("swap_taken"),
        Do("swap_given"),
        Rfs("secondary", (("swap", True), *options), on_failure="secondary_failed"),
        *scripts(starts, role, Role.SECOND, "swap"),
        Processes(True, "second"),
        *((Processes(True, "sec"),) if role is not Role.PRIM else ()),
        Do("swap_end"),
    )


def take(nosync: bool) -> tuple[Step, ...]:
    """Swap, on the server that gets the application."""
    options = (("nosync", True),) if nosync else ()
    return (
        Hold("swap_joined"),
        Do("swap_begins"),
        Processes(False, "second"),
        *scripts(("stop_second",), Role.SECOND, Role.PRIM, "swap"),
        Hold("swap_released"),
        Do("swap_take"),
        Rfs("primary", (("swap", True), *options), on_failure="primary_failed"),
        Do("serve"),
        Vip("set"),
        *scripts(("transition", "start_prim"), Role.SECOND, Role.PRIM, "swap"),
        Processes(True, "prim"),
        Do("swap_end"),
    )


def swap_back(role: Role) -> tuple[Step, ...]:
    """The application had been stopped for a swap that will not happen: start it again."""
    return (
        Rfs("primary", (("swap", True),), on_failure="primary_failed"),
        Do("serve"),
        Vip("set"),
        *scripts(("start_prim",), role, role, "swap"),
        Processes(True, "prim"),
        Do("stable"),
    )


def stay_second() -> tuple[Step, ...]:
    """The secondary had stopped its scripts for a swap that will not happen."""
    return (
        *scripts(("start_second",), Role.SECOND, Role.SECOND, "swap"),
        Processes(True, "second"),
        Do("stable"),
    )
