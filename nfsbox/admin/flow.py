"""Where the replication flow of the module goes: the other server, its address and port, and our own address."""

from __future__ import annotations

from safekit.bus.endpoint import BusError
from safekit.bus.requests import nfsadmin
from safekit.process.frame import Context


class Flow:
    """As heart's request says it, else as the configurations do at that moment: both can be replaced (chapter 13)."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def peer(self, asked: nfsadmin.Primary | nfsadmin.Secondary) -> str:
        """Name of the other server. Raises BusError."""
        context = self._context
        peer = asked.peer or context.config.peer(context.cluster, context.node)
        if not peer:
            raise BusError("peer", "the other server of the module is not known")
        return peer

    def address(self, asked: nfsadmin.Secondary, peer: str) -> str:
        """Address of the other server on the network of the flow. Raises BusError."""
        rfs = self._context.config.rfs
        address = asked.address or (self._context.cluster.address(rfs.flow, peer) if rfs is not None else None)
        if not address:
            raise BusError("peer", f"{peer} has no address on the network of the replication flow")
        return address

    def port(self, asked: nfsadmin.Secondary) -> int:
        """TCP port of the flow, the same on both servers."""
        rfs = self._context.config.rfs
        return asked.port or (rfs.port if rfs is not None else 0)

    def source(self) -> str | None:
        """Our own address on that network; None when any will do."""
        rfs = self._context.config.rfs
        return self._context.cluster.bind_address(rfs.flow, self._context.node) if rfs is not None else None
