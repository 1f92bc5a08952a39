"""Boot and shutdown (guide 9.2)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from cli.base import (
    Failure,
    ask,
    command,
    identity_options,
    installed_modules,
    json_option,
    module_option,
    module_paths,
    require_admin,
    session,
    show_json,
    who,
)
from cli.control import CONTROL_TIMEOUT
from safekit.bus.requests.safeadmin.node import Shutdown
from safekit.disk.files import write_atomic
from safekit.disk.paths import ModulePaths, safe, safevar, speaks_https

_SERVICES = {"web": ("on", "safewebserver"), "snmp": ("off", "safeagent")}
_WORDS = ("on", "off", "status", *(f"{service}{verb}" for service in _SERVICES for verb in ("on", "off", "status")))


def _setting(path: Path, default: str) -> str:
    """A file that says on or off; anything else means the default."""
    try:
        text = path.read_text().strip()
    except FileNotFoundError:
        return default
    return text if text in ("on", "off") else default


def _service(word: str, as_json: bool) -> int:
    service = "web" if word.startswith("web") else "snmp"
    default, daemon = _SERVICES[service]
    path = safevar() / f"boot.{service}"
    verb = word.removeprefix(service)
    if verb == "status":
        answer = _enabled(daemon) or _setting(path, default)
        if as_json:
            return show_json({daemon: answer})
        click.echo(answer)
        return 0
    systemctl("enable" if verb == "on" else "disable", daemon)
    write_atomic(path, f"{verb}\n".encode())
    return 0


def _enabled(unit: str) -> str | None:
    """What the service manager will do at boot, which an administrator may have told it; None when it knows nothing."""
    import subprocess

    try:
        done = subprocess.run(
            ["systemctl", "is-enabled", f"{unit}.service"], capture_output=True, text=True, check=False, timeout=10
        )
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    said = done.stdout.strip()
    return {"enabled": "on", "enabled-runtime": "on", "disabled": "off", "masked": "off"}.get(said)


def systemctl(verb: str, unit: str) -> None:
    """Ask the system's service manager. Raises Failure with what it said."""
    import subprocess

    try:
        done = subprocess.run(
            ["systemctl", verb, f"{unit}.service"], capture_output=True, text=True, check=False, timeout=60
        )
    except FileNotFoundError:
        raise Failure(f"this system has no systemctl to {verb} {unit} with", f"run {unit} by hand") from None
    except subprocess.TimeoutExpired:
        raise Failure(f"systemctl {verb} {unit} did not end within 60 s", f"systemctl status {unit}") from None
    if done.returncode:
        raise Failure(
            f"systemctl {verb} {unit}: {(done.stderr or done.stdout).strip() or done.returncode}",
            f"systemctl status {unit}; journalctl -u {unit}",
        )


def _only_reads(parameters: dict[str, Any]) -> bool:
    return str(parameters["word"] or "status").endswith("status")


@command(
    "boot",
    example="safekit boot -m mirror on\nsafekit boot status\nsafekit boot webstatus",
    modifies="by hand",
    reads=_only_reads,
)
@click.argument("word", metavar=f"[{'|'.join(_WORDS)}]", required=False, type=click.Choice(_WORDS))
@module_option
@json_option
def boot_command(module: str | None, word: str | None, as_json: bool) -> int:
    """Choose whether a module (off by default) or a service starts when the server boots.

    Without -m, `status` lists all modules. webon, weboff, webstatus: the web service (on by default). snmpon, snmpoff,
    snmpstatus: the SNMP agent (off by default).
    """
    chosen = word or "status"
    if chosen.startswith(("web", "snmp")):
        return _service(chosen, as_json)
    named = module or session().module or os.environ.get("SAFEMODULE")
    if chosen == "status":
        names = [module_paths(named).module] if named else installed_modules()
        settings = {name: boot_setting(name) for name in names}
        if as_json:
            return show_json(settings)
        width = max((len(name) for name in names), default=0)
        for name, setting in settings.items():
            click.echo(f"{name.ljust(width)}  {setting}")
        return 0
    set_boot(module_paths(named).module, chosen)
    return 0


def boot_setting(module: str) -> str:
    """Whether a module starts with the server: on or off."""
    return _setting(ModulePaths(module).boot_file, "off")


def set_boot(module: str, word: str) -> None:
    """Whether a module starts with the server: on or off. Raises OSError."""
    paths = ModulePaths(module)
    paths.var.mkdir(mode=0o770, parents=True, exist_ok=True)
    write_atomic(paths.boot_file, f"{word}\n".encode())


def _only_checks(parameters: dict[str, Any]) -> bool:
    return bool(parameters["verb"] == "check")


@command("shutdown", example="safekit shutdown", modifies=True)
@identity_options
@click.option("--timeout", type=click.FloatRange(min=0), default=0, metavar="SECONDS", help="Give up after that.")
def shutdown_command(timeout: float, **_: object) -> int:
    """Stop all running modules, and wait until they are stopped."""
    from cli.wait import wait_until

    modules = require_admin().get("modules", {})
    running = sorted(name for name, known in modules.items() if known.get("running"))
    ask("", Shutdown(who()), CONTROL_TIMEOUT)
    for name in running:
        wait_until(name, lambda view: not view.running, timeout, "stop", "")
        click.echo(f"{name}: stopped")
    return 0


@command("webserver", example="safekit webserver start", modifies=True, admin=False)
@click.argument("verb", type=click.Choice(["start", "stop", "restart"]))
@click.argument("sync", required=False)
def webserver_command(verb: str, sync: str | None) -> int:
    """Start, stop or restart the web service (console, distributed commands, module checkers).

    Waits until it answers.
    """
    systemctl(verb, "safewebserver")
    if verb != "stop":
        wait_for_web()
    return 0


WEB_SECONDS = 15.0


def wait_for_web() -> None:
    """Until every port of httpd.conf accepts connections. Raises Failure."""
    import socket
    import time

    from safekit.model.httpd import web_ports

    try:
        text = (safe() / "web" / "conf" / "httpd.conf").read_text(errors="replace")
    except FileNotFoundError:
        text = ""
    ports = web_ports(text, secure=speaks_https())
    deadline = time.monotonic() + WEB_SECONDS
    for port in ports:
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError as error:
                if time.monotonic() > deadline:
                    raise Failure(
                        f"the web service does not listen on TCP port {port}: {error.strerror or error}",
                        "journalctl -u safewebserver",
                    ) from None
                time.sleep(0.05)


@command("safeagent", example="safekit safeagent start\nsafekit safeagent check", modifies=True, reads=_only_checks)
@click.argument("verb", type=click.Choice(["start", "stop", "restart", "check"]))
@json_option
def safeagent_command(verb: str, as_json: bool) -> int:
    """Start, stop, restart or check the SNMP agent. Its settings: SAFE/snmp/conf/snmpd.conf.

    start and restart wait until it answers. check: exit code 0 when it runs, 1 when not.
    """
    if verb == "check":
        pid = _agent_pid()
        if as_json:
            show_json({"safeagent": {"running": bool(pid), "pid": pid}})
        else:
            click.echo(f"safeagent is running (pid {pid})" if pid else "safeagent is not running")
        return 0 if pid else 1
    systemctl(verb, "safeagent")
    if verb != "stop":
        _wait_for_agent()
    return 0


AGENT_SECONDS = 20.0


def _agent_pid() -> int:
    """0 when it does not answer."""
    from safekit.bus.asking import ask_sync
    from safekit.bus.message import BusError
    from safekit.bus.requests.safeagent import Ping

    try:
        return ask_sync("", Ping(), 1.0).pid
    except BusError:
        return 0


def _wait_for_agent() -> None:
    """Until it answers. Raises Failure."""
    import time

    deadline = time.monotonic() + AGENT_SECONDS
    while not _agent_pid():
        if time.monotonic() > deadline:
            raise Failure("the SNMP agent does not answer", "journalctl -u safeagent")
        time.sleep(0.1)
