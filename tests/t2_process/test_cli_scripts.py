"""What scripts said and how they ended, for people: log --scripts, userlog, scripts try."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import click
import pytest

from cli.scripts import _pass_on
from safekit.disk.paths import ModulePaths
from safekit.log.scripts import Run, append
from tests.t2_process.cli_server import RUNNING, NotedAdmin, Server, make_module, put_state


def script(paths: ModulePaths, name: str, body: str) -> Path:
    paths.userbin.mkdir(parents=True, exist_ok=True)
    path = paths.userbin / name
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


def alone(admin: NotedAdmin) -> ModulePaths:
    paths = make_module()
    admin.modules = {"mirror": RUNNING}
    put_state(paths, state__local="ALONE", state__color="green")
    return paths


def test_log_of_scripts_has_their_end_and_their_last_lines(server: Server, admin: NotedAdmin) -> None:
    paths = make_module()
    assert "no script has run yet" in server.run("log", "--scripts", "-m", "mirror").stdout
    now = time.time()
    append(paths.script_log, Run(now - 5, "stop_prim", ("force",), 0, 0.1))
    append(paths.script_log, Run(now, "start_prim", ("WAIT", "ALONE", "start"), 3, 0.2, "exit status 3", ("a", "boom")))
    lines = server.run("log", "--scripts", "-m", "mirror").stdout.splitlines()
    assert lines[0].endswith("stop_prim force: exit status 0, 0.1 s")
    assert lines[1].endswith("start_prim WAIT ALONE start: exit status 3, 0.2 s")
    assert lines[2:] == ["    a", "    boom"]
    (line,) = server.run("log", "--scripts", "-s", "1", "--json", "-m", "mirror").stdout.splitlines()
    assert json.loads(line)["output"] == ["a", "boom"]


def test_userlog_is_the_end_of_the_application_log(server: Server, admin: NotedAdmin) -> None:
    paths = make_module()
    empty = server.run("userlog", "-m", "mirror")
    assert empty.returncode == 0 and str(paths.userlog) in empty.stderr
    paths.userlog.write_text("".join(f"{number}\n" for number in range(300)) + "\033]0;title\a\n")
    lines = server.run("userlog", "-m", "mirror", "-s", "3").stdout.splitlines()
    assert lines == ["298", "299", " ]0;title"]
    assert json.loads(server.run("userlog", "--json", "-m", "mirror").stdout)["lines"][0] == "201"


def test_a_script_is_tried_with_the_environment_of_the_module(server: Server, admin: NotedAdmin) -> None:
    paths = alone(admin)
    script(paths, "start_prim", 'echo "$SAFEMODULE $*"; pwd; nothing_of_that_name; exit 0')
    done = server.run("scripts", "try", "start_prim", "-m", "mirror")
    assert done.returncode == 0 and done.stdout.splitlines()[:2] == ["mirror WAIT ALONE start", str(paths.userbin)]
    assert "exit status 0 after" in done.stderr and "could not be run: " in done.stderr
    script(paths, "start_prim", "sleep 30 & echo begun; exit 7")
    begun = time.monotonic()
    done = server.run("scripts", "try", "-m", "mirror", "start_prim", "a", "b")
    assert (done.returncode, done.stdout) == (7, "begun\n")
    assert time.monotonic() - begun < 20, "what it left running is not waited for"


def test_a_start_script_is_not_tried_where_the_data_may_not_be_written(server: Server, admin: NotedAdmin) -> None:
    paths = make_module()
    admin.modules = {"mirror": {**RUNNING, "running": False, "heart": False}}
    script(paths, "start_prim", "echo ran")
    refused = server.run("scripts", "try", "start_prim", "-m", "mirror")
    assert refused.returncode == 1 and refused.stdout == "" and "the module is STOP here" in refused.stderr
    assert server.run("scripts", "try", "--anyway", "start_prim", "-m", "mirror").stdout == "ran\n"
    unknown = server.run("scripts", "try", "strat_prim", "-m", "mirror")
    assert unknown.returncode == 1 and "its scripts are: start_prim" in unknown.stderr


def test_a_script_goes_on_when_nobody_reads_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """scripts try ... | head -1: a script that writes on would wait for ever, and the command for it."""

    def gone(*_: object, **__: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(click, "echo", gone)
    reader, writer = os.pipe()
    kept = bytearray()
    with open(reader, "rb") as stream, open(writer, "wb") as script:
        script.write(b"first\nlast\n")
        script.close()
        _pass_on(stream, kept, 5)
    assert kept == b"last\n"
