"""What the web service of a server tells about a module, and what a module checker makes of it (13.16).

`GET /var/modules/AM/state.json` answers 200 with this document, or 404 when the module is not configured.
`run` names one run of the application: it changes when the application is stopped and started again, on this
server or another one, and stays while the roles around it change.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from safekit.disk.resources import Resource

PATH = "/var/modules/{module}/state.json"
MAX_DOCUMENT = 16 * 1024
_SERVING = ("ALONE", "PRIM", "UP")


@dataclass(frozen=True, slots=True)
class ModuleState:
    """State of a module on one server. `since`: Unix time of the last change of state or colour."""

    module: str
    node: str
    state: str
    color: str
    since: float
    run: str

    @property
    def serves(self) -> bool:
        """The application runs here and nothing is in transition."""
        return self.state in _SERVING and self.color == "green"


class BadDocument(ValueError):
    """Not a state document; the text says what is wrong with it."""


def state_of(module: str, node: str, resources: dict[str, Resource]) -> ModuleState:
    """The document of a module, from its resource file."""
    local, color = resources.get("state.local"), resources.get("state.color")
    state = local.value if local is not None else "STOP"
    since = max((r.since for r in (local, color) if r is not None), default=0.0)
    run = ""
    if state in _SERVING and color is not None and color.value == "green":
        # ALONE and PRIM follow each other without a new run: only the colour tells a restart
        run = f"{node}/{color.since:.3f}"
    return ModuleState(module, node, state, color.value if color is not None else "red", since, run)


def encode(state: ModuleState) -> bytes:
    """The document as JSON."""
    return json.dumps(asdict(state)).encode()


def decode(data: bytes) -> ModuleState:
    """A document that came over the network. Raises BadDocument, whatever the bytes are."""
    if len(data) > MAX_DOCUMENT:
        raise BadDocument(f"{len(data)} bytes, at most {MAX_DOCUMENT}")
    try:
        fields = json.loads(data)
        texts = [fields[name] for name in ("module", "node", "state", "color", "run")]
        since = float(fields["since"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BadDocument(f"not a state document: {error!r}") from None
    if not all(isinstance(text, str) and len(text) <= 256 for text in texts):
        raise BadDocument("not a state document: a field is not a short text")
    module, node, state, color, run = texts
    return ModuleState(module, node, state, color, since, run)
