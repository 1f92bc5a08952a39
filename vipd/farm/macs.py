"""The MACs under which the servers of a farm are reached, as they tell them in their messages."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from vipd.farm.layout import Layout


class Macs:
    """For each server the MAC of each of its interfaces, in the order of the layout. `share` gets all of them, and
    the virtual ones: machines that may have the virtual addresses together with us."""

    def __init__(self, me: int, share: Callable[[Iterable[bytes]], None]) -> None:
        self._me, self._share = me, share
        self.known: dict[int, tuple[bytes, ...]] = {}
        self.version = 0
        """Another number after each change."""

    def learn(self, sender: int, told: Mapping[int, Sequence[bytes]]) -> bool:
        """Take what a server tells; whether something is new."""
        before = dict(self.known)
        for node, macs in told.items():
            # What a server says of itself counts more than what others say of it.
            if node == sender or (node != self._me and node not in self.known):
                self.known[node] = tuple(macs)
        if self.known == before:
            return False
        self.version += 1
        return True

    def with_ours(self, layout: Layout | None) -> dict[int, tuple[bytes, ...]]:
        """What the others are told."""
        if layout is None:
            return dict(self.known)
        return {**self.known, self._me: tuple(wire.mac for wire in layout.wires)}

    def share(self, layout: Layout | None) -> None:
        """Tell who watches for foreign machines which ones are not."""
        macs = {mac for known in self.known.values() for mac in known}
        if layout is not None:
            macs |= {wire.vmac for wire in layout.wires if wire.vmac is not None}
        self._share(macs)
