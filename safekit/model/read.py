"""Reading typed attributes of a checked element, noting where each value stands."""

from __future__ import annotations

from safekit.model.findings import Places
from safekit.model.xmlload import Node


class Reader:
    """Attributes of one element. Every method takes the XML name, then the field that it becomes.

    The schema has refused values of the wrong type before; an attribute that it refused is gone and
    reads as its default.
    """

    def __init__(self, node: Node, path: str, places: Places) -> None:
        self.node = node
        self.path = path
        self.places = places

    def optional(self, attribute: str, field: str) -> str | None:
        """The value with the blanks around it removed, None when it is not written."""
        value = self.node.attributes.get(attribute)
        if value is None:
            return None
        self.places.note(f"{self.path}.{field}", self.node.line_of(attribute), f"{self.node.tag} {attribute}")
        return value.strip() if attribute != "value" else value

    def expression(self, attribute: str, field: str) -> str | None:
        """A regular expression, as it is written."""
        return self.optional(attribute, field)

    def text(self, attribute: str, field: str, default: str) -> str:
        value = self.optional(attribute, field)
        return default if value is None else value

    def onoff(self, attribute: str, field: str, default: bool) -> bool:
        value = self.optional(attribute, field)
        return default if value is None else value in ("on", "yes")

    def number(self, attribute: str, field: str, default: int) -> int:
        value = self.optional(attribute, field)
        return default if value is None else int(value)

    def optional_number(self, attribute: str, field: str) -> int | None:
        value = self.optional(attribute, field)
        return None if value is None else int(value)
