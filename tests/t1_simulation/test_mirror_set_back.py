"""Restored snapshots and copied disks: nothing acknowledged is overwritten without a word, and no healthy pair is
accused.  Rules broken on purpose are found.

The schedules of kind `SET_BACK` put disks back and copy them among all other faults; `decide_for_the_original` is the
administrator.
"""

from __future__ import annotations

import os

import pytest

from heart.core import lineage, waiting
from heart.core.lineage import Entry, SetBack, meeting, parse, write
from heart.core.state import State
from heart.core.turn import Turn
from heart.core.values import Beat, Setup
from tests.t1_simulation import mirror_schedules as may
from tests.t1_simulation.mirror_parts import Options
from tests.t1_simulation.mirror_schedules import SET_BACK, Kind, found, run, seeds_of
from tests.t1_simulation.mirror_world import World

COUNT = int(os.environ.get("SAFEKIT_SET_BACK_SCHEDULES", "36"))
PUT_BACK: tuple[Kind, ...] = (may.put_back, may.crash, may._command)
COPIED: tuple[Kind, ...] = (may.copy, may.crash, may._command)


@pytest.mark.parametrize("kinds", [(), PUT_BACK, COPIED], ids=["everything", "put back", "copied"])
def test_schedules_keep_the_invariants(kinds: tuple[Kind, ...]) -> None:
    for seed in seeds_of(SET_BACK, COUNT // 3):
        try:
            run(seed, kinds=kinds)
        except AssertionError as error:
            pytest.fail(f"schedule {seed}: {error}", pytrace=False)


def test_the_judge_excuses_nothing_where_disks_are_copied() -> None:
    """A copy can always be told: only older disks of too short a time cannot."""
    world = World(SET_BACK, Options(mark=3.0))
    for name, command in (("A", "prim"), ("B", "second")):
        world.power_on(name)
        world.order(name, command)
        world.run_until(world.now + 7.0)
    assert world.judge.acked
    world.power_off("B")
    world.clone("A", "B")
    assert world.judge.touched and world.judge.blurred == 0


def test_finds_a_server_that_looks_at_no_history(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lineage, "_proved", lambda s, peer, met: SetBack.NOBODY)
    assert "acknowledged writes" in found(seeds_of(SET_BACK, 120), PUT_BACK)


def test_finds_that_marks_are_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both were in the pair, and the last primary comes back with its disks of some minutes before."""
    monkeypatch.setattr(lineage, "TOLERATED", 1 << 30)
    assert "acknowledged writes" in found(seeds_of(SET_BACK, 120), (may.put_back,))


def test_finds_a_server_that_follows_whoever_was_set_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "_set_back", lambda t: False)
    assert "acknowledged writes" in found(seeds_of(SET_BACK, 120), PUT_BACK)


def test_finds_a_server_that_accuses_a_healthy_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each entry of a server that goes on counts as one of a server that has forgotten its pair."""
    real = lineage.longer

    def started(s: State) -> str:
        head, *rest = parse(real(s))
        return write((Entry("S", head.name, head.mark), *rest))

    monkeypatch.setattr(lineage, "longer", started)
    assert "none was" in found(seeds_of(SET_BACK, 120), (may.crash, may.cut_both_ways))


# -- the rules, one by one


def server(history: str, *, paired: bool = False, lastprim: bool = True, term: int = 1) -> State:
    flags = {"rfs.paired": paired, "rfs.lastprimstate": lastprim}
    resources = {name: "up" if value else "down" for name, value in flags.items()}
    return State(Setup("A", "B"), resources={**resources, lineage.NAME: history, "state.term": str(term)})


def heard(history: str, *, paired: bool = False, lastprim: bool = True, term: int = 1) -> Beat:
    return Beat("B", 1, lineage=history, paired=paired, lastprim=lastprim, term=term)


@pytest.mark.parametrize(
    ("mine", "theirs", "wanted", "first"),
    [
        pytest.param(("Gb:0,Sa:5", False), ("Sc:0,Sa:5", False), SetBack.THERE, 1, id="forgot the pair"),
        pytest.param(("Sa:5", True), ("Sc:0,Sa:5", False), SetBack.THERE, 1, id="forgot a pair that is not broken"),
        pytest.param(("Sa:5", True), ("Sa:3", True), SetBack.THERE, 1, id="fewer marks"),
        pytest.param(("Sa:5", True), ("Sa:4", True), SetBack.NOBODY, 0, id="a mark on its way"),
        pytest.param(("Gb:3,Sa:5", True), ("Gc:0,Sa:5", False), SetBack.THERE, 1, id="forgot what it had noted"),
        pytest.param(("Sb:1,Sa:5", False), ("Sc:0,Sa:5", False), SetBack.THERE, 1, id="forgot a pair and started"),
        pytest.param(("Gb:1,Sa:5", False), ("Gc:2,Sa:5", False), SetBack.COPIES, 0, id="both forgot what they noted"),
        pytest.param(("Sb:0,Sa:0", False), ("Sc:0,Sa:0", False), SetBack.COPIES, 0, id="both started"),
        pytest.param(("Gb:0,Sa:5", False), ("Gc:0,Sa:5", False), SetBack.NOBODY, 0, id="split brain"),
        pytest.param(("Gb:0,Sa:5", False), ("Sa:5", True), SetBack.NOBODY, 1, id="went on after a crash"),
        pytest.param(("Gb:0,Sa:5", False), ("Wd:0,Sc:0,Sa:5", False), SetBack.NOBODY, -1, id="word for the older"),
        pytest.param(("We:0,Gb:0,Sa:5", False), ("Sc:0,Sa:5", False), SetBack.THERE, 1, id="a word for the newer"),
        pytest.param(("Gb:0,Sa:5", False), ("Wc:0,Sa:5", False), SetBack.NOBODY, 0, id="prim on data out of date"),
        pytest.param(("Gb:0", False), ("Gc:0", False), SetBack.NOBODY, 0, id="nothing in common"),
        pytest.param(("Gb:0", False), ("none", False), SetBack.NOBODY, 0, id="another release"),
        pytest.param(("Gb:0", False), ("Gb:x,", False), SetBack.NOBODY, 0, id="not understood"),
    ],
)
def test_both_servers_find_the_same(
    mine: tuple[str, bool], theirs: tuple[str, bool], wanted: SetBack, first: int
) -> None:
    here, there = server(mine[0], paired=mine[1], term=2), heard(theirs[0], paired=theirs[1])
    assert (lineage.set_back(here, there), lineage.newer(here, there)) == (wanted, first)
    here, there = server(theirs[0], paired=theirs[1]), heard(mine[0], paired=mine[1], term=2)
    opposite = {SetBack.THERE: SetBack.HERE}.get(wanted, wanted)
    assert (lineage.set_back(here, there), lineage.newer(here, there)) == (opposite, -first)


def test_two_that_were_the_last_primary_at_once_are_copies() -> None:
    here, there = server("Sa:5", paired=True), heard("Sa:5", paired=True)
    assert lineage.set_back(here, there) is SetBack.COPIES


def test_a_primary_that_does_not_know_the_entry_of_its_secondary() -> None:
    secondary = server("Gb:1,Sa:5", paired=True, lastprim=False)
    assert lineage.set_back(secondary, heard("Sa:5", paired=True)) is SetBack.THERE


def test_a_history_is_bounded_and_readable_again() -> None:
    entries = tuple(Entry("G", f"{number:012x}", 1_000_000) for number in range(20))
    text = write(entries)
    assert len(text) <= 256 and parse(text) == entries[: lineage.ENTRIES] and meeting(entries, parse(text)) is not None


def test_a_memory_of_another_machine_waits_for_the_other_server() -> None:
    said = []
    for before, place in (("", "m1"), ("m1", "m1"), ("m1", "m2"), ("m1", "")):
        s = server("Sa:0")
        s.resources |= {"rfs.uptodate": "up", "state.rival": "none"} | ({lineage.PLACE: before} if before else {})
        t = Turn(s, 1.0)
        lineage.look_where(t, place)
        said.append((s.resources["state.rival"], s.resources.get(lineage.PLACE, "")))
    assert said == [("none", "m1"), ("none", "m1"), ("served", "m2"), ("none", "m1")]


@pytest.mark.parametrize(
    ("mine", "theirs", "wanted"),
    [
        pytest.param("Sa:3", "Sa:3", "Sa:4", id="noted"),
        pytest.param("Sa:3", "Sa:2", "Sa:3", id="not noted yet"),
        pytest.param("Sa:3", "Sa:4", "Sa:5", id="a primary counted once more while this one took over"),
        pytest.param("Gb:0,Sa:3", "Sa:3", "Gb:0,Sa:3", id="another entry"),
        pytest.param("Sa:3", "none", "Sa:3", id="another release"),
    ],
)
def test_a_primary_goes_on_to_count(mine: str, theirs: str, wanted: str) -> None:
    """Marks that stand still hide from then on that a server was set back."""
    state = server(mine, paired=True)
    lineage.mark(Turn(state, 1000.0), heard(theirs, paired=True, lastprim=False))
    assert write(lineage.own(state)) == wanted


def test_a_copy_that_has_started_beside_the_server_that_it_is_a_copy_of() -> None:
    here = server("Gb:0,Sa:5")
    here.resources["rfs.uptodate"] = "up"
    assert lineage.set_back(here, heard("Sc:0,Gb:0,Sa:5")) is SetBack.COPIES
    there = Beat("B", 1, lineage="Gb:0,Sa:5", lastprim=True, term=1, uptodate="up")
    assert lineage.set_back(server("Sc:0,Gb:0,Sa:5"), there) is SetBack.COPIES


@pytest.mark.parametrize("there", ["up", "down"])
def test_two_in_no_pair_that_both_began_their_last_entry_are_copies(there: str) -> None:
    """A copy of a server that went on alone, while that server decides anew; not the secondary that it left behind."""
    here = server("Gb:0,Sa:5")
    here.resources["rfs.uptodate"] = "up"
    beat = Beat("B", 1, lineage="Gb:0,Sa:5", lastprim=True, term=1, uptodate=there)
    found = lineage.set_back(here, beat)
    assert found is (SetBack.COPIES if there == "up" else SetBack.NOBODY)
