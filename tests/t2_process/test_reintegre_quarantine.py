"""A split brain of two real pairs of processes: what the loser wrote is kept, whole, before it is overwritten."""

from __future__ import annotations

import os
import time
from pathlib import Path

from safekit.model.types import Replicated, Rfs
from safekit.rfs import quarantine
from tests.t2_process.rfs_pair import ZONE, Pair, equal


def test_what_the_loser_wrote_is_kept(tmp_path: Path) -> None:
    rfs = Rfs((Replicated("/replicated", notreplicated_paths=("local",)),), ruzone_blocksize=ZONE)
    with Pair(tmp_path, rfs) as pair:
        n1, n2 = pair.n1, pair.n2
        big = os.urandom(6 * ZONE)
        (n1.backing / "old").mkdir()
        (n1.backing / "old/big").write_bytes(big)
        pair.start_primary(n1)
        (n1.dir / "both").write_text("before")
        pair.start_secondary(n2)
        born = (n2.backing / "old/big").stat().st_ctime
        pair.until(lambda: time.time() > born + 3)  # until then it counts as made since, and is kept whole
        for node in (n1, n2):
            node.ask("alone")
        (n1.dir / "both").write_text("of the one that stays")
        (n1.dir / "old/big").write_bytes(big)
        (n2.dir / "both").write_text("given up")
        (n2.dir / "new").write_text("of the loser alone")
        (n2.dir / "local").write_text("not replicated")
        with open(n2.dir / "old/big", "r+b") as handle:
            handle.seek(3 * ZONE)
            handle.write(b"L" * 100)
        lost = (n2.dir / "old/big").read_bytes()[3 * ZONE : 4 * ZONE]
        n2.events.clear()
        n2.ask("standby")
        pair.reintegrate(n2)
        assert (n2.backing / "local").read_text() == "not replicated"
        (n2.backing / "local").unlink()
        equal(pair)
        base = n2.var / "modules/AM/quarantine"
        (found,) = quarantine.every(base)
        kept = {entry.path: entry for entry in found.kept}
        assert set(kept) == {"both", "new", "old/big"} and found.rule == "split_brain"
        for name, text in (("both", "given up"), ("new", "of the loser alone")):
            assert quarantine.content(base, found, kept[name]).read_text() == text
        ranges = kept["old/big"].ranges
        assert ranges is not None and any(begin <= 3 * ZONE < begin + length for begin, length in ranges)
        with quarantine.content(base, found, kept["old/big"]).open("rb") as handle:
            handle.seek(3 * ZONE)
            assert handle.read(ZONE) == lost
        told = [text for code, text in n2.log() if code == "quarantined"]
        assert len(told) == 1 and str(base / found.id) in told[0] and "3 files" in told[0]
        assert [code for code, _ in n2.log()].index("quarantined") < [c for c, _ in n2.log()].index(
            "reintegration_overwrites"
        )
        assert not quarantine.every(n1.var / "modules/AM/quarantine")
