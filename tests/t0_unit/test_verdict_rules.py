"""One verdict for every situation: kind, since when, next step."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from safekit.spelling import as_word
from safekit.view.verdict import Kind, Situation, judge

RFS = {"rfs.uptodate": "up"}
MISFIT = {"config.same": "down", "config.fits": "down", "config.differs": "id,addresses"}
OTHER_FILES = {"config.same": "down", "config.fits": "up", "config.differs": "files"}
STATES = ("STOP", "WAIT", "ALONE", "PRIM", "SECOND", "UP", "UNKNOWN")
COLORS = ("red", "magenta", "green", "grey")


def situation(
    local: str,
    remote: str = "UNKNOWN grey",
    resources: Mapping[str, str] = RFS,
    *,
    mode: str = "mirror",
    heart: bool = True,
) -> Situation:
    state, color = local.split()
    far, far_color = remote.split()
    return Situation("AM", mode, state, color, far, far_color, 100.0, 200.0, resources, heart)


@pytest.mark.parametrize(
    ("local", "remote", "resources", "kind", "step"),
    [
        ("PRIM green", "SECOND green", RFS, Kind.PROTECTED, ""),
        ("SECOND green", "PRIM green", RFS, Kind.PROTECTED, ""),
        ("SECOND green", "PRIM green", {**RFS, "usersetting.failover": "off"}, Kind.DEGRADED, "safekit failover on -m"),
        ("PRIM green", "SECOND green", {**RFS, "usersetting.failover": "on"}, Kind.PROTECTED, ""),
        ("PRIM green", "SECOND green", {**RFS, "heartbeat.flow": "down"}, Kind.DEGRADED, "repair the network"),
        ("PRIM green", "SECOND green", {"heartbeat.flow": "down"}, Kind.PROTECTED, ""),
        ("PRIM green", "SECOND magenta", RFS, Kind.DEGRADED, "wait"),
        ("ALONE green", "SECOND magenta", RFS, Kind.DEGRADED, "wait"),
        ("SECOND magenta", "ALONE green", RFS, Kind.DEGRADED, "wait"),
        ("ALONE green", "UNKNOWN grey", RFS, Kind.DEGRADED, "repair the other server"),
        ("ALONE green", "STOP red", RFS, Kind.DEGRADED, "safekit start -m AM on the other server"),
        ("ALONE green", "WAIT red", RFS, Kind.DEGRADED, "safekit why -m AM on the other server"),
        ("ALONE green", "ALONE green", RFS, Kind.AT_RISK, "wait for the recovery"),
        ("ALONE green", "WAIT red", {**RFS, "rfs.degraded": "up"}, Kind.AT_RISK, "safekit stop -m AM, then"),
        ("WAIT red", "UNKNOWN grey", {"rfs.uptodate": "down"}, Kind.AT_RISK, "safekit start -m AM on the other"),
        ("WAIT red", "WAIT red", {"rfs.uptodate": "down"}, Kind.AT_RISK, "only if its data are lost"),
        ("WAIT red", "ALONE green", {"rfs.uptodate": "down", "ping.r": "down"}, Kind.DEGRADED, "safekit why"),
        ("WAIT red", "UNKNOWN grey", {**RFS, "intf.net": "down"}, Kind.STOPPED, "safekit why"),
        ("WAIT magenta", "UNKNOWN grey", RFS, Kind.STOPPED, ""),
        ("WAIT magenta", "ALONE green", RFS, Kind.DEGRADED, ""),
        ("WAIT red", "ALONE green", {"rfs.uptodate": "down", **MISFIT}, Kind.DEGRADED, "safekit -H SERVERS -E AM"),
        ("WAIT red", "UNKNOWN grey", {"rfs.uptodate": "down", **MISFIT}, Kind.DEGRADED, "safekit -H SERVERS -E AM"),
        ("WAIT red", "WAIT red", {"rfs.uptodate": "down", **MISFIT}, Kind.AT_RISK, "only if its data are lost"),
        ("ALONE green", "WAIT red", {**RFS, **MISFIT}, Kind.DEGRADED, "safekit -H SERVERS -E AM"),
        ("ALONE green", "UNKNOWN grey", {**RFS, **MISFIT}, Kind.DEGRADED, "safekit -H SERVERS -E AM"),
        ("WAIT red", "WAIT red", {**RFS, "state.setback": "here"}, Kind.AT_RISK, "on the server whose data count"),
        ("WAIT red", "ALONE green", {**RFS, "state.setback": "both"}, Kind.AT_RISK, "on the server whose data count"),
        ("ALONE green", "WAIT red", {**RFS, "state.setback": "there"}, Kind.AT_RISK, "on the server whose data count"),
        ("WAIT red", "UNKNOWN grey", {**RFS, "state.setback": "here"}, Kind.STOPPED, "safekit why"),
        ("PRIM green", "SECOND green", {**RFS, **MISFIT}, Kind.DEGRADED, "safekit -H SERVERS -E AM"),
        ("PRIM green", "SECOND green", {**RFS, **OTHER_FILES}, Kind.DEGRADED, "safekit diff -m AM"),
        ("STOP red", "UNKNOWN grey", RFS, Kind.STOPPED, "safekit start -m AM"),
        ("STOP red", "UNKNOWN grey", {"rfs.uptodate": "down"}, Kind.STOPPED, "must be started too"),
        ("STOP red", "UNKNOWN grey", {"rfs.inconsistent": "up"}, Kind.AT_RISK, "start the server that has"),
    ],
)
def test_mirror(local: str, remote: str, resources: Mapping[str, str], kind: Kind, step: str) -> None:
    verdict = judge(situation(local, remote, resources))
    assert verdict.kind is kind
    assert step in verdict.next_step
    assert bool(step) == bool(verdict.next_step)


def test_a_module_that_was_never_started_wants_prim() -> None:
    fresh = replace(situation("STOP red", "UNKNOWN grey", {"rfs.uptodate": "down"}), fresh=True)
    assert judge(fresh).next_step.startswith("safekit prim -m AM on the server that has the data")


def test_a_module_that_maxloop_stopped_wants_its_cause_found() -> None:
    found = judge(situation("STOP red", "UNKNOWN grey", {"state.stopcause": "maxloop", "rfs.uptodate": "down"}))
    assert found.kind is Kind.STOPPED and "maxloop" in found.reason and "safekit log" in found.next_step


def test_a_silent_module_on_a_living_server_is_stopped_there() -> None:
    verdict = judge(replace(situation("ALONE green", "UNKNOWN grey"), peer_up=True))
    assert verdict.kind is Kind.DEGRADED
    assert verdict.next_step == "safekit start -m AM on the other server"


def test_the_waiting_resource_is_named() -> None:
    assert "ping.router" in judge(situation("WAIT red", "UNKNOWN grey", {"ping.router": "down"})).reason
    several = {"intf.a": "down", "ping.router": "down", "tcp.web": "down"}
    blamed = {**several, "state.waitsfor": "ping.router=down"}
    for remote in ("UNKNOWN grey", "ALONE green"):
        told = judge(situation("WAIT red", remote, blamed)).reason
        assert "because ping.router is down" in told and "intf.a" not in told
        assert "intf.a" not in judge(situation("WAIT red", remote, several)).reason, "the first one is not the cause"
    both = judge(situation("WAIT red", "UNKNOWN grey", {**several, "state.waitsfor": "intf.a=down,tcp.web=down"}))
    assert "because intf.a is down and tcp.web is down" in both.reason


def test_protected_since_the_later_of_both_servers() -> None:
    assert judge(situation("PRIM green", "SECOND green")).since == 200.0
    assert judge(situation("ALONE green", "UNKNOWN grey")).since == 100.0


def test_a_silent_heart_is_never_protected() -> None:
    assert judge(situation("PRIM green", "SECOND green", heart=False)).kind is Kind.DEGRADED


def test_protected_only_when_both_servers_are_green_and_complementary() -> None:
    """The verdict never lies in the good direction, whatever is combined."""
    for local, color, remote, remote_color in itertools.product(STATES, COLORS, STATES, COLORS):
        verdict = judge(situation(f"{local} {color}", f"{remote} {remote_color}"))
        if verdict.kind is Kind.PROTECTED:
            assert {local, remote} == {"PRIM", "SECOND"}
            assert (color, remote_color) == ("green", "green")


def test_every_verdict_that_is_not_passing_has_a_next_step() -> None:
    for local, remote in itertools.product(("STOP red", "WAIT red", "ALONE green"), ("UNKNOWN grey", "WAIT red")):
        assert judge(situation(local, remote)).next_step


@pytest.mark.parametrize(("local", "kind"), [("UP green", Kind.PROTECTED), ("UP magenta", Kind.DEGRADED)])
def test_farm(local: str, kind: Kind) -> None:
    assert judge(situation(local, mode="farm", resources={})).kind is kind


def test_the_last_server_of_a_farm_is_not_protected() -> None:
    alone = judge(situation("UP green", mode="farm", resources={"farm.a": "100%", "farm.b": "100%"}))
    assert alone.kind is Kind.DEGRADED and "safekit farm -m" in alone.next_step
    for shares in ({"farm.a": "100%", "farm.b": "50%"}, {"farm.a": "0%"}, {}):
        assert judge(situation("UP green", mode="farm", resources=shares)).kind is Kind.PROTECTED


def test_text_is_one_sentence_with_the_next_step() -> None:
    text = judge(situation("ALONE green", "STOP red")).text("10:00:00")
    assert text.startswith("degraded: ")
    assert "since 10:00:00. Next step: " in text
    assert "\n" not in text


def test_what_does_not_fit_is_named() -> None:
    waiting = judge(situation("WAIT red", "ALONE green", MISFIT)).text("")
    assert "refused: the module id, the virtual addresses differ from those of a server that runs" in waiting
    assert "the files of the module differ" in judge(situation("PRIM green", "SECOND green", OTHER_FILES)).text("")
    farm = judge(situation("UP green", resources={**MISFIT, "farm.g": "100%"}, mode="farm"))
    assert farm.kind is Kind.DEGRADED and "the module id" in farm.reason


def test_what_was_given_up_after_a_split_brain_is_named_until_it_is_removed() -> None:
    pair = situation("SECOND green", "PRIM green")
    told = judge(replace(pair, given_up="20260131-101500"))
    assert told.kind is Kind.PROTECTED and "safekit quarantine show -m AM 20260131-101500" in told.next_step
    assert judge(pair).next_step == ""


# ------------------------------------------------------------------------------- whole verdicts, for people

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "verdicts.txt"
_FACT = re.compile(r'(?P<name>[\w.-]+)=(?:"(?P<text>[^"]*)"|(?P<word>[^\s,@]+))(?:@(?P<since>\d+))?')


def golden() -> Iterator[tuple[str, str]]:
    """Each situation of the file, with the verdict that stands below it."""
    said: list[str] = []
    given = ""
    for line in (*GOLDEN.read_text().splitlines(), "-"):
        if line.startswith("  "):
            said.append(line.strip())
        elif line and not line.startswith("#"):
            if given:
                yield given, " ".join(said)
            given, said = line, []


def of_words(words: str) -> Situation:
    states, _, facts = words.partition(": ")
    local, _, remote = states.partition(" / ")
    resources, times = {}, {}
    for found in _FACT.finditer(facts):
        if found["name"] == "state.elsewhere":
            resources["state.elsewhere"] = "@".join(filter(None, (found["word"], found["since"])))
            continue
        resources[found["name"]] = found["word"] or as_word(found["text"])
        times[found["name"]] = float(found["since"] or 0)
    rest = _FACT.sub("", facts)
    made = situation(local, remote or "UNKNOWN grey", resources, mode="mirror" if remote else "farm")
    return replace(made, times=times, boot="boot off" not in rest, peer_up="its safeadmin answers" in rest)


@pytest.mark.parametrize(("given", "said"), list(golden()))
def test_a_golden_verdict(given: str, said: str) -> None:
    verdict = judge(of_words(given))
    assert verdict.text(f"{verdict.since:g}") == said


def test_every_golden_verdict_that_is_not_protected_or_passing_has_a_next_step() -> None:
    found = list(golden())
    assert len(found) >= 25
    for given, said in found:
        assert said.startswith("protected") or "Next step: " in said, given


def test_a_secondary_that_waits_for_its_next_synchronisation() -> None:
    """(guide 13.6.4.10: it has older data by the administrator's wish.)"""
    waits = {"rfs.uptodate": "down", "rfs.syncat": "down", "state.waitsfor": "rfs.syncat=down"}
    planned = replace(situation("WAIT red", "ALONE green", waits), next_synchronisation="2026-12-01 00:01")
    verdict = judge(planned)
    assert verdict.kind is Kind.DEGRADED and "waits for the next one, at 2026-12-01 00:01" in verdict.reason
    assert verdict.next_step.endswith("safekit set -m AM -r rfs.syncat -v up")
    other = judge(replace(situation("ALONE green", "WAIT red"), next_synchronisation="2026-12-01 00:01"))
    assert "it is synchronised next at 2026-12-01 00:01; the newest data are only here" in other.reason
    lost = judge(situation("WAIT red", "UNKNOWN grey", waits))
    assert lost.kind is Kind.AT_RISK and "only if its data are lost" in lost.next_step
