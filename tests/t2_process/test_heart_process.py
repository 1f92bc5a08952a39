"""The process heart: real heartbeats, files, scripts and bus; its neighbours are played (heart_pair)."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from heart.shell.publish import LifeSign
from heart.shell.shell import DIFFERENT_SECONDS
from safekit.bus.endpoint import BusError
from safekit.wire import seal
from tests.t2_process.heart_pair import Two
from tests.waiting import until


def play(root: Path, scene: Callable[[Two], Awaitable[None]], limit: float = 60.0, **service: Any) -> None:
    async def everything() -> None:
        async with Two(root, **service) as two:
            await scene(two)

    asyncio.run(asyncio.wait_for(everything(), limit))


def in_order(lines: list[str], wanted: list[str]) -> None:
    rest = iter(lines)
    for text in wanted:
        assert any(line == text for line in rest), f"{text!r} is missing, or out of order, in {lines}"


def test_a_pair_forms_stops_and_the_other_takes_over(tmp_path: Path) -> None:
    async def scene(two: Two) -> None:
        await two.form()
        in_order(
            two.n1.events(),
            [
                "Action prim called by root",
                "Local state WAIT magenta",
                "Script start_prim",
                "Local state ALONE green",
                "Remote state SECOND green",
                "Local state PRIM green",
            ],
        )
        in_order(
            two.n2.events(), ["Action second called by root", "Local state SECOND green", "Remote state PRIM green"]
        )
        assert two.n2.resources()["remote.rfs.uptodate"] == "up"
        assert two.n1.resources()["state.remote"] == "SECOND"
        assert two.n1.resources()["heartbeat.flow"] == "up"
        assert two.n1.asked_of("nfsadmin") == ["prepare", "primary"]
        assert two.n1.file["marker"].exists()
        await two.n1.control("stop")
        await two.reach("STOP red", "ALONE green")
        in_order(
            two.n1.events(), ["Action stop called by root", "Script stop_prim", "End of stop", "Local state STOP red"]
        )
        in_order(two.n2.events(), ["Reason of failover: remote stop", "Script start_prim"])
        assert not two.n1.file["marker"].exists()
        assert two.n1.resources()["rfs.uptodate"] == "down" and two.n2.resources()["rfs.uptodate"] == "up"
        await until(lambda: "ended" in two.n1.asked_of("safeadmin"), 10, two.show)
        assert two.n1.heart is not None and two.n1.heart.wait(10) == 0
        assert [line for line in two.n2.trace() if line.startswith("start_")] == [
            "start_both WAIT SECOND start", "start_second WAIT SECOND start", "start_sec WAIT SECOND start",
            "start_prim SECOND ALONE stop",
        ]  # fmt: skip

    play(tmp_path, scene)


def test_a_planned_swap_is_fast(tmp_path: Path) -> None:
    async def scene(two: Two) -> None:
        await two.form()
        for node in (two.n1, two.n2):
            node.asked.clear()
        await two.n1.control("swap")
        await two.reach("SECOND green", "PRIM green")
        assert two.n1.asked_of("nfsadmin") == ["demote", "secondary swap"]
        assert two.n2.asked_of("nfsadmin") == ["primary swap"]
        unset = next(at for at, who, what in two.n1.asked if what == "vip_unset")
        again = next(at for at, who, what in two.n2.asked if what == "vip_set")
        print(f"address unset to set again: {(again - unset) * 1000:.0f} ms")
        assert again - unset < 2.0

    play(tmp_path, scene)


def test_a_killed_heart_is_replaced_by_one_that_touches_nothing(tmp_path: Path) -> None:
    async def scene(two: Two) -> None:
        await two.form()
        for node, state in ((two.n1, "PRIM green"), (two.n2, "SECOND green")):
            trace, asked = node.trace(), len(node.asked_of("nfsadmin"))
            node.kill_heart()
            node.start_heart()
            await until(lambda node=node: "AM/heart" in node.ports, 10, two.show)  # type: ignore[misc]
            assert (await node.tell("status"))["state"] == state.split()[0]
            await asyncio.sleep(1.5)
            assert (two.n1.state(), two.n2.state()) == ("PRIM green", "SECOND green"), two.show()
            assert node.trace() == trace and len(node.asked_of("nfsadmin")) == asked
            told = [line.english for line in node.log() if line.code == "adopted"]
            assert told == [f"heart was restarted and takes the module over as it is: {state}"]

    # A new heart wants half a second of a processor before it beats; on a busy machine that is longer than 2.5 s.
    play(tmp_path, scene, timeout_ms=10_000)


def test_another_configuration_on_the_other_server_is_told_once(tmp_path: Path) -> None:
    async def scene(two: Two) -> None:
        place = two.n2.file["active_json"]
        text = place.read_text()
        assert '"same"' in text
        place.write_text(text.replace('"same"', '"another"'))
        await two.form()

        def differs() -> bool:
            return all(any(line.code == "config_differs" for line in node.log()) for node in (two.n1, two.n2))

        await until(differs, DIFFERENT_SECONDS + 15, two.show)
        await asyncio.sleep(1.0)  # some more heartbeats
        for node, other in ((two.n1, "n2"), (two.n2, "n1")):
            told = [line for line in node.log() if line.code == "config_differs"]
            assert [(line.level, line.english) for line in told] == [
                ("E", f"The configuration of the module differs on {other}: apply the same one on both servers")
            ]

    play(tmp_path, scene)


def test_settings_are_said_as_they_were_typed_and_run_update(tmp_path: Path) -> None:
    """Guide 9.4: the update command is a side effect of checker and failover."""

    async def scene(two: Two) -> None:
        node = two.n1
        node.start_heart()
        with pytest.raises(BusError, match="needs a running module"):
            await node.control("update")
        await node.control("prim")
        await until(lambda: node.state() == "ALONE green", 10, two.show)
        begun = len(node.log())
        for setting, value in (("errd", "off"), ("errd", "on"), ("checker", "off"), ("failover", "off")):
            await node.control(setting, value=value)
            assert node.resources()[f"usersetting.{setting}"] == value
        await node.control("update")
        said = [(line.level, line.english) for line in node.log()[begun:] if line.english.startswith("Action ")]
        assert said == [
            ("E", "Action errd suspend called by root"),
            ("E", "Action errd resume called by root"),
            ("E", "Action checker off called by root"),
            ("I", "Action update called by checker"),
            ("E", "Action failover off called by root"),
            ("I", "Action update called by failover"),
            ("E", "Action update called by root"),
        ]

    play(tmp_path, scene)


def test_the_loop_counter_outlives_heart(tmp_path: Path) -> None:
    async def scene(two: Two) -> None:
        node = two.n1
        node.start_heart()
        await node.control("prim")
        await until(lambda: node.state() == "ALONE green", 10, two.show)
        for count in (1, 2, 3):
            assert (await node.tell("incloop", identity="handler"))["count"] == count
        node.kill_heart()
        node.start_heart()
        await until(lambda: "AM/heart" in node.ports, 10, two.show)
        told = await node.tell("checkloop")
        assert (told["count"], told["maxloop"], told["reached"]) == (3, 3, False)
        assert (await node.tell("incloop", identity="handler"))["reached"]
        await node.tell("resetloop", identity="handler")
        node.kill_heart()
        node.start_heart()
        await until(lambda: "AM/heart" in node.ports, 10, two.show)
        assert (await node.tell("checkloop"))["count"] == 0

    play(tmp_path, scene)


def test_a_power_failure_is_not_an_adoption(tmp_path: Path) -> None:
    async def scene(two: Two) -> None:
        await two.form()
        two.n1.kill_heart()
        two.n1.file["marker"].write_text("another boot")
        await until(lambda: two.n2.state() == "ALONE green", 10, two.show)
        in_order(
            two.n2.events(),
            [
                "Resource heartbeat.flow set to down by heart",
                "Remote state UNKNOWN grey",
                "Reason of failover: no heartbeat",
                "Script start_prim",
            ],
        )
        two.n1.start_heart()
        await two.n1.control("start", who="boot")
        in_order(two.n1.events(), ["Previous halt unexpected", "Action start called at boot time"])
        await until(lambda: two.n1.state() == "SECOND magenta", 10, two.show)
        assert two.n1.resources()["rfs.uptodate"] == "down"

    play(tmp_path, scene)


def test_a_broken_stream_fences_the_secondary_before_writes_go_on(tmp_path: Path) -> None:
    async def scene(two: Two) -> None:
        await two.form()
        await two.n1.nfsadmin_event("replication_lost")
        await until(lambda: "alone" in two.n1.asked_of("nfsadmin"), 10, two.show)
        assert two.n2.resources()["rfs.uptodate"] == "down", "durable before nfsadmin is told"
        assert two.n1.resources()["rfs.paired"] == "down"
        await until(lambda: two.n2.asked_of("nfsadmin").count("secondary") == 2, 10, two.show)
        await two.synchronise(two.n1, two.n2)
        await two.reach("PRIM green", "SECOND green")

    play(tmp_path, scene)


def test_a_secondary_that_cannot_prove_its_data_does_not_take_over(tmp_path: Path) -> None:
    async def scene(two: Two) -> None:
        await two.form()
        two.n2.fails["primary"] = BusError("unapplied", "acknowledged changes were not applied")
        await two.n1.control("stop")
        await two.reach("STOP red", "STOP red")
        assert two.n2.resources()["rfs.uptodate"] == "down" and two.n2.resources()["rfs.lastprimstate"] == "down"
        assert not any(line.startswith("start_prim") for line in two.n2.trace())
        assert "acknowledged changes were not applied" in "".join(line.english for line in two.n2.log())

    play(tmp_path, scene)


def test_a_server_that_may_lack_what_it_acknowledged_waits_and_says_why(tmp_path: Path) -> None:
    async def scene(two: Two) -> None:
        await two.form()
        await two.n1.control("stop")
        await two.reach("STOP red", "ALONE green")
        await two.n2.control("stop")
        await two.reach("STOP red", "STOP red")
        assert two.n2.resources()["rfs.uptodate"] == "up"
        two.n2.prepared = {"consistent": True, "unapplied": True}
        await until(lambda: "ended" in two.n2.asked_of("safeadmin"), 10, two.show)
        two.n2.start_heart()
        await two.n2.control("start")
        await two.reach("STOP red", "WAIT red")
        assert two.n2.resources()["rfs.uptodate"] == "down"
        in_order(
            two.n2.events(),
            [
                "Data may lack changes that were acknowledged before nfsbox was killed (start the other server)",
                "Local state WAIT red",
            ],
        )

    play(tmp_path, scene)


def test_supervisord_died_means_an_orderly_stop_and_a_new_one(tmp_path: Path) -> None:
    async def scene(two: Two) -> None:
        await two.form()
        two.n1.end_supervisor()
        Path(two.n1.file["supervisor_sock"]).unlink(missing_ok=True)  # Python 3.13 removes it itself
        await until(lambda: "respawn" in two.n1.asked_of("safeadmin"), 15, two.show)
        assert any("supervisord of the module died" in text for text in two.n1.events())
        await until(lambda: two.n2.state() == "ALONE green", 10, two.show)
        assert two.n1.state() == "STOP red" and "stop_prim PRIM WAIT stopstart" in two.n1.trace()

    play(tmp_path, scene)


def test_strangers_are_refused_with_one_line(tmp_path: Path) -> None:
    async def scene(two: Two) -> None:
        two.n1.start_heart()
        await two.n1.control("prim")
        await until(lambda: two.n1.state() == "ALONE green", 10, two.show)
        (two.n2.root / "var/cluster/cluster.key").write_text(seal.new_key().hex())
        two.n2.start_heart()
        await two.n2.control("start")
        await until(lambda: two.n2.state() == "WAIT red", 10, two.show)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            for size in range(0, 400, 7):
                sock.sendto(os.urandom(size), ("127.0.0.1", _port(two)))
        await asyncio.sleep(1.5)
        for node in (two.n1, two.n2):
            lines = [line for line in node.log() if line.code == "peer_rejected"]
            assert 1 <= len(lines) <= 3, [line.english for line in lines]
            assert any("another key" in line.english for line in lines)
        assert two.n1.resources()["state.remote"] == "UNKNOWN"

    play(tmp_path, scene)


def _port(two: Two) -> int:
    from safekit.model.codec import from_json
    from safekit.model.types import ModuleConfig

    config = from_json(ModuleConfig, two.n1.file["active_json"].read_bytes())
    assert config.heart is not None
    return config.heart.heartbeats[0].port


def test_commands_are_refused_with_a_sentence_and_the_loop_is_counted(tmp_path: Path) -> None:
    async def scene(two: Two) -> None:
        n1 = two.n1
        n1.start_heart()
        with pytest.raises(BusError, match="stopped"):
            await n1.control("restart")
        await n1.control("prim")
        await until(lambda: n1.state() == "ALONE green", 10, two.show)
        for action, word in (
            ("prim", "already ALONE"),
            ("start", "already started"),
            ("swap", "needs PRIM green"),
            ("dance", "unknown action"),
        ):
            with pytest.raises(BusError, match=word) as refused:
                await n1.control(action)
            assert (refused.value.code == "already") == (action == "start"), "whoever wants what is so has it"
        assert (await n1.tell("set", resource="custom.x", value="down", who="customscript"))["changed"]
        assert not (await n1.tell("set", resource="custom.x", value="down", who="customscript"))["changed"]
        assert n1.events().count("Resource custom.x set to down by customscript") == 1
        await n1.tell("set", resource="rfs.uptodate", value="down", who="root")
        assert n1.resources()["rfs.uptodate"] == "up", "the memory of the data is heart's own"
        counts = [await n1.tell("incloop", identity="handler") for _ in range(4)]
        assert [c["count"] for c in counts] == [1, 2, 3, 4]
        assert [c["reached"] for c in counts] == [False, False, False, True]
        assert (await n1.tell("checkloop"))["reached"]
        assert not (await n1.tell("resetloop"))["reached"]
        assert (await n1.tell("status"))["history"]
        assert list(n1.file["why"].glob("*.jsonl"))

    play(tmp_path, scene)


def test_forcestop_gets_through_a_start_script_that_hangs(tmp_path: Path) -> None:
    async def scene(two: Two) -> None:
        n1 = two.n1
        script = n1.file["userbin"] / "start_prim"
        script.write_text(f"#!/bin/sh\necho $$ > {n1.root}/pid\nsleep 1000\n")
        n1.start_heart()
        await n1.control("prim")
        await until(lambda: (n1.root / "pid").exists(), 10, two.show)
        assert n1.state() == "ALONE magenta"
        await n1.control("stop")
        await until(lambda: n1.state() == "STOP red", 10, two.show)
        assert "stop_prim ALONE WAIT stop" in n1.trace()

    play(tmp_path, scene)


def test_a_frozen_heart_does_not_take_its_peer_for_dead(tmp_path: Path) -> None:
    async def scene(two: Two) -> None:
        await two.form()
        assert two.n2.heart is not None
        two.n2.heart.send_signal(signal.SIGSTOP)
        await asyncio.sleep(2.0)
        two.n2.heart.send_signal(signal.SIGCONT)
        await asyncio.sleep(1.5)
        assert (two.n1.state(), two.n2.state()) == ("PRIM green", "SECOND green"), two.show()

    play(tmp_path, scene)


def test_an_idle_heart_costs_next_to_nothing(tmp_path: Path) -> None:
    async def scene(two: Two) -> None:
        await two.form()
        assert two.n1.heart is not None
        before = _cpu(two.n1.heart.pid)
        await asyncio.sleep(3.0)
        used = (_cpu(two.n1.heart.pid) - before) / 3.0
        print(f"idle heart with pulse 100 ms: {used * 100:.2f}% of a core")
        assert used < 0.2
        # its successor would know that nobody was asleep (heart.core.doubt)
        sign = LifeSign(two.n1.file["var"] / "heart.alive")
        assert sign.ages()[0] < 2.0
        sign.close()

    play(tmp_path, scene)


def _cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_a_full_disk_below_safevar_ends_no_heart(tmp_path: Path) -> None:
    """Logs of others fill it sooner or later. The pair goes on, and the memory that counts still reaches the disk."""

    async def scene(two: Two) -> None:
        await two.form()
        var = two.n1.root / "var"
        filler = var / "filler"
        with open(filler, "wb", buffering=0) as handle, contextlib.suppress(OSError):
            while True:
                handle.write(bytes(4096))
        try:
            assert os.statvfs(var).f_bavail == 0
            assert two.n1.heart is not None and two.n2.heart is not None
            pid = two.n1.heart.pid
            for number in range(3):
                value = ("up", "down")[number % 2]
                await two.n1.tell("set", resource="custom.test", value=value, who="custom")
                await until(lambda value=value: two.n1.resources().get("custom.test") == value, 10, two.show)
            two.n2.kill_heart()
            await until(lambda: two.n1.state() == "ALONE green", 10, two.show)
            assert two.n1.resources()["rfs.paired"] == "down"
            await until(lambda: "alone" in two.n1.asked_of("nfsadmin"), 10, two.show)
            assert two.n1.heart.poll() is None and two.n1.heart.pid == pid
            two.n1.kill_heart()
            two.n1.start_heart()
            await until(lambda: "AM/heart" in two.n1.ports, 10, two.show)
            assert (await two.n1.tell("status"))["state"] == "ALONE"
        finally:
            filler.unlink()

    disk = tmp_path / "n1"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m,mode=755", "none", str(disk)], check=True)
    try:
        play(tmp_path, scene)
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
