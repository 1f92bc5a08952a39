"""Which commands a module can take (guide 9.4): the rules that do not need its processes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

MIRROR_ONLY = frozenset({"prim", "primforce", "second", "swap"})
STARTS = frozenset({"start", "prim", "primforce", "second"})
STOPS = frozenset({"stop", "shutdown", "forcestop"})
OF_A_RUNNING_MODULE = frozenset(
    {"restart", "swap", "stopwait", "failover", "checker", "errd", "incloop", "resetloop", "update"}
)
ACTIONS = STARTS | STOPS | OF_A_RUNNING_MODULE | {"stopstart"}


class Way(Enum):
    """What becomes of an accepted command."""

    SPAWN = "spawn"
    FORWARD = "forward"
    NOTHING = "nothing"
    FORCE = "force"


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a command is not taken: a stable code, the cause and the next step for people."""

    code: str
    text: str


def plan(action: str, module: str, facts: Mapping[str, object]) -> Way | Refusal:
    """The way of a command.

    facts: installed, configured, in_cluster, running (bool), mode (mirror, farm, light or ""), problem
    (why the configuration cannot be read, or "").
    """
    if action not in ACTIONS:
        known = ", ".join(sorted(ACTIONS))
        return Refusal("unknown_action", f"{action!r} is not an action; use one of: {known}")
    if not facts["installed"]:
        return Refusal("unknown_module", f"module {module} is not installed on this server; safekit module list")
    running, mode = bool(facts["running"]), str(facts["mode"])
    if action == "forcestop":
        # The way out must work whatever is broken, a lost configuration included.
        return Way.FORCE
    if running and action in STOPS:
        return Way.FORWARD
    if not running and action in STOPS:
        return Way.NOTHING
    if facts["problem"]:
        return Refusal("unreadable", str(facts["problem"]))
    if not facts["configured"]:
        return Refusal("not_configured", f"module {module} is not configured; safekit config -m {module}")
    if not facts["in_cluster"]:
        return Refusal("no_cluster", "the cluster is not configured on this server; safekit cluster config FILE")
    if action in MIRROR_ONLY and mode != "mirror":
        return Refusal(
            "wrong_mode",
            f"safekit {action} is for mirror modules only, {module} is a {mode} module; safekit module listid",
        )
    if running:
        return Way.FORWARD
    if action in OF_A_RUNNING_MODULE:
        return Refusal("stopped", f"module {module} is stopped; safekit start -m {module}")
    return Way.SPAWN
