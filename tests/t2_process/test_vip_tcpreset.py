"""The order of reset and removal, and kernels that cannot reset (guide 13.5.5, tcpreset)."""

from __future__ import annotations

import asyncio
import errno
import socket
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from safekit.net import addresses
from safekit.net.addresses import Address
from safekit.net.netlink import NETLINK_SOCK_DIAG, Netlink
from vipd import tcpreset

ADDRESS = Address(7, ip_address("10.77.0.50"), 24, 0x81)


class Kernel:
    """Stands for the kernel: connections that exist at each look, and what is done, in order."""

    def __init__(self, looks: list[int], refuse: int = 0) -> None:
        self.looks = looks
        self.refuse = refuse
        self.done: list[str] = []

    def connections(self, _: Any, __: Any) -> list[tuple[int, bytes]]:
        return [(socket.AF_INET, bytes(48))] * (self.looks.pop(0) if self.looks else 0)

    def request(self, _: int, __: bytes) -> None:
        if self.refuse:
            raise OSError(self.refuse, "refused")
        self.done.append("reset")

    def delete(self, _: Any, __: Address) -> None:
        self.done.append("delete")

    def add(self, _: Any, __: Any, ___: Any) -> bool:
        self.done.append("add")
        return True


def released(kernel: Kernel, monkeypatch: pytest.MonkeyPatch, where: Path, tcp: bool = True) -> tcpreset.Released:
    monkeypatch.setenv("SAFEVAR", str(where))
    monkeypatch.setattr(tcpreset, "connections", kernel.connections)
    monkeypatch.setattr(Netlink, "request", kernel.request)
    monkeypatch.setattr(addresses, "delete_address", kernel.delete)
    monkeypatch.setattr(addresses, "add_address", kernel.add)
    with Netlink() as route:
        return asyncio.run(tcpreset.release(route, ADDRESS, tcp))


@pytest.mark.parametrize(
    ("looks", "done"),
    [
        ([2, 0], ["reset", "reset", "delete"]),
        ([0, 0], ["delete"]),
        ([1, 1, 1, 0], ["reset", "delete", "add", "reset", "delete"]),
        ([1] * 9, ["reset", "delete", "add", "reset", "delete", "add", "reset", "delete"]),
    ],
)
def test_resets_come_before_the_removal_and_again_for_late_connections(
    looks: list[int], done: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    kernel = Kernel(looks)
    result = released(kernel, monkeypatch, tmp_path)
    assert kernel.done == done
    assert (result.reset, result.no_reset) == (done.count("reset"), None)


def test_off_only_removes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    kernel = Kernel([5, 5])
    assert released(kernel, monkeypatch, tmp_path, tcp=False).reset == 0
    assert kernel.done == ["delete"]


@pytest.mark.parametrize(("refuse", "words"), [(errno.EOPNOTSUPP, "INET_DIAG_DESTROY"), (errno.EPERM, "refused")])
def test_a_kernel_that_cannot_reset_is_named_and_the_address_goes_anyhow(
    refuse: int, words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    kernel = Kernel([3, 3], refuse)
    result = released(kernel, monkeypatch, tmp_path)
    assert kernel.done == ["delete"]
    assert result.no_reset is not None and words in result.no_reset


def test_a_connection_that_ends_by_itself_is_no_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    kernel = Kernel([1, 0], errno.ENOENT)
    result = released(kernel, monkeypatch, tmp_path)
    assert (result.reset, result.no_reset, kernel.done) == (0, None, ["delete"])


def test_listing_finds_the_connections_of_one_address_only() -> None:
    with socket.create_server(("127.0.0.5", 0)) as here, socket.create_server(("127.0.0.6", 0)) as there:
        clients = [socket.create_connection(s.getsockname()) for s in (here, here, there)]
        accepted = [here.accept()[0], here.accept()[0], there.accept()[0]]
        try:
            with Netlink(NETLINK_SOCK_DIAG) as diagnosis:
                assert len(tcpreset.connections(diagnosis, ip_address("127.0.0.5"))) == 2
                assert len(tcpreset.connections(diagnosis, ip_address("127.0.0.6"))) == 1
                assert tcpreset.connections(diagnosis, ip_address("127.0.0.7")) == []
        finally:
            for opened in (*clients, *accepted):
                opened.close()
