"""heart is killed at each phase of a start, a stop, a failover and a reintegration; its successor brings the module
to where it was going, and the application never runs on both servers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

from tests.t2_process.heart_pair import SCRIPTS, Node, Two
from tests.waiting import until

START = ("script prestart", "nfsadmin prepare", "script start_both", "nfsadmin primary", "vipd vip_set",
         "script start_prim")  # fmt: skip
STOP = ("script stop_prim", "vipd vip_unset", "script stop_both", "script poststop")
TAKE_OVER = ("script stop_sec", "script stop_second", "nfsadmin primary", "vipd vip_set", "script start_prim")
AFTER_REINTEGRATION = ("script start_both", "script start_second")
JOIN = ("script prestart", "nfsadmin prepare", "nfsadmin secondary", *AFTER_REINTEGRATION)


def play(root: Path, scene: Callable[[Two], Awaitable[None]]) -> None:
    """The scene with scripts that can be held, and with one trace of both applications."""

    async def everything() -> None:
        async with Two(root) as two:
            for node in (two.n1, two.n2):
                for name in SCRIPTS:
                    (node.file["userbin"] / name).write_text(
                        f'#!/bin/sh\necho "{name} $*" >> {node.root}/trace\n'
                        f'echo "{node.name} {name}" >> {root}/both\n'
                        f"if [ -e {node.root}/hold.{name} ]; then exec sleep 1000; fi\n"
                    )
            await scene(two)

    asyncio.run(asyncio.wait_for(everything(), 120))
    running: set[str] = set()
    for line in (root / "both").read_text().splitlines():
        name, script = line.split()
        if script == "start_prim":
            assert running <= {name}, f"the application starts on {name} and runs on {running}"
            running.add(name)
        elif script == "stop_prim":
            running.discard(name)


async def killed_at(two: Two, node: Node, phase: str, begin: Callable[[], Awaitable[object]]) -> None:
    """Begin, kill heart in the phase (its script hangs, or its request was just received), start its successor."""
    who, _, what = phase.partition(" ")
    heart = node.heart
    assert heart is not None
    if who == "script":
        hold = node.root / f"hold.{what}"
        hold.touch()
        ran = len(calls(node, what))
        await begin()
        await until(lambda: len(calls(node, what)) > ran, 10, lambda: f"{phase}\n{two.show()}")
        hold.unlink()
        node.kill_heart()
    else:
        node.kill_at = phase
        await begin()
        await until(lambda: not node.kill_at, 10, lambda: f"{phase}\n{two.show()}")
    assert heart.poll() is not None
    node.asked.clear()
    node.start_heart()


def calls(node: Node, script: str) -> list[str]:
    """How a script was called until now."""
    return [line for line in node.trace() if line.split()[0] == script]


async def ended(two: Two, node: Node) -> None:
    """heart has left after a stop."""
    heart = node.heart
    assert heart is not None
    await until(lambda: heart.poll() is not None, 10, two.show)
    assert heart.returncode == 0
    node.ports.pop("AM/heart", None)


async def started(two: Two, node: Node) -> None:
    """A new heart answers."""
    node.asked.clear()
    node.start_heart()
    await until(lambda: "AM/heart" in node.ports, 10, two.show)


def test_at_each_phase_of_a_start_and_of_a_stop(tmp_path: Path) -> None:
    async def scene(two: Two) -> None:
        node = two.n1
        await started(two, node)
        await node.control("prim")
        await until(lambda: node.state() == "ALONE green", 10, two.show)
        for phase in STOP:
            await killed_at(two, node, phase, lambda: node.control("stop"))
            await until(lambda: node.state() == "STOP red", 10, lambda phase=phase: f"{phase}\n{two.show()}")
            await ended(two, node)
            assert not node.file["marker"].exists()
            assert len(calls(node, "stop_prim")) >= len(calls(node, "start_prim"))
            await started(two, node)
            await node.control("start")
            await until(lambda: node.state() == "ALONE green", 10, two.show)
        for phase in START:
            await node.control("stop")
            await ended(two, node)
            await started(two, node)
            await killed_at(two, node, phase, lambda: node.control("start"))
            await until(lambda: node.state() == "ALONE green", 10, lambda phase=phase: f"{phase}\n{two.show()}")

    play(tmp_path, scene)


async def rejoin(two: Two, primary: Node, secondary: Node) -> None:
    """The reintegration, played, until both are green."""
    await until(lambda: "secondary" in secondary.asked_of("nfsadmin"), 10, two.show)
    await until(lambda: secondary.state() == "SECOND magenta", 10, two.show)
    await two.synchronise(primary, secondary)
    await until(lambda: (primary.state(), secondary.state()) == ("PRIM green", "SECOND green"), 10, two.show)


def test_at_each_phase_of_a_failover(tmp_path: Path) -> None:
    async def scene(two: Two) -> None:
        await two.form()
        giver, taker = two.n1, two.n2
        for phase in TAKE_OVER:
            await killed_at(two, taker, phase, lambda: giver.control("stop"))  # noqa: B023 - awaited at once
            await until(lambda: taker.state() == "ALONE green", 10, lambda: f"{phase}\n{two.show()}")  # noqa: B023
            await ended(two, giver)
            assert taker.resources()["rfs.uptodate"] == "up" and giver.resources()["rfs.uptodate"] == "down"
            await started(two, giver)
            await giver.control("start")
            await rejoin(two, taker, giver)
            giver, taker = taker, giver

    play(tmp_path, scene)


def test_of_the_secondary_at_each_phase_of_its_start(tmp_path: Path) -> None:
    async def scene(two: Two) -> None:
        await two.form()
        applications = len(calls(two.n1, "start_prim")), len(calls(two.n1, "stop_prim"))
        for phase in JOIN:

            async def begin(*, synchronise: bool = phase in AFTER_REINTEGRATION) -> None:
                await two.n2.control("start")
                if synchronise:
                    await until(lambda: two.n2.state() == "SECOND magenta", 10, two.show)
                    await two.synchronise(two.n1, two.n2)

            await two.n2.control("stop")
            await ended(two, two.n2)
            await until(lambda: two.n1.state() == "ALONE green", 10, two.show)
            await started(two, two.n2)
            await killed_at(two, two.n2, phase, begin)
            await rejoin(two, two.n1, two.n2)
        assert (len(calls(two.n1, "start_prim")), len(calls(two.n1, "stop_prim"))) == applications

    play(tmp_path, scene)
