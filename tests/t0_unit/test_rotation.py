"""A change of key on running servers: nothing is refused on the way, whatever the order in which they learn of it."""

from __future__ import annotations

import itertools

import pytest

from safekit.wire.rotation import SWITCH_SECONDS, Rotation
from safekit.wire.seal import Opener, Sealer, SealError

OLD, NEW, NEWER = bytes(32), bytes([1] * 32), bytes([2] * 32)
GRACE = 300.0


class Server:
    """One sender and receiver whose files change at `learns`; it looks every two seconds."""

    def __init__(self, name: str, peer: str, learns: float) -> None:
        self.learns = learns
        self.rotation = Rotation((OLD,))
        self.sealer = Sealer(OLD, "w", name, 7)
        self.opener = Opener([OLD], "w", [peer])

    def files(self, now: float) -> tuple[bytes, ...]:
        """As wire_keys tells them."""
        if now < self.learns:
            return (OLD,)
        return (NEW, OLD) if now < self.learns + GRACE else (NEW,)

    def look(self, now: float) -> None:
        if self.rotation.look(self.files(now), now):
            self.sealer.use(self.rotation.keys[0])
            self.opener.use(self.rotation.keys)


@pytest.mark.parametrize("delay", [0.0, 0.5, 3.0, SWITCH_SECONDS - 3.0])
def test_no_datagram_is_refused_while_the_servers_learn_one_after_the_other(delay: float) -> None:
    first, second = Server("a", "b", 10.0), Server("b", "a", 10.0 + delay)
    for step in range(4 * 400):
        now = step / 4
        if step % 8 == 0:
            first.look(now)
        if step % 8 == 3:
            second.look(now)
        assert first.opener.open(second.sealer.seal(b"x")).sender == "b"
        assert second.opener.open(first.sealer.seal(b"x")).sender == "a"
    # In the end the old key opens nothing any more.
    for server, peer in ((first, "b"), (second, "a")):
        assert server.rotation.keys == (NEW,)
        with pytest.raises(SealError, match="another key"):
            server.opener.open(Sealer(OLD, "w", peer, 9).seal(b"x"))


@pytest.mark.parametrize("between", [1.0, SWITCH_SECONDS - 1.0])
@pytest.mark.parametrize("delay", [0.5, 3.0, 20.0])
def test_a_second_change_that_follows_the_first(between: float, delay: float) -> None:
    """Each server hears of both changes `delay` after the other one."""
    first, second = Server("a", "b", 10.0), Server("b", "a", 10.0 + delay)
    for server in (first, second):

        def files(now: float, learns: float = server.learns) -> tuple[bytes, ...]:
            again = learns + between
            if now < again:
                return (OLD,) if now < learns else (NEW, OLD)
            return (NEWER, NEW, OLD) if now < again + GRACE else (NEWER,)

        server.files = files  # type: ignore[method-assign]
    for step in range(4 * 400):
        now = step / 4
        if step % 8 == 0:
            first.look(now)
        if step % 8 == 3:
            second.look(now)
        first.opener.open(second.sealer.seal(b"x"))
        second.opener.open(first.sealer.seal(b"x"))
    assert first.rotation.keys == second.rotation.keys == (NEWER,)


def test_a_server_that_never_learns_is_left_after_the_switch() -> None:
    first, second = Server("a", "b", 0.0), Server("b", "a", float("inf"))
    refused_at = None
    for now in itertools.count(0, 2):
        first.look(float(now))
        try:
            second.opener.open(first.sealer.seal(b"x"))
        except SealError as error:
            assert error.kind == "key"
            refused_at = now
            break
    assert SWITCH_SECONDS <= refused_at <= SWITCH_SECONDS + 2


def test_a_former_key_that_is_not_accepted_any_more_is_left_at_once() -> None:
    rotation = Rotation((OLD,))
    assert rotation.look((NEW,), 0.0) and rotation.keys == (NEW,)
    assert not rotation.look((NEW,), 5.0)


def test_a_key_that_comes_back_repeats_no_nonce_and_what_was_received_stays_known() -> None:
    sealer, opener = Sealer(OLD, "w", "a", 7), Opener([OLD], "w", ["a"])
    first = sealer.seal(b"x")
    opener.open(first)
    for key in (NEW, OLD):
        sealer.use(key)
        opener.use([key])
    assert sealer.seal(b"x")[:25] != first[:25], "header with epoch and counter, the nonce"
    with pytest.raises(SealError, match="old datagram"):
        opener.open(first)
