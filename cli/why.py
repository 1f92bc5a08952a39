"""safekit why: the last decisions of a module, in plain sentences; with -v also the rules and their values."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping

import click

from cli.base import command, module_option, module_paths, wrapped
from safekit.disk.paths import ModulePaths, node_name
from safekit.disk.resources import Resource, load
from safekit.view.decisions import Decision, history, last
from safekit.view.story import Event, sentence, story
from safekit.view.words import moment

DEFAULT_COUNT = 10


def explain(decision: Decision, resources: Mapping[str, Resource], *, local: bool = True) -> list[str]:
    """A decision with its values. An input is shown with who set it and when; where the history does not say that, the
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


def told(event: Event) -> str:
    """An event in one line."""
    node = f"{event.node}  " if event.node else ""
    outcome = f" -> {event.outcome}" if event.outcome else ""
    return f"{moment(event.time)}  {node}{event.text}{outcome}"


@command("why", example="safekit why -m mirror\nsafekit why -m mirror -s 30 -v\nsafekit why -m mirror -s 3 --json")
@module_option
@click.option("-s", "count", type=click.IntRange(min=1), default=DEFAULT_COUNT, metavar="NB", help="How many.")
@click.option("-v", "verbose", is_flag=True, help="Every decision, with its rule and values, who set them and when.")
@click.option("--json", "as_json", is_flag=True, help="JSON, one decision a line.")
def why_command(module: str | None, count: int, verbose: bool, as_json: bool) -> int:
    """Explain the last decisions of a module on both servers, in one time line: who or which rule wanted what, why, and
    what came of it (after the arrow). The values are shown by -v.

    In the JSON, `sentence` is the decision in words, "" for one that says nothing to people.
    """
    paths = module_paths(module)
    everything = list(history(paths.why))
    if as_json:
        for decision in last(everything, count):
            click.echo(json.dumps({**decision.__dict__, "sentence": sentence(decision)}))
        return 0
    if not everything:
        click.echo(f"{paths.module}: no decision yet on this server.")
        click.echo(f"Next step: safekit start -m {paths.module}")
        return 0
    for line in _with_values(paths, last(everything, count)) if verbose else map(told, story(everything)[-count:]):
        click.echo(wrapped(line, "          "))
    own = node_name()
    known = {d.node: d.time for d in everything if d.node not in ("", own)}
    for node, at in known.items():
        click.echo(
            wrapped(f"Decisions of {node} are known up to {moment(at)}, as its heartbeats told them (by its clock).")
        )
    return 0


def _with_values(paths: ModulePaths, decisions: Iterable[Decision]) -> Iterator[str]:
    resources, own = load(paths.resources), node_name()
    for decision in decisions:
        yield from explain(decision, resources, local=decision.node in ("", own))
