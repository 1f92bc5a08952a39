"""safekit simulate: ask the production core what it would do. The core is heart's, so heart's program answers."""

from __future__ import annotations

import os

import click

from cli.base import Failure, command, session
from safekit.disk.paths import process_program

PROGRAM = "safesimulate"


@command(
    "simulate",
    json=False,
    example="safekit simulate -m mirror --state PRIM --set tcp.id=down\n"
    "safekit simulate -m mirror --state SECOND --node-down node1",
    admin=False,
    add_help_option=False,
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
@click.argument("words", nargs=-1, type=click.UNPROCESSED)
def simulate_command(words: tuple[str, ...]) -> int:
    """Tell what a module would do if something failed, on each server and why, changing nothing.

    It works on a stopped module and on a configuration that is not applied yet. safekit simulate --help tells the
    options.
    """
    program = process_program(PROGRAM)
    if not os.access(program, os.X_OK):
        raise Failure(f"{program} is missing", "run safekitinstall again")
    module = session().module
    os.execv(program, [PROGRAM, *(("-m", module) if module else ()), *words])
