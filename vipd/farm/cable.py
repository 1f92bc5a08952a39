"""Whether a farm's interface has a link: alone without a cable, a server has all the buckets."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from safekit.net import addresses
from safekit.net.addresses import Link
from vipd.farm.layout import Layout


class Cable:
    """Plugged in again, a server must hear the others before a client reaches it, or it would reset the connections
    which they have. settle: seconds until it has heard them. changed(): `unplugged` is another."""

    def __init__(self, settle: float, changed: Callable[[], None]) -> None:
        self._settle, self._changed = settle, changed
        self._layout: Layout | None = None
        self.unplugged = False

    def link(self, layout: Layout, link: Link) -> None:
        """The kernel tells the state of an interface."""
        self._layout = layout
        if link.carrier != self.unplugged or any(wire.device != link.name for wire in layout.wires):
            return
        if link.carrier:
            asyncio.get_running_loop().call_later(self._settle, self._open_again)
        else:
            self.unplugged = True
            self._changed()

    def _open_again(self) -> None:
        links = {link.index: link.carrier for link in addresses.links()}
        if self._layout is not None and any(links.get(wire.index, False) for wire in self._layout.wires):
            self.unplugged = False
            self._changed()
