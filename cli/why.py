"""safekit why: the last decisions of a module, with the rules that took them and what made them true."""

from __future__ import annotations

import json
from collections.abc import Mapping

import click

from cli.base import command, module_option, module_paths
from safekit.disk.paths import node_name
from safekit.disk.resources import Resource, load
from safekit.view.decisions import Decision, history, last
from safekit.view.words import moment

DEFAULT_COUNT = 10


def explain(decision: Decision, resources: Mapping[str, Resource], *, local: bool = True) -> list[str]:
    """Lines for people. An input is shown with who set it and when; where the history does not say that, the
    resources tell it for an input of this server (`local`) that still has its value."""
    node = f"{decision.node}  " if decision.node else ""
    head = f"{moment(decision.time)}  {node}{decision.action or 'no action'}  (rule {decision.rule})"
    lines = [head]
    if decision.text and not decision.text.startswith(f"{decision.rule}: {decision.action}"):
        lines.append(f"    {decision.text}")
    for name, given in sorted(decision.inputs.items()):
        value, setter, since = given, "", 0.0
        if isinstance(given, dict):
            value, setter = given.get("value"), str(given.get("setter") or "")
            since = float(given.get("since") or 0.0)
        now = resources.get(name) if local else None
        if not setter and now is not None and now.value == str(value) and now.since <= decision.time:
            setter, since = now.setter, now.since
        tail = f", set by {setter}" if setter else ""
        tail += f" at {moment(since)}" if since else ""
        lines.append(f"    {name} = {value}{tail}")
    return lines


@command("why", example="safekit why -m mirror\nsafekit why -m mirror -s 3 --json")
@module_option
@click.option("-s", "count", type=click.IntRange(min=1), default=DEFAULT_COUNT, metavar="NB", help="How many.")
@click.option("--json", "as_json", is_flag=True, help="JSON, one decision a line.")
def why_command(module: str | None, count: int, as_json: bool) -> int:
    """Explain the last decisions of a module on both servers, in one time line: which rule, what made it true, who
    set that and when."""
    paths = module_paths(module)
    everything = list(history(paths.why))
    found = last(everything, count)
    if as_json:
        for decision in found:
            click.echo(json.dumps(decision.__dict__))
        return 0
    if not found:
        click.echo(f"{paths.module}: no decision yet on this server.")
        click.echo(f"Next step: safekit start -m {paths.module}")
        return 0
    resources = load(paths.resources)
    own = node_name()
    for decision in found:
        for line in explain(decision, resources, local=decision.node in ("", own)):
            click.echo(line)
    known = {d.node: d.time for d in everything if d.node not in ("", own)}
    for node, at in known.items():
        click.echo(f"Decisions of {node} are known up to {moment(at)}, as its heartbeats told them (by its clock).")
    return 0
