"""The real processes of two servers: first synchronisation, zones, crashes, interruptions, role changes."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace

import pytest

from safekit.bus.endpoint import BusError
from tests.t2_process.rfs_pair import ZONE, Node, Pair, equal, leave, told


def populate(node: Node, files: int = 60) -> None:
    for number in range(files):
        path = node.backing / f"d{number % 7}" / f"f{number}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(os.urandom(1 + number * 997))
    (node.backing / "link").symlink_to("d0/f0")
    os.link(node.backing / "d1/f1", node.backing / "hard")


def test_first_synchronisation_then_replication_then_only_zones(pair: Pair) -> None:
    populate(pair.n1)
    (pair.n2.backing / "stale").write_bytes(b"old")
    pair.start_primary(pair.n1)
    pair.start_secondary(pair.n2)
    equal(pair)
    assert pair.n1.pairs == 1
    assert told(pair.n2, "updating_tree") and told(pair.n2, "copied") and told(pair.n2, "reintegration_ended")
    assert "first_synchronisation" in told(pair.n2, "reintegration_verdict")[0]
    (pair.n1.dir / "live").write_bytes(b"replicated at once")
    big = pair.n1.dir / "big"
    big.write_bytes(os.urandom(8 * ZONE))
    equal(pair)
    leave(pair, pair.n1, pair.n2)
    with open(big, "r+b") as handle:
        os.pwrite(handle.fileno(), b"zone five", 5 * ZONE + 10)
    (pair.n1.dir / "d2/f2").unlink()
    pair.start_secondary(pair.n2)
    equal(pair)
    assert "changed_zones" in told(pair.n2, "reintegration_verdict")[-1]
    assert told(pair.n2, "copied")[-1].startswith("Copied 1 files, 1.0 MB"), told(pair.n2, "copied")


def test_nothing_changed_nothing_copied_twice_in_a_row(pair: Pair) -> None:
    populate(pair.n1)
    pair.start_primary(pair.n1)
    pair.start_secondary(pair.n2)
    for _ in range(2):
        leave(pair, pair.n1, pair.n2)
        pair.start_secondary(pair.n2)
    equal(pair)
    assert len(told(pair.n2, "copied")) == 1, "only the first one copied"
    assert len(told(pair.n2, "reintegration_ended")) == 3


def test_files_with_nothing_but_holes_keep_their_times(pair: Pair) -> None:
    """Nothing of them is sent, and yet the secondary writes to them."""
    populate(pair.n1)
    for name in ("empty", "hole", "emptied"):
        (pair.n1.backing / name).write_bytes(b"")
        (pair.n2.backing / name).write_bytes(os.urandom(3 * ZONE))
    os.truncate(pair.n1.backing / "hole", 3 * ZONE)
    os.truncate(pair.n1.backing / "emptied", 2 * ZONE)
    for name in ("empty", "hole", "emptied"):
        os.utime(pair.n1.backing / name, ns=(10**18, 10**18))
    pair.start_primary(pair.n1)
    pair.start_secondary(pair.n2)
    equal(pair)
    leave(pair, pair.n1, pair.n2)
    os.truncate(pair.n1.dir / "hole", 0)
    os.truncate(pair.n1.dir / "hole", 5 * ZONE)
    os.utime(pair.n1.dir / "hole", ns=(10**18, 10**18))
    pair.start_secondary(pair.n2)
    equal(pair)


def test_secondary_killed_then_reintegrated(pair: Pair) -> None:
    populate(pair.n1)
    pair.start_primary(pair.n1)
    pair.start_secondary(pair.n2)
    (pair.n1.dir / "d3/f3").write_bytes(b"just before")
    pair.n2.power_off()
    pair.n1.ask("alone")  # heart hears it by the heartbeats
    (pair.n1.dir / "d4/f4").write_bytes(b"alone")
    pair.start_secondary(pair.n2)
    equal(pair)


def test_primary_killed_and_the_secondary_takes_over(pair: Pair) -> None:
    populate(pair.n1)
    pair.start_primary(pair.n1)
    pair.start_secondary(pair.n2)
    (pair.n1.dir / "acknowledged").write_bytes(b"kept")
    pair.n1.power_off()
    pair.until(lambda: "secondary_lost" in pair.n2.kinds())
    pair.n2.ask("primary")
    assert (pair.n2.dir / "acknowledged").read_bytes() == b"kept"
    (pair.n2.dir / "d5/f5").write_bytes(b"on the new primary")
    (pair.n1.backing / "garbage of the dead primary").write_bytes(b"x")
    pair.start_secondary(pair.n1)
    equal(pair)


def test_application_writes_during_the_reintegration(pair: Pair) -> None:
    populate(pair.n1, 300)
    big = pair.n1.backing / "big"
    big.write_bytes(os.urandom(40 * ZONE))
    pair.start_primary(pair.n1)
    stop = threading.Event()
    done: list[int] = []

    def application() -> None:
        number = 0
        with open(pair.n1.dir / "big", "r+b") as handle:
            while not stop.is_set():
                os.pwrite(handle.fileno(), b"%08d" % number, (number * 7919) % (40 * ZONE))
                name = pair.n1.dir / f"d{number % 7}" / f"new{number % 50}"
                name.write_bytes(b"%d" % number)
                os.rename(name, pair.n1.dir / f"d{number * 3 % 7}" / f"moved{number % 40}")
                if number % 3 == 0:  # another name, and writes by either
                    link = pair.n1.dir / f"d{number * 5 % 7}" / f"link{number % 30}"
                    link.unlink(missing_ok=True)
                    f, files = 11 * number % 300, pair.n1.dir
                    os.link(files / f"d{f % 7}" / f"f{f}", link)
                    for written in (link, files / f"d{f % 7}" / f"f{f}"):
                        with open(written, "r+b", buffering=0) as other:
                            other.write(b"%08d" % number)
                if number % 4 == 0:  # cut off, and grown again: what was there is zeros now
                    f = 13 * number % 300
                    for size in (number % 900, 5000):
                        os.truncate(pair.n1.dir / f"d{f % 7}" / f"f{f}", size)
                if number % 10 == 0:
                    os.rename(pair.n1.dir / f"d{number % 7}", pair.n1.dir / "aside")
                    os.rename(pair.n1.dir / "aside", pair.n1.dir / f"d{number % 7}")
                number += 1
        done.append(number)

    thread = threading.Thread(target=application)
    thread.start()
    try:
        pair.start_secondary(pair.n2, timeout=90)
    finally:
        stop.set()
        thread.join()
    assert done and done[0] > 20
    equal(pair)


def test_small_files_arrive_whole_while_they_change(pair: Pair) -> None:
    """Many small files on their way at once: with all attributes, and whatever the application does to them."""
    here = pair.n1.backing
    for number in range(1200):
        path = here / f"s{number % 5}" / f"f{number}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"%d" % number * (number % 50))
        os.chown(path, number % 3, number % 4)
        os.chmod(path, 0o4755 if number % 7 == 0 else 0o640)
        if number % 11 == 0:
            os.setxattr(path, "user.note", b"n%d" % number)
        os.utime(path, ns=(10**18 + number, 10**18 + 7 * number))
    os.setxattr(here / "s0/f0", "security.capability", bytes.fromhex("0100000200040000000000000000000000000000"))
    with open(here / "s1/holes", "wb") as handle:
        handle.truncate(50_000)
    os.link(here / "s2/f2", here / "s3/second")
    other = pair.n2.backing / "s4"
    other.mkdir()
    (other / "f4").mkdir()  # in the way
    os.symlink("nowhere", other / "f9")
    (other / "f14").write_bytes(b"longer than what the primary has" * 100)
    os.link(other / "f14", other / "f19")
    pair.start_primary(pair.n1)
    stop = threading.Event()

    def application() -> None:
        mount, number = pair.n1.dir, 0
        while not stop.is_set():
            for name in (f"f{number * 31 % 1200}", f"f{number * 7 % 1200}"):
                path = mount / f"s{int(name[1:]) % 5}" / name
                match number % 4:
                    case 0 | 1:
                        path.write_bytes(b"w%d" % number * (number % 200))
                    case 2:
                        path.unlink(missing_ok=True)
                    case 3 if path.exists():
                        os.replace(path, mount / f"s{number % 5}" / f"f{number * 13 % 1200}")
            number += 1

    thread = threading.Thread(target=application)
    thread.start()
    try:
        pair.start_secondary(pair.n2, timeout=90)
    finally:
        stop.set()
        thread.join()
    equal(pair)
    assert (pair.n2.backing / "s1/holes").stat().st_blocks == 0


def test_interrupted_and_resumed(pair: Pair) -> None:
    pair.configure(replace(pair.rfs, reiallowedbw=20_000))
    for number in range(20):
        (pair.n1.backing / f"f{number}").write_bytes(os.urandom(4 * ZONE))
    pair.start_primary(pair.n1)
    pair.n2.up()
    pair.n2.ask("prepare")
    pair.n2.ask("secondary")
    pair.until(lambda: sum(f.stat().st_blocks for f in pair.n2.backing.glob("f*")) * 512 > 20 * ZONE)
    pair.n2.power_off()
    pair.n2.up()
    assert pair.n2.ask("prepare")["consistent"] is False
    with pytest.raises(BusError):
        pair.n2.ask("primary")
    before = pair.n1.ask("status", target="nfsbox")["bytes_sent"]
    # Nobody reads a stream on which nothing is under way: its loss is found with the next change.
    (pair.n1.dir / "next").write_bytes(b"x")
    pair.until(lambda: pair.n1.ask("status", target="nfsbox")["session"] == "none")
    pair.reintegrate(pair.n2, 120)
    equal(pair)
    assert "full_resumed" in told(pair.n2, "reintegration_verdict")[-1]
    assert pair.n1.ask("status", target="nfsbox")["bytes_sent"] < 75 * ZONE, before


def test_swap_without_reintegration(pair: Pair) -> None:
    populate(pair.n1)
    pair.start_primary(pair.n1)
    pair.start_secondary(pair.n2)
    pair.n1.ask("demote")
    pair.n2.ask("primary", swap=True)
    pair.n1.ask("secondary", swap=True)
    (pair.n2.dir / "after the swap").write_bytes(b"x")
    equal(pair)
    with pytest.raises(OSError, match="Read-only"):
        (pair.n1.dir / "refused").write_bytes(b"x")
    assert len(told(pair.n1, "reintegration_ended")) == 0


@pytest.mark.parametrize("op", ["demote", "release"])
def test_the_end_of_the_peer_ends_what_waits_for_it(pair: Pair, op: str) -> None:
    """The secondary loses its power while the primary hands over or leaves: heart's `alone` waits for neither."""
    populate(pair.n1, 10)
    pair.start_primary(pair.n1)
    pair.start_secondary(pair.n2)
    frozen = pair.n2.processes["nfsbox"]
    frozen.send_signal(signal.SIGSTOP)
    refused: list[BusError] = []

    def leave() -> None:
        try:
            pair.n1.ask(op, timeout=100)
        except BusError as error:
            refused.append(error)

    leaving = threading.Thread(target=leave)
    begun = time.monotonic()
    leaving.start()
    try:
        pair.until(lambda: pair.n1.ask("status", target="nfsbox")["pending"] > 0)
        if op == "demote":
            pair.n1.ask("alone", timeout=100)
        else:
            with pytest.raises(BusError):
                pair.n1.ask("alone", timeout=100)
        leaving.join(100)
        assert time.monotonic() - begun < 12, "it waited for the peer"
    finally:
        frozen.send_signal(signal.SIGCONT)
        leaving.join(100)
    if op == "release":
        assert not refused and pair.n1.dir.is_symlink()
        return
    assert [error.code for error in refused] == ["timeout"]
    (pair.n1.dir / "goes on").write_bytes(b"x")
    assert pair.n1.ask("status", target="nfsbox")["dirty_dirs"] > 0, "what the peer lacks is recorded"
    pair.n2.ask("standby")  # it may have taken the role that it was sent: heart knows better
    pair.n2.events.clear()
    pair.reintegrate(pair.n2)
    equal(pair)


def test_the_stream_is_refused_when_heart_refuses_the_pair(pair: Pair) -> None:
    populate(pair.n1, 5)
    pair.n1.refuse_pair = True
    pair.start_primary(pair.n1)
    pair.n2.up()
    pair.n2.ask("prepare")
    pair.n2.ask("secondary")
    pair.until(lambda: "rfs_failed" in pair.n2.kinds())
    assert "rfs_synced" not in pair.n2.kinds()
    pair.n1.refuse_pair = False
    pair.n2.ask("standby")
    pair.n2.events.clear()
    pair.reintegrate(pair.n2)
    equal(pair)


def test_a_frozen_primary_and_reitimeout(pair: Pair) -> None:
    pair.configure(replace(pair.rfs, reitimeout=2, reiallowedbw=5_000))
    for number in range(10):
        (pair.n1.backing / f"f{number}").write_bytes(os.urandom(2 * ZONE))
    pair.start_primary(pair.n1)
    pair.n2.up()
    pair.n2.ask("prepare")
    pair.n2.ask("secondary")
    pair.until(lambda: any(pair.n2.backing.glob("f*")))
    pair.n1.processes["nfsbox"].send_signal(signal.SIGSTOP)
    try:
        pair.until(lambda: "rfs_failed" in pair.n2.kinds(), 20)
    finally:
        pair.n1.processes["nfsbox"].send_signal(signal.SIGCONT)
    assert pair.n2.ask("status")["consistent"] is False


def test_nfsbox_dies_on_the_primary_and_the_directory_comes_back(pair: Pair) -> None:
    populate(pair.n1, 5)
    pair.start_primary(pair.n1)
    pair.n1.kill("nfsbox")
    pair.until(lambda: "nfsbox_died" in pair.n1.kinds())
    assert pair.n1.resources["rfs.degraded"] == "up"
    (pair.n1.dir / "written degraded").write_bytes(b"x")
    assert (pair.n1.backing / "written degraded").exists()
    assert pair.n1.ask("status")["degraded"] is True


def test_detail_and_progress(pair: Pair) -> None:
    pair.configure(replace(pair.rfs, reidetail=True, reiallowedbw=10_000))
    for number in range(10):
        (pair.n1.backing / f"f{number}").write_bytes(os.urandom(2 * ZONE))
    pair.start_primary(pair.n1)
    pair.n2.up()
    pair.n2.ask("prepare")
    pair.n2.ask("secondary")
    seen: list[dict[str, object]] = []

    def watch(node: Node) -> Callable[[], bool]:
        def look() -> bool:
            shown = node.ask("status")["reintegration"]
            if shown and shown.get("bytes"):
                seen.append(shown)
            return bool(seen)

        return look

    pair.until(watch(pair.n2))
    assert seen[0]["files_total"] and seen[0]["rule"] == "first_synchronisation"
    pair.until(watch(pair.n1))
    pair.until(lambda: int(pair.n1.resources.get("rfs_bandwidth.reintegration", "0")) > 0)
    pair.until(lambda: "rfs_synced" in pair.n2.kinds(), 60)
    assert len(told(pair.n2, "reintegration_detail")) >= 10
    pair.until(lambda: pair.n1.resources["rfs_bandwidth.reintegration"] == "0")


def test_told_to_stop_in_the_middle_it_leaves_no_error(pair: Pair) -> None:
    pair.configure(replace(pair.rfs, reiallowedbw=2_000))
    (pair.n1.backing / "big").write_bytes(os.urandom(20 * ZONE))
    pair.start_primary(pair.n1)
    pair.n2.up()
    pair.n2.ask("prepare")
    pair.n2.ask("secondary")
    pair.until(lambda: (pair.n2.backing / "big").exists() and (pair.n2.backing / "big").stat().st_blocks)
    pair.n2.ask("standby")
    pair.n2.ask("release")
    pair.until(lambda: pair.n2.processes["reintegre"].poll() is not None)
    assert "Traceback" not in pair.n2.output()
    assert pair.n2.dir.is_symlink()
    pair.n2.kill("nfsadmin", signal.SIGTERM)
    pair.n2.kill("nfsbox", signal.SIGTERM)
    pair.n2.up()
    assert pair.n2.ask("prepare")["consistent"] is False
