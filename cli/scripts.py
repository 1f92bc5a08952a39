"""Scripts of a module that commands run: state and level (guide 14.3)."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import click

from safekit.disk.paths import ModulePaths

SCRIPT_TIMEOUT = 60.0


def _variables(paths: ModulePaths) -> dict[str, str]:
    """Variables of <user> in the active configuration (guide 13.7)."""
    try:
        user = json.loads(paths.active_json.read_text()).get("user") or {}
    except FileNotFoundError:
        return {}
    return {str(name): str(value) for name, value in user.get("vars", ())}


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
            env={**os.environ, **_variables(paths), **paths.environment()},
            cwd=paths.userbin,
            stdin=subprocess.DEVNULL,
            timeout=SCRIPT_TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        click.echo(f"script {name} of module {module} was killed after {SCRIPT_TIMEOUT:g} s", err=True)
        return 1
    return done.returncode
