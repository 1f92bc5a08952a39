"""The resources rfs_bandwidth.*: what replication and reintegration send, as the primary's nfsbox measures it."""

from __future__ import annotations

from nfsbox.admin.asking import Asking
from safekit.bus.requests import nfsadmin


class Bandwidth:
    """What heart's file says now, in KB/s."""

    def __init__(self, asking: Asking) -> None:
        self._asking = asking
        self.shown: dict[str, int] = {}

    def show(self, measured: nfsadmin.Bandwidth) -> None:
        """Tell heart what has changed."""
        for name, value in (("replication", measured.replication), ("reintegration", measured.reintegration)):
            if self.shown.get(name) != value:
                self.shown[name] = value
                self._set(name, value)

    def reintegration_ended(self) -> None:
        """Whatever was measured last: nothing is copied any more."""
        self._set("reintegration", 0)

    def clear(self) -> None:
        """This server replicates nothing now."""
        for name, value in self.shown.items():
            if value:
                self._set(name, 0)
        self.shown.clear()

    def _set(self, name: str, value: int) -> None:
        self._asking.set_resource(f"rfs_bandwidth.{name}", str(value))
