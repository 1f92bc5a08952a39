"""Resources of a former configuration: nobody sets them any more, so nobody may read them.

A resource outlives the checker or the heartbeat that set it when the module was configured while it was stopped or
while its processes were dead. A rule over a class (`heartbeat.*`, `tcp.?`) would wait for it, or obey it, for ever.
What a script sets by itself is kept: only the product's own classes are looked at.
"""

from __future__ import annotations

from heart.core.turn import Turn
from heart.core.values import Setup

CHECKED = frozenset({"tcp", "ping", "intf", "ip", "module", "splitbrain"})
"""Classes of resources that only checkers set; a script may set a custom one too."""
INIT = "init"


def former(setup: Setup, name: str, value: str) -> bool:
    """Whether a resource with this value belongs to nothing that the configuration has."""
    kind, _, ident = name.partition(".")
    if kind == "heartbeat":
        return all(link.ident != ident for link in setup.links)
    if kind == "rfs":
        # the data is still incomplete, should it be replicated again
        return not setup.rfs and name != "rfs.inconsistent"
    if name == "splitbrain.uptodate":
        return not setup.witness
    if kind in CHECKED or (kind == "custom" and value == INIT):
        return all(name not in names for _, names in setup.checks)
    return False


def forget_former(t: Turn) -> None:
    """Remove them; a heart that begins does it, and every start of the module."""
    s = t.s
    t.forget([name for name, value in s.resources.items() if former(s.setup, name, value)])
