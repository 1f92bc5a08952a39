"""A campaign: labs side by side, each with a seed of its own; steps until the faults are done; progress, summary."""

from __future__ import annotations

import json
import os
import statistics
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from lab.chaos import rules
from lab.chaos.audits import Account
from lab.chaos.faults import Step, schedule
from lab.chaos.mirror import Mirror
from lab.chaos.subject import Finding, Subject
from lab.cluster import Lab
from lab.errors import LabError
from safekit.view.words import duration


@dataclass(frozen=True)
class Wish:
    """What a campaign is to be. `faults`: in all labs; `begin`: the first step; `only`: kinds, all when empty."""

    seed: int
    faults: int
    labs: int = 1
    subject: str = "mirror"
    begin: int = 1
    only: tuple[str, ...] = ()
    database: bool = True
    witness: bool = False
    keep_going: bool = False
    keep_labs: bool = False
    minutes: float = 0.0
    directory: Path = Path("chaos")
    settings: rules.Settings = field(default_factory=rules.Settings)


class Campaign:
    """See above. `tell` shows a line to a person."""

    def __init__(self, wish: Wish, tell: Callable[[str], None]) -> None:
        self.wish = wish
        self.tell = tell
        self.begun = time.monotonic()
        self.account = Account()
        self.broken: list[str] = []
        self._lock = threading.Lock()
        self._end = threading.Event()
        self._live: dict[int, Account] = {}
        self._running = 0

    def run(self) -> bool:
        """True when nothing was found. An interrupt ends it after the present steps; a second one raises LabError."""
        self._running = self.wish.labs
        for number in range(self.wish.labs):
            threading.Thread(target=self._lab, args=(number,), daemon=True).start()
        # Not by join: an interrupt in it makes Python 3.11 believe that the thread has ended.
        while self._running:
            try:
                time.sleep(0.2)
            except KeyboardInterrupt:
                if self._end.is_set():
                    raise LabError(
                        "the campaign was broken off", "remove its labs: safelab status, safelab down"
                    ) from None
                self._end.set()
                self.tell("stopping after the present step of each lab; once more: at once, and the labs stay")
        self.account.seconds = time.monotonic() - self.begun
        return not self.account.findings and not self.broken

    @property
    def _over(self) -> bool:
        late = self.wish.minutes and time.monotonic() - self.begun > self.wish.minutes * 60
        return self._end.is_set() or bool(late)

    def _share(self, number: int) -> int:
        """Faults of a lab."""
        whole, rest = divmod(self.wish.faults, self.wish.labs)
        return whole + (number < rest)

    def _lab(self, number: int) -> None:
        """One of the labs side by side, until its faults are done."""
        try:
            self._seed(number)
        finally:
            with self._lock:
                self._running -= 1

    def _seed(self, number: int) -> None:
        """The steps of one seed; after a finding a fresh lab goes on, or none."""
        seed, begin, left = self.wish.seed + number, self.wish.begin, self._share(number)
        while left > 0 and not self._over:
            account = Account()
            with self._lock:
                self._live[number] = account
            try:
                begin, found = self._steps(seed, begin, left, account)
            except Exception:
                with self._lock:
                    self.broken.append(f"seed {seed}: {traceback.format_exc()}")
                self.tell(f"seed {seed}: the campaign itself failed:\n{traceback.format_exc()}")
                found = True
            with self._lock:
                del self._live[number]
                self.account.add(account)
            left -= account.faults
            if found and not self.wish.keep_going:
                self._end.set()
            if found and account.faults == 0:
                return  # not even a first step: another lab would do no better

    def _steps(self, seed: int, begin: int, faults: int, account: Account) -> tuple[int, bool]:
        """(the step that would be next, whether something was found)."""
        name = f"chaos{os.getpid()}-{seed}"
        lab = self._up(name)
        subject = self._subject(lab, seed)
        subject.account = account
        step: Step | None = None
        found = False
        try:
            subject.set_up()
            self.tell(f"lab {name} (seed {seed}) is ready: {subject.about()}")
            for step in schedule(seed, faults, self._kinds(subject), begin):
                if self._over:
                    return step.number, False
                began = time.monotonic()
                words = subject.run(step)
                self._progress(seed, step, words, time.monotonic() - began)
        except Finding as finding:
            found = True
            place = subject.evidence(step, finding.wrong)
            number = step.number if step is not None else 0
            account.findings.append(f"seed {seed} step {number}: {'; '.join(finding.wrong)} (evidence: {place})")
            self.tell("\n  ".join([f"seed {seed}, step {number}: FOUND", *finding.wrong, f"evidence: {place}"]))
        except BaseException:
            subject.evidence(step, [traceback.format_exc()])
            raise
        finally:
            subject.close()
            if not (found and self.wish.keep_labs):
                lab.down()
        return (step.number + 1 if step is not None else begin), found

    def _up(self, name: str) -> Lab:
        if self.wish.subject == "farm":
            return Lab.up(name, nodes=3, lans=["default"], binds=["/witness"])
        return Lab.up(name, disks=True, binds=["/witness"])

    def _subject(self, lab: Lab, seed: int) -> Subject:
        wish = self.wish
        settings = replace(wish.settings, witness=wish.witness)
        if wish.subject == "farm":
            from lab.chaos.farm import Farm

            return Farm(lab, seed, wish.directory, settings)
        return Mirror(lab, seed, wish.directory, settings, database=wish.database)

    def _kinds(self, subject: Subject) -> Mapping[str, Any]:
        return {name: kind for name, kind in subject.kinds.items() if not self.wish.only or name in self.wish.only}

    def _progress(self, seed: int, step: Step, words: str, took: float) -> None:
        with self._lock:
            done = self.account.faults + sum(account.faults for account in self._live.values())
        passed = time.monotonic() - self.begun
        left = passed / done * max(0, self.wish.faults - done) if done else 0.0
        if self.wish.minutes:
            left = min(left, max(0.0, self.wish.minutes * 60 - passed))
        kinds = " + ".join(f"{fault.kind.name}" for fault in step.faults)
        self.tell(
            f"{done}/{self.wish.faults} faults, {duration(left)} left; seed {seed} step {step.number}: {kinds}: "
            f"{words} ({took:.1f} s)"
        )


def figures(wish: Wish, account: Account, broken: list[str]) -> dict[str, Any]:
    """The summary for programs."""
    spread = sorted(account.recoveries)
    return {
        "seed": wish.seed,
        "labs": wish.labs,
        "subject": wish.subject,
        "witness": wish.witness,
        "database": wish.database and wish.subject == "mirror",
        "steps": account.steps,
        "faults": account.faults,
        "kinds": dict(sorted(account.kinds.items())),
        "records": account.records,
        "given_up_by_splits": account.given_up,
        "seconds": round(account.seconds, 1),
        "recovery_seconds": {
            "median": round(statistics.median(spread), 2),
            "nine_of_ten": round(spread[int(len(spread) * 0.9)], 2),
            "longest": round(spread[-1], 2),
        }
        if spread
        else None,
        "longest_pause_seconds": {kind: round(gap, 2) for kind, gap in sorted(account.gaps.items())},
        "findings": account.findings,
        "broken": broken,
        "settings": asdict(wish.settings),
    }


def summary(data: Mapping[str, Any]) -> list[str]:
    """The summary for people."""
    lines = [
        f"{data['faults']} faults in {data['steps']} steps, {duration(data['seconds'])}, "
        f"{data['labs']} lab(s), seed {data['seed']}: {len(data['findings'])} finding(s)",
        f"records acknowledged and found again: {data['records']}; given up by splits: {data['given_up_by_splits']}",
    ]
    if data["recovery_seconds"]:
        spread = data["recovery_seconds"]
        lines.append(
            f"recovery after the repair: median {spread['median']} s, nine of ten within {spread['nine_of_ten']} s, "
            f"longest {spread['longest']} s"
        )
    lines.append("faults by kind, and the longest pause of the application where it came alone:")
    for kind, count in data["kinds"].items():
        gap = data["longest_pause_seconds"].get(kind)
        lines.append(f"  {kind:<18} {count:>5}" + (f"   {gap:6.2f} s" if gap is not None else ""))
    lines += [f"FOUND {finding}" for finding in data["findings"]]
    lines += [f"the campaign itself failed: {text}" for text in data["broken"]]
    return lines


def save(data: Mapping[str, Any], directory: Path) -> Path:
    """Keep the summary beside the evidence."""
    path = directory / f"summary-{data['subject']}-seed{data['seed']}.json"
    path.write_text(json.dumps(data, indent=1) + "\n")
    return path
