"""The packet filters of a farm behind one interface, and the engine that is nftables alone (F4)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from vipd.farm import nic, ruleset
from vipd.farm.layout import Connection, Layout, Verdicts, closed
from vipd.farm.nft import Nft, NftError, append_link_address_rule


class EngineError(Exception):
    """The filters could not be changed; the text names the cause and the next step."""


class Engine(Protocol):
    """Every call is done when it returns; after an EngineError what was before is still there."""

    def install(self, layout: Layout, verdicts: Verdicts, lease: float | None) -> None:
        """Make the filters anew, with these verdicts. For a moment they are closed."""

    def apply(self, verdicts: Verdicts, lease: float | None) -> None:
        """Other verdicts, for every packet at once. lease: seconds, None for ever."""

    def renew(self, lease: float | None) -> None:
        """The verdicts hold for that long from now on."""

    def keep(self, connections: Iterable[Connection]) -> None:
        """More connections stay here."""

    def remove(self) -> None:
        """Take the filters away."""

    def packets(self) -> dict[int, int]:
        """Packets seen for each balanced rule (its index in the layout), of all servers' clients in invisible
        mode, since the filters were made."""

    def adopt(self, layout: Layout) -> bool:
        """Get to know filters that a life before may have left; whether they still let packets pass."""


class NftablesEngine:
    """Everything in the kernel: vipd only changes sets and maps."""

    def __init__(self) -> None:
        self._nft = Nft()
        self._layout: Layout | None = None
        self._doubt = 0.0

    def install(self, layout: Layout, verdicts: Verdicts, lease: float | None) -> None:
        self._layout, self._doubt = layout, 0.0
        try:
            # One transaction: filters of a life before are replaced without a moment in which everything is dropped.
            self._run(ruleset.table(layout) + ruleset.state(layout, verdicts) + ruleset.lease(layout, lease), verdicts)
            for wire in layout.wires:
                if wire.vmac is not None and wire.v6:
                    append_link_address_rule(layout.table, ruleset.ndfix(wire), wire.vmac)
            for wire in layout.wires:
                nic.accept(wire.index, wire.device, wire.vmac if wire.vmac is not None else wire.gather)
        except (NftError, OSError) as error:
            raise EngineError(self._explain(error)) from None

    def apply(self, verdicts: Verdicts, lease: float | None) -> None:
        layout = self._known()
        try:
            self._run(ruleset.state(layout, verdicts) + ruleset.lease(layout, lease), verdicts)
        except NftError as error:
            raise EngineError(self._explain(error)) from None

    def _run(self, text: str, verdicts: Verdicts) -> None:
        if verdicts.doubt != self._doubt:
            text += ruleset.doubt(self._known(), verdicts.doubt)
        self._nft.run(text)
        self._doubt = verdicts.doubt

    def renew(self, lease: float | None) -> None:
        try:
            self._nft.run(ruleset.lease(self._known(), lease))
        except NftError as error:
            raise EngineError(self._explain(error)) from None

    def keep(self, connections: Iterable[Connection]) -> None:
        text = ruleset.keep(self._known(), connections)
        if text:
            try:
                self._nft.run(text)
            except NftError as error:
                raise EngineError(self._explain(error)) from None

    def remove(self) -> None:
        layout = self._known()
        try:
            self._nft.run(ruleset.remove(layout))
            for wire in layout.wires:
                nic.refuse(wire.index, wire.device, wire.vmac if wire.vmac is not None else wire.gather)
        except (NftError, OSError) as error:
            raise EngineError(self._explain(error)) from None

    def packets(self) -> dict[int, int]:
        found: dict[int, int] = {}
        try:
            listed = self._nft.read(f"list table netdev {self._known().table}", terse=True)
        except NftError as error:
            raise EngineError(self._explain(error)) from None
        for entry in listed:
            rule = entry.get("rule", {})
            if str(rule.get("comment", "")).isdigit():
                seen = sum(part["counter"]["packets"] for part in rule["expr"] if "counter" in part)
                found[int(rule["comment"])] = found.get(int(rule["comment"]), 0) + seen
        return found

    def close(self) -> None:
        """Let go of the library; the filters stay."""
        self._nft.close()

    def _known(self) -> Layout:
        assert self._layout is not None, "install comes first"
        return self._layout

    def adopt(self, layout: Layout) -> bool:
        self._layout = layout
        try:
            listed = self._nft.read(f"list set netdev {self._known().table} lease")
        except NftError:
            return False
        return any(entry.get("set", {}).get("elem") for entry in listed)

    @staticmethod
    def _explain(error: Exception) -> str:
        return f"packet filter: {error}; see that this kernel has nf_tables with netdev ingress and egress (5.16)"


__all__ = ["Engine", "EngineError", "NftablesEngine", "closed"]
