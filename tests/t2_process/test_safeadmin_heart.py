"""safeadmin with the real heart: a mirror module without replication whose peer is not there."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from safeadmin_node import ENTRY, Node, cluster

from lab.waiting import wait_until
from safekit.disk.resources import load
from safekit.model.types import Heart, Heartbeat
from safekit.wire.seal import new_key
from tests.ports import free_port


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    node = Node(tmp_path)
    node.program("heart", ENTRY.format(module="heart.main"))
    node.configure_cluster(cluster({"n1": "127.0.0.1", "n2": "127.0.0.2"}, free_port()), new_key())
    beat = Heartbeat("default", "default", free_port(), pulse_ms=100, timeout_ms=500, permanent_arp=False)
    node.configure_module("am", heart=Heart((beat,)))
    for name in ("start_prim", "stop_prim"):
        node.script("am", name, f'echo "{name} $*"')
    yield node
    node.destroy()


def state(node: Node) -> tuple[str, str]:
    resources = load(node.var("am") / "resources")
    return resources["state.local"].value, resources["state.color"].value


def alone(node: Node) -> None:
    node.control("am", "start")
    wait_until(lambda: (node.var("am") / "resources").exists() and state(node) == ("ALONE", "green"), 20, "ALONE green")


def stopped(node: Node) -> None:
    wait_until(lambda: not node.module("am")["running"], 30, "the processes are gone")
    assert state(node) == ("STOP", "red") and not node.processes("am")


def test_a_whole_life(node: Node) -> None:
    node.start()
    alone(node)
    assert "start_prim" in (node.var("am") / "userlog.ulog").read_text()
    node.control("am", "stop", who="root")
    stopped(node)
    texts = node.texts("am")
    order = [
        t
        for t in texts
        if t
        in (
            "Action start called by root",
            "Script start_prim",
            "Action stop called by root",
            "Script stop_prim",
            "End of stop",
        )
    ]
    assert order[0] == "Action start called by root" and order[-1] == "End of stop"
    assert not [t for t in texts if "died" in t], texts
    alone(node)
    assert "Previous halt unexpected" not in node.texts("am")


def test_a_killed_heart_adopts_its_role_and_the_scripts_do_not_run_again(node: Node) -> None:
    node.start()
    alone(node)
    started = node.texts("am").count("Script start_prim")
    pid = node.pid("am", "heart")
    os.kill(pid, signal.SIGKILL)
    wait_until(
        lambda: any(f"heart (pid {pid}) died: killed by SIGKILL" in t for t in node.texts("am")),
        15,
        "the death is logged",
    )
    wait_until(lambda: node.pid("am", "heart") not in (0, pid), 15, "another heart")
    wait_until(lambda: node.control("am", "restart")["accepted"], 15, "it takes commands")
    wait_until(lambda: node.texts("am").count("Script start_prim") == started + 1, 15, "the restart ran")
    assert state(node)[0] == "ALONE"


def test_a_killed_supervisord_leads_to_a_stopstart_under_a_new_one(node: Node) -> None:
    node.start()
    alone(node)
    supervisord = node.pid("am", "safesupervisord")
    os.kill(supervisord, signal.SIGKILL)
    wait_until(lambda: any(f"(pid {supervisord}) died" in t for t in node.texts("am")), 15, "the death is logged")
    wait_until(lambda: node.pid("am", "safesupervisord") not in (0, supervisord), 30, "a new supervisord")
    wait_until(lambda: "Action start called automatically" in node.texts("am"), 30, "the module runs again")
    wait_until(lambda: state(node) == ("ALONE", "green"), 30, "ALONE green")
    assert len([p for p in node.processes("am") if p.name == "heart"]) == 1


def test_boot_shutdown_and_the_successor_of_a_killed_safeadmin(node: Node) -> None:
    (node.var("am") / "boot").write_text("on\n")
    node.start()
    wait_until(lambda: "Action start called at boot time" in node.texts("am"), 20, "started at boot")
    wait_until(lambda: state(node) == ("ALONE", "green"), 20, "ALONE green")
    node.stop(signal.SIGKILL)
    before = {(p.name, p.pid) for p in node.processes("am")}
    node.start()
    assert {(p.name, p.pid) for p in node.processes("am")} == before and state(node) == ("ALONE", "green")
    assert node.stop(timeout=60) == 0
    assert state(node) == ("STOP", "red") and not node.processes("am")
    tail = [t for t in node.texts("am") if t in ("Action shutdown called by SYSTEM", "Script stop_prim", "End of stop")]
    assert tail[0] == "Action shutdown called by SYSTEM" and tail[-1] == "End of stop"
    assert node.log("am")[-1].level != "E" or node.texts("am")[-1] in ("End of stop", "Local state STOP red")


def test_forcestop_of_a_frozen_heart(node: Node) -> None:
    node.start()
    alone(node)
    os.kill(node.pid("am", "heart"), signal.SIGSTOP)
    began = time.monotonic()
    node.control("am", "forcestop")
    stopped(node)
    assert time.monotonic() - began < 25
    assert "stop_prim force ALONE STOP stop" in (node.var("am") / "userlog.ulog").read_text()
    alone(node)
    assert "Previous halt unexpected" in node.texts("am")
