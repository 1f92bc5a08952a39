"""safekit diff: in what a module differs between the servers of the cluster (beyond the guide)."""

from __future__ import annotations

import difflib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click

from cli.base import Failure, colored, command, json_option, module_option, module_paths, show_json
from cli.distributed import ask_with_passwords, command_ask, servers_of
from safekit.disk.paths import ModulePaths, node_name
from safekit.wire.targets import Target
from safekit.wire.webclient import CallError

MAX_TEXT = 256 * 1024
"""Bytes of a file that are shown; of longer ones only the digest is compared."""
Facts = Mapping[str, Any]
"""What a server tells of a module (`own`)."""
_FACTS = (("version", "SafeKit"), ("id", "module id"), ("key", "module key"), ("cluster_key", "cluster key"))


# ------------------------------------------------------------------------------- what this server has


def own(paths: ModulePaths, wanted: Sequence[str] = ()) -> dict[str, Any]:
    """The applied configuration of this server: digests of its files, keys by their fingerprint, and the text of the
    files that are `wanted`. Raises Failure when there is none."""
    from safekit import __version__
    from safekit.configuration import ConfigureError, active_stamp, current_signature
    from safekit.model.store import ACTIVE_JSON, TreeError, files_of
    from safekit.wire.keys import MODULE_KEY, cluster_key, fingerprint, module_key

    try:
        applied = active_stamp(paths.module)
        edited = paths.root.is_dir() and current_signature(paths.module).signature != applied.signature
        found = dict(files_of(paths.active))
        key = module_key(paths.module)
    except (ConfigureError, TreeError, ValueError, OSError) as error:
        step = getattr(error, "next_step", "") or f"safekit config -m {paths.module}"
        raise Failure(str(error), step) from None
    try:
        cluster = fingerprint(cluster_key())
    except (OSError, ValueError):
        cluster = "none"
    secret = {f"conf/{MODULE_KEY}", f"conf/{ACTIVE_JSON}"}
    return {
        "node": node_name(),
        "version": __version__,
        "id": paths.id_file.read_text().strip() if paths.id_file.exists() else "none",
        "key": fingerprint(key) if key is not None else "none",
        "cluster_key": cluster,
        "edited": edited,
        "files": {name: _digest(path) for name, path in found.items() if name not in secret},
        "texts": {name: _text(found[name]) for name in wanted if name in found and name not in secret},
    }


def _digest(path: Path) -> str:
    if path.is_symlink():
        return f"link to {os.readlink(path)}"
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def _text(path: Path) -> str | None:
    """None for what is no text, or too long."""
    if path.is_symlink() or path.stat().st_size > MAX_TEXT:
        return None
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return None


# ------------------------------------------------------------------------------- comparing


def differing(mine: Facts, theirs: Facts) -> list[str]:
    """The files that are not the same on both servers."""
    here, there = mine["files"], theirs["files"]
    return sorted(name for name in {*here, *there} if here.get(name) != there.get(name))


def lines(mine: Facts, theirs: Facts) -> Iterator[str]:
    """In what two servers differ, for people; nothing when they are the same."""
    here, there = mine["node"], theirs["node"]
    for name, word in _FACTS:
        if mine[name] != theirs[name]:
            yield f"{word}: {mine[name]} on {here}, {theirs[name]} on {there}"
    for name in differing(mine, theirs):
        if name not in theirs["files"] or name not in mine["files"]:
            yield f"{name}: only on {here if name in mine['files'] else there}"
            continue
        before, after = mine["texts"].get(name), theirs["texts"].get(name)
        if before is None or after is None:
            yield f"{name}: differs ({mine['files'][name]} on {here}, {theirs['files'][name]} on {there})"
            continue
        yield f"{name}:"
        changed = difflib.unified_diff(
            before.splitlines(), after.splitlines(), f"{name} on {here}", f"{name} on {there}", lineterm=""
        )
        yield from (f"    {line}" for line in changed)


# ------------------------------------------------------------------------------- the command


@command(
    "diff",
    example="safekit diff -m mirror\nsafekit diff -m mirror --on node2\nsafekit diff -m mirror --json",
    admin=False,
)
@module_option
@click.option("--on", "servers", metavar="LIST", default="*", help='Which servers, as after -H (default "*", all).')
@click.option("--own", "only_own", is_flag=True, help="What this server has, as JSON; asked by other servers.")
@click.option("--text", "texts", multiple=True, metavar="FILE", help="With --own: also the text of this file.")
@json_option
def diff_command(module: str | None, servers: str, only_own: bool, texts: tuple[str, ...], as_json: bool) -> int:
    """Show in what the applied configuration of a module differs between this server and the others: userconfig.xml,
    scripts and other files line by line, release, id, and keys by their fingerprint.

    Needs the web service on the other servers. Keys are never shown; -/+ are lines of this and of the other server.
    Exit code: 0 everywhere the same, 1 it differs, or a server could not be asked.
    """
    paths = module_paths(module)
    if only_own:
        return show_json(own(paths, texts))
    others = [target for target in servers_of(servers) if target.node != node_name()]
    if not others:
        raise Failure(
            "there is no other server to compare with", 'safekit cluster confinfo names them; --on "*" is all'
        )
    mine = own(paths)
    with ThreadPoolExecutor(len(others)) as pool:
        told = list(pool.map(lambda target: _of_server(target, paths.module, mine), others))
    answers = {target.label: each for target, each in zip(others, told, strict=True)}
    mine = own(paths, sorted({name for each in told if "files" in each for name in differing(mine, each)}))
    if as_json:
        return _as_data(mine, answers)
    worst = 0
    for label, answer in answers.items():
        worst |= _show(paths.module, mine, label, answer)
    return worst


def _of_server(target: Target, module: str, mine: Facts) -> dict[str, Any]:
    """What a server has, with the text of the files that differ; {"error", "next_step"} when that cannot be known."""
    answer = _ask(target, module, ())
    if "error" in answer:
        return answer
    names = [name for name in differing(mine, answer) if name in answer["files"] and name in mine["files"]]
    return _ask(target, module, names) if names else answer


def _ask(target: Target, module: str, texts: Sequence[str]) -> dict[str, Any]:
    wanted = [word for name in texts for word in ("--text", name)]
    ask = command_ask(("diff", "--own", "--json", "-m", module, *wanted))
    try:
        answer = ask_with_passwords(target, ask)
    except CallError as error:
        return {"error": error.text, "next_step": error.next_step}
    try:
        found = json.loads(str(answer.get("output", "")))
        if "error" in found or {"files", "texts", *(name for name, _ in _FACTS)} <= set(found):
            return dict(found)
    except (ValueError, TypeError):
        pass  # a release without this command answers with the words of an error
    return {
        "error": "this server does not know the command",
        "next_step": "install the same release of SafeKit on every server",
    }


def _show(module: str, mine: Facts, label: str, answer: Facts) -> int:
    """One other server, for people; 1 when it differs or is not known."""
    if "error" in answer:
        click.echo(f"Error: {label}: {answer['error']}", err=True)
        if answer.get("next_step"):
            click.echo(f"Next step: {answer['next_step']}", err=True)
        return 1
    found = list(lines(mine, answer))
    if not found:
        click.echo(f"module {module} is the same on {mine['node']} and {answer['node']}")
    else:
        click.echo(f"module {module} differs between {mine['node']} and {answer['node']}:")
    for line in found:
        click.echo(f"  {_paint(line)}")
    for each in (mine, answer):
        if each["edited"]:
            click.echo(f"  on {each['node']} SAFE/modules/{module} was changed, and not applied yet (safekit config)")
    if found:
        click.echo(f"Next step: on the server with the right one: safekit -H SERVERS -E {module}")
    return int(bool(found))


def _paint(line: str) -> str:
    mark = line.removeprefix("    ")[:1]
    if not colored() or not line.startswith("    ") or mark not in "-+":
        return line
    return click.style(line, fg="red" if mark == "-" else "green")


def _as_data(mine: Facts, answers: Mapping[str, Facts]) -> int:
    """For programs: of each server what is other there; the exit code."""
    servers: dict[str, Any] = {}
    for label, answer in answers.items():
        if "error" in answer:
            servers[label] = {"ok": False, "error": answer["error"], "next_step": answer.get("next_step", "")}
            continue
        facts = {name: [mine[name], answer[name]] for name, _ in _FACTS if mine[name] != answer[name]}
        files = {name: [mine["files"].get(name), answer["files"].get(name)] for name in differing(mine, answer)}
        same = not facts and not files
        servers[label] = {"ok": True, "same": same, "edited": answer["edited"], "facts": facts, "files": files}
    same = all(each.get("same") for each in servers.values())
    show_json({"node": mine["node"], "same": same, "edited": mine["edited"], "servers": servers})
    return int(not same)
