"""The checkers of a module: those that the file names, and the automatic ones of <interface check> and
<virtual_addr check> (guide 13.5.5, 13.10)."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from safekit.model.types import IntfCheck, IpCheck, ModuleConfig, When

LocalAddress = ipaddress.IPv4Interface | ipaddress.IPv6Interface


@dataclass(frozen=True, slots=True)
class Checker:
    """One checker process: program, identity, phase in which it runs, the resource that it sets."""

    program: str
    ident: str
    when: When
    resource: str

    @property
    def process(self) -> str:
        """Its name for the supervisor, where `:` separates groups."""
        return f"{self.program}.{self.ident}".replace(":", "_").replace("/", "_")


def _literal(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def interface_checks(config: ModuleConfig, local: Sequence[LocalAddress]) -> tuple[IntfCheck, ...]:
    """Interface checkers: explicit ones, and one for the network of each <interface check="on">.

    `local` are the addresses of this server with their prefix lengths. The automatic one watches the
    interface that holds our own address in the network of the virtual addresses; an interface without such
    an address has nothing to watch.
    """
    found = {check.ident: check for check in config.check.intf}
    for interface in config.vip.interfaces if config.vip is not None else ():
        if not interface.check:
            continue
        virtual = [ip for address in interface.addresses if (ip := _literal(address.addr)) is not None]
        for own in local:
            if own.ip not in virtual and any(ip in own.network for ip in virtual):
                ident = str(own.network.network_address)
                found.setdefault(ident, IntfCheck(ident, str(own.ip)))
    return tuple(found.values())


def address_checks(config: ModuleConfig) -> tuple[IpCheck, ...]:
    """IP checkers: explicit ones, and one for each <virtual_addr check="on">.

    They run where the application runs: in a mirror in phase prim, elsewhere in phase both.
    """
    when: When = "prim" if config.service.mode == "mirror" else "both"
    found = {check.ident: replace(check, when=when) for check in config.check.ip}
    for interface in config.vip.interfaces if config.vip is not None else ():
        for address in interface.addresses:
            if address.check:
                found.setdefault(address.addr, IpCheck(address.addr, address.addr, when))
    return tuple(found.values())


def checkers(config: ModuleConfig, local: Sequence[LocalAddress]) -> tuple[Checker, ...]:
    """Every checker process of a module."""
    check = config.check
    found = [
        *(Checker("tcpcheck", c.ident, c.when, f"tcp.{c.ident}") for c in check.tcp),
        *(Checker("pingcheck", c.ident, c.when, f"ping.{c.ident}") for c in check.ping),
        *(Checker("intfcheck", c.ident, c.when, f"intf.{c.ident}") for c in interface_checks(config, local)),
        *(Checker("ipcheck", c.ident, c.when, f"ip.{c.ident}") for c in address_checks(config)),
        *(Checker("customcheck", c.ident, c.when, f"custom.{c.ident}") for c in check.custom),
        *(Checker("modulecheck", c.ident, "pre", f"module.{c.ident}") for c in check.module),
    ]
    if check.splitbrain is not None:
        ident = check.splitbrain.ident
        found.append(Checker("splitbraincheck", ident, "pre", f"splitbrain.{ident}"))
    if config.rfs is not None and config.rfs.syncdelta > 1:
        found.append(Checker("syncedcheck", "synced", "pre", "rfs.synced"))
    return tuple(found)


def in_phase(found: Iterable[Checker], when: When) -> tuple[Checker, ...]:
    """The checkers that run in a phase."""
    return tuple(checker for checker in found if checker.when == when)


def changed_checkers(
    before: ModuleConfig, after: ModuleConfig, old: Iterable[Checker], new: Iterable[Checker]
) -> tuple[Checker, ...]:
    """The checkers of `new` that are not in `old`, or that the configuration describes in another way."""
    known = {checker: _definition(before, checker) for checker in old}
    return tuple(c for c in new if c not in known or known[c] != _definition(after, c))


def _definition(config: ModuleConfig, checker: Checker) -> object:
    if checker.program == "splitbraincheck":
        return config.check.splitbrain
    if checker.program == "syncedcheck":
        return config.rfs.syncdelta if config.rfs is not None else 0
    if checker.program == "ipcheck":
        return next((c for c in address_checks(config) if c.ident == checker.ident), None)
    explicit = getattr(config.check, checker.program.removesuffix("check"))
    return next((c for c in explicit if c.ident == checker.ident), None)
