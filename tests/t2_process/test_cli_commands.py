"""The command safekit as a process: a server of its own, and a safeadmin that only notes what it is asked."""

from __future__ import annotations

import json
import os
import pwd
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from safekit.disk.expiry import Expiry, to_text
from safekit.disk.paths import ModulePaths
from safekit.log.module import ModuleLog
from tests.t2_process.cli_server import (
    CHECKOUT,
    PRIM,
    RUNNING,
    NotedAdmin,
    Server,
    make_archive,
    make_module,
    put_state,
)

# ------------------------------------------------------------------ safeadmin, users, options


@pytest.mark.parametrize("words", [("state",), ("start", "-m", "mirror"), ("level",), ("module", "list")])
def test_without_safeadmin(server: Server, words: tuple[str, ...]) -> None:
    make_module()
    begun = time.monotonic()
    done = server.run(*words)
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert lines[0] == "Waiting for safeadmin .........."
    assert lines[1] == "Error: safeadmin administrator daemon not running"
    assert "service safeadmin start" in lines[2]
    assert 2.5 < time.monotonic() - begun < 10


def test_a_safeadmin_that_comes_late_is_waited_for(server: Server) -> None:
    late = NotedAdmin(server.port)
    timer = threading.Timer(1.0, late.__enter__)
    timer.start()
    try:
        done = server.run("state")
    finally:
        timer.join()
        late.__exit__()
    assert done.returncode == 0
    assert done.stderr.startswith("Waiting for safeadmin .")


def test_paths_need_no_safeadmin(server: Server) -> None:
    done = server.run("-p")
    assert done.stdout.splitlines() == [
        f"SAFE={server.safe}",
        f"SAFEVAR={server.var}",
        f"SAFEBIN={server.safe}/private/bin",
    ]
    assert done.returncode == 0


def test_other_users_are_refused(server: Server, admin: NotedAdmin) -> None:
    """The interpreter of a checkout may be unreadable to others: it becomes the other user once it runs."""
    nobody = pwd.getpwnam("nobody")
    script = (
        "import grp, os, pwd, sys\nfrom cli.main import run\n"
        f"os.setgroups([]); os.setgid({nobody.pw_gid}); os.setuid({nobody.pw_uid})\n"
        "sys.exit(run(['stop', '-m', 'mirror']))\n"
    )
    done = server.python(script)
    assert done.returncode == 1
    assert "user nobody may not run safekit commands" in done.stderr
    assert "usermod -aG safekit nobody" in done.stderr
    assert admin.asked == []


@pytest.mark.parametrize(
    "words",
    [
        ("stop", "-m", "mirror"),
        ("-m", "mirror", "stop"),
        ("stop", "\u2013m", "mirror"),
        ("-u", "web@10.0.0.1", "stop", "-m", "mirror"),
        ("stop", "-u", "web@10.0.0.1", "-m", "mirror"),
    ],
)
def test_options_before_or_after_the_word(server: Server, admin: NotedAdmin, words: tuple[str, ...]) -> None:
    make_module()
    admin.modules = {"mirror": RUNNING}
    done = server.run(*words)
    assert (done.returncode, done.stderr) == (0, "")
    who = "web@10.0.0.1" if "-u" in words else "root"
    ((operation, fields),) = admin.asked
    assert operation == "control"
    assert {name: value for name, value in fields.items() if value} == {
        "module": "mirror",
        "action": "stop",
        "who": who,
    }


def test_module_from_the_environment(server: Server, admin: NotedAdmin) -> None:
    make_module()
    server.extra = {"SAFEMODULE": "mirror"}
    assert server.run("start").returncode == 0
    assert admin.asked[0][1]["module"] == "mirror"


def test_an_automatic_action_carries_its_identity(server: Server, admin: NotedAdmin) -> None:
    make_module()
    assert server.run("restart", "-m", "mirror", "-i", "customscript").returncode == 0
    fields = admin.asked[0][1]
    assert (fields["identity"], fields["who"]) == ("customscript", "customscript")


@pytest.mark.parametrize(
    ("words", "action", "field_name", "value"),
    [
        (("swap", "nosync"), "swap", "nosync", True),
        (("swap",), "swap", "nosync", False),
        (("second", "fullsync"), "second", "fullsync", True),
        (("prim",), "prim", "who", "root"),
        (("primforce",), "primforce", "who", "root"),
        (("forcestop",), "forcestop", "who", "root"),
        (("stopstart",), "stopstart", "who", "root"),
        (("stopwait",), "stopwait", "who", "root"),
    ],
)
def test_control(
    server: Server, admin: NotedAdmin, words: tuple[str, ...], action: str, field_name: str, value: object
) -> None:
    make_module()
    assert server.run(*words, "-m", "mirror").returncode == 0
    op, fields = admin.asked[0]
    assert (op, fields["action"], fields[field_name]) == ("control", action, value)


def test_a_refusal_is_shown_with_the_next_step(server: Server, admin: NotedAdmin) -> None:
    make_module()
    admin.refusal = ("stopped", "module mirror is stopped; safekit start -m mirror")
    done = server.run("swap", "-m", "mirror")
    assert done.returncode == 1
    assert done.stderr == "Error: module mirror is stopped\nNext step: safekit start -m mirror\n"
    admin.refusal = ("refused", "the module is WAIT")
    for words, step in (
        (("swap", "-m", "mirror"), "safekit state -m mirror\n"),
        (("set", "-m", "mirror", "-r", "custom.x", "-v", "up"), "safekit state -v "),
    ):
        assert server.run(*words).stderr.startswith(f"Error: the module is WAIT\nNext step: {step}")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("start",), "which module"),
        (("start", "-m", "nothere"), "not installed"),
        (("start", "-m", "../x"), "is not a module name"),
        (("stat",), "did you mean: safekit state"),
        (("state", "--nonsense"), "No such option"),
        (("-H", "*", "state"), "the cluster is not configured"),
        (("protect", "--service", "db", "--module", "a/b"), "is no name of a module"),
        (("-G",), "default_cluster.txt does not exist"),
        (("-H", "n1", "logview", "-m", "mirror"), "cannot be used with -H"),
        (("waitstate", "-m", "mirror", "HAPPY"), "is not one of"),
        (("set", "-m", "mirror", "-r", "noclass", "-v", "up"), "not a resource name"),
        (("set", "-m", "mirror", "-r", "a.b", "-v", "sideways"), "not a state"),
        (("logsave", "-m", "mirror", "relative.txt"), "not an absolute path"),
        (("checker", "off", "-m", "mirror"), "is stopped"),
        (("module", "package", "-m", "mirror", "relative.safe"), "not an absolute path"),
    ],
)
def test_errors_have_code_1_and_say_why(
    server: Server, admin: NotedAdmin, words: tuple[str, ...], expected: str
) -> None:
    make_module()
    done = server.run(*words)
    assert done.returncode == 1
    assert expected in done.stderr
    assert "Traceback" not in done.stderr
    assert admin.asked == []


def test_every_command_has_help_with_an_example(server: Server) -> None:
    script = (
        "import click\n"
        "from cli.main import COMMANDS, cli\n"
        "def walk(name, command):\n"
        "    text = command.get_help(click.Context(command, info_name=name))\n"
        "    if isinstance(command, click.Group):\n"
        "        for sub, child in command.commands.items(): walk(f'{name} {sub}', child)\n"
        "    else: assert 'Example' in text and f'safekit {name}' in text, name\n"
        "for word in COMMANDS: walk(word, cli.get_command(None, word))\n"
    )
    done = server.python(script)
    assert done.returncode == 0, done.stderr


# ------------------------------------------------------------------ state


def test_state_of_a_pair(server: Server, admin: NotedAdmin) -> None:
    put_state(make_module(), **PRIM)
    admin.modules = {"mirror": RUNNING}
    done = server.run("state")
    _header, row, verdict = done.stdout.splitlines()
    assert row.split()[:7] == ["mirror", "1", "mirror", "PRIM", "green", "SECOND", "green"]
    assert verdict.startswith("mirror is protected: ")
    assert "\x1b" not in done.stdout


def test_a_certificate_that_ends_is_in_the_state(server: Server, admin: NotedAdmin) -> None:
    (server.var / "web").mkdir()
    now = time.time()
    entries = [Expiry("server.crt", "n 1\n", 0.0, now + 12.2 * 86400), Expiry("cacert.crt", "CA", 0.0, now + 3e7)]
    (server.var / "web/certificates.txt").write_text(to_text(entries))
    admin.modules["mirror"] = dict(RUNNING)
    put_state(make_module(), **PRIM)
    said = server.run("state").stdout
    assert f"Warning: the certificate {server.safe}/web/conf/server.crt (n 1?) ends in 12 days, on " in said, said
    assert "cacert" not in said
    (told,) = json.loads(server.run("state", "--json").stdout)["certificates"]
    assert "ends in 12 days" in told
    (server.var / "web/certificates.txt").write_text("1 x\n")
    assert "Warning" not in server.run("state").stdout


@pytest.mark.parametrize(
    ("state", "code"), [("STOP", 0), ("WAIT", 1), ("ALONE", 2), ("UP", 2), ("PRIM", 3), ("SECOND", 4)]
)
def test_status_codes(server: Server, admin: NotedAdmin, state: str, code: int) -> None:
    put_state(make_module(), state__local=state, state__color="green")
    admin.modules = {"mirror": {**RUNNING, "running": state != "STOP"}}
    done = server.run("state", "-lq", "-m", "mirror")
    assert (done.returncode, done.stdout) == (code, f"{state}\n")


def test_an_error_of_lq_is_no_state(server: Server, admin: NotedAdmin) -> None:
    assert server.run("state", "-lq", "-m", "nothere").returncode == 5


def test_verbose_state_lists_resources_and_runs_the_state_script(server: Server, admin: NotedAdmin) -> None:
    paths = make_module()
    put_state(paths, **PRIM, rfs__uptodate="up", remote__rfs__uptodate="up")
    script = paths.userbin / "state"
    script.write_text('#!/bin/sh\necho "application of $SAFEMODULE is $1"\n')
    script.chmod(0o755)
    admin.modules = {"mirror": RUNNING}
    out = server.run("state", "-v", "-m", "mirror").stdout
    assert "rfs.uptodate" in out and "remote.rfs.uptodate" in out and "by heart" in out
    assert "application of mirror is PRIM" in out


def test_level_of_a_module_runs_its_level_script(server: Server, admin: NotedAdmin) -> None:
    script = make_module().userbin / "level"
    script.write_text('#!/bin/sh\necho "version 3 of the application of $SAFEMODULE"\n')
    script.chmod(0o755)
    out = server.run("level", "-m", "mirror").stdout
    assert "SafeKit : " in out and "version 3 of the application of mirror" in out
    assert "version 3" not in server.run("level").stdout


def test_json_state(server: Server, admin: NotedAdmin) -> None:
    put_state(make_module(), **PRIM)
    admin.modules = {"mirror": RUNNING}
    data = json.loads(server.run("state", "--json").stdout)
    assert data["node"] == "n1"
    assert data["modules"][0]["verdict"]["kind"] == "protected"


def test_state_without_modules_tells_the_next_step(server: Server, admin: NotedAdmin) -> None:
    assert "safekit cluster config" in server.run("state").stdout, "what comes first"
    (server.var / "cluster" / "cluster.xml").write_text("<cluster/>")
    assert "safekit module install" in server.run("state").stdout


def test_state_starts_without_heavy_imports(server: Server, admin: NotedAdmin) -> None:
    """The budget of the command is kept by what it does not import."""
    put_state(make_module(), **PRIM)
    admin.modules = {"mirror": RUNNING}
    script = (
        "import sys\nfrom cli.main import run\nassert run(['state']) == 0\n"
        "heavy = {'asyncio', 'lxml', 'cryptography', 'supervisor', 'xml', 'ssl', 'json'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = server.python(script)
    assert done.returncode == 0, done.stderr


# ------------------------------------------------------------------ waiting


def later(seconds: float, action: Callable[[], None]) -> threading.Timer:
    timer = threading.Timer(seconds, action)
    timer.start()
    return timer


def test_waitstate_returns_when_the_state_is_stable(server: Server, admin: NotedAdmin) -> None:
    paths = make_module()
    put_state(paths, state__local="PRIM", state__color="magenta")
    admin.modules = {"mirror": RUNNING}
    timer = later(1.0, lambda: put_state(paths, state__color="green"))
    begun = time.monotonic()
    done = server.run("waitstate", "-m", "mirror", "PRIM", "-timeout", "20")
    timer.join()
    assert done.returncode == 0
    assert 1.0 <= time.monotonic() - begun < 15


def test_waitstate_is_bounded(server: Server, admin: NotedAdmin) -> None:
    put_state(make_module(), state__local="WAIT", state__color="red")
    admin.modules = {"mirror": RUNNING}
    done = server.run("waitstate", "-m", "mirror", "PRIM", "--timeout", "0.3")
    assert done.returncode == 1
    assert "not reached within 0.3 s, the state is WAIT red" in done.stderr


def test_waitstart_fails_when_the_module_stopped(server: Server, admin: NotedAdmin) -> None:
    make_module()
    admin.modules = {"mirror": {**RUNNING, "running": False}}
    done = server.run("waitstart", "-m", "mirror")
    assert done.returncode == 1
    assert "module mirror is stopped" in done.stderr


def test_waitstop_waits_for_the_processes(server: Server, admin: NotedAdmin) -> None:
    put_state(make_module(), state__local="STOP", state__color="red")
    admin.modules = {"mirror": RUNNING}
    timer = later(0.8, lambda: admin.modules.update(mirror={**RUNNING, "running": False}))
    begun = time.monotonic()
    done = server.run("waitstop", "-m", "mirror", "--timeout", "20")
    timer.join()
    assert done.returncode == 0
    assert time.monotonic() - begun >= 0.8


# ------------------------------------------------------------------ logs


def filled_log() -> ModulePaths:
    paths = make_module()
    log = ModuleLog("mirror", "heart", "n1")
    log.event("action_called", action="start", who="root")
    log.info("information")
    log.debug("debugging")
    log.event("local_state", state="PRIM", color="green")
    return paths


def texts(output: str) -> list[str]:
    return [line.split(" | ", 4)[-1] for line in output.splitlines()]


def test_log_levels(server: Server, admin: NotedAdmin) -> None:
    filled_log()
    events = texts(server.run("log", "-m", "mirror").stdout)
    assert events == ["Action start called by root", "Local state PRIM green"]
    assert "information" in texts(server.run("log", "-m", "mirror", "-I").stdout)
    assert texts(server.run("log", "-m", "mirror", "-A").stdout)[2] == "debugging"
    assert texts(server.run("log", "-m", "mirror", "-s", "1").stdout) == ["Local state PRIM green"]


def test_the_last_300_messages_unless_said_otherwise(server: Server, admin: NotedAdmin) -> None:
    make_module()
    log = ModuleLog("mirror", "user", "n1")
    for number in range(310):
        log.event("printe", text=f"message {number}")
    shown = texts(server.run("log", "-m", "mirror").stdout)
    assert shown == [f"message {number}" for number in range(10, 310)]
    assert texts(server.run("log", "-m", "mirror", "-s", "305").stdout)[0] == "message 5"
    last = [json.loads(line) for line in server.run("log", "-m", "mirror", "-s", "2", "--json").stdout.splitlines()]
    assert [(one["code"], one["level"], one["fields"]) for one in last] == [
        ("printe", "E", {"text": f"message {number}"}) for number in (308, 309)
    ]


def test_json_of_what_is_listed(server: Server, admin: NotedAdmin) -> None:
    make_module()
    udp = {"safeadmin": [4800], "heart": [8894], "farm": [4821]}
    for words, wanted in (
        (("module", "list"), ["mirror"]),
        (("module", "listid"), {"mirror": 1}),
        (("module", "getports", "-i", "7"), {"udp": udp, "tcp": {"webconsole": [9010], "rfs": [5624]}}),
    ):
        assert json.loads(server.run(*words, "--json").stdout) == wanted
    assert set(json.loads(server.run("level", "--json").stdout)) == {"host", "os", "safekit", "license"}


def test_log_in_french(server: Server, admin: NotedAdmin) -> None:
    filled_log()
    assert texts(server.run("log", "-m", "mirror", "-l", "fr").stdout)[0] == "Action start demandée par root"


def test_events_that_the_verbose_log_has_dropped_come_from_the_short_log(server: Server, admin: NotedAdmin) -> None:
    paths = filled_log()
    lines = paths.log.read_text().splitlines(keepends=True)
    paths.elog.write_text(lines[0] + lines[3])
    paths.log.write_text(lines[3])
    assert texts(server.run("log", "-m", "mirror").stdout) == ["Action start called by root", "Local state PRIM green"]


def test_logsave(server: Server, admin: NotedAdmin, tmp_path: Path) -> None:
    filled_log()
    target = tmp_path / "saved.txt"
    assert server.run("logsave", "-m", "mirror", "-A", str(target)).returncode == 0
    assert len(target.read_text().splitlines()) == 4


def test_logview_follows_across_a_rotation(server: Server, admin: NotedAdmin) -> None:
    paths = filled_log()
    log = ModuleLog("mirror", "heart", "n1")
    viewer = subprocess.Popen(
        [sys.executable, "-m", "cli.main", "logview", "-m", "mirror", "-s", "1"],
        env={**os.environ, **server.env},
        cwd=CHECKOUT,
        stdout=subprocess.PIPE,
        text=True,
    )
    killer = threading.Timer(20, viewer.kill)
    killer.start()
    try:
        assert viewer.stdout is not None
        assert "Local state PRIM green" in viewer.stdout.readline()
        log.event("begin_of_swap")
        assert "Begin of Swap" in viewer.stdout.readline()
        os.rename(paths.log, paths.log.with_name("module.log.1"))
        log.event("end_of_stop")
        assert "End of stop" in viewer.stdout.readline()
    finally:
        killer.cancel()
        viewer.kill()
        viewer.wait(10)
        viewer.stdout and viewer.stdout.close()


def test_scripts_may_log_without_safeadmin(server: Server) -> None:
    paths = make_module()
    assert server.run("printe", "-m", "mirror", "cannot start").returncode == 0
    assert server.run("printi", "-m", "mirror", "is started").returncode == 0
    levels = [line.split("|")[2] for line in paths.log.read_text().splitlines()]
    assert levels == ["E", "I"]


# ------------------------------------------------------------------ modules


GOOD = {"conf/userconfig.xml": "<safe/>", "bin/start_prim": "#!/bin/sh\n"}


def test_install_list_package_uninstall(server: Server, admin: NotedAdmin, tmp_path: Path) -> None:
    (server.var / "cluster" / "cluster.xml").write_text("<cluster/>")
    archive = make_archive(tmp_path / "mirror.safe", **GOOD)
    first = server.run("module", "install", "-m", "one", str(archive))
    assert (first.returncode, first.stderr) == (0, "")
    assert os.access(server.safe / "modules/one/bin/start_prim", os.X_OK)
    again = server.run("module", "install", "-m", "one", str(archive))
    assert again.returncode == 1 and "already installed" in again.stderr
    (server.safe / "modules/one/stray").write_text("x")
    assert server.run("module", "install", "-r", "-m", "one", str(archive)).returncode == 0
    assert not (server.safe / "modules/one/stray").exists()
    assert server.run("module", "install", "-M", "5", "-m", "two", str(archive)).returncode == 0
    taken = server.run("module", "install", "-M", "5", "-m", "three", str(archive))
    assert taken.returncode == 1 and "id 5 belongs to module two" in taken.stderr
    assert server.run("module", "list").stdout == "one\ntwo\n"
    assert [line.split() for line in server.run("module", "listid").stdout.splitlines()] == [["one", "1"], ["two", "5"]]
    packed = tmp_path / "packed.safe"
    assert server.run("module", "package", "-m", "one", str(packed)).returncode == 0
    assert sorted(zipfile.ZipFile(packed).namelist()) == sorted(GOOD)
    removed = server.run("module", "uninstall", "-m", "two")
    assert (removed.returncode, removed.stderr) == (0, "")
    assert (server.safe / "Application_Modules/backup/two.safe").is_file()
    assert server.run("module", "list").stdout == "one\n"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"conf/userconfig.xml": "x", "../evil": "x"}, "leaves the directory"),
        ({"conf/userconfig.xml": "x", "/etc/evil": "x"}, "leaves the directory"),
        ({"readme": "x"}, "has no conf/userconfig.xml"),
    ],
)
def test_hostile_archives_leave_nothing(
    server: Server, admin: NotedAdmin, tmp_path: Path, files: dict[str, str], expected: str
) -> None:
    (server.var / "cluster" / "cluster.xml").write_text("<cluster/>")
    done = server.run("module", "install", "-m", "evil", str(make_archive(tmp_path / "evil.safe", **files)))
    assert done.returncode == 1
    assert expected in done.stderr
    assert [p.name for p in (server.safe / "modules").iterdir() if p.name != ".lock"] == []


@pytest.mark.parametrize("words", [("protect",), ("cluster", "join"), ("-H", "*", "level")])
def test_a_damaged_configuration_of_the_cluster_is_not_taken_for_none(
    server: Server, admin: NotedAdmin, words: tuple[str, ...]
) -> None:
    (server.var / "cluster").mkdir(exist_ok=True)
    (server.var / "cluster" / "cluster.json").write_text("{")
    done = server.run(*words)
    assert done.returncode == 1 and "cluster.json: " in done.stderr
    assert "Next step: safekit cluster config" in done.stderr and not (server.var / "invitation").exists()


def test_install_needs_a_cluster(server: Server, admin: NotedAdmin, tmp_path: Path) -> None:
    done = server.run("module", "install", str(make_archive(tmp_path / "mirror.safe", **GOOD)))
    assert done.returncode == 1
    assert "the cluster is not configured" in done.stderr


def test_boot_settings(server: Server, admin: NotedAdmin) -> None:
    make_module()
    assert server.run("boot", "status").stdout.split() == ["mirror", "off"]
    assert server.run("boot", "-m", "mirror", "on").returncode == 0
    assert server.run("boot", "-m", "mirror", "status").stdout.split() == ["mirror", "on"]
    assert server.run("boot", "webstatus").stdout == "on\n"
    assert server.run("boot", "snmpstatus").stdout == "off\n"
    assert server.run("boot", "weboff").returncode == 0
    assert server.run("boot", "webstatus").stdout == "off\n"
    assert json.loads(server.run("boot", "--json").stdout) == {"mirror": "on"}
    assert json.loads(server.run("boot", "webstatus", "--json").stdout) == {"safewebserver": "off"}


def test_boot_of_the_web_service_is_what_the_service_manager_will_do(server: Server, admin: NotedAdmin) -> None:
    enabled = server.var.parent / "programs" / "enabled"
    assert server.run("boot", "weboff").returncode == 0 and enabled.read_text() == "disabled\n"
    enabled.write_text("enabled\n")  # an administrator ran systemctl enable
    assert server.run("boot", "webstatus").stdout == "on\n"
    assert server.run("boot", "weboff").returncode == 0
    enabled.with_suffix(".refuse").touch()
    done = server.run("boot", "webon")
    assert done.returncode == 1 and "is masked" in done.stderr and "Next step: systemctl status" in done.stderr
    assert (server.var / "boot.web").read_text() == "off\n", "a setting that is not in force must not come back"


def test_boot_of_the_agent(server: Server, admin: NotedAdmin) -> None:
    enabled = server.var.parent / "programs" / "enabled"
    assert server.run("boot", "snmpstatus").stdout == "off\n"
    assert server.run("boot", "snmpon").returncode == 0 and enabled.read_text() == "enabled\n"
    assert server.run("boot", "snmpstatus").stdout == "on\n" and (server.var / "boot.snmp").read_text() == "on\n"
    assert server.run("boot", "snmpoff").stderr == "" and server.run("boot", "snmpstatus").stdout == "off\n"
    done = server.run("safeagent", "check")
    assert (done.returncode, done.stdout) == (1, "safeagent is not running\n")


def test_special_commands_run_in_the_environment(server: Server) -> None:
    program = server.safe / "private" / "bin" / "tell"
    program.write_text('#!/bin/sh\necho "$SAFEBIN $SAFEMODULE $*"\nexit 7\n')
    program.chmod(0o755)
    done = server.run("-m", "mirror", "-r", "tell", "-m", "x")
    assert done.stdout.split() == [str(server.safe / "private" / "bin"), "mirror", "-m", "x"]
    assert done.returncode == 7
    done = server.run("-m", "mirror", "-r", "tell -m 'x y'")  # the guide writes it in one word, too
    assert done.stdout.split() == [str(server.safe / "private" / "bin"), "mirror", "-m", "x", "y"]
    assert done.returncode == 7
    assert f"SAFEVAR={server.var}" in server.run("-r", "/usr/bin/env").stdout.splitlines()
    done = server.run("-r", "tall")
    assert done.returncode == 1 and "has: tell" in done.stderr
    assert server.run("-r", "tell 'x").returncode == 1


def test_special_commands_that_change_the_system_are_in_the_commands_log(server: Server) -> None:
    for name in ("processtree", "gencron"):
        program = server.safe / "private" / "bin" / name
        program.write_text("#!/bin/sh\nexit 3\n")
        program.chmod(0o755)
    assert server.run("-r", "processtree", "list", "all").returncode == 3
    assert not (server.var / "commandlog").exists()
    assert server.run("-r", "processtree", "kill", "vi", ".*x.*").returncode == 3
    assert server.run("-r", "gencron del admin daily.job -c off").returncode == 3
    lines = [line.split(" | ")[2:] for line in (server.var / "commandlog").read_text().splitlines()]
    assert [[part.strip() for part in line] for line in lines] == [
        ["running", "-r processtree kill vi .*x.*"],
        ["return    3", "-r processtree kill vi .*x.*"],
        ["running", "-r gencron del admin daily.job -c off"],
        ["return    3", "-r gencron del admin daily.job -c off"],
    ]


def test_loop_commands_return_1_at_the_limit(server: Server, admin: NotedAdmin) -> None:
    make_module()
    admin.modules["mirror"] = dict(RUNNING)
    assert server.run("incloop", "-m", "mirror", "-i", "handler").returncode == 1
    assert admin.asked[0][0] == "incloop"


# ------------------------------------------------------------------ commands log


def test_what_changes_the_system_is_in_the_commands_log(server: Server, admin: NotedAdmin) -> None:
    make_module()
    log = server.var / "commandlog"
    server.run("state")
    server.run("log", "-m", "mirror")
    for words in (("boot",), ("boot", "webstatus"), ("module", "list"), ("confinfo", "-m", "mirror"), ("level",)):
        server.run(*words)
    assert not log.exists() or log.read_text() == ""
    assert server.run("prim", "-u", "web@192.168.1.8", "-m", "mirror").returncode == 0
    admin.refusal = ("no", "refused")
    assert server.run("stop", "-m", "mirror").returncode == 1
    lines = [[part.strip() for part in line.split("|")] for line in log.read_text().splitlines()]
    assert [line[2] for line in lines] == ["running", "return    0", "running", "return    1"]
    assert lines[0][3] == lines[1][3] == "prim -u web@192.168.1.8 -m mirror"
    assert lines[0][1] == lines[1][1]


# ------------------------------------------------------------------ completion


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(server: Server, shell: str) -> None:
    done = server.run("completion", shell)
    assert done.returncode == 0
    assert "_SAFEKIT_COMPLETE" in done.stdout


@pytest.mark.parametrize(
    ("words", "expected"),
    [("safekit sta", {"start", "state"}), ("safekit state -m m", {"mirror"}), ("safekit module un", {"uninstall"})],
)
def test_completion_of_words_and_modules(server: Server, words: str, expected: set[str]) -> None:
    make_module()
    server.extra = {
        "_SAFEKIT_COMPLETE": "bash_complete",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split()) - 1),
    }
    done = server.run()
    assert expected <= {line.split(",")[-1] for line in done.stdout.splitlines()}, done.stderr
