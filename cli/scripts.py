"""Scripts of a module that commands run: state and level (guide 14.3), and any of them by hand."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO

import click

from cli.base import Failure, command, module_option, module_paths, require_admin
from safekit.disk.paths import ModulePaths

SCRIPT_TIMEOUT = 60.0
DRAIN_SECONDS = 0.5
"""What a script wrote last is waited for so long; what it left running may write for ever."""


def _variables(paths: ModulePaths) -> dict[str, str]:
    """Variables of <user> in the active configuration (guide 13.7)."""
    import json

    try:
        user = json.loads(paths.active_json.read_text()).get("user") or {}
    except FileNotFoundError:
        return {}
    return {str(name): str(value) for name, value in user.get("vars", ())}


def _environment(paths: ModulePaths) -> dict[str, str]:
    return {**os.environ, **_variables(paths), **paths.environment()}


def run_module_script(module: str, name: str, *arguments: str) -> int:
    """Run a script of the module if it has one, its output going to ours; its exit status, 0 without one.

    It gets the environment of the other user scripts (guide 14.4) and is killed after a minute.
    """
    paths = ModulePaths(module)
    script = paths.userbin / name
    if not os.access(script, os.X_OK):
        return 0
    sys.stdout.flush()
    try:
        done = subprocess.run(
            [str(script), *arguments],
            env=_environment(paths),
            cwd=paths.userbin,
            stdin=subprocess.DEVNULL,
            timeout=SCRIPT_TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        click.echo(f"script {name} of module {module} was killed after {SCRIPT_TIMEOUT:g} s", err=True)
        return 1
    return done.returncode


# ------------------------------------------------------------------------------- by hand


@command(
    "scripts",
    example="safekit scripts try start_prim -m mirror\nsafekit scripts try --edited start_prim -m mirror\n"
    "safekit scripts try -m mirror stop_prim force ALONE STOP stop",
    modifies=True,
)
@click.argument("verb", type=click.Choice(["try"]))
@click.argument("script")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@module_option
@click.option("--edited", is_flag=True, help="The script in SAFE/modules/AM/bin, not yet applied.")
@click.option("--anyway", is_flag=True, help="Although the module is not in a state in which that script runs.")
def scripts_command(
    verb: str, script: str, arguments: tuple[str, ...], module: str | None, edited: bool, anyway: bool
) -> int:
    """Run a script of the module by hand, with the environment that SafeKit gives it, and show what it writes.

    Nothing of SafeKit changes, and an application that it starts is not stopped by this command. A start script is run
    only where SafeKit has run it (start_prim: ALONE or PRIM, ...), as the data of a stopped module, and that of a
    secondary, may not be written; --anyway runs it all the same. Without ARGUMENTS it gets those of a start or stop in
    the present state; those that begin with a dash stand after --. Exit code: that of the script.
    """
    paths = module_paths(module, configured=not edited)
    directory = paths.bin_dir if edited else paths.userbin
    path = directory / script
    if "/" in script or not path.is_file():
        found = ", ".join(sorted(each.name for each in directory.iterdir())) if directory.is_dir() else "none"
        raise Failure(f"module {paths.module} has no script {script} in {directory}", f"its scripts are: {found}")
    if not os.access(path, os.X_OK):
        raise Failure(f"{path} is not executable", f"chmod +x {path}")
    from safekit.view.module import read_module
    from safekit.view.verdict import START_SCRIPTS

    state = read_module(paths.module, require_admin().get("modules", {}).get(paths.module, {})).state
    roles = START_SCRIPTS.get(script, (state,))
    if state not in roles and not anyway:
        raise Failure(
            f"the module is {state} here: {script} runs in {' or '.join(roles)} only, where the data may be written "
            f"and the addresses are set",
            f"safekit start -m {paths.module}; --anyway runs it all the same",
        )
    return _try(paths, path, arguments or _usual(script, state))


def _usual(script: str, state: str) -> tuple[str, ...]:
    """The arguments of a start or a stop in this state."""
    if script.startswith("stop_"):
        return (state, "STOP", "stop")
    return ("WAIT", state, "start") if script.startswith("start_") else ()


def _try(paths: ModulePaths, path: Path, arguments: tuple[str, ...]) -> int:
    """Run it in a session of its own, as SafeKit does, showing what it writes."""
    from safekit.log.scripts import TAIL_BYTES, not_run, tail
    from safekit.process import offspring

    click.echo(f"{path} {' '.join(arguments)}", err=True)
    began, last = time.monotonic(), bytearray()
    try:
        process = subprocess.Popen(
            [str(path), *arguments],
            env={**_environment(paths), **offspring.mark(paths.module, path.name)},
            cwd=path.parent,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    except OSError as error:
        raise Failure(
            f"{path} could not be run: {error.strerror}", "its first line must name an interpreter: #!/bin/sh"
        ) from None
    assert process.stdout is not None
    reader = threading.Thread(target=_pass_on, args=(process.stdout, last, TAIL_BYTES), daemon=True)
    reader.start()
    try:
        status = process.wait()
    except KeyboardInterrupt:
        with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
            os.killpg(process.pid, signal.SIGTERM)
        status = process.wait()
    reader.join(DRAIN_SECONDS)
    status = 128 - status if status < 0 else status
    click.echo(f"exit status {status} after {time.monotonic() - began:.1f} s", err=True)
    if not status and (line := not_run(path.name, tail(bytes(last)))):
        click.echo(f"Warning: a command in it could not be run: {line}", err=True)
    return status


def _pass_on(stream: IO[bytes], last: bytearray, kept: int) -> None:
    """Show what is written, and keep the end of it. The script must not wait for whoever reads no more (`| head`)."""
    shown = True
    while data := os.read(stream.fileno(), 65536):
        try:
            if shown:
                click.echo(data.decode("utf-8", "replace"), nl=False)
        except BrokenPipeError:
            shown = False
        last += data
        del last[:-kept]
