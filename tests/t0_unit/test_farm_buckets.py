"""Shares of a farm: exact, equal on every server, few moves (guide 4.3.5, 13.5.7.4)."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safekit.net.jhash import BUCKETS
from vipd.farm.buckets import FULL, NOBODY, Shares, apportion, bitmap_of, bitmap_text, percentages

powers = st.dictionaries(st.integers(0, 15), st.integers(0, 9), min_size=1, max_size=16)


def test_the_guides_example_of_two_servers() -> None:
    owners = Shares({0: 1, 1: 1}).owners({0, 1})
    zero, one = ":".join(["00000000"] * 4), ":".join(["ffffffff"] * 4)
    assert bitmap_text(bitmap_of(owners, 0)) == f"{zero}:{one}"
    assert bitmap_text(bitmap_of(owners, 1)) == f"{one}:{zero}"
    assert bitmap_text(FULL) == f"{one}:{one}"
    assert [bitmap_text(bitmap_of(Shares({0: 1, 1: 1}).owners({n}), n)) for n in (0, 1)] == [f"{one}:{one}"] * 2


def test_three_servers_share_86_85_85_and_weights_count() -> None:
    def counts(shares: Shares, members: set[int]) -> list[int]:
        owners = shares.owners(members)
        return [owners.count(n) for n in sorted(members)]

    assert counts(Shares({0: 1, 1: 1, 2: 1}), {0, 1, 2}) == [86, 85, 85]
    assert counts(Shares({0: 3, 1: 1, 2: 1}), {0, 1, 2}) == [154, 51, 51]
    assert counts(Shares({0: 0, 1: 1, 2: 1}), {0, 1, 2}) == [0, 128, 128]
    assert percentages([86, 85, 85]) == [34, 33, 33]
    assert percentages([128, 128]) == [50, 50]
    assert percentages([0, 0]) == [0, 0]


def test_a_server_with_power_0_gets_nothing_even_alone() -> None:
    assert set(Shares({0: 0, 1: 1}).owners({0})) == {NOBODY}
    assert set(Shares({0: 1}).owners({3})) == {NOBODY}


@given(st.lists(st.integers(0, 50), min_size=1, max_size=16), st.sampled_from((100, 256)))
def test_apportionment_is_exact_and_within_one_of_the_proportion(weights: list[int], total: int) -> None:
    shares = apportion(weights, total)
    whole = sum(weights)
    assert sum(shares) == (total if whole else 0)
    for weight, share in zip(weights, shares, strict=True):
        assert not whole or abs(share - weight * total / whole) < 1


@settings(max_examples=60, deadline=None)
@given(powers, st.randoms(use_true_random=False), st.data())
def test_every_bucket_has_one_owner_and_the_history_does_not_count(
    power: dict[int, int], draw: random.Random, data: st.DataObject
) -> None:
    members = data.draw(st.sets(st.sampled_from(sorted(power)), min_size=1))
    fresh = Shares(power).owners(members)
    used = Shares(power)
    for _ in range(4):
        used.owners({node for node in power if draw.random() < 0.5})
    assert used.owners(members) == fresh
    able = sorted(node for node in members if power[node])
    quotas = apportion([power[node] for node in able], BUCKETS)
    assert [fresh.count(node) for node in able] == quotas
    assert set(fresh) <= (set(able) or {NOBODY})


@pytest.mark.parametrize("count", [2, 3, 5, 8, 16])
def test_the_loss_of_one_moves_its_buckets_and_few_others(count: int) -> None:
    shares = Shares(dict.fromkeys(range(count), 1))
    everybody = set(range(count))
    full = shares.owners(everybody)
    for gone in everybody:
        less = shares.owners(everybody - {gone})
        moved = sum(a != b for a, b in zip(full, less, strict=True))
        # All that had to move, and for rounding at most one bucket a server.
        assert full.count(gone) <= moved <= full.count(gone) + count


def test_moves_stay_few_for_any_walk_between_sets() -> None:
    draw = random.Random(7)
    for count, bound in ((3, 1.1), (5, 1.35), (16, 1.7)):
        shares = Shares(dict.fromkeys(range(count), 1))
        members = set(range(count))
        moved = needed = 0
        for _ in range(60):
            before = shares.owners(members)
            node = draw.randrange(count)
            after_set = members ^ {node}
            if not after_set:
                continue
            after = shares.owners(after_set)
            moved += sum(a != b for a, b in zip(before, after, strict=True))
            needed += max(before.count(node), after.count(node))
            members = after_set
        assert moved <= bound * needed, f"{count} servers: {moved} moves where {needed} are needed"
