"""Effects that the automaton asks of its shell, and the steps of its plans.

The shell carries actions out in the order of the list.  ``Remember`` is
finished (on disk, for durable names) before the next action begins.  ``Run``
only starts its effect: the end comes back as the event ``Done`` with the same
token, so heartbeats never wait for a script or for the file system.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ScriptCall:
    """A user script and its arguments; ``force`` first makes it the rapid stop."""

    name: str
    args: tuple[str, ...]

    @property
    def stops(self) -> bool:
        """Stop scripts have time-outs, the others none."""
        return self.name.startswith("stop_")


@dataclass(frozen=True, slots=True)
class Scripts:
    """Run these one after the other; missing ones are skipped, failures do not stop the list.  `within`: seconds in
    which the whole list ends, each call having its share of what is left; 0: as configured."""

    calls: tuple[ScriptCall, ...]
    within: float = 0.0


@dataclass(frozen=True, slots=True)
class Rfs:
    """An operation of nfsadmin: prepare, primary, secondary, alone, demote, standby, release."""

    operation: str
    options: tuple[tuple[str, bool | str], ...] = ()
    on_failure: str = ""


@dataclass(frozen=True, slots=True)
class Vip:
    """An operation of vipd: init (remove what a crash left), set, unset; in a farm also join and leave.  `within`:
    seconds, 0 as long as usual."""

    operation: str
    within: float = 0.0


@dataclass(frozen=True, slots=True)
class Processes:
    """Start or stop what runs in a phase: base, pre, both, prim, second, sec.

    That is its checkers, and the watching of its processes by errd.
    ``checkers`` is False while they are switched off, ``errd`` when only they
    are meant.  With ``keep`` checkers that run already, and their resources,
    stay as they are.
    """

    start: bool
    phase: str
    checkers: bool = True
    errd: bool = True
    keep: bool = False


@dataclass(frozen=True, slots=True)
class Witness:
    """Ask the split-brain witness; the Done is ok when it answers."""

    ident: str


Effect = Scripts | Rfs | Vip | Processes | Witness


@dataclass(frozen=True, slots=True)
class Do:
    """A step that the core takes itself, by the name of its function."""

    function: str
    argument: str = ""


@dataclass(frozen=True, slots=True)
class Hold:
    """The plan stands still until a condition of the core holds."""

    condition: str


Step = Effect | Do | Hold


@dataclass(frozen=True, slots=True)
class Log:
    """A line of the module log: message code and fields."""

    code: str
    fields: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Remember:
    """Set resources; durable names are on disk before the next action."""

    values: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Forget:
    """Remove resources (their checkers do not run any more)."""

    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Run:
    """Start an effect; its Done event carries `token`."""

    token: int
    effect: Effect


@dataclass(frozen=True, slots=True)
class Abort:
    """Kill the effect `token` (a script and all its processes) before going on; no Done is expected."""

    token: int


@dataclass(frozen=True, slots=True)
class Send:
    """Send heartbeats now: what they say has changed."""


@dataclass(frozen=True, slots=True)
class Announce:
    """Tell the network again that the virtual addresses are here: the other server may have said the same."""


@dataclass(frozen=True, slots=True)
class Marker:
    """Set (before anything else of a start) or remove (after a stop) the mark of a running module."""

    present: bool


@dataclass(frozen=True, slots=True)
class Reply:
    """Answer the request `token`: accepted, or refused with a code and a sentence."""

    token: int
    ok: bool = True
    code: str = ""
    text: str = ""


@dataclass(frozen=True, slots=True)
class Reboot:
    """Restart the machine (automatic_reboot="on")."""


@dataclass(frozen=True, slots=True)
class Exit:
    """The module has stopped: tell the peer, then end all its processes.  ``respawn``: then have
    safeadmin start it again under a new supervisord."""

    respawn: bool = False


Action = Log | Remember | Forget | Run | Abort | Send | Announce | Marker | Reply | Reboot | Exit
