"""Commands whose standard output is closed, full or read by nobody; a start that waits for the stop before it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import pytest

from safekit.log.module import ModuleLog
from tests.t2_process.cli_server import CHECKOUT, PRIM, RUNNING, NotedAdmin, Server, make_module, put_state

COMMANDS = [
    "cli.main state",
    "cli.main state --json",
    "cli.main state -lq",
    "cli.main log -m mirror",
    "cli.main module list",
    "cli.main level",
    "cli.main --help",
    "cli.main start --help",
    "cli.main completion bash",
    "cli.main -p",
    "special.processtree list",
    "special.firewallcfg list",
    "errd.poll",
    "cli.farm",
]
STREAMS = {
    "closed": ">&-",
    "both closed": ">&- 2>&-",
    "all closed": "<&- >&- 2>&-",
    "full": ">/dev/full",
    "both full": ">/dev/full 2>/dev/full",
    "nobody": "| true",
}


def shell(server: Server, line: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **server.env, "PYTHON": sys.executable}
    return subprocess.run(
        ["bash", "-c", line], env=environment, cwd=CHECKOUT, capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize("stream", STREAMS)
def test_no_traceback_whatever_standard_output_is(server: Server, admin: NotedAdmin, stream: str) -> None:
    """Status 0 where nobody wants the output, 1 (5 for -lq) where it is wanted and cannot be written."""
    paths = make_module()
    admin.modules["mirror"] = dict(RUNNING)
    put_state(paths, **PRIM)
    ModuleLog("mirror", "heart", "n1").event("printe", text="hello")
    for command in COMMANDS:
        plain = shell(server, f"$PYTHON -m {command} > /dev/null")
        done = shell(server, f"$PYTHON -m {command} {STREAMS[stream]}; exit ${{PIPESTATUS[0]}}")
        told = (command, done.returncode, done.stderr)
        assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr, told
        if "full" not in stream:
            assert done.returncode == plain.returncode, told
            continue
        assert done.returncode == 5 if "-lq" in command else done.returncode, told
        if stream == "full" and not plain.returncode:
            assert "standard output: No space left on device" in done.stderr, told


def test_what_is_printed_on_a_closed_output_goes_into_no_file(server: Server, admin: NotedAdmin) -> None:
    make_module()
    log = server.var / "commandlog"
    assert shell(server, "$PYTHON -m cli.main start -m mirror <&- >&- 2>&-").returncode == 0
    assert [line.split("|")[2].strip() for line in log.read_text().splitlines()] == ["running", "return    0"]


def test_a_start_waits_for_the_stop_before_it(server: Server, admin: NotedAdmin) -> None:
    paths = make_module()
    admin.modules["mirror"] = dict(RUNNING)
    put_state(paths, **PRIM, state__command="stop")
    admin.refusal = ("refused", "the module is being stopped")

    def stopped() -> None:
        admin.refusal = None
        admin.modules["mirror"]["running"] = False

    end = threading.Timer(1.5, stopped)
    end.start()
    began = time.monotonic()
    done = server.run("start", "-m", "mirror")
    end.join()
    assert done.returncode == 0 and "waits for the end of the stop" in done.stderr, done.stderr
    assert time.monotonic() - began > 1.0
    assert [fields["action"] for op, fields in admin.asked if op == "control"] == ["start", "start"]


def test_a_start_that_is_refused_for_another_reason_is_told_at_once(server: Server, admin: NotedAdmin) -> None:
    paths = make_module()
    admin.modules["mirror"] = dict(RUNNING)
    put_state(paths, **PRIM, state__command="start")
    admin.refusal = ("refused", "the module is already PRIM")
    done = server.run("prim", "-m", "mirror")
    assert (done.returncode, "already PRIM" in done.stderr) == (1, True)
    admin.modules["mirror"]["running"] = False
    admin.refusal = ("cannot_start", "port 8888 is taken; ss -ulpn")
    done = server.run("start", "-m", "mirror")
    assert (done.returncode, "port 8888 is taken" in done.stderr) == (1, True)
    assert len(admin.asked) == 2


@pytest.mark.parametrize(
    ("left", "status", "count"),
    [
        ({}, 0, 0),
        ({"state__loop": "2", "state__loopsince": "{now}"}, 0, 2),
        ({"state__loop": "4", "state__loopsince": "{now}"}, 1, 4),
        ({"state__loop": "4", "state__loopsince": "{old}"}, 0, 4),
    ],
)
def test_the_loop_counter_of_a_stopped_module(
    server: Server, admin: NotedAdmin, left: dict[str, str], status: int, count: int
) -> None:
    """An error is no answer: 1 says that the limit is reached."""
    paths = make_module()
    admin.modules["mirror"] = {**RUNNING, "running": False, "heart": False}
    now = int(time.time())
    if left:
        put_state(paths, **{name: text.format(now=now - 60, old=now - 25 * 3600) for name, text in left.items()})
    done = server.run("checkloop", "-m", "mirror")
    assert (done.returncode, done.stdout) == (status, f"mirror: {count} automatic actions, maxloop 3\n"), done.stderr
    done = server.run("incloop", "-m", "mirror", "-i", "handler")
    assert done.returncode == 2 and "module mirror is stopped" in done.stderr
    assert server.run("resetloop", "-m", "mirror").returncode == 0
    asked = [(op, fields["resource"], fields["value"]) for op, fields in admin.asked]
    assert asked == ([("set", "state.loop", "0")] if count else [])
    admin.modules["mirror"] = dict(RUNNING)
    admin.refusal = ("no_answer", "heart did not decide in time")
    for word in ("checkloop", "incloop", "resetloop"):
        assert server.run(word, "-m", "mirror").returncode == 2
