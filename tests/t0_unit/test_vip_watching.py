"""What vipd reports of claims, lost events, links and addresses, and how often."""

from __future__ import annotations

from ipaddress import ip_address
from types import SimpleNamespace
from typing import Any, cast

import pytest

from safekit.log.module import ModuleLog
from safekit.net import addresses as net
from safekit.net.addresses import Address, Link
from safekit.net.packets import Heard, Sort
from vipd.holder import Held, Holder
from vipd.plan import Request, Wanted
from vipd.watcher import Watcher
from vipd.wires import CONFLICT_SECONDS, QUIET_SECONDS, Wires

IP = ip_address("10.0.0.50")
UP, DOWN = 0x11043, 0x1003
ETH0 = Link(2, "eth0", b"\x02\0\0\0\0\x01", UP)
PEER = b"\x02\0\0\0\0\x02"


class Clock:
    now = 1000.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr("vipd.wires.time", SimpleNamespace(monotonic=lambda: made.now))
    monkeypatch.setattr(net, "links", lambda *_: (ETH0,))
    monkeypatch.setattr(net, "neighbours", lambda *_: ())
    return made


class Scene:
    """Wires that hold an address; remembers what they report and announce."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.conflicts: list[bytes] = []
        self.defended = 0
        self.wires = Wires({}, lambda _, mac, __, ___: self.conflicts.append(mac))
        self.wires.learn_peer(PEER, "n2")
        self.wires.hold({IP: ETH0})
        monkeypatch.setattr(self.wires, "take_over", self._announced)

    def _announced(self, _: Link, __: Any, gratuitous: bool) -> None:
        assert gratuitous
        self.defended += 1

    def hear(self, mac: bytes, sort: Sort = Sort.CLAIM) -> None:
        self.wires._judge(Heard(sort, IP, mac), ETH0)


def stranger(number: int) -> bytes:
    return b"\x06\0\0\0" + number.to_bytes(2, "big")


def test_a_claim_is_reported_once_and_again_after_a_long_silence(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch)
    for _ in range(100):
        scene.hear(stranger(1))
        clock.now += QUIET_SECONDS / 10
    assert scene.conflicts == [stranger(1)]
    clock.now += QUIET_SECONDS + 1
    scene.hear(stranger(1))
    assert scene.conflicts == [stranger(1)] * 2


def test_a_storm_of_forged_claims_neither_floods_the_log_nor_the_network(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = Scene(monkeypatch)
    for number in range(3000):
        scene.hear(stranger(number))
        clock.now += 0.01
    assert len(scene.conflicts) <= 30 / CONFLICT_SECONDS + 1
    assert scene.defended <= 30 / CONFLICT_SECONDS + 1


def test_the_peer_is_reported_and_never_fought(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch)
    scene.hear(PEER, Sort.PROBE)
    assert scene.conflicts == []
    scene.hear(PEER)
    assert (scene.conflicts, scene.defended) == ([PEER], 0)


def test_our_own_words_are_no_claim(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch)
    scene.hear(ETH0.mac)
    assert (scene.conflicts, scene.defended) == ([], 0)


class Stage:
    """A watcher over one held address; remembers its log lines and what heart is told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.lines: list[str] = []
        self.told: list[str] = []
        self.announced = self.gone = 0
        self.addresses: tuple[Address, ...] = (Address(2, IP, 24),)
        self.links: tuple[Link, ...] = (ETH0,)
        monkeypatch.setattr(net, "links", lambda *_: self.links)
        monkeypatch.setattr(net, "addresses", lambda *_: self.addresses)
        request = Request("10.0.0.50", None, None, False, 60, 1200)
        self.held = {IP: Held(Wanted(request, IP), ETH0, 24, 0.0)}
        holder = SimpleNamespace(held=self.held, announce=self._announce, interface_gone=self._gone)
        log = SimpleNamespace(event=lambda code, **_: self.lines.append(code))
        self.watcher = Watcher(cast(ModuleLog, log), cast(Holder, holder), lambda kind, **_: self.told.append(kind))
        self.watcher.changed()

    def _announce(self, _: Link) -> None:
        self.announced += 1

    def _gone(self, _: int) -> None:
        self.gone += 1


def test_each_loss_and_return_is_reported_once(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(monkeypatch)
    for there in (False, False, True, True, False):
        stage.watcher.address(there, Address(2, IP, 24))
    assert stage.lines == ["vip_lost", "vip_back", "vip_lost"]
    assert stage.told == ["vip_lost", "vip_lost"]
    assert stage.watcher.missing() == {IP}


def test_other_addresses_and_interfaces_are_not_our_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(monkeypatch)
    stage.watcher.address(False, Address(2, ip_address("10.0.0.51"), 24))
    stage.watcher.address(False, Address(3, IP, 24))
    stage.watcher.link(True, Link(3, "eth1", b"", DOWN))
    assert (stage.lines, stage.told) == ([], [])


def test_an_interface_that_is_plugged_in_again_is_announced_on(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(monkeypatch)
    for flags in (UP, DOWN, DOWN, UP):
        stage.watcher.link(True, Link(2, "eth0", ETH0.mac, flags))
    assert stage.lines == ["vip_link", "vip_link"]
    assert stage.announced == 1


def test_after_lost_events_the_state_is_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(monkeypatch)
    stage.watcher.lost()
    assert stage.lines == []
    stage.addresses, stage.links = (), ()
    stage.watcher.lost()
    assert sorted(stage.lines) == ["vip_link", "vip_lost"]
    assert stage.gone == 1
