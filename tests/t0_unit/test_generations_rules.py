"""Which rule decides, for every shape of two states that the life of a cluster makes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safekit.rfs.generations import (
    GRACE_S,
    HISTORY,
    Copying,
    DataState,
    Kind,
    StateError,
    applied,
    closed,
    decode,
    delivered,
    encode,
    forced,
    from_fields,
    full_demanded,
    in_step,
    left_peer,
    opened,
    received,
    receiving,
    to_fields,
    verdict,
)

NOW = 1_000_000.0


def pair() -> tuple[DataState, DataState]:
    """Two servers after their first synchronisation, both running."""
    source = left_peer(opened(DataState(1), recorded=True, boot_ns=0), 100, NOW)
    target = opened(DataState(2), recorded=True, boot_ns=0)
    first = verdict(source, target)
    assert (first.kind, first.rule) == (Kind.FULL, "first_synchronisation")
    target = received(receiving(target, first, source, 1), source, NOW)
    return delivered(source, target.server, NOW), target


def test_first_start_as_primary_needs_a_generation() -> None:
    assert verdict(DataState(1), DataState(2)).rule == "source_unknown"


def test_secondary_stopped_in_order_comes_back() -> None:
    source, target = pair()
    target = closed(target, 5)
    source = left_peer(source, 101, NOW)
    found = verdict(source, opened(target, recorded=True, boot_ns=0))
    assert (found.kind, found.rule, found.overwrites) == (Kind.BITMAP, "changed_zones", False)


def test_a_disk_that_has_refused_is_compared_whole_whatever_the_records_say() -> None:
    source, target = pair()
    left = left_peer(source, 101, NOW)
    for where in ("primary", "secondary"):
        found = verdict(left, target, refused=(where,))
        assert (found.kind, found.rule, found.overwrites) == (Kind.RESUME, "disk_refused", False)
        assert f"the disk of the {where} has refused" in found.sentence
    split = verdict(left, left_peer(target, 102, NOW), refused=("primary", "secondary"))
    assert (split.kind, split.rule, split.overwrites) == (Kind.RESUME, "disk_refused", True), "what is lost is kept"
    assert verdict(source, full_demanded(target, 7), refused=("secondary",)).kind is Kind.FULL
    assert verdict(replace(source, consistent=False), target, refused=("primary",)).kind is Kind.REFUSED


def test_a_server_that_was_set_back_to_an_older_state_is_compared_whole() -> None:
    """A snapshot of a virtual machine, restored: the recorded zones tell nothing of what it lacks since then."""
    source, target = pair()
    later = NOW + 7 * 86400
    newer_source, newer_target = in_step(source, later), in_step(target, later)
    found = verdict(left_peer(newer_source, 101, later + 100), opened(target, recorded=True, boot_ns=0))
    assert (found.kind, found.rule, found.overwrites) == (Kind.RESUME, "secondary_went_back", False)
    found = verdict(left_peer(opened(source, recorded=True, boot_ns=0), 101, later, in_pair=False), newer_target)
    assert (found.kind, found.rule, found.overwrites) == (Kind.RESUME, "primary_went_back", True)
    # Parted in order, and started a month later without the other one: nothing went back.
    source, target = closed(newer_source, 5), closed(newer_target, 5)
    source = left_peer(opened(source, recorded=True, boot_ns=0), 101, later + 30 * 86400, in_pair=False)
    assert verdict(source, opened(target, recorded=True, boot_ns=0)).rule == "changed_zones"


def test_secondary_crashed_with_its_record() -> None:
    source, target = pair()
    source = left_peer(source, 101, NOW)
    found = verdict(source, opened(target, recorded=True, boot_ns=0))
    assert (found.kind, found.rule) == (Kind.BITMAP, "changed_zones_and_in_flight")


def test_secondary_crashed_without_its_record() -> None:
    source, target = pair()
    source = left_peer(source, 101, NOW + 50)
    found = verdict(source, opened(target, recorded=False, boot_ns=0), grace_s=3600)
    assert (found.kind, found.rule) == (Kind.TIMESTAMP, "target_tracking_lost")
    assert found.newer_than == NOW - 3600


def test_lost_record_is_remembered_through_an_orderly_stop() -> None:
    source, target = pair()
    source = left_peer(source, 101, NOW)
    target = closed(opened(target, recorded=False, boot_ns=0), 7)
    assert verdict(source, opened(target, recorded=True, boot_ns=0)).kind is Kind.TIMESTAMP


def test_timestamps_without_a_synchronisation_point_compare_everything() -> None:
    source, target = pair()
    source = left_peer(source, 101, NOW)
    target = opened(replace(target, sync_point=0.0), recorded=False, boot_ns=0)
    assert verdict(source, target).kind is Kind.RESUME


def test_primary_crashed_and_the_other_took_over() -> None:
    old, new = pair()
    new = left_peer(new, 101, NOW)
    old = opened(old, recorded=True, boot_ns=0)
    assert verdict(new, old).rule == "changed_zones_and_in_flight"


def test_primary_lost_its_record_while_alone() -> None:
    source, target = pair()
    source = opened(left_peer(source, 101, NOW), recorded=False, boot_ns=0)
    assert verdict(source, target).rule == "source_tracking_lost"


def test_a_restart_alone_keeps_the_base() -> None:
    source, _ = pair()
    alone = left_peer(source, 101, NOW)
    again = left_peer(opened(closed(alone, 5), recorded=True, boot_ns=0), 102, NOW + 9)
    assert (again.current, again.base) == (alone.current, alone.base)


def test_split_brain_uses_the_zones_of_both() -> None:
    a, b = pair()
    a, b = left_peer(a, 101, NOW), left_peer(b, 102, NOW)
    found = verdict(a, b)
    assert (found.kind, found.rule, found.overwrites) == (Kind.BITMAP, "split_brain", True)
    assert verdict(a, replace(b, tracked=False)).rule == "diverged"
    assert verdict(a, replace(b, tracked=False)).kind is Kind.RESUME


def test_stale_server_forced_primary_overwrites_the_newer_one() -> None:
    newer, stale = pair()
    newer = closed(left_peer(newer, 101, NOW), 5)
    stale = left_peer(opened(closed(stale, 4), recorded=True, boot_ns=0), 102, NOW)
    assert verdict(stale, opened(newer, recorded=True, boot_ns=0)).overwrites


def test_interrupted_zones_are_done_again_and_lost_zones_compared() -> None:
    source, target = pair()
    source = left_peer(source, 101, NOW)
    partial = receiving(target, verdict(source, target), source, 1)
    assert verdict(source, partial).rule == "interrupted_zones"
    assert verdict(replace(source, tracked=False), partial).rule == "interrupted_checksums"
    assert verdict(source, replace(partial, current=77)).rule == "interrupted_checksums"


def test_a_secondary_that_may_lack_what_it_acknowledged_is_no_source_before_somebody_says_so() -> None:
    source, target = pair()
    ahead = received(receiving(target, verdict(source, target), source, 1), source, NOW, ahead=True)
    killed = opened(ahead, recorded=True, boot_ns=0)
    assert killed.unapplied and closed(killed, 5).unapplied, "a stop afterwards proves nothing"
    assert verdict(killed, source).rule == "unapplied_acknowledgements"
    assert not closed(applied(ahead), 5).unapplied
    assert verdict(left_peer(killed, 9, NOW), source).kind is Kind.BITMAP, "safekit prim: its data counts from then on"
    assert verdict(left_peer(source, 9, NOW), killed).rule == "changed_zones_and_in_flight"
    new = ("unapplied", "boot", "receiving_ns")
    old = {name: value for name, value in to_fields(source).items() if name not in new}
    assert from_fields(old) == source, "a release before it did not know the mark"


def test_what_a_reintegration_copied_before_a_power_failure_is_compared_by_content() -> None:
    """Size and time of a copied file may be on disk, its content not."""
    source, target = pair()
    source = left_peer(source, 101, NOW)
    hour = int(GRACE_S) * 10**9
    partial = receiving(target, verdict(source, target), source, 5 * hour)
    again = receiving(opened(partial, recorded=True, boot_ns=0), verdict(source, partial), source, 9 * hour)
    assert opened(again, recorded=True, boot_ns=0).idle_ns == 0, "nfsbox died: memory lost nothing"
    failed = opened(again, recorded=True, boot_ns=20 * hour)
    assert failed.idle_ns == 4 * hour, "since the first attempt that is not completed, and a clock may have been wrong"
    assert verdict(source, failed).rule == "interrupted_zones"
    assert opened(closed(failed, 30 * hour), recorded=True, boot_ns=0).idle_ns == 4 * hour
    old = opened(replace(partial, receiving_ns=0), recorded=True, boot_ns=20 * hour)
    assert verdict(source, old).rule == "interrupted_checksums", "a release that did not note when it began"
    done = received(failed, source, NOW)
    assert (done.idle_ns, done.receiving_ns) == (0, 0)


def test_an_interrupted_target_is_no_source() -> None:
    source, target = pair()
    partial = receiving(target, verdict(left_peer(source, 101, NOW), target), source, 1)
    assert verdict(left_peer(partial, 9, NOW), source).kind is Kind.REFUSED
    assert verdict(left_peer(forced(partial, 8), 9, NOW), source).rule == "full_demanded"


def test_interrupted_full_copy_goes_on_by_checksums_with_policy_4_only() -> None:
    source = left_peer(DataState(1), 100, NOW)
    target = receiving(DataState(2), verdict(source, DataState(2)), source, 1)
    assert verdict(source, target).rule == "full_resumed"
    assert verdict(source, target, namespacepolicy=1).rule == "full_restarted"
    assert verdict(source, full_demanded(target, 7)).rule == "first_synchronisation", "it begins again"
    assert verdict(full_demanded(source, 55), target).rule == "full_restarted"
    assert verdict(replace(source, current=999), target).rule == "full_restarted"


def test_demands_for_everything() -> None:
    source, target = pair()
    source = left_peer(source, 101, NOW)
    assert verdict(full_demanded(source, 5), target).rule == "full_demanded"
    wish = full_demanded(target, 5)
    for later in (wish, closed(wish, 9), opened(wish, recorded=False, boot_ns=7), replace(wish, consistent=False)):
        assert verdict(source, later).rule == "full_demanded", "it holds until a reintegration begins"
    begun = receiving(wish, verdict(source, wish), source, 1)
    assert verdict(source, begun).rule == "full_resumed"
    assert verdict(source, DataState(3, current=100, peer=1)).rule == "pairing_changed"
    assert verdict(source, replace(target, server=source.server)).rule == "cloned_server"


def test_confirmation_lost_between_the_two_records_of_the_end() -> None:
    source, target = pair()
    source = left_peer(source, 101, NOW)
    target = received(receiving(target, verdict(source, target), source, 1), source, NOW)
    # the source never recorded `delivered`: its zones cover more than needed, in both directions
    assert verdict(source, target).kind is Kind.BITMAP
    took_over = left_peer(target, 103, NOW)
    assert verdict(took_over, source).kind is Kind.BITMAP


def test_older_generation_is_compared_by_checksums() -> None:
    source, target = pair()
    backup = target
    for number in range(3):
        source = left_peer(source, 200 + number, NOW)
        target = received(target, source, NOW)
        source = delivered(source, target.server, NOW)
    assert verdict(left_peer(source, 300, NOW), backup).rule == "older_generation"


def test_same_generation() -> None:
    source, target = pair()
    assert verdict(source, target).rule == "same_generation"


def test_history_is_bounded() -> None:
    source, target = pair()
    for number in range(3 * HISTORY):
        source = left_peer(source, 1000 + number, NOW)
        target = received(target, source, NOW)
        source = delivered(source, target.server, NOW)
    assert len(source.history) == HISTORY
    assert source.history == target.history
    assert from_fields(to_fields(source)) == source


def test_time_in_which_nobody_watched() -> None:
    source, _ = pair()
    assert opened(source, recorded=True, boot_ns=50).idle_ns == 50, "crashed: since the boot"
    assert opened(source, recorded=True, boot_ns=0).idle_ns == 0, "crashed, same boot: the mount was there"
    stopped = opened(closed(source, 40), recorded=True, boot_ns=50)
    assert stopped.idle_ns == 40, "stopped: since the stop"
    twice = opened(closed(stopped, 60), recorded=True, boot_ns=0)
    assert twice.idle_ns == 40, "the first stop since the synchronisation"
    assert delivered(twice, 2, NOW).idle_ns == 0


def test_synchronisation_point_moves_only_in_a_pair() -> None:
    source, _ = pair()
    assert in_step(source, NOW + 60).sync_point == NOW + 60
    alone = left_peer(source, 101, NOW)
    assert in_step(alone, NOW + 60) == alone


numbers = st.integers(0, 2**64 - 1)
states = st.builds(
    DataState,
    server=numbers,
    peer=numbers,
    current=numbers,
    base=numbers,
    history=st.lists(numbers, max_size=HISTORY).map(tuple),
    consistent=st.booleans(),
    open=st.booleans(),
    clean=st.booleans(),
    tracked=st.booleans(),
    full_serial=numbers,
    copying=st.none() | st.builds(Copying, numbers, numbers),
    sync_point=st.floats(0, 1e11),
    closed_ns=numbers,
    idle_ns=numbers,
    boot=numbers,
    receiving_ns=numbers,
)


@given(states, states, st.sampled_from([0, 1, 3, 4]))
def test_every_pair_of_states_has_a_verdict_with_a_reason(a: DataState, b: DataState, policy: int) -> None:
    found = verdict(a, b, namespacepolicy=policy)
    assert found.rule and found.sentence
    assert (found.newer_than == 0) or found.kind is Kind.TIMESTAMP
    if not a.consistent:
        assert found.kind is Kind.REFUSED


@given(states)
def test_durable_form_round_trips(state: DataState) -> None:
    assert decode(encode(state)) == state
    assert from_fields(to_fields(state)) == state


@given(states, st.integers(0, 10_000), st.integers(1, 255))
def test_a_damaged_record_is_refused(state: DataState, position: int, flip: int) -> None:
    data = bytearray(encode(state))
    position %= len(data) - 1
    data[position] ^= flip
    try:
        assert decode(bytes(data)) == state, "only a changed spelling of the same content may pass"
    except StateError:
        return


@pytest.mark.parametrize(
    "fields",
    [
        None,
        [],
        {},
        {"server": 1},
        {**to_fields(DataState(1)), "server": -1},
        {**to_fields(DataState(1)), "clean": 1},
        {**to_fields(DataState(1)), "history": list(range(HISTORY + 1))},
        {**to_fields(DataState(1)), "copying": {"a": 1}},
        {**to_fields(DataState(1)), "sync_point": "now"},
        {**to_fields(DataState(1)), "current": 1 << 64},
    ],
)
def test_a_peer_state_is_not_taken_on_trust(fields: object) -> None:
    with pytest.raises(StateError):
        from_fields(fields)


def test_newer_format_names_the_next_step() -> None:
    line = encode(DataState(1)).replace(b"safekit-data-state 1 ", b"safekit-data-state 9 ")
    with pytest.raises(StateError, match="format 9"):
        decode(line)
