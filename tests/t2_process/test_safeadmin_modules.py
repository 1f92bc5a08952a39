"""safeadmin and one module: start, commands, deaths, forced stop, boot, its own death and successor."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from safeadmin_node import Node, cluster

from lab.waiting import wait_until
from safekit.bus.message import BusError
from safekit.disk.resources import load
from safekit.model.types import Heart, Heartbeat
from safekit.wire.seal import new_key
from tests.ports import free_port


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    node = Node(tmp_path)
    node.configure_cluster(cluster({"n1": "127.0.0.1", "n2": "127.0.0.2"}, free_port()), new_key())
    node.configure_module("am")
    yield node
    node.destroy()


def refused(node: Node, module: str, action: str, **fields: object) -> BusError:
    with pytest.raises(BusError) as caught:
        node.control(module, action, **fields)
    return caught.value


def answers(node: Node, target: str) -> bool:
    try:
        node.request(target, "ping", 0.3)
    except BusError:
        return False
    return True


def test_start_state_stop(node: Node) -> None:
    node.start()
    assert node.module("am") == {
        "id": 1,
        "mode": "mirror",
        "configured": True,
        "running": False,
        "heart": False,
        "boot": "off",
        "signature": "cd" * 32,
    }
    assert node.control("am", "start", who="root")["accepted"] is True
    known = node.module("am")
    assert known["running"] and known["heart"]
    processes = node.call("map_list")
    assert processes is not None and "am/heart" in processes["processes"]
    node.control("am", "stop", who="web@10.0.0.1")
    wait_until(lambda: not node.module("am")["running"], 15, "the module is stopped")
    assert not node.processes("am")
    texts = node.texts("am")
    assert "Action start called by root" in texts and "Action stop called by web@10.0.0.1" in texts
    assert not [text for text in texts if "died" in text], texts
    # A second life works as the first.
    node.started("am")


def test_a_start_right_behind_a_stop_waits_for_its_end(node: Node) -> None:
    node.start()
    for number in range(1, 4):
        assert node.control("am", "start")["accepted"] is True
        wait_until(lambda number=number: node.texts("am").count("Action start called by root") == number, 15, "it runs")
        node.control("am", "stop")
        wait_until(lambda number=number: node.texts("am").count("End of stop") == number, 15, "it stopped")
    assert not [text for text in node.texts("am") if "died" in text]


@pytest.mark.parametrize("action", ["restart", "swap", "stopwait"])
def test_commands_for_a_running_module_are_refused_when_it_is_stopped(node: Node, action: str) -> None:
    node.start()
    error = refused(node, "am", action)
    assert error.code == "stopped" and "safekit start -m am" in error.text


def test_refusals_name_the_cause_and_the_next_step(node: Node) -> None:
    node.configure_module("farm", 2, "farm")
    (node.safe / "modules" / "bare").mkdir()
    node.start()
    for module, action, code, words in (
        ("nothing", "start", "unknown_module", "safekit module list"),
        ("bare", "start", "not_configured", "safekit config -m bare"),
        ("farm", "prim", "wrong_mode", "mirror modules only"),
        ("am", "explode", "unknown_action", "forcestop"),
        ("../etc", "start", "bad_request", "not a module name"),
    ):
        error = refused(node, module, action)
        assert error.code == code and words in error.text, error.text
    assert node.control("am", "stop")["accepted"] is True
    (node.safe / "private" / "modules" / "am" / "conf" / "active.json").write_text("{")
    error = refused(node, "am", "start")
    assert error.code == "unreadable" and "safekit config -m am" in error.text


def test_without_a_cluster_nothing_starts_until_it_is_configured(node: Node) -> None:
    (node.safevar / "cluster" / "cluster.json").rename(node.safevar / "later.json")
    node.start()
    assert node.daemon is not None
    pid = node.daemon.pid
    error = refused(node, "am", "start")
    assert error.code == "no_cluster" and "safekit cluster config" in error.text
    (node.safevar / "later.json").rename(node.safevar / "cluster" / "cluster.json")
    reply = node.call("reload")
    assert reply == {"re": reply["re"], "ok": True, "cluster": True, "problem": ""} if reply else False
    node.started("am")
    assert node.daemon.pid == pid and node.daemon.poll() is None


def test_a_refusal_of_heart_comes_back_and_leaves_nothing_running(node: Node) -> None:
    node.start()
    error = refused(node, "am", "prim")
    assert error.code == "refused" and "other server is primary" in error.text
    wait_until(lambda: not node.processes("am") and not node.module("am")["running"], 15, "its processes are gone")


def test_a_heart_that_cannot_start_is_reported(node: Node) -> None:
    node.program("heart", "sys.exit(3)")
    node.start()
    began = time.monotonic()
    error = refused(node, "am", "start")
    assert error.code == "no_heart" and "heart.log" in error.text
    assert time.monotonic() - began < 19
    wait_until(lambda: not node.processes("am"), 15, "its processes are gone")


def test_a_dead_heart_is_logged_with_its_signal_and_comes_back(node: Node) -> None:
    node.start()
    node.started("am")
    pid = node.pid("am", "heart")
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: [t for t in node.texts("am") if f"heart (pid {pid}) died" in t], 15, "the death is logged")
    (text,) = [t for t in node.texts("am") if "died" in t]
    assert "starts it again" in text
    wait_until(lambda: "adopts ALONE" in node.texts("am"), 15, "a new heart adopts the role")
    wait_until(lambda: node.pid("am", "heart") not in (0, pid), 15, "the new heart takes commands")
    node.control("am", "stop")
    wait_until(lambda: not node.module("am")["running"], 15, "the module is stopped")


def test_a_dead_supervisord_leaves_heart_alive_and_heart_gets_a_new_one(node: Node) -> None:
    node.start()
    node.started("am")
    supervisord, heart = node.pid("am", "safesupervisord"), node.pid("am", "heart")
    os.kill(supervisord, signal.SIGKILL)
    wait_until(
        lambda: any(f"(pid {supervisord}) died: killed by SIGKILL" in t for t in node.texts("am")),
        15,
        "the death is logged",
    )
    assert node.pid("am", "heart") == heart
    node.request("am/heart", "respawn")
    node.request("am/heart", "leave")
    wait_until(lambda: node.pid("am", "heart") not in (0, heart), 15, "another supervisord runs another heart")
    wait_until(lambda: "Action start called automatically" in node.texts("am"), 15, "the start was passed on")
    assert node.pid("am", "safesupervisord") not in (0, supervisord)
    assert len([p for p in node.processes("am") if p.name == "circlog"]) == 1


def test_when_both_die_they_are_started_again_without_a_command(node: Node) -> None:
    node.start()
    node.started("am")
    killed = [node.pid("am", "safesupervisord"), node.pid("am", "heart")]
    for pid in killed:
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: "adopts ALONE" in node.texts("am"), 15, "a new heart adopts the role")
    assert node.pid("am", "heart") not in (0, killed[1])
    node.control("am", "stop")
    wait_until(lambda: not node.module("am")["running"], 15, "the module is stopped")


def test_forcestop_of_a_heart_that_answers_is_its_own_work(node: Node) -> None:
    node.start()
    node.started("am")
    node.control("am", "forcestop", who="root")
    wait_until(lambda: not node.module("am")["running"], 15, "the module is stopped")
    assert node.texts("am").count("Action forcestop called by root") == 1
    assert node.texts("am").count("End of stop") == 1


def test_forcestop_of_a_heart_that_hangs(node: Node, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    node.script("am", "stop_prim", f'echo "stop_prim $*" >> {trace}')
    node.script("am", "stop_both", "echo never ends; sleep 1000 & wait")
    node.start()
    node.started("am")
    heart = node.pid("am", "heart")
    node.request("am/heart", "hang")
    wait_until(lambda: not answers(node, "am/heart"), 15, "heart hangs")
    error = refused(node, "am", "stop")
    assert error.code == "heart_hangs" and "safekit forcestop -m am" in error.text
    node.control("am", "forcestop", who="root")
    wait_until(lambda: not node.module("am")["running"], 25, "the module is stopped")
    assert not node.processes("am")
    assert trace.read_text() == "stop_prim force ALONE STOP stop\n"
    resources = load(node.var("am") / "resources")
    assert resources["state.local"].value == "STOP" and resources["state.color"].value == "red"
    texts = node.texts("am")
    for text in ("Action forcestop called by root", "Script stop_prim", "End of stop", "Local state STOP red"):
        assert text in texts
    assert any(t.startswith("Script stop_both killed: still running after 5") for t in texts)
    assert not [t for t in texts if f"(pid {heart}) died" in t], "a forced stop is no death"
    node.control("am", "start")
    wait_until(lambda: node.module("am")["heart"], 15, "it runs again")


@pytest.mark.parametrize("how", ["hangs", "is gone"])
def test_the_application_of_a_primary_without_a_heart_is_stopped(node: Node, tmp_path: Path, how: str) -> None:
    """The other server goes on alone after the time-out: nobody else is here to stop it."""
    trace = tmp_path / "trace"
    node.configure_module("am", heart=Heart((Heartbeat("default", "default", 8888, timeout_ms=2000),)))
    node.script("am", "stop_prim", f'echo "stop_prim $*" >> {trace}')
    node.start()
    node.started("am")
    node.request("am/heart", "set", resource="state.local", value="PRIM", who="heart")
    hung = node.pid("am", "heart")
    if how == "hangs":
        os.kill(hung, signal.SIGSTOP)
    else:
        node.program("heart", "sys.exit(1)")
        os.kill(hung, signal.SIGKILL)
    wait_until(trace.exists, 15, "the application is stopped")
    (silent,) = (found for text in node.texts("am") if (found := re.match(r"heart has been silent for (\d+) s", text)))
    assert int(silent[1]) >= 2, "a heart that is back in time finds everything as it was"
    assert trace.read_text() == "stop_prim force PRIM STOP stop\n"
    wait_until(lambda: "End of stop" in node.texts("am"), 15, "the module is stopped")
    if how == "hangs":
        wait_until(lambda: "Action start called automatically" in node.texts("am"), 15, "it is started again")
        assert node.pid("am", "heart") not in (0, hung)
    else:
        wait_until(lambda: any("could not be started again" in text for text in node.texts("am")), 30, "it says why")
        wait_until(lambda: not node.module("am")["running"], 30, "nothing is left")


def test_whoever_stops_a_module_that_safeadmin_gives_up_finds_it_stopped(node: Node, tmp_path: Path) -> None:
    """A heart that hangs is noticed by people too, and a server that goes down stops every module."""
    trace, go = tmp_path / "trace", tmp_path / "go"
    node.configure_module("am", heart=Heart((Heartbeat("default", "default", 8888, timeout_ms=2000),)))
    node.script("am", "stop_prim", f"touch {trace}; until [ -e {go} ]; do sleep 0.1; done")
    node.start()
    node.started("am")
    node.request("am/heart", "set", resource="state.local", value="PRIM", who="heart")
    os.kill(node.pid("am", "heart"), signal.SIGSTOP)
    wait_until(trace.exists, 15, "the application is being stopped")
    node.control("am", "forcestop")
    go.touch()
    wait_until(lambda: any("somebody asked to stop it" in text for text in node.texts("am")), 20, "it says so")
    assert not node.module("am")["running"] and "Action start called automatically" not in node.texts("am")


@pytest.mark.parametrize("state", ["ALONE", "back in time"])
def test_a_heart_that_another_server_does_not_replace_is_left_alone(node: Node, tmp_path: Path, state: str) -> None:
    trace = tmp_path / "trace"
    node.configure_module("am", heart=Heart((Heartbeat("default", "default", 8888, timeout_ms=2000),)))
    node.script("am", "stop_prim", f'echo "stop_prim $*" >> {trace}')
    node.start()
    node.started("am")
    if state != "ALONE":
        node.request("am/heart", "set", resource="state.local", value="PRIM", who="heart")
    heart = node.pid("am", "heart")
    for _ in range(2):
        os.kill(heart, signal.SIGSTOP)
        time.sleep(3.0 if state == "ALONE" else 1.0)
        os.kill(heart, signal.SIGCONT)
        wait_until(lambda: answers(node, "am/heart"), 10, "heart goes on")
        time.sleep(1.0)  # it is asked in that time
    assert not trace.exists() and node.pid("am", "heart") == heart


def test_forcestop_spares_a_shell_with_the_same_environment(node: Node, tmp_path: Path) -> None:
    import subprocess

    node.start()
    node.started("am")
    bystander = subprocess.Popen(["sleep", "1000"], env={**node.environment, "SAFEMODULE": "am"})
    try:
        os.kill(node.pid("am", "heart"), signal.SIGSTOP)
        node.control("am", "forcestop")
        wait_until(lambda: not node.module("am")["running"], 25, "the module is stopped")
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_a_killed_safeadmin_leaves_the_module_and_its_successor_finds_it(node: Node) -> None:
    node.start()
    node.started("am")
    before = {(p.name, p.pid) for p in node.processes("am")}
    node.stop(signal.SIGKILL)
    assert {(p.name, p.pid) for p in node.processes("am")} == before
    node.start()
    known = node.module("am")
    assert known["running"] and known["heart"]
    assert {(p.name, p.pid) for p in node.processes("am")} == before
    assert "Action start called at boot time" not in node.texts("am")
    # The successor knows the port of heart again, watches it, and can stop it.
    pid = node.pid("am", "heart")
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: any(f"heart (pid {pid}) died" in t for t in node.texts("am")), 15, "the death is logged")
    wait_until(lambda: node.pid("am", "heart") not in (0, pid), 15, "heart is back")
    node.control("am", "stop")
    wait_until(lambda: not node.module("am")["running"], 15, "the module is stopped")


def test_what_died_while_safeadmin_was_dead_is_taken_up(node: Node) -> None:
    node.start()
    node.started("am")
    node.stop(signal.SIGKILL)
    for name in ("safesupervisord", "heart"):
        os.kill(node.pid("am", name), signal.SIGKILL)
    node.start()
    wait_until(lambda: "adopts ALONE" in node.texts("am"), 15, "a new heart adopts the role")


def test_boot_and_service_stop(node: Node) -> None:
    node.configure_module("other", 2, boot=False)
    node.configure_module("am", 1, boot=True)
    node.start()
    wait_until(lambda: "Action start called at boot time" in node.texts("am"), 15, "the module with boot on runs")
    assert not node.module("other")["running"]
    assert node.stop() == 0
    assert not node.processes("am")
    texts = node.texts("am")
    tail = [t for t in texts if t in ("Action shutdown called by SYSTEM", "Script stop_prim", "End of stop")]
    assert tail == ["Action shutdown called by SYSTEM", "Script stop_prim", "End of stop"]
    # The service was stopped in order: its start is a boot again; after a crash it is not.
    node.start()
    wait_until(
        lambda: (
            texts.count("Action start called at boot time") == 1
            and node.texts("am").count("Action start called at boot time") == 2
        ),
        15,
        "started at boot again",
    )
    node.control("am", "stop")
    wait_until(lambda: not node.module("am")["running"], 15, "the module is stopped")
    node.stop(signal.SIGKILL)
    node.start()
    assert not node.module("am")["running"]


def test_a_hanging_module_does_not_hold_up_the_service_stop_for_ever(node: Node) -> None:
    node.start()
    node.started("am")
    node.request("am/heart", "hang")
    wait_until(lambda: not answers(node, "am/heart"), 15, "heart hangs")
    began = time.monotonic()
    assert node.stop(timeout=40) == 0
    assert time.monotonic() - began < 30 and not node.processes("am")


def test_boot_setting_and_shutdown(node: Node) -> None:
    node.configure_module("other", 2)
    node.start()
    assert node.request("safeadmin", "boot", module="am")["boot"] == "off"
    assert node.request("safeadmin", "boot", module="am", value="on")["boot"] == "on"
    assert (node.var("am") / "boot").read_text() == "on\n" and node.module("am")["boot"] == "on"
    node.started("am")
    node.started("other")
    assert node.request("safeadmin", "shutdown", who="root")["modules"] == ["am", "other"]
    wait_until(lambda: not node.module("am")["running"] and not node.module("other")["running"], 15, "both are stopped")
    assert "Action shutdown called by root" in node.texts("other")


def test_set_of_a_stopped_and_of_a_running_module(node: Node) -> None:
    node.start()
    set_ = {"module": "am", "resource": "custom.disk", "who": "diskcheck"}
    assert node.request("safeadmin", "set", value="down", **set_)["changed"] is True
    assert node.request("safeadmin", "set", value="down", **set_)["changed"] is False
    assert load(node.var("am") / "resources")["custom.disk"].value == "down"
    assert node.texts("am").count("Resource custom.disk set to down by diskcheck") == 1
    node.started("am")
    assert node.request("safeadmin", "set", value="up", **set_)["changed"] is True
    resource = load(node.var("am") / "resources")["custom.disk"]
    assert (resource.value, resource.setter) == ("up", "diskcheck")
    for bad in ({"resource": "disk"}, {"value": "two words"}):
        with pytest.raises(BusError) as caught:
            node.request("safeadmin", "set", **{**set_, "value": "up", **bad})
        assert caught.value.code == "bad_request"


def test_a_second_safeadmin_says_why_it_ends(node: Node) -> None:
    node.start()
    first, node.daemon = node.daemon, None
    node.start(wait=False)
    assert node.daemon is not None and node.daemon.wait(10) == 1
    assert "another safeadmin runs" in (node.root / "safeadmin.err").read_text()
    node.daemon = first
    assert node.call("ping") is not None
