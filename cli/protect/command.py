"""safekit protect: asks what is missing, shows what would be done and what speaks against it, and has it done."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from typing import Any

import click

from cli.base import Failure, command, complete_modules, on_terminal, paint, require_admin, show_json
from cli.protect import look, way
from cli.protect.facts import Server
from cli.protect.files import files_of
from cli.protect.plan import Plan, Wish, make
from safekit.disk.paths import ModulePaths, node_name, valid_module_name
from safekit.model.codec import CodecError, from_json, to_data, to_json
from safekit.model.types import ClusterConfig
from safekit.view.module import read_module
from safekit.view.verdict import Kind, Verdict
from safekit.view.words import duration, size
from safekit.wire.targets import Target

_STEPS = ("facts", "make-way", "take-back", "done")


@command(
    "protect",
    example="safekit protect\n"
    "safekit protect --service postgresql --data /var/lib/postgresql --address 10.0.0.50 --with node2\n"
    "safekit protect --service redis-server --data /var/lib/redis --dry-run",
    modifies=True,
    reads=lambda parameters: bool(parameters["dry_run"] or parameters["step"] == "facts"),
)
@click.option("--service", metavar="UNIT", default="", help="The service of systemd, which runs on this server.")
@click.option("--data", "data", metavar="DIR", multiple=True, help="A directory with its data. Repeatable.")
@click.option("--address", metavar="IP", default="", help="A free address for its clients, which moves with it.")
@click.option("--with", "other", metavar="NODE", default="", help="The other server; the only other one by default.")
@click.option("--module", "module", metavar="NAME", default="", shell_complete=complete_modules,
              help="Name of the module; that of the service by default.")  # fmt: skip
@click.option("--port", type=click.IntRange(0, 65535), default=0, metavar="PORT",
              help="TCP port that is checked; the one that the service listens on by default.")  # fmt: skip
@click.option("--timeout", type=click.FloatRange(1, 3600), default=30.0, show_default=True, metavar="SECONDS",
              help="How long a silent server is believed to live.")  # fmt: skip
@click.option("--witness", metavar="IP", default="", help="An address that decides when the servers lose each other.")
@click.option("--despite", metavar="CODE", multiple=True, help="Do it despite this; the refusal names the code.")
@click.option("--dry-run", "dry_run", is_flag=True, help="Show the plan and the files, and change nothing.")
@click.option("-y", "--yes", "yes", is_flag=True, help="Do not ask whether to go on.")
@click.option("--json", "as_json", is_flag=True, help="JSON, for programs; asks nothing.")
@click.option(
    "--step", type=click.Choice(_STEPS), default=None, hidden=True, help="What the other server is asked for."
)
@click.option("--order", default="", hidden=True, help="Its values.")
def protect_command(
    service: str, data: tuple[str, ...], address: str, other: str, module: str, port: int, timeout: float,
    witness: str, despite: tuple[str, ...], dry_run: bool, yes: bool, as_json: bool, step: str | None, order: str,
) -> int:  # fmt: skip
    """Make a mirror of a service that runs on this server: its data are replicated, it fails over.

    Without options it asks, with what it finds by looking as defaults.
    The service is stopped for a few seconds and started again by the module. On the other server it is stopped, and
    what is in its directories there is kept under another name. Both are checked before anything is changed. When the
    service does not come up under the module, everything is taken back and it runs as before.

    The module is an ordinary one, in SAFE/modules/NAME. Exit code: 0 protected (or nothing speaks against it, with
    --dry-run), 1 not, with the cause and the next step.
    """
    wish = Wish(
        service, tuple(os.path.normpath(each) for each in data), address, other, module, timeout, port, witness,
        frozenset(despite),
    )  # fmt: skip
    if not valid_module_name(wish.name):
        raise Failure(
            f"{wish.name!r} is no name of a module", "--module NAME: letters, digits, '_', '-', '.', at most 64"
        )
    if step is not None:
        return _step(step, wish, order)
    began = time.monotonic()
    cluster = _cluster()
    wish = _complete(wish, cluster, asking=on_terminal() and not as_json and not yes)
    if _protected_already(wish, as_json):
        return 0
    if way.note_file(wish.name).exists() and not ModulePaths(wish.name).root.exists():
        raise Failure(
            f"an earlier safekit protect of {wish.name} was interrupted",
            f"safekit protect --step take-back --module {wish.name}, here and on {wish.other}; then this one again",
        )
    target = _target(wish.other)
    plan = _plan(wish, cluster, target)
    if as_json:
        return _by_program(plan, target, began, dry_run=dry_run)
    _show(plan)
    if dry_run:
        for path, text in files_of(plan).items():
            click.echo(f"\n--- {ModulePaths(plan.module).root / path}\n{text}", nl=False)
    if plan.obstacles:
        return _refuse(plan)
    if dry_run:
        click.echo("\nNothing was changed. Next step: the same command without --dry-run")
        return 0
    if not yes and not _agreed():
        return 1
    from cli.protect.run import carry_out, counted

    verdict = carry_out(plan, target, counted())
    return _tell(plan, verdict, time.monotonic() - began)


# --------------------------------------------------------------------------------- what the other server is asked for


def _step(step: str, wish: Wish, order: str) -> int:
    if step == "facts":
        click.echo(to_json(look.server(wish.service, wish.directories, wish.address)))
        return 0
    if os.geteuid() != 0:
        raise Failure("this stops services, which only root may", "run it as root")
    if step == "make-way":
        try:
            way.make(from_json(way.Order, order))
        except CodecError as error:
            raise Failure(
                f"an order that cannot be read: {error}", "install the same release on both servers"
            ) from None
    elif step == "take-back":
        way.take_back(wish.name)
    else:
        way.forget(wish.name)
    return 0


def _facts_there(wish: Wish, target: Target) -> tuple[Server, float]:
    """The other server, and by how many seconds its clock is ahead. Raises Failure."""
    from cli.protect.run import command_there

    words = ["protect", "--step", "facts", "--service", wish.service, "--address", wish.address]
    before = time.time()
    said = command_there(target, *words, *(word for path in wish.directories for word in ("--data", path)))
    after = time.time()
    line = next((line for line in said.splitlines() if line.startswith("{")), "")
    try:
        found = from_json(Server, line, lenient=True)
    except CodecError as error:
        text = f"{target.label} does not know this command ({error})"
        raise Failure(text, f"install the same release of SafeKit on {target.label}") from None
    # It looks at its clock last but for a ping; the margin for the rest is far below what matters.
    return found, found.clock - after if found.clock > after else min(found.clock - before, 0.0)


# --------------------------------------------------------------------------------- what is missing


def _cluster() -> ClusterConfig:
    from cli.distributed import configured_cluster

    found = configured_cluster()
    if found is None:
        raise Failure(
            "the cluster is not configured",
            "safekit cluster join there, then safekit cluster create here",
        )
    return found


def _complete(wish: Wish, cluster: ClusterConfig, *, asking: bool) -> Wish:
    """With everything that is needed: asked for, or found by looking. Raises Failure."""
    guided = asking and not wish.service
    if not wish.service:
        wish = replace(wish, service=_choose_service(asking))
    if not wish.other:
        wish = replace(wish, other=_choose_other(cluster, asking))
    elif wish.other == node_name() or wish.other not in cluster.node_names:
        names = ", ".join(name for name in cluster.node_names if name != node_name())
        raise Failure(f"{wish.other} is no other server of this cluster", f"choose one of: {names}")
    if not wish.directories:
        wish = replace(wish, directories=_choose_data(wish, asking))
    for path in wish.directories:
        if not path.startswith("/"):
            raise Failure(f"{path} is not an absolute path", f"--data {os.path.abspath(path)}")
    if guided and not wish.address:
        networks = ", ".join(look.server_networks())
        wish = replace(wish, address=click.prompt(
            f"A free address for the clients, in one of {networks} (empty: none)", default="", show_default=False
        ).strip())  # fmt: skip
    return wish


def _choose_service(asking: bool) -> str:
    found = look.listeners()
    if not asking:
        names = ", ".join(name.removesuffix(".service") for name, _ in found) or "none that listens"
        raise Failure("which service? --service is missing", f"safekit protect --service UNIT (found: {names})")
    click.echo("Services of this server that wait for clients:")
    for number, (name, ports) in enumerate(found, 1):
        places = ", ".join(sorted({f"{each.address}:{each.port}" for each in ports}))
        click.echo(f"  {number}  {name.removesuffix('.service')}  ({places})")
    answer = str(click.prompt("Number or name", default="1" if found else None)).strip()
    if answer.isdecimal() and 0 < int(answer) <= len(found):
        return found[int(answer) - 1][0].removesuffix(".service")
    return answer


def _choose_other(cluster: ClusterConfig, asking: bool) -> str:
    others = [name for name in cluster.node_names if name != node_name()]
    if len(others) == 1:
        return others[0]
    if not asking:
        raise Failure("which other server? --with is missing", f"--with one of: {', '.join(others) or 'none'}")
    return str(click.prompt("The other server", type=click.Choice(others)))


def _choose_data(wish: Wish, asking: bool) -> tuple[str, ...]:
    unit = look.find_unit(wish.service)
    if not unit.found:
        raise Failure(f"this server has no service {unit.name}", "systemctl list-units --type=service lists them")
    if not asking:
        guess = " ".join(f"--data {path}" for path in unit.data)
        raise Failure("which data? --data is missing", f"it may be: {guess}" if guess else f"systemctl cat {unit.name}")
    answer = click.prompt("Directories with its data, blanks between them", default=" ".join(unit.data) or None)
    return tuple(os.path.normpath(each) for each in str(answer).split())


def _protected_already(wish: Wish, as_json: bool) -> bool:
    """Whether the module is there and runs on two servers: then there is nothing to do."""
    known = require_admin().get("modules", {}).get(wish.name)
    if known is None or not ModulePaths(wish.name).active_json.exists():
        return False
    view = read_module(wish.name, known)
    if view.verdict.kind is not Kind.PROTECTED:
        return False
    if as_json:
        told = {"ok": True, "code": 0, "module": wish.name, "result": "protected", "changed": False}
        show_json({**told, "verdict": _verdict_data(view.verdict)})
    else:
        click.echo(f"{wish.name} is protected already: {view.verdict.reason}")
    return True


def _target(node: str) -> Target:
    from cli.distributed import servers_of

    return servers_of(node)[0]


def _plan(wish: Wish, cluster: ClusterConfig, target: Target) -> Plan:
    here = look.server(wish.service, wish.directories, wish.address)
    there, ahead = _facts_there(wish, target)
    return make(wish, cluster, here, there, ahead)


# --------------------------------------------------------------------------------- what is shown


def _show(plan: Plan) -> None:
    units = ", ".join(plan.units)
    click.echo(f"Module {plan.module}: {units}, from {plan.here} to {plan.there}")
    for each in plan.directories:
        click.echo(f"  data        {each.path}  ({size(each.bytes)}, {each.entries} entries)")
    click.echo(f"  clients     {plan.address or 'no virtual address'}")
    beats = ", ".join(f"{lan} (and the replication)" if lan == plan.flow else lan for lan in plan.lans)
    click.echo(f"  heartbeats  {beats or 'none'}; a server that is silent for {plan.timeout:g} s is taken for dead")
    tcp = f", TCP {plan.checked.address}:{plan.checked.port}" if plan.checked is not None else ""
    click.echo(f"  watched     {units} (started again here, then failover){tcp}")
    click.echo(f"  at boot     the module starts with the server; {units} by itself no more")
    if plan.seconds is not None:
        click.echo(f"  first copy  {duration(plan.seconds)} at a gigabit a second, while the service runs")
    for note in plan.notes:
        click.echo(f"{paint('Note', 'magenta')}: {note}")
    for waived in plan.waived:
        click.echo(f"{paint('Despite', 'magenta')}: {waived.text}")


def _refuse(plan: Plan) -> int:
    click.echo("", err=True)
    for each in plan.obstacles:
        click.echo(f"{paint('Error', 'red')}: {each.text}", err=True)
        where = f" (on {each.node})" if each.node else ""
        waive = f"; or, if you know better: --despite {each.code}" if each.waivable else ""
        click.echo(f"Next step{where}: {each.next_step}{waive}", err=True)
    click.echo("Nothing was changed.", err=True)
    return 1


def _agreed() -> bool:
    if not on_terminal():
        raise Failure("nobody is there to say whether to go on; nothing was changed", "the same command with --yes")
    return click.confirm("Go on? The service stops for a few seconds", default=False)


def _tell(plan: Plan, verdict: Verdict, seconds: float) -> int:
    kind = verdict.kind is Kind.PROTECTED
    click.echo(f"{plan.module} is {paint(verdict.kind.value, 'green' if kind else 'red')}: {verdict.reason}"
               f" ({duration(seconds)})")  # fmt: skip
    if verdict.next_step:
        click.echo(f"Next step: {verdict.next_step}")
    click.echo(f"The module is yours to edit: {ModulePaths(plan.module).root}; try it: safekit swap -m {plan.module}")
    return 0 if kind else 1


def _verdict_data(verdict: Verdict) -> dict[str, Any]:
    return {
        "kind": verdict.kind.value,
        "since": verdict.since,
        "reason": verdict.reason,
        "next_step": verdict.next_step,
    }


def _by_program(plan: Plan, target: Target, began: float, *, dry_run: bool) -> int:
    told: dict[str, Any] = {
        "module": plan.module,
        "result": "refused" if plan.obstacles else "planned",
        "changed": False,
        "plan": {key: value for key, value in to_data(plan).items() if key not in ("obstacles", "waived", "notes")},
        "notes": list(plan.notes),
        "obstacles": to_data(plan.obstacles),
        "waived": to_data(plan.waived),
    }
    if dry_run or plan.obstacles:
        code = 1 if plan.obstacles else 0
        first = {"error": plan.obstacles[0].text, "next_step": plan.obstacles[0].next_step} if code else {}
        show_json({"ok": not code, "code": code, **first, **told, "files": files_of(plan)})
        return code
    from cli.protect.run import carry_out

    steps: list[str] = []
    try:
        verdict = carry_out(plan, target, steps.append)
    except Failure as failure:
        text = {"error": failure.text, "next_step": failure.next_step}
        return show_json({"ok": False, "code": 1, **told, "result": "failed", "steps": steps, **text}) or 1
    told |= {"result": verdict.kind.value, "changed": True, "steps": steps, "verdict": _verdict_data(verdict)}
    code = 0 if verdict.kind is Kind.PROTECTED else 1
    show_json({"ok": not code, "code": code, **told, "seconds": round(time.monotonic() - began, 1)})
    return code
