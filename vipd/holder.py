"""Sets, keeps and removes the virtual addresses of a mirror module (13.5, 4.2.6).

heart owns the role: it orders `vip_set` when this server becomes PRIM or ALONE, `vip_unset` before it stops
being so. Both may be repeated. vipd on its own neither takes nor gives up an address: killed, it finds what
is there when it is back; stopped, it leaves everything as it is.

Order of a take-over: probe, write down, set, announce, tell. Order of a release: forget (the watcher must
not see a loss), stop announcing, reset the connections, remove, write down.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from safekit.bus.endpoint import BusError
from safekit.disk.files import reserve
from safekit.log.module import ModuleLog
from safekit.net import addresses as net
from safekit.net.addresses import Address, Link, Place
from safekit.net.neighbours import ask_mac
from safekit.net.netlink import Netlink
from safekit.net.packets import IP, Heard, mac_text
from vipd import ledger, tcpreset
from vipd.announce import AGAIN_AFTER, REPEAT_AFTER, Announcement
from vipd.names import Resolver
from vipd.plan import Finding, Request, Verdict, Wanted, judge
from vipd.wires import Wires

RETRY_SECONDS = 5.0
EXPECTED_SECONDS = 2.0
"""What the network said so long ago still counts."""


@dataclass(frozen=True, slots=True)
class Held:
    """A virtual address that this server holds."""

    wanted: Wanted
    link: Link
    prefix: int
    since: float

    @property
    def entry(self) -> ledger.Entry:
        return ledger.Entry(self.wanted.ip, self.link.name, self.prefix, self.since)


@dataclass(frozen=True, slots=True)
class Expected:
    """A question to the network that was asked before the order came: about what, when, and the answers to come."""

    asked: frozenset[tuple[IP, int]]
    since: float
    answers: asyncio.Task[list[Heard]]


class Holder:
    """The addresses of one module. `changed` is called whenever what is held has changed."""

    def __init__(
        self,
        log: ModuleLog,
        requests: Iterable[Request],
        resolver: Resolver,
        wires: Wires,
        ledger_path: Path,
        *,
        reset: bool,
        changed: Callable[[], None],
        alone: bool = True,
    ) -> None:
        """alone: one server has the addresses at a time, and the network must learn which one. In a farm all
        have them: others of the farm are no news, and what is announced is decided elsewhere."""
        self._log = log
        self._requests = tuple(requests)
        self._resolver = resolver
        self._wires = wires
        self._path = ledger_path
        with contextlib.suppress(OSError):  # no room to put by: addresses are taken as long as there is room
            reserve(ledger_path)
        self._reset = reset
        self._alone = alone
        self._changed = changed
        self._kernel = Netlink()
        self._lock = asyncio.Lock()
        self._retrying: asyncio.Task[None] | None = None
        self._told: set[tuple[str, str, str]] = set()
        self._expected: Expected | None = None
        self.held: dict[IP, Held] = {}
        self.refused: dict[IP, Finding] = {}

    # ------------------------------------------------------------------------- orders

    async def expect(self) -> None:
        """The order to take the addresses is about to come: ask the network now, while replication is made ready."""
        async with self._lock:
            absent = await self._absent()
            if absent and not self._asking():
                asked = frozenset((ip, link.index) for ip, link in absent)
                task = asyncio.get_running_loop().create_task(self._wires.probe(absent))
                self._expected = Expected(asked, time.monotonic(), task)

    def _asking(self) -> bool:
        return self._expected is not None and not self._expected.answers.done()

    async def _absent(self) -> list[tuple[IP, Link]]:
        links, addresses = net.links(self._kernel), net.addresses(self._kernel)
        present = {a.ip: a for a in addresses}
        known = await self._resolver.known(self._requests)
        ours = {wanted.ip for wanted in known}
        found = []
        for wanted in known:
            # What cannot be placed is said when it is to be set.
            with contextlib.suppress(ValueError):
                if wanted.ip not in present:
                    found.append((wanted.ip, self._place(wanted, links, addresses, None, ours).link))
        return found

    async def _probe(self, absent: list[tuple[IP, Link]]) -> list[Heard]:
        """Everything said about these addresses. Raises OSError when the network cannot be asked."""
        expected, self._expected = self._expected, None
        if expected is not None:
            answers = await expected.answers
            young = time.monotonic() - expected.since < EXPECTED_SECONDS
            if young and {(ip, link.index) for ip, link in absent} <= expected.asked:
                return answers
        return await self._wires.probe(absent)

    async def acquire(self) -> list[str]:
        """Take every address that is free or the peer's; all addresses held, as text.

        Raises BusError, after the other addresses have been taken: 'vip_duplicate' when another machine uses
        one (it is tried again every RETRY_SECONDS until `release`), 'vip_place' when no interface can carry one,
        'vip_name' for a name that cannot be resolved, 'vip_kernel' when the system refuses.
        """
        async with self._lock:
            problems = await self._take_missing()
            if problems and self._retrying is None:
                self._retrying = asyncio.get_running_loop().create_task(self._retry())
            if problems:
                raise problems[0]
            return [str(ip) for ip in self.held]

    async def follow(self) -> None:
        """Names may have other addresses now (guide 9.3): what is held follows its name, the new address first. The
        former one stays while the new one cannot be had, which is tried again."""
        async with self._lock:
            moved = await self._resolver.renew(self._requests)
            if moved and self.held and await self._take_missing() and self._retrying is None:
                self._retrying = asyncio.get_running_loop().create_task(self._retry())

    async def release(self, code: str = "vip_unset") -> list[str]:
        """Remove the module's addresses, also those which an earlier configuration left; what was removed.

        Raises BusError('vip_kernel') when the system refuses; the other addresses are then removed.
        """
        if self._retrying is not None:
            self._retrying.cancel()
            self._retrying = None
        async with self._lock:
            mine = {wanted.ip: wanted.request.text for wanted in await self._resolver.known(self._requests)}
            for ip in (*ledger.load(self._path), *self.held):
                mine.setdefault(ip, str(ip))
            self.held.clear()
            self.refused.clear()
            self._told.clear()
            self._wires.hold({})
            self._changed()
            removed: list[str] = []
            failures: list[str] = []
            names = {link.index: link.name for link in net.links(self._kernel)}
            for address in [a for a in net.addresses(self._kernel) if a.ip in mine]:
                try:
                    await self._remove(address, mine[address.ip], names.get(address.index, "?"), code)
                    removed.append(str(address.ip))
                except OSError as error:
                    failures.append(f"{address.ip} cannot be removed: {error.strerror or error}")
            if failures:
                raise BusError("vip_kernel", "; ".join(failures))
            ledger.save(self._path, ())
            return removed

    async def adopt(self) -> list[str]:
        """After a restart in the primary role: the addresses which are there are held; nothing is touched."""
        async with self._lock:
            entries = ledger.load(self._path)
            links = {link.index: link for link in net.links(self._kernel)}
            present = {a.ip: a for a in net.addresses(self._kernel)}
            for wanted in await self._resolver.known(self._requests):
                address = present.get(wanted.ip)
                if address is None or address.index not in links:
                    continue
                known = entries.get(wanted.ip)
                since = known.since if known else time.monotonic()
                link = links[address.index]
                self.held[wanted.ip] = Held(wanted, link, address.prefix, since)
                self._log.event("vip_adopted", addr=wanted.request.text, interface=link.name)
            self._hold()
            self._changed()
            return [str(ip) for ip in self.held]

    def announcements(self) -> list[Announcement]:
        """What arpreroute has to repeat now."""
        now = time.monotonic()
        return [
            Announcement(str(ip), h.link.name, r.arpinterval, r.arpelapse, max(0.0, now - h.since))
            for ip, h in self.held.items()
            if (r := h.wanted.request).arpreroute
        ]

    async def listen(self) -> None:
        """Open the sockets for the configured addresses beforehand, where they can be placed already.

        Raises OSError when raw packets are not permitted.
        """
        async with self._lock:
            links, addresses = net.links(self._kernel), net.addresses(self._kernel)
            present = {a.ip: a for a in addresses}
            known = await self._resolver.known(self._requests)
            ours = {wanted.ip for wanted in known}
            places: dict[Link, set[IP]] = {}
            for wanted in known:
                # What cannot be placed is said when it is to be set.
                with contextlib.suppress(ValueError):
                    where = self._place(wanted, links, addresses, present.get(wanted.ip), ours)
                    places.setdefault(where.link, set()).add(wanted.ip)
            self._wires.listen(places)

    async def owners(self) -> set[bytes]:
        """The MACs that answer for the module's addresses now, none of which is held here."""
        async with self._lock:
            if self.held:
                return set()
            links, addresses = net.links(self._kernel), net.addresses(self._kernel)
            known = await self._resolver.known(self._requests)
        questions = []
        for wanted in known:
            for address in addresses:
                link = next((link for link in links if link.index == address.index), None)
                if link is not None and link.resolves and link.up and wanted.ip in address.network:
                    questions.append(ask_mac(link, address.ip, wanted.ip))
        answers = await asyncio.gather(*questions, return_exceptions=True)
        return {answer for answer in answers if isinstance(answer, bytes)}

    def announce(self, link: Link) -> None:
        """Tell the network of an interface again (it was plugged in again)."""
        for held in self.held.values() if self._alone else ():
            if held.link.index == link.index:
                self._wires.take_over(link, held.wanted.ip, held.wanted.request.arpreroute)

    def announce_all(self, *, contested: bool) -> None:
        """Tell the network that every held address is here, and repeat it. `contested`: another server may have told
        that it has them, and may do so once more; then gratuitous in any case, and for some seconds."""
        for held in self.held.values():
            self._tell(held, contested)
            for seconds in AGAIN_AFTER if contested else AGAIN_AFTER[:1]:
                asyncio.get_running_loop().call_later(seconds, self._repeat, held, contested)

    def interface_gone(self, index: int) -> None:
        """An interface was deleted; one made again under its name has another index."""
        self._wires.gone(index)

    def close(self) -> None:
        """Let go of everything but the addresses."""
        if self._retrying is not None:
            self._retrying.cancel()
        if self._expected is not None:
            self._expected.answers.cancel()
        self._wires.close()
        self._kernel.close()

    # -------------------------------------------------------------------------- steps

    async def _take_missing(self) -> list[BusError]:
        problems: list[BusError] = []
        candidates: list[tuple[Wanted, Place]] = []
        links, addresses = net.links(self._kernel), net.addresses(self._kernel)
        present = {a.ip: a for a in addresses}
        known, unknown = await self._resolver.resolve(self._requests)
        problems += [self._problem("vip_name", text, reason) for text, reason in unknown]
        ours = {wanted.ip for wanted in known}
        for wanted in known:
            if wanted.ip in present and wanted.ip in self.held:
                continue
            try:
                where = self._place(wanted, links, addresses, present.get(wanted.ip), ours | set(self.held))
            except ValueError as error:
                problems.append(self._problem("vip_place", wanted.request.text, str(error)))
                continue
            candidates.append((wanted, where))
        absent = [(wanted.ip, where.link) for wanted, where in candidates if wanted.ip not in present]
        heard: list[Heard] = []
        try:
            heard = await self._probe(absent)
        except OSError as error:
            problems.append(self._problem("vip_kernel", "probe", f"the network cannot be asked: {error.strerror}"))
        own = {link.mac for link in links} | self._wires.shared
        peers = self._wires.peer_macs()
        self.refused.clear()
        for wanted, where in candidates:
            finding = judge(wanted.ip, heard, own, peers)
            if finding.verdict is Verdict.FOREIGN:
                self.refused[wanted.ip] = finding
                problems.append(self._duplicate(wanted, where, finding))
                continue
            try:
                self._take(wanted, where, finding)
            except OSError as error:
                reason = f"{where.link.name}: {error.strerror or error}"
                problems.append(self._problem("vip_kernel", wanted.request.text, reason))
        try:
            await self._give_up_former(ours)
        except OSError as error:
            problems.append(self._problem("vip_kernel", "a former address", f"{error.strerror or error}"))
        self._hold()
        self._changed()
        return problems

    async def _give_up_former(self, ours: set[IP]) -> None:
        """Remove what is held for a name that has another address by now, which is held too. Raises OSError."""
        followed = {held.wanted.request.text for ip, held in self.held.items() if ip in ours}
        for ip, held in list(self.held.items()):
            text = held.wanted.request.text
            if ip in ours or text not in followed:
                continue
            del self.held[ip]  # first: nobody shall miss it
            for address in [a for a in net.addresses(self._kernel) if a.ip == ip]:
                await self._remove(address, f"{text} ({ip})", held.link.name, "vip_unset")
            ledger.save(self._path, [h.entry for h in self.held.values()])

    @staticmethod
    def _place(
        wanted: Wanted, links: Iterable[Link], addresses: Iterable[Address], present: Address | None, ours: set[IP]
    ) -> Place:
        """Where the address is, if it is there already, else where it belongs."""
        if present is not None:
            link = next(link for link in links if link.index == present.index)
            return Place(link, present.prefix, False)
        request = wanted.request
        return net.place(wanted.ip, links, addresses, name=request.name, netmask=request.netmask, ignore=ours)

    def _take(self, wanted: Wanted, where: Place, finding: Finding) -> None:
        held = Held(wanted, where.link, where.prefix, time.monotonic())
        ledger.save(self._path, [*(h.entry for h in self.held.values()), held.entry])
        net.add_address(self._kernel, where, wanted.ip)
        if self._alone:
            self._wires.take_over(where.link, wanted.ip, wanted.request.arpreroute)
        self.held[wanted.ip] = held
        text = wanted.request.text
        self._told = {known for known in self._told if known[1] != text}
        if finding.verdict is Verdict.PEER and self._alone:
            self._log.event("vip_taken_over", addr=text, node=finding.who, mac=mac_text(finding.mac))
        self._log.event("vip_set", addr=text, ip=str(wanted.ip), interface=where.link.name, prefix=where.prefix)
        if not where.link.carrier:
            self._log.event("vip_link", interface=where.link.name, state="down")
        elif where.link.resolves and self._alone:
            asyncio.get_running_loop().call_later(REPEAT_AFTER, self._repeat, held)

    def _repeat(self, held: Held, contested: bool = False) -> None:
        """Once more, for neighbours that refused or lost the first announcement."""
        if self.held.get(held.wanted.ip) is held:
            self._tell(held, contested)

    def _tell(self, held: Held, contested: bool) -> None:
        self._wires.take_over(held.link, held.wanted.ip, contested or held.wanted.request.arpreroute)

    async def _remove(self, address: Address, text: str, interface: str, code: str) -> None:
        released = await tcpreset.release(self._kernel, address, self._reset)
        if released.no_reset is not None:
            self._log.event("vip_no_reset", addr=text, reason=released.no_reset)
        if released.reset:
            self._log.event("vip_reset", addr=text, count=released.reset)
        for other in released.restored:
            self._log.event("vip_restored", addr=str(other.ip), interface=interface)
        self._log.event(code, addr=text, interface=interface)

    async def _retry(self) -> None:
        """Until every address is held; `release` cancels it."""
        while True:
            await asyncio.sleep(RETRY_SECONDS)
            async with self._lock:
                if not await self._take_missing():
                    self._retrying = None
                    return

    def _hold(self) -> None:
        self._wires.hold({ip: held.link for ip, held in self.held.items()})

    def _problem(self, code: str, text: str, reason: str) -> BusError:
        # Once, however often heart or the retry asks, until the address is set or given up.
        if self._first(code, text, reason):
            self._log.event("vip_not_set", addr=text, reason=reason)
        return BusError(code, f"virtual IP {text}: {reason}")

    def _first(self, code: str, text: str, detail: str) -> bool:
        known = (code, text, detail)
        new = known not in self._told
        self._told.add(known)
        return new

    def _duplicate(self, wanted: Wanted, where: Place, finding: Finding) -> BusError:
        text, mac = wanted.request.text, mac_text(finding.mac)
        if self._first("vip_duplicate", text, mac):
            self._log.event("vip_duplicate", addr=text, mac=mac, interface=where.link.name)
        return BusError(
            "vip_duplicate",
            f"virtual IP {text} is in use by {mac} on {where.link.name}; remove it from that machine",
        )
