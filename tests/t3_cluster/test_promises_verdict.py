"""The verdict never lies: the first command that somebody types tells the truth, its cause and the next step.

Two nodes; each test takes the pair that the one before left, or makes it anew.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest
from farm import NORMAL as FARM_NORMAL
from farm import FarmLab
from pair import START_PRIM, Pair, userconfig

from lab.cluster import Lab, Node
from lab.waiting import wait_until
from tests.conftest import unique_lab_name

HEART = 'pulse="300" timeout="3000"'
EXPECTED = ("script_error", "script_unfound", "action_rule", "transition_rule", "stopping_loop", "splitbrain_staying",
            "splitbrain_exiting", "failover_no_heartbeat", "reintegration_failed", "rfs_unusable", "config_differs",
            "quarantined", "reintegration_lost_file", "reintegration_overwrites", "process_died", "not_uptodate",
            "advice_prim", "internal")  # fmt: skip


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    made = Lab.up()
    yield made
    made.down()


@pytest.fixture
def pair(lab: Lab) -> Iterator[Pair]:
    """Protected, with one heartbeat on the lan default, as a newcomer writes it."""
    made = Pair(lab)
    made.begin_test()
    made.expect(*EXPECTED)
    for node in made.nodes:
        node.safekit("stop", "-m", made.module, check=False)
        node.safekit("waitstop", "-m", made.module, "--timeout", "60", check=False)
        node.safekit("module", "uninstall", "-m", made.module, check=False)
    config = userconfig(heart=HEART, rfs='locktimeout="4" sendtimeout="4"')
    made.install(config.replace('<heartbeat name="repli" ident="flow"/>', ""))
    made.first_start(made.one)
    made.forget_records()
    yield made
    made.check_logs()


def verdict(pair: Pair, node: Node) -> str:
    """The line of `state` that judges."""
    lines = node.safekit("state", "-m", pair.module).stdout.splitlines()
    return next(line for line in lines if line.startswith(f"{pair.module} is "))


def says(pair: Pair, node: Node, *parts: str, within: float = 30.0) -> str:
    """Wait until the verdict has all these parts."""
    wait_until(lambda: all(part in verdict(pair, node) for part in parts), within, lambda: verdict(pair, node))
    return verdict(pair, node)


def test_protected_says_that_the_module_does_not_start_at_boot(pair: Pair) -> None:
    says(pair, pair.one, "is protected", f"Next step: safekit boot -m {pair.module} on")
    assert pair.one.safekit("state", "--check").stdout.startswith(f"SAFEKIT OK - {pair.module} protected: ")
    pair.one.safekit("boot", "-m", pair.module, "on")
    assert "Next step" not in verdict(pair, pair.one)
    done = pair.one.safekit("start", "-m", pair.module)
    assert done.stdout.startswith("the module is already started (PRIM)")


def test_a_split_brain_is_told_as_such_while_another_network_connects_the_servers(pair: Pair) -> None:
    pair.one.cut("default")
    for node, loser in ((pair.one, "the other server"), (pair.two, "this server")):
        text = says(pair, node, "data at risk: both servers run the application (split brain)", within=40)
        assert "network default is cut" in text and f"{loser} took over on silence" in text, text
        assert node.safekit("state", "--check", check=False).returncode == 2
    pair.one.join("default")
    pair.wait_protected(pair.one, 90)
    told = pair.one.safekit("why", "-m", pair.module, "-s", "40").stdout
    assert "both servers ran the application (split brain): this server stays" in told, told
    pair.forget_records()


def test_other_files_on_the_secondary_are_not_protected_and_diff_shows_them(pair: Pair) -> None:
    script = f"/opt/safekit/modules/{pair.module}/bin/start_prim"
    pair.two.safekit("stop", "-m", pair.module)
    pair.wait(pair.two, "STOP red")
    before = pair.two.read(script)
    pair.outside(pair.two, script).write_text(before.replace('echo "start_prim $*"', 'echo "started $*"'))
    pair.two.safekit("config", "-m", pair.module)
    pair.two.safekit("start", "-m", pair.module)
    pair.wait_protected(pair.one)
    for node in pair.nodes:
        says(pair, node, "is degraded: a secondary is ready, but the files of the module differ")
    done = pair.one.safekit("diff", "-m", pair.module, check=False)
    assert done.returncode == 1 and '+echo "started $*"' in done.stdout, done.stdout + done.stderr
    pair.one.safekit("-H", "node2", "stop", "-m", pair.module)
    pair.wait(pair.two, "STOP red")
    pair.one.safekit("-H", "node2", "-E", pair.module)
    again = pair.one.safekit("-H", "node2", "-E", pair.module).stdout
    assert "nothing has changed" in again, again
    assert (
        pair.one.safekit("diff", "-m", pair.module).stdout == f"module {pair.module} is the same on node1 and node2\n"
    )


def test_a_start_script_that_fails_is_in_the_verdict_of_both_until_it_works(pair: Pair) -> None:
    script = f"/opt/safekit/private/modules/{pair.module}/bin/start_prim"
    good = START_PRIM.format(directory=pair.directory, notes=pair.notes)
    pair.outside(pair.one, script).write_text("#!/bin/sh\necho 'no such user: db' >&2\nexit 3\n")
    pair.one.safekit("restart", "-m", pair.module)
    says(pair, pair.one, "is degraded: the application may not run here (start_prim: exit status 3: no such user: db)")
    says(pair, pair.two, "may not run on the other server (start_prim: exit status 3")
    shown = pair.one.safekit("log", "--scripts", "-m", pair.module, "-s", "3").stdout
    assert "start_prim PRIM PRIM restart: exit status 3" in shown and "    no such user: db" in shown, shown
    told = pair.one.safekit("why", "-m", pair.module).stdout
    assert "root asked for restart -> PRIM green" in told, told
    assert "script start_prim ended badly: exit status 3; it said: no such user: db" in told, told
    tried = pair.one.safekit("scripts", "try", "start_prim", "-m", pair.module, check=False)
    assert tried.returncode == 3 and "no such user: db" in tried.stdout
    pair.outside(pair.one, script).write_text(good)
    pair.one.safekit("restart", "-m", pair.module)
    for node in pair.nodes:
        says(pair, node, "is protected")


def test_maxloop_tells_who_asked_and_waits_end(pair: Pair) -> None:
    for _ in range(4):
        pair.wait(pair.one, "PRIM green" if pair.state(pair.two).startswith("SECOND") else "ALONE green")
        pair.one.safekit("restart", "-m", pair.module, "-i", "mycheck")
        time.sleep(1)
    pair.wait(pair.one, "STOP red")
    says(pair, pair.one, "stopped here after too many automatic restarts (maxloop): mycheck asked for restart")
    begun = time.monotonic()
    done = pair.one.safekit("waitstate", "-m", pair.module, "PRIM", "--timeout", "50", check=False)
    assert done.returncode == 1 and "PRIM cannot come" in done.stderr and time.monotonic() - begun < 20, done.stderr
    pair.wait(pair.two, "ALONE green")


def test_a_full_disk_of_the_secondary_keeps_its_reason_in_the_verdict(pair: Pair) -> None:
    pair.two.safekit("stop", "-m", pair.module)
    pair.wait(pair.two, "STOP red")
    pair.one.run(["dd", "if=/dev/urandom", f"of={pair.directory}/big", "bs=1M", "count=24", "status=none"])
    pair.two.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", pair.backing])
    try:
        # an empty file system where there was another one is refused, and said so
        done = pair.two.safekit("start", "--wait", "-m", pair.module, check=False)
        assert done.returncode == 1 and "is empty, and its file system" in done.stderr, done.stdout + done.stderr
        says(
            pair, pair.two, "is stopped: the module stopped by itself: ", "is empty", "put any file into the directory"
        )
        pair.two.run(["touch", f"{pair.backing}/file"])
        pair.two.safekit("start", "-m", pair.module)
        says(pair, pair.two, "the last synchronisation of this server failed: ", "No space left", within=60)
        seen = set()
        end = time.monotonic() + 20
        while time.monotonic() < end:
            seen.add(pair.state(pair.two))
            for node in pair.nodes:
                assert "failed: " in verdict(pair, node) and "No space left" in verdict(pair, node), seen
            time.sleep(0.3)
        assert "SECOND magenta" in seen, "it was tried again meanwhile"
        data = json.loads(pair.one.safekit("state", "--json", "-m", pair.module).stdout)
        assert data["modules"][0]["verdict"]["kind"] == "degraded"
    finally:
        pair.two.safekit("stop", "-m", pair.module)
        pair.wait(pair.two, "STOP red", 60)
        pair.two.run(["umount", pair.backing])
    pair.one.run(["rm", f"{pair.directory}/big"])
    pair.two.safekit("start", "-m", pair.module)
    pair.wait_protected(pair.one)
    says(pair, pair.two, "is protected")


# ------------------------------------------------------------------------------- a farm


def test_a_farm_that_lacks_a_server_says_which_and_since_when() -> None:
    lab = Lab.up(unique_lab_name(), nodes=3)
    try:
        farm = FarmLab(lab)
        farm.begin_test()
        farm.expect(*FARM_NORMAL)
        farm.set_up()
        farm.start_all()
        one, _, three = farm.nodes

        def line() -> str:
            return one.safekit("state", "-m", farm.module).stdout.splitlines()[-1]

        wait_until(lambda: "is protected" in line(), 20, line)
        three.poweroff()
        wait_until(lambda: "is degraded" in line() and "node3 takes no part in the farm" in line(), 20, line)
        told = one.safekit("why", "-m", farm.module, "-s", "20").stdout
        assert "node3 takes no part in the farm any more" in told and "this server takes 50% of the load of" in told, (
            told
        )
        three.poweron()
        three.safekit("start", "-m", farm.module)
        wait_until(lambda: "is protected" in line(), 60, line)
        assert "node3 takes part in the farm" in one.safekit("why", "-m", farm.module, "-s", "20").stdout
    finally:
        lab.down()
