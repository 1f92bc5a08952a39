"""A disk that takes what is written, cannot put it where it belongs, and says so once: memory shows what it lacks until
the power fails. Neither server may count as equal before every file was compared with what is on that disk."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.t2_process.copies.nursery import Nursery
from tests.t2_process.copies.pair import ZONE, Copies, Server, sync

#: For both disks, whole, and a little more.
ROOM = "140m"
PAGE = 4096
OLD = b"old" * ZONE
NEW = OLD[:PAGE] + b"new" * ZONE


class Tight(Copies):
    """Their disks share a room that can be filled."""

    def room(self) -> Path:
        place = Path(tempfile.mkdtemp(prefix="copies.", dir="/dev/shm"))
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={ROOM}", "copies", str(place)], check=True)
        return place

    def __exit__(self, *exception: object) -> None:
        for server in self.servers:
            server.disk.take()
        with contextlib.suppress(OSError):  # the directory is a mount point still
            super().__exit__(*exception)
        subprocess.run(["umount", "-l", str(self.memory)], check=True)
        self.memory.rmdir()

    def write(self, server: Server) -> None:
        """As an application: it is acknowledged, and nobody has asked for more."""
        descriptor = os.open(server.dir / "victim", os.O_WRONLY)
        try:
            assert os.pwrite(descriptor, NEW[PAGE:], PAGE) == len(NEW) - PAGE
        finally:
            os.close(descriptor)

    def has(self, server: Server) -> bytes:
        return (server.backing / "victim").read_bytes()


@pytest.fixture
def copies(tmp_path: Path) -> Iterator[Tight]:
    nursery = Nursery(tmp_path)
    try:
        with Tight(tmp_path / "servers", nursery) as found:
            first, second = found.servers
            found.start_primary(first)
            (first.dir / "victim").write_bytes(OLD)
            found.follow(second)
            for server in found.servers:
                sync(server.base)
            yield found
    finally:
        nursery.close()


def test_a_secondary_whose_disk_has_refused_loses_nothing_with_its_power(copies: Tight) -> None:
    primary, secondary = copies.servers
    secondary.disk.refuse(secondary.backing / "victim")
    copies.write(primary)
    copies.until(lambda: "replication_lost" in primary.kinds(), 20)  # by the next checkpoint
    secondary.disk.take()
    primary.ask("alone")
    copies.follow(secondary)
    copies.equal("after the reintegration")
    secondary.power_off()
    assert copies.has(secondary) == NEW, "it counted as up to date, and would have gone on alone"
    primary.ask("alone")
    copies.follow(secondary)
    copies.equal("after the power failure")
    assert [text for code, text in secondary.log() if "disk of the secondary has refused" in text]
    assert not (secondary.var / "modules/AM/rfs/refused").exists(), "every file was compared: it is in order again"


def test_a_primary_whose_disk_has_refused_hands_over_and_forgets_nothing(copies: Tight) -> None:
    """Its sync fails after the hand-over as well: that takes nothing back."""
    former, heir = copies.servers
    former.disk.refuse(former.backing / "victim")
    copies.write(former)
    former.ask("demote")
    former.disk.take()
    heir.ask("primary", swap=True)
    former.ask("secondary", swap=True)
    copies.until(lambda: "secondary_lost" in former.kinds(), 20, former)
    heir.ask("alone")
    former.power_off()
    copies.follow(former)
    copies.equal("after the power failure")
    assert copies.has(former) == copies.has(heir) == NEW
    assert not (former.var / "modules/AM/rfs/refused").exists()


def test_a_primary_whose_disk_has_refused_is_compared_whole_as_well(copies: Tight) -> None:
    """What it shows from memory the secondary gets, as long as it shows it."""
    primary, secondary = copies.servers
    primary.disk.refuse(primary.backing / "victim")
    copies.write(primary)
    copies.until((primary.var / "modules/AM/rfs/refused").exists, 20, primary)  # by the next checkpoint
    copies.leave(secondary)
    primary.ask("alone")
    copies.follow(secondary)
    assert [text for code, text in secondary.log() if "disk of the primary has refused" in text]
