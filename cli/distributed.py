"""-H, -E and -G: the same command on several servers (guide 9.1).

The servers are asked in parallel and shown one after the other, in the order of the list. The exit status is the
worst one; a server that could not be asked counts as 1.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import click

from cli.base import Failure, check_access, on_terminal, os_user, paint, show_json
from cli.progress import INTERVAL, Live, Meter
from safekit.disk.paths import cluster_dir, node_name, safevar, speaks_https
from safekit.model.codec import CodecError, from_json
from safekit.model.types import ClusterConfig
from safekit.view.words import duration
from safekit.wire.keys import asking_keys, cluster_key, next_key
from safekit.wire.targets import Credentials, Target, TargetError, default_list, parse_targets
from safekit.wire.webclient import Ask, CallError, call

MAX_SERVERS = 64
CLUSTER_PATH = "/api/v1/cluster"
SECONDS = 120.0
PATIENT_SECONDS = 86400.0
LONG = 1 << 20
"""Bytes of a request from which on its sending is shown."""
PATIENT = frozenset({"waitstart", "waitstop", "waitstate", "shutdown", "config", "snapshot", "dump", "forcestop"})
USER_VARIABLE, PASSWORD_VARIABLE = "SAFEKIT_USER", "SAFEKIT_PASSWORD"
_LOCAL = {
    "-p": "it shows the paths of one server",
    "-r": "special commands are for one server",
    "logview": "it follows the log of one server",
    "scripts": "a script is tried where its output is watched",
    "timeline": "it asks the servers itself (option --on)",
    "webserver": "it would end the service that carries it",
}


@dataclass(frozen=True)
class Order:
    """A distributed command line. `kind` is command, deploy (-E) or cluster (-G)."""

    kind: str
    servers: str | None
    module: str
    words: tuple[str, ...]
    insecure: bool = False
    """Passwords and keys may go in clear, to whoever answers."""
    as_json: bool = False
    """Of -E and -G: what became of it on each server, for a program."""


def parse_order(words: Sequence[str]) -> Order:
    """Take -H, -E and -G out of a line. Raises Failure."""
    servers: str | None = None
    kind, module, insecure = "command", "", False
    rest: list[str] = []
    index = 0
    while index < len(words):
        word = words[index]
        if word in ("-H", "-E") and (kind == "command" or word == "-H") and not _inside_command(rest):
            if index + 1 >= len(words) or (word == "-E" and words[index + 1].startswith("-")):
                what = "a list of servers" if word == "-H" else "the name of a module"
                raise Failure(f"{word} needs {what}", 'safekit -H "*" state    safekit -H "*" -E AM')
            if word == "-H":
                servers = words[index + 1]
            else:
                kind, module = "deploy", words[index + 1]
            index += 2
            continue
        if word == "--insecure" and not _inside_command(rest):
            insecure = True
        elif word == "-G" and kind == "command" and not _inside_command(rest):
            kind = "cluster"
        else:
            rest.append(word)
        index += 1
    as_json = kind != "command" and "--json" in rest
    if as_json:
        rest.remove("--json")
    if kind == "deploy" and rest[:1] == ["-m"] and len(rest) == 2:
        rest = []
    if kind != "command" and rest:
        raise Failure(f"{'-E' if kind == 'deploy' else '-G'} takes no command: {' '.join(rest)}", "leave it out")
    if kind == "command":
        if not rest:
            raise Failure("which command? nothing follows the list of servers", 'safekit -H "*" state')
        for word in [rest[0], _command(rest)]:
            if word in _LOCAL:
                raise Failure(f"safekit {word} cannot be used with -H: {_LOCAL[word]}", "run it on that server")
    return Order(kind, servers, module, tuple(rest), insecure, as_json)


def _command(rest: Sequence[str]) -> str:
    words = list(rest)
    while len(words) > 2 and words[0] in ("-m", "-u", "-i"):
        del words[:2]
    return words[0] if words else ""


def _inside_command(rest: Sequence[str]) -> bool:
    """Whether the command has begun: what follows it is its own."""
    return bool(rest) and not _command(rest).startswith("-")


def configured_cluster() -> ClusterConfig | None:
    """The cluster of this server, None while it is in none. Raises Failure for a configuration that is damaged."""
    try:
        return from_json(ClusterConfig, (cluster_dir() / "cluster.json").read_bytes())
    except FileNotFoundError:
        return None
    except CodecError as error:
        raise Failure(f"{cluster_dir() / 'cluster.json'}: {error}", "safekit cluster config") from None


def _servers(order: Order) -> str:
    if order.servers is not None:
        return order.servers
    path = safevar() / "default_cluster.txt"
    try:
        return default_list(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise Failure(
            f"which servers? there is no -H, and {path} does not exist", 'add -H "*", or write the list in that file'
        ) from None


def _credentials() -> Credentials | None:
    password = os.environ.get(PASSWORD_VARIABLE)
    return Credentials(os.environ.get(USER_VARIABLE, "admin"), password) if password is not None else None


def servers_of(text: str) -> tuple[Target, ...]:
    """The servers of a list as after -H. Raises Failure."""
    try:
        targets = parse_targets(text, configured_cluster(), node_name(), "https" if speaks_https() else "http")
    except TargetError as error:
        raise Failure(error.text, error.next_step) from None
    if len(targets) > MAX_SERVERS:
        raise Failure(f"{len(targets)} servers are too many; at most {MAX_SERVERS}", "run it in parts")
    return targets


def ask_with_passwords(target: Target, ask: Ask) -> dict[str, Any]:
    """Ask one server: signed, or with the name and password of the environment. Raises CallError."""
    return call(target, ask, asking_keys(), _credentials())[0]


def run_distributed(words: Sequence[str]) -> int:
    """Do a distributed command line; the exit status. Raises Failure when nothing could be begun."""
    check_access()
    order = parse_order(words)
    targets = servers_of(_servers(order))
    if order.kind == "command":
        if "--json" not in order.words:
            return _everywhere(targets, lambda target: command_ask(order.words), insecure=order.insecure)
        told: dict[str, Any] = {}
        worst = _everywhere(targets, lambda target: command_ask(order.words), collected=told, insecure=order.insecure)
        return show_json(told) or worst
    from safekit.log.commands import finished, started

    entry, code = started(*words), 1
    try:
        collected: dict[str, Any] | None = {} if order.as_json else None
        if order.kind == "cluster":
            code = _give_cluster(targets, collected, insecure=order.insecure)
        else:
            code = _give_module(targets, order.module, collected, insecure=order.insecure)
        if collected is not None:
            show_json(collected)
    finally:
        finished(entry, code)
    return code


def command_ask(words: tuple[str, ...]) -> Ask:
    """The request by which another server runs a command, in the name of who runs this one."""
    seconds = PATIENT_SECONDS if _command(words) in PATIENT or "--wait" in words else SECONDS
    body = json.dumps({"arguments": list(words), "timeout": seconds}).encode()
    # Who asks is signed with the request, and stands in the logs there.
    behalf = urlencode({"on_behalf": f"{os_user()}@{node_name()}", "role": "Admin"})
    return Ask("POST", f"/api/v1/command?{behalf}", body, seconds=seconds)


# Asking and showing

Outcome = tuple[dict[str, Any], bool] | CallError


def _ask(target: Target, ask: Ask, keys: Sequence[bytes], credentials: Credentials | None, insecure: bool) -> Outcome:
    try:
        return call(target, ask, keys, credentials, insecure=insecure)
    except CallError as error:
        return error


class Waiting:
    """What is shown on a terminal until the servers have answered: who is missing, and how far bodies are sent."""

    def __init__(self, targets: Sequence[Target]) -> None:
        self._labels = [target.label for target in targets]
        self._sent: dict[str, int] = {}
        self._total = 0
        self._meter: Meter | None = None
        self._began = time.monotonic()
        self._live = Live()

    def __enter__(self) -> Waiting:
        return self

    def __exit__(self, *_: object) -> None:
        self._live.end()

    def watched(self, target: Target, ask: Ask) -> Ask:
        """The request, which tells how much of it is sent when it is long."""
        if len(ask.body) < LONG:
            return ask
        label = target.label
        self._total += len(ask.body)
        self._meter = Meter(self._total)

        def sent(count: int) -> None:
            self._sent[label] = min(count, len(ask.body))

        return replace(ask, sent=sent)

    def for_one(self, future: Future[Outcome], all_of_them: Sequence[tuple[Target, Future[Outcome]]]) -> Outcome:
        """The outcome of one server."""
        while on_terminal() and not wait([future], INTERVAL).done:
            self._live.show(self._line({target.label for target, each in all_of_them if not each.done()}))
        self._live.end()
        return future.result()

    def _line(self, missing: set[str]) -> str:
        names = ", ".join(label for label in self._labels if label in missing)
        done = sum(self._sent.values())
        if self._meter is not None and done < self._total:
            return f"sending {self._meter.line(done)}, to {names}"
        return f"waiting for {names} ({duration(time.monotonic() - self._began)})"


def _everywhere(
    targets: Sequence[Target],
    ask_of: Callable[[Target], Ask],
    done: str = "",
    collected: dict[str, Any] | None = None,
    *,
    insecure: bool = False,
) -> int:
    """Ask all servers at once and show each one, or put them in `collected`; the worst status. `done`: said for a
    server where it worked."""
    keys, worst = asking_keys(), 0
    with ThreadPoolExecutor(len(targets)) as pool, Waiting(targets) as waiting:

        def start(target: Target, credentials: Credentials | None) -> Future[Outcome]:
            return pool.submit(_ask, target, waiting.watched(target, ask_of(target)), keys, credentials, insecure)

        futures = [(target, start(target, _credentials())) for target in targets]
        asked: Credentials | None = None
        for index, (target, future) in enumerate(futures):
            outcome = waiting.for_one(future, futures)
            if isinstance(outcome, CallError) and outcome.kind == "credentials" and sys.stdin.isatty():
                asked = asked or _prompt([t for t, f in futures[index:] if _wants(f.result())])
                if asked is not None:
                    outcome = start(target, asked).result()
            if collected is None:
                status = _show(target, outcome, done, ask_of(target).path != CLUSTER_PATH)
            else:
                collected[target.label] = as_data(target, outcome)
                status = int(collected[target.label]["status"])
            worst = max(worst, status)
    return worst


def as_data(target: Target, outcome: Outcome) -> dict[str, Any]:
    """What a program reads of a server's answer: `output` is the command's own JSON (a list where it is one a line),
    or its text where there is none."""
    data: dict[str, Any] = {"node": target.node, "url": target.url, "status": 1}
    if isinstance(outcome, CallError):
        return {**data, "error": outcome.kind, "text": outcome.text, "next_step": outcome.next_step}
    answer = outcome[0]
    text = str(answer.get("output", ""))
    data |= {"status": int(answer.get("status", 1)), "ended": bool(answer.get("ended", True))}
    try:
        return {**data, "output": json.loads(text)}
    except ValueError:
        pass  # one a line, or the words of an error
    try:
        return {**data, "output": [json.loads(line) for line in text.splitlines()]}
    except ValueError:
        return {**data, "output": text}


def _wants(outcome: Outcome) -> bool:
    return isinstance(outcome, CallError) and outcome.kind == "credentials"


def _prompt(targets: Sequence[Target]) -> Credentials | None:
    """A name and a password typed by the administrator; None when nothing is typed."""
    names = ", ".join(target.label for target in targets)
    click.echo(f"Not yet in this cluster, or with another key: {names}", err=True)
    user = click.prompt("User of the web service there", default="admin", err=True)
    password = click.prompt("Password", hide_input=True, default="", show_default=False, err=True)
    return Credentials(user, password) if password else None


def _show(target: Target, outcome: Outcome, done: str, again: bool) -> int:
    title = f"{target.node} {target.url}" if target.node else target.url
    if isinstance(outcome, CallError):
        click.echo(f"--- {title}: {paint('failed', 'red')}")
        sys.stdout.flush()
        click.echo(f"Error: {target.label}: {outcome.text}", err=True)
        step = outcome.next_step
        if outcome.kind == "credentials":
            step = (
                "its installer printed the password of user admin (with -q: it is in /var/safekit/admin-password"
                f" there). Run it in a terminal, which asks for it, or with {PASSWORD_VARIABLE}=... (another"
                f" user: {USER_VARIABLE}=...); a server that asks nobody for a password needs --insecure"
            )
            if target.node and again:
                step += f"; safekit -H {target.node} -G brings it into this cluster, once"
        if step:
            click.echo(f"Next step: {step}", err=True)
        return 1
    answer, in_clear = outcome
    status = int(answer.get("status", 1))
    ended = bool(answer.get("ended", True))
    verdict = "" if status == 0 else f": exit status {status}"
    click.echo(f"--- {title}{verdict if ended else ': goes on'}")
    output = str(answer.get("output", "")).rstrip("\n")
    if output:
        click.echo(output)
    if answer.get("truncated"):
        click.echo("(the rest of the output was cut)")
    if not ended:
        click.echo(f"It had not ended after {answer.get('seconds')} s and goes on there.")
    if status == 0 and ended and done:
        click.echo(done)
    if in_clear:
        click.echo(
            f"Warning: keys went to {target.label} in clear, as it had no common key yet; where that network is not "
            "trusted: safekit cluster genkey, and -G again",
            err=True,
        )
    return status


# -G and -E


def _give_cluster(targets: Sequence[Target], collected: dict[str, Any] | None, *, insecure: bool) -> int:
    """The cluster's configuration and key, to each server; all or nothing on each."""
    from safekit.bus.keyholders import key_holders

    try:
        xml = (cluster_dir() / "cluster.xml").read_text(encoding="utf-8")
        waiting = next_key()
        key = waiting or cluster_key()
    except FileNotFoundError:
        raise Failure("the cluster is not configured on this server", "safekit cluster config cluster.xml") from None
    except (ValueError, OSError) as error:
        raise Failure(str(error), "safekit cluster config") from None
    body = json.dumps({"cluster.xml": xml, "cluster.key": key.hex()}).encode()
    ask = Ask("PUT", CLUSTER_PATH, body, secret=True, seconds=SECONDS)
    holders = key_holders()
    worst = _everywhere(
        targets,
        lambda target: replace(ask, only_sealed=target.node in holders),
        collected=collected,
        insecure=insecure,
    )
    if worst:
        click.echo("Not every server has the configuration: those that failed are as they were.", err=True)
        click.echo("Next step: correct the cause, then run the same command again", err=True)
    elif waiting is not None and node_name() not in {target.node for target in targets}:
        click.echo(f"Next step: the new key is not in force here: safekit -H {node_name()} -G", err=True)
    return worst


def module_ask(module: str) -> Ask:
    """The request that gives another server a module of this one: installed there, and configured when it is configured
    here. Raises Failure."""
    import tempfile
    from urllib.parse import quote

    from cli.base import module_paths
    from cli.ids import module_id
    from safekit.disk.archive import pack

    paths = module_paths(module)
    configured = paths.active_json.exists()
    with tempfile.TemporaryDirectory() as directory:
        archive = Path(directory) / f"{module}.safe"
        pack(paths.root, archive)
        content = archive.read_bytes()
    path = f"/api/v1/modules/{quote(module)}/archive?id={module_id(paths) or 0}&configure={int(configured)}"
    if not configured:
        click.echo(f"module {module} is not configured here, so it is only installed on the servers", err=True)
    return Ask("PUT", path, content, "application/zip", secret=True, seconds=SECONDS)


def _give_module(targets: Sequence[Target], module: str, collected: dict[str, Any] | None, *, insecure: bool) -> int:
    """A module, to each server."""
    from safekit.bus.keyholders import key_holders

    ask, holders = module_ask(module), key_holders()
    worst = _everywhere(
        targets,
        lambda target: replace(ask, only_sealed=target.node in holders),
        collected=collected,
        insecure=insecure,
    )
    if worst:
        click.echo(f"Not every server has module {module} as it is here: those that failed are as they were.", err=True)
        click.echo("Next step: correct the cause, then run the same command again", err=True)
    return worst
