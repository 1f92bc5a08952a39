"""What monitoring systems and programs are told: state --check, --json of every command, waits that end."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest

from lab.waiting import wait_until
from safekit.disk.paths import ModulePaths
from safekit.spelling import as_word
from tests.t2_process.cli_server import PRIM, RUNNING, NotedAdmin, Server, install_mirror, make_module, put_state

# ------------------------------------------------------------------------------- state --check


@pytest.mark.parametrize(
    ("state", "code", "begin"),
    [
        (PRIM, 0, "SAFEKIT OK - mirror protected: the application runs here"),
        ({"state__local": "ALONE", "state__color": "green"}, 1, "SAFEKIT WARNING - mirror degraded: "),
        (
            {**PRIM, "state__local": "ALONE", "state__remote": "ALONE"},
            2,
            "SAFEKIT CRITICAL - mirror data at risk: both",
        ),
        ({"state__local": "STOP", "state__color": "red"}, 2, "SAFEKIT CRITICAL - mirror stopped: "),
    ],
)
def test_check_has_one_line_and_the_codes_of_a_plugin(
    server: Server, admin: NotedAdmin, state: dict[str, str], code: int, begin: str
) -> None:
    put_state(make_module(), **state)
    admin.modules = {"mirror": {**RUNNING, "running": state["state__local"] != "STOP"}}
    done = server.run("state", "--check")
    assert done.returncode == code and done.stderr == ""
    (line,) = done.stdout.splitlines()
    assert line.startswith(begin) and line.endswith(f" | 'mirror'={code};0;1;0;2") and line.count("|") == 1


def test_check_tells_the_worst_first_and_what_it_cannot_know(server: Server, admin: NotedAdmin) -> None:
    put_state(make_module("one"), **PRIM)
    put_state(
        make_module("two"), state__local="ALONE", state__color="green", trouble__script=as_word("start_prim: a|b")
    )
    admin.modules = {"one": RUNNING, "two": {**RUNNING, "id": 2}}
    done = server.run("state", "--check")
    assert done.returncode == 1 and done.stdout.index("two degraded: ") < done.stdout.index("one protected: ")
    assert "start_prim: a/b" in done.stdout
    assert done.stdout.rstrip().endswith("| 'one'=0;0;1;0;2 'two'=1;0;1;0;2")
    admin.modules = {}
    done = server.run("state", "--check")
    assert done.returncode == 3 and done.stdout == "SAFEKIT UNKNOWN - no module is configured\n"
    for words in (("state", "--check", "-m", "nothere"), ("state", "--check", "--nonsense")):
        assert server.run(*words).returncode == 3


def test_check_without_safeadmin_is_unknown(server: Server) -> None:
    done = server.run("state", "--check")
    assert done.returncode == 3
    assert done.stdout.startswith("SAFEKIT UNKNOWN - safeadmin administrator daemon not running (start it with: ")


# ------------------------------------------------------------------------------- waits


def test_a_state_that_cannot_come_is_not_waited_for(server: Server, admin: NotedAdmin) -> None:
    paths = make_module()
    put_state(
        paths,
        state__local="STOP",
        state__color="red",
        state__stopcause="maxloop",
        trouble__stop=as_word("errd asked for restart for the 4th time"),
    )
    admin.modules = {"mirror": {**RUNNING, "running": False}}
    begun = time.monotonic()
    done = server.run("waitstate", "-m", "mirror", "PRIM", "--timeout", "25")
    assert done.returncode == 1 and time.monotonic() - begun < 15
    assert "PRIM cannot come: module mirror is stopped: the module was stopped here after too many" in done.stderr
    assert "errd asked for restart for the 4th time" in done.stderr and "safekit log --scripts" in done.stderr
    admin.modules = {"mirror": RUNNING}
    put_state(paths, state__local="ALONE", state__color="green")
    done = server.run("waitstate", "-m", "mirror", "UP")
    assert done.returncode == 1 and "a mirror module is never UP" in done.stderr


def test_a_module_whose_processes_are_replaced_is_waited_for(server: Server, admin: NotedAdmin) -> None:
    put_state(make_module(), **PRIM)
    admin.modules = {"mirror": {**RUNNING, "running": False}}

    def replace() -> None:
        wait_until(lambda: admin.states_asked, 20, "the command has seen a module without processes")
        admin.modules = {"mirror": RUNNING}

    timer = threading.Thread(target=replace)
    timer.start()
    try:
        assert server.run("waitstate", "-m", "mirror", "PRIM", "--timeout", "20").returncode == 0
    finally:
        timer.join()


def test_waitstart_and_start_say_what_became_of_it(server: Server, admin: NotedAdmin) -> None:
    paths = make_module()
    put_state(paths, state__local="ALONE", state__color="green", trouble__script=as_word("start_prim: exit status 1"))
    admin.modules = {"mirror": RUNNING}
    for words in (("waitstart",), ("start", "--wait")):
        done = server.run(*words, "-m", "mirror")
        assert done.returncode == 0 and done.stdout.startswith("mirror: ALONE green\nmirror is degraded: ")
        assert "start_prim: exit status 1" in done.stdout
    put_state(paths, state__local="STOP", state__color="red", trouble__stop=as_word("/data is not there"))
    admin.modules = {"mirror": {**RUNNING, "running": False}}
    done = server.run("start", "--wait", "-m", "mirror")
    assert done.returncode == 1 and "it could not be started: the module stopped by itself: /data is not" in done.stderr


# ------------------------------------------------------------------------------- idempotence


def test_what_is_so_already_is_a_success_and_said_so(server: Server, admin: NotedAdmin) -> None:
    make_module()
    admin.modules = {"mirror": RUNNING}
    admin.refusal = ("already", "the module is already started (PRIM)")
    done = server.run("start", "-m", "mirror")
    assert (done.returncode, done.stdout, done.stderr) == (0, "the module is already started (PRIM)\n", "")
    data = json.loads(server.run("start", "--json", "-m", "mirror").stdout)
    assert (data["ok"], data["changed"], data["code"]) == (True, False, 0)
    admin.refusal = None
    admin.modules = {"mirror": {**RUNNING, "running": False}}
    done = server.run("stop", "-m", "mirror")
    assert (done.returncode, done.stdout) == (0, "module mirror is stopped already\n")


# ------------------------------------------------------------------------------- --json


def test_every_error_has_the_same_shape(server: Server, admin: NotedAdmin) -> None:
    make_module()
    admin.refusal = ("stopped", "module mirror is stopped; safekit start -m mirror")
    for words in (
        ("swap", "--json", "-m", "mirror"),
        ("state", "--json", "-m", "nothere"),
        ("why", "--json", "-m", "nothere"),
        ("confcheck", "--json", "-m", "nothere"),
        ("errd", "list", "-json", "-m", "nothere"),
        ("waitstate", "--json", "-m", "mirror", "HAPPY"),
        ("stat", "--json"),
        ("-H", "*", "state", "--json"),
        ("-H", "*", "-E", "mirror", "--json"),
        ("module", "package", "--json", "-m", "mirror", "relative.safe"),
    ):
        done = server.run(*words)
        data = json.loads(done.stdout)
        assert done.returncode == data["code"] == 1 and data["ok"] is False, words
        assert data["error"] and data["next_step"], words
        assert "Traceback" not in done.stderr and "Error" not in done.stderr


def test_a_command_without_a_json_of_its_own_answers_with_its_lines(server: Server, admin: NotedAdmin) -> None:
    paths = make_module()
    put_state(paths, **PRIM)
    admin.modules = {"mirror": RUNNING}
    data = json.loads(server.run("waitstate", "--json", "-m", "mirror", "PRIM").stdout)
    assert data["ok"] and data["state"] == "PRIM" and data["verdict"]["kind"] == "protected"
    assert data["output"][0] == "mirror: PRIM green" and data["warnings"] == []
    data = json.loads(server.run("restart", "--json", "-m", "mirror").stdout)
    assert data == {
        "ok": True, "code": 0, "module": "mirror", "action": "restart", "changed": True, "output": [], "warnings": [],
    }  # fmt: skip


def test_what_a_script_writes_stays_inside_the_answer(server: Server, admin: NotedAdmin) -> None:
    paths = make_module()
    put_state(paths, **PRIM)
    admin.modules = {"mirror": RUNNING}
    script = paths.userbin / "start_prim"
    script.write_text("#!/bin/sh\necho out; echo err >&2; exit 4\n")
    script.chmod(0o755)
    done = server.run("scripts", "try", "--json", "-m", "mirror", "start_prim")
    data = json.loads(done.stdout)
    assert (done.returncode, data["ok"], data["code"]) == (4, False, 4)
    assert sorted(data["output"]) == ["err", "out"] and any("exit status 4" in line for line in data["warnings"])


def test_confcheck_tells_its_findings(server: Server, admin: NotedAdmin, tmp_path: Path) -> None:
    install_mirror(server, tmp_path)
    paths = ModulePaths("mirror")
    paths.userconfig.write_text('<safe><service mode="mirror"><nonsense/></service></safe>')
    data = json.loads(server.run("confcheck", "--json", "-m", "mirror").stdout)
    assert data["ok"] is False and data.get("findings", [{}])[0].get("severity") == "error", data
    assert {"file", "line", "element", "message"} <= set(data["findings"][0])
