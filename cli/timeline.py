"""timeline: what happened on all servers, in one order."""

from __future__ import annotations

import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict

import click

from cli.base import Failure, colored, command, json_option, module_option, module_paths
from cli.distributed import ask_with_passwords, servers_of
from cli.logs import log_options
from safekit.log.messages import Language
from safekit.log.select import levels_of
from safekit.log.timeline import MAX_ENTRIES, BadTimeline, Clock, Entry, Source, clock, from_answer, lines, merge
from safekit.wire.targets import Target
from safekit.wire.webclient import Ask, CallError

DEFAULT_COUNT = 200
SECONDS = 30.0


@command(
    "timeline",
    example="safekit timeline -m mirror\nsafekit timeline -m mirror -A -s 500\nsafekit timeline --on node1,node2",
    admin=False,
)
@module_option
@click.option(
    "-s", "count", type=click.IntRange(1, MAX_ENTRIES), default=DEFAULT_COUNT, metavar="NB", help="Number of lines."
)
@click.option("--on", "servers", metavar="LIST", default="*", help='Which servers, as after -H (default "*", all).')
@log_options
@json_option
def timeline_command(
    module: str | None,
    count: int,
    servers: str,
    information: bool,
    everything: bool,
    language: Language,
    as_json: bool,
) -> int:
    """Show what happened on all servers in one order: module logs, commands, membership of the cluster.

    Dates are by the clock of this server; where the clock of another server differs, the difference is told and its
    lines are moved. Without -m: every module. Needs the web service on the other servers. The JSON is one entry a line.
    """
    if module is None and "SAFEMODULE" in os.environ:
        module = os.environ["SAFEMODULE"]
    if module is not None:
        module = module_paths(module, installed=False).module
    targets = servers_of(servers)
    query = f"level={levels_of(information, everything)}&lang={language}&lines={count}"
    ask = Ask("GET", f"/api/v1/timeline?{query}{f'&module={module}' if module else ''}", seconds=SECONDS)
    with ThreadPoolExecutor(len(targets)) as pool:
        told = list(pool.map(lambda target: _of_server(target, ask), targets))
    found: list[tuple[list[Entry], Clock]] = []
    for target, answer in zip(targets, told, strict=True):
        if isinstance(answer, CallError):
            click.echo(f"Error: {target.label} is missing here: {answer.text}", err=True)
            if answer.next_step:
                click.echo(f"Next step: {answer.next_step}", err=True)
            continue
        found.append(answer)
        if answer[1].differs and abs(answer[1].ahead) >= 0.001:
            side = "ahead of" if answer[1].ahead > 0 else "behind"
            click.echo(
                f"The clock of {target.label} is {abs(answer[1].ahead):.3f} s {side} the clock of this server "
                f"(known within {answer[1].within:.3f} s): its lines are moved",
                err=True,
            )
    if not found:
        raise Failure("no server answered", "safekit webserver start on the servers")
    merged = merge(found, count)
    for line in (json.dumps(asdict(entry)) for entry in merged) if as_json else lines(merged, _paint):
        click.echo(line)
    return int(len(found) < len(targets))


def _of_server(target: Target, ask: Ask) -> tuple[list[Entry], Clock] | CallError:
    asked = time.time()
    try:
        answer = ask_with_passwords(target, ask)
    except CallError as error:
        return error
    arrived = time.time()
    try:
        entries, received, answered = from_answer(target.label, answer)
    except BadTimeline as error:
        return CallError("http", str(error), "install the same release of SafeKit on every server")
    return entries, clock(asked, received, answered, arrived)


def _paint(text: str, source: Source) -> str:
    if not colored() or source == "log":
        return text
    return click.style(text, bold=True) if source == "command" else click.style(text, dim=True)
