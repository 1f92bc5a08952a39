"""A fault campaign, short: the command, its audits on a sound cluster, its evidence when something is wrong."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from lab.chaos.campaign import Campaign, Wish
from lab.chaos.mirror import Mirror
from lab.chaos.rules import Settings
from lab.chaos.subject import Finding
from lab.cluster import Lab
from lab.state import lab_names

CHECKOUT = Path(__file__).resolve().parents[2]
QUICK = "kill_small,swap,stop_second,kill_nfsbox_prim,poweroff_prim,cut_flow"


def chaos(directory: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """The command, with its summary as JSON."""
    return subprocess.run(
        [sys.executable, "-m", "lab.main", "chaos", "--json", "--evidence", str(directory), *words],
        cwd=CHECKOUT,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
        capture_output=True,
        text=True,
        timeout=540,
        check=False,
    )


def gone(before: Sequence[str]) -> bool:
    return not [name for name in lab_names() if name.startswith("chaos") and name not in before]


@pytest.mark.parametrize("subject", ["mirror", "farm"])
def test_a_sound_cluster_passes_every_audit(tmp_path: Path, subject: str) -> None:
    words = ("--only", QUICK) if subject == "mirror" else ("--only", "kill_small,poweroff,cut,stop")
    done = chaos(
        tmp_path, "--seed", "11", "--faults", "6", "--subject", subject, "--no-database", "--timeout", "5", *words
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    told = json.loads(done.stdout)
    assert told["faults"] >= 6 and told["findings"] == [] and told["broken"] == []
    assert sum(told["kinds"].values()) == told["faults"] and set(told["kinds"]) <= set(words[1].split(","))
    assert told["recovery_seconds"]["longest"] > 0
    assert "6/6 faults" in done.stderr or f"{told['faults']}/6 faults" in done.stderr
    assert json.loads((tmp_path / f"summary-{subject}-seed11.json").read_text())["faults"] == told["faults"]


class Forgetful(Mirror):
    """A campaign whose application loses a record by itself before every audit."""

    def _lost(self, *words: object) -> list[str]:
        prim = next(sample.node for sample in self.watch.last if sample.state == "PRIM green")
        self.lab.node(prim).run("rm $(ls -d /replicated/r/* | head -n 1)")
        return super()._lost(*words)  # type: ignore[arg-type]


def test_a_lost_record_ends_it_with_evidence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = lab_names()
    told: list[str] = []

    def forgetful(self: Campaign, lab: Lab, seed: int) -> Mirror:
        return Forgetful(lab, seed, self.wish.directory, self.wish.settings, database=False)

    monkeypatch.setattr(Campaign, "_subject", forgetful)
    made = Campaign(
        Wish(4, 5, only=("kill_small",), database=False, directory=tmp_path, settings=Settings(timeout=5)), told.append
    )
    assert not made.run() and made.broken == []
    (finding,) = made.account.findings
    assert re.search(r"seed 4 step 1: [12] acknowledged records are lost", finding), finding
    (place,) = tmp_path.glob("seed4-step*")
    text = (place / "finding.txt").read_text()
    assert "safelab chaos --seed 4" in text and "--from 1" in text and "fault kill_small" in text
    for name in ("node1/acknowledged", "node2/var/log/module.log", "node1/state.txt", "node2/resources"):
        assert (place / name).exists() or (place / name.replace("/", "/var/")).exists(), name
    assert (tmp_path / "seed4.timeline").read_text().count("\n") > 3
    assert any("FOUND" in line for line in told) and gone(before)


def test_a_finding_says_all_that_is_wrong() -> None:
    assert str(Finding(["one", "two"])) == "one; two"
