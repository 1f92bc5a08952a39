"""log, logview, logsave, printi, printe (guide 9.5): the module log in either language."""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import click

from cli.base import FILE, Failure, colored, command, json_option, module_option, module_paths, show_json
from safekit.disk.paths import ModulePaths, node_name
from safekit.log.advice import next_step
from safekit.log.messages import Language
from safekit.log.module import Line
from safekit.log.select import DEFAULT_COUNT, LEVELS, levels_of, select
from safekit.log.tail import Tail
from safekit.view.words import local_stamp, moment

FOLLOW_INTERVAL = 0.1
SCRIPT_COUNT, USERLOG_COUNT = 20, 100
MAX_USERLOG = 8 << 20
"""Bytes of the application log that are looked at, at most."""


def show(line: Line, language: Language) -> str:
    """A line for people: date | node | level | process | text (B6); local time, as everywhere that people read it."""
    return f"{local_stamp(line.date)} | {line.node} | {line.level} | {line.process:<9} | {line.text(language)}"


def log_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Options -I, -A, -l."""
    function = click.option(
        "-l", "language", type=click.Choice(["en", "fr"]), default="en", help="Language (default en)."
    )(function)
    function = click.option("-A", "everything", is_flag=True, help="All messages, debug ones too.")(function)
    return click.option("-I", "information", is_flag=True, help="E(vent) and I(nformation) messages.")(function)


_count: Callable[..., Any] = click.option(
    "-s", "count", type=click.IntRange(min=1), metavar="NB", help="Number of messages."
)


@command(
    "log",
    example="safekit log -m mirror -s 20\nsafekit log -m mirror -A -l fr\nsafekit log --scripts -m mirror -s 5",
)
@module_option
@_count
@log_options
@click.option("--scripts", "of_scripts", is_flag=True, help="How each script ended instead, and what it wrote last.")
@json_option
def log_command(
    module: str | None,
    count: int | None,
    information: bool,
    everything: bool,
    language: Language,
    of_scripts: bool,
    as_json: bool,
) -> int:
    """Show the last NB messages of the module log (300 by default), E(vent) messages only unless asked.

    The next step of the last fault among them follows. The JSON is one message a line, with its code and fields, which
    do not depend on the language. With --scripts: the last NB runs of scripts (20 by default), each with its exit
    status and the last lines that were written meanwhile.
    """
    paths = module_paths(module)
    if of_scripts:
        return _show_runs(paths, count or SCRIPT_COUNT, as_json=as_json)
    last: Line | None = None
    for line in select(paths, levels_of(information, everything), count or DEFAULT_COUNT):
        if as_json:
            import json

            click.echo(json.dumps(_data(paths.module, line, language)))
            continue
        _print(line, language)
        last = line if next_step(line.code, paths.module) else last
    if last is not None:
        sys.stdout.flush()
        click.echo(f"After the last fault ({last.text(language)})", err=True)
        click.echo(f"Next step: {next_step(last.code, paths.module, language)}", err=True)
    return 0


def _show_runs(paths: ModulePaths, count: int, *, as_json: bool) -> int:
    import json
    from dataclasses import asdict

    from safekit.log.scripts import runs

    found = deque(runs(paths.script_log), maxlen=count)
    for run in found:
        if as_json:
            click.echo(json.dumps(asdict(run)))
            continue
        ended = run.problem or ("could not be run" if run.status is None else f"exit status {run.status}")
        words = " ".join((run.name, *run.args))
        bad = run.problem and colored()
        click.echo(f"{moment(run.time)}  {words}: {click.style(ended, fg='red') if bad else ended}, {run.seconds:g} s")
        for line in run.output:
            click.echo(f"    {line}")
    if not found and not as_json:
        click.echo(f"{paths.module}: no script has run yet on this server.")
    return 0


@command("userlog", example="safekit userlog -m mirror\nsafekit userlog -m mirror -s 500")
@module_option
@click.option(
    "-s", "count", type=click.IntRange(min=1), default=USERLOG_COUNT, metavar="NB", help="Number of lines (100)."
)
@json_option
def userlog_command(module: str | None, count: int, as_json: bool) -> int:
    """Show the last NB lines of SAFEVAR/modules/AM/userlog.ulog: what the scripts and the application wrote.

    safekit log --scripts tells which script wrote what. The JSON is {"file", "lines"}.
    """
    from safekit.log.scripts import tail

    paths = module_paths(module)
    try:
        with open(paths.userlog, "rb") as handle:
            size = handle.seek(0, os.SEEK_END)
            handle.seek(max(0, size - MAX_USERLOG))
            lines = tail(handle.read(MAX_USERLOG), count)
    except FileNotFoundError:
        lines = ()
    if as_json:
        return show_json({"file": str(paths.userlog), "lines": list(lines)})
    for line in lines:
        click.echo(line)
    if not lines:
        click.echo(f"{paths.module}: nothing was written to {paths.userlog} yet.", err=True)
    return 0


def _data(module: str, line: Line, language: Language) -> dict[str, Any]:
    return {
        "date": line.date,
        "node": line.node,
        "level": line.level,
        "process": line.process,
        "code": line.code,
        "fields": dict(line.fields),
        "text": line.text(language),
        "next_step": next_step(line.code, module, language),
    }


def _print(line: Line, language: Language) -> None:
    text = show(line, language)
    if colored() and line.level != "E":
        text = click.style(text, dim=True)
    click.echo(text)


@command("logview", example="safekit logview -m mirror -s 300", json=False)
@module_option
@_count
@log_options
def logview_command(
    module: str | None, count: int | None, information: bool, everything: bool, language: Language
) -> int:
    """Follow the module log: the last NB messages (10 by default), then new ones until Ctrl-C."""
    paths = module_paths(module)
    levels = levels_of(information, everything)
    tail = Tail(paths.log)
    tail.skip()
    for line in select(paths, levels, count or 10):
        _print(line, language)
    while True:
        for line in tail.poll():
            if line.level in LEVELS[levels]:
                _print(line, language)
        sys.stdout.flush()
        time.sleep(FOLLOW_INTERVAL)


@command("logsave", example="safekit logsave -m mirror -A /tmp/mirror.txt", modifies=False)
@module_option
@log_options
@click.argument("file", type=FILE)
def logsave_command(module: str | None, information: bool, everything: bool, language: Language, file: str) -> int:
    """Save the messages of the module log in FILE (absolute path)."""
    if not os.path.isabs(file):
        raise Failure(f"{file} is not an absolute path", f"safekit logsave -m AM {os.path.abspath(file)}")
    paths = module_paths(module)
    lines = [show(line, language) + "\n" for line in select(paths, levels_of(information, everything), None)]
    with open(file, "w", encoding="utf-8") as handle:
        handle.writelines(lines)
    click.echo(f"{len(lines)} messages saved in {file}")
    return 0


def _write(module: str | None, level: str, message: tuple[str, ...]) -> int:
    from safekit.log.module import ModuleLog

    paths = module_paths(module)
    ModuleLog(paths.module, "user", node_name()).event(f"print{level}", text=" ".join(message))
    return 0


_message: Callable[..., Any] = click.argument("message", nargs=-1, required=True)


@command("printi", example='safekit printi -m mirror "the application is started"', json=False, admin=False)
@module_option
@_message
def printi_command(module: str | None, message: tuple[str, ...]) -> int:
    """Write an I(nformation) message in the module log. Needs no running module and no safeadmin."""
    return _write(module, "i", message)


@command("printe", example='safekit printe -m mirror "the application cannot start"', json=False, admin=False)
@module_option
@_message
def printe_command(module: str | None, message: tuple[str, ...]) -> int:
    """Write an E(vent) message in the module log. Needs no running module and no safeadmin."""
    return _write(module, "e", message)
