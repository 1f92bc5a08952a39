"""The command `safelab`."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from lab import cluster
from lab.chaos.command import chaos
from lab.cluster import Lab
from lab.errors import LabError
from lab.ground import check_place, try_host
from lab.plan import CLIENT
from lab.state import NAME_VARIABLE, lab_directory, lab_names, labs_directory, load
from lab.steps import shown
from lab.window import open_window
from safekit.process import standard

_F = TypeVar("_F", bound=Callable[..., Any])


class LabGroup(click.Group):
    """Errors of labs end the command with their cause and the next step."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except LabError as error:
            click.echo(f"Error: {error.cause}", err=True)
            if error.next_step:
                click.echo(f"Next step: {error.next_step}", err=True)
            sys.exit(1)
        except BrokenPipeError:
            raise  # `safelab status | head`: standard.run knows that this is no error
        except OSError as error:
            click.echo(f"Error: {error}", err=True)
            click.echo(f"Next step: see the message; labs are kept in {labs_directory()}", err=True)
            sys.exit(1)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)  # in the order of a lab's life


def name_option(function: _F) -> _F:
    return click.option(
        "--name", "-n", "name", metavar="LAB", help=f"The lab; default: {NAME_VARIABLE}, else the only one that is up."
    )(function)


def lan_option(function: _F) -> _F:
    return click.option("--lan", "-l", "lan", metavar="LAN", help="Only this lan; default: all lans of the node.")(
        function
    )


@click.group(cls=LabGroup, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Whole SafeKit clusters on this machine, in namespaces: to try a configuration, and what happens when things fail.

    A node has its own network, processes, /opt/safekit, /var/safekit and /etc; it sees the rest of this host's files
    and changes its own copy only. Nothing touches this host's network.

    \b
    Example:
      safelab up                              two nodes, lans default and repli, a client
      safelab run node1 -- safekit state      a command in a node
      safelab run node1 -- bash               a shell in a node
      safelab web                             the web console, for a browser on this machine
      safelab poweroff node1                  the power of node1 fails
      safelab cut node2 --lan repli           a cable is unplugged
      safelab down                            all of it goes away
    """


@main.command()
@click.option("--nodes", default=2, show_default=True, metavar="N", help="Number of servers: node1, node2, ...")
@click.option(
    "--lans", default="default,repli", show_default=True, metavar="A,B", help="Networks; the client is on the first."
)
@click.option(
    "--name", "-n", "name", metavar="LAB", help="Name of the lab; default: the first free one of lab1, lab2, ..."
)
@click.option(
    "--bind",
    "binds",
    multiple=True,
    metavar="PATH",
    help="Keep this directory of each node directly on this host's file system, as /data always is. Repeatable.",
)
@click.option(
    "--disks", is_flag=True, help="A disk for each node: what was not synced (fsync) is gone after a power-off."
)
@click.option("--bare", is_flag=True, help="Install and start safeadmin only; the cluster is not configured.")
def up(nodes: int, lans: str, name: str | None, binds: Sequence[str], disks: bool, bare: bool) -> None:
    """Make a lab, install the product in its nodes, configure the cluster, start safeadmin.

    Prints the lab as JSON: nodes, addresses, process ids, a free address for a virtual IP. It shows how far it is and
    how long the rest took the last time. The first lab installs the product into an image, which is kept: the next ones
    take seconds. The image is made again when the product's files change.

    /data of each node (and every --bind PATH) lies directly on this host's file system: a good place for replicated
    directories. All other changes of a node go to an overlay. Both survive poweroff and poweron; with --disks they lie
    on a disk of the node (a sparse file), and only what was synced survives, as on a real server.
    """
    networks = [item for item in lans.split(",") if item]
    lab = Lab.up(name, nodes=nodes, lans=networks, binds=binds, disks=disks, bare=bare, steps=shown())
    click.echo(json.dumps(lab.summary(), indent=1))
    click.echo(f"The web console, for a browser on this machine: safelab web -n {lab.name}", err=True)


@main.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@name_option
@click.option("--cwd", metavar="DIR", help="Directory in the node; default /root.")
@click.option("--env", "environment", multiple=True, metavar="NAME=VALUE", help="Add to the environment. Repeatable.")
@click.argument("node")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def run(name: str | None, cwd: str | None, environment: Sequence[str], node: str, command: tuple[str, ...]) -> None:
    """Run COMMAND in a node, or in `client`, with its exit status.

    \b
      safelab run node1 -- safekit state
      safelab run client -- ping -c 1 10.88.1.50
    """
    words = list(command[1:] if command[0] == "--" else command)
    if not words:
        raise click.UsageError("no command: safelab run NODE -- COMMAND ...")
    process = Lab.attach(name).node(node).process
    variables = dict(item.partition("=")[::2] for item in environment)
    line = cluster.inside(process, words, variables, cwd)
    sys.stdout.flush()
    os.execvp(line[0], line)


@main.command()
@name_option
def web(name: str | None) -> None:
    """Make the nodes' web consoles reachable from a browser on this machine, until the lab goes away.

    Prints each node's address and the password of the user admin. Other machines cannot reach these addresses.
    """
    for line in web_lines(Lab.attach(name)):
        click.echo(line)


def web_lines(lab: Lab) -> list[str]:
    """What a newcomer needs to open the console of a lab. Raises LabError."""
    lines = [f"{node}  {url}" for node, url in open_window(lab.name).items()]
    node = next((node for node in lab if node.is_on), None)
    password = node.read("/var/safekit/admin-password").strip() if node is not None else ""
    return [*lines, f"user admin, password {password}"]


@main.command()
@name_option
@click.argument("nodes", nargs=-1, required=True, metavar="NODE...")
def poweroff(name: str | None, nodes: tuple[str, ...]) -> None:
    """The power fails: the network is silent, then every process is killed; several nodes at the same moment.

    In a lab made with --disks, what was written without fsync is lost, as on a real server. Otherwise it is still there
    after poweron, because the nodes share this host's kernel.
    """
    lab = Lab.attach(name)
    lab.poweroff(*(lab.node(node) for node in nodes))


@main.command()
@name_option
@click.argument("nodes", nargs=-1, required=True, metavar="NODE...")
def poweron(name: str | None, nodes: tuple[str, ...]) -> None:
    """Boot a node: safeadmin starts, and the modules whose boot start is on."""
    lab = Lab.attach(name)
    for node in nodes:
        lab.node(node).poweron()


@main.command()
@name_option
@click.argument("nodes", nargs=-1, required=True, metavar="NODE...")
def shutdown(name: str | None, nodes: tuple[str, ...]) -> None:
    """Orderly shutdown of a node: modules are stopped, then its power goes off."""
    lab = Lab.attach(name)
    for node in nodes:
        lab.node(node).shutdown()


@main.command()
@name_option
@lan_option
@click.argument("node")
def cut(name: str | None, lan: str | None, node: str) -> None:
    """Unplug a node's cable."""
    Lab.attach(name).node(node).cut(lan)


@main.command()
@name_option
@lan_option
@click.argument("node")
def join(name: str | None, lan: str | None, node: str) -> None:
    """Plug a node's cable in again."""
    Lab.attach(name).node(node).join(lan)


@main.command()
@name_option
@lan_option
@click.argument("source", metavar="FROM")
@click.argument("destination", metavar="TO")
def block(name: str | None, lan: str | None, source: str, destination: str) -> None:
    """Lose everything that FROM sends to TO; the other direction works."""
    Lab.attach(name).block(source, destination, lan)


@main.command()
@name_option
@lan_option
@click.argument("source", metavar="FROM")
@click.argument("destination", metavar="TO")
def unblock(name: str | None, lan: str | None, source: str, destination: str) -> None:
    """Undo block."""
    Lab.attach(name).unblock(source, destination, lan)


@main.command()
@name_option
@lan_option
@click.argument("node")
@click.argument("milliseconds", type=click.FloatRange(0, 60_000))
def delay(name: str | None, lan: str | None, node: str, milliseconds: float) -> None:
    """Slow a node's link: every frame takes MILLISECONDS longer, each way. 0 ends it."""
    Lab.attach(name).delay(node, milliseconds, lan)


@main.command()
@name_option
@lan_option
@click.argument("node")
@click.argument("percent", type=click.FloatRange(0, 100))
def loss(name: str | None, lan: str | None, node: str, percent: float) -> None:
    """Lose PERCENT of a node's frames, each way, at random. 0 ends it."""
    Lab.attach(name).loss(node, percent, lan)


@main.command()
@name_option
@lan_option
@click.argument("node")
@click.argument("rate")
def limit(name: str | None, lan: str | None, node: str, rate: str) -> None:
    """Limit a node's link to RATE each way, for example 10mbit; `off` ends it."""
    Lab.attach(name).limit(node, None if rate in ("off", "0") else rate, lan)


def _frozen(name: str | None, target: str) -> tuple[cluster.Node, str | None]:
    node, _, process = target.partition("/")
    return Lab.attach(name).node(node), process or None


@main.command()
@name_option
@click.argument("target", metavar="NODE[/PROCESS]")
def freeze(name: str | None, target: str) -> None:
    """Stop (SIGSTOP) all of a node, or its processes of one name: `freeze node2/nfsbox`."""
    node, process = _frozen(name, target)
    node.freeze(process)


@main.command()
@name_option
@click.argument("target", metavar="NODE[/PROCESS]")
def thaw(name: str | None, target: str) -> None:
    """Undo freeze."""
    node, process = _frozen(name, target)
    node.thaw(process)


@main.command()
@name_option
@click.option("--json", "as_json", is_flag=True, help="Print what `up` printed, as it is now.")
def status(name: str | None, as_json: bool) -> None:
    """Show the labs, their nodes and the faults that are in effect."""
    if as_json:
        click.echo(json.dumps(Lab.attach(name).summary(), indent=1))
        return
    names = [name] if name is not None else lab_names()
    if not names:
        click.echo("no lab; make one: safelab up")
    for one in names:
        state = load(lab_directory(one))
        if state is None or not state.alive:
            click.echo(f"{one}: dead; remove what is left: safelab down --name {shlex.quote(one)}")
            if name is not None:
                sys.exit(1)
            continue
        _print_status(Lab(state.plan))


def _print_status(lab: Lab) -> None:
    summary = lab.summary()
    click.echo(f"{lab.name}: lans {', '.join(summary['lans'])}; virtual IP for a module: {lab.vip}")
    for machine, about in {**summary["nodes"], CLIENT: summary["client"]}.items():
        addresses = ", ".join(f"{lan} {pair[0]}" for lan, pair in about["addresses"].items())
        click.echo(f"  {machine:<8} {about['power']:<4} {addresses}")
    faults = summary["faults"]
    for machine, lan in faults.get("cut", []):
        click.echo(f"  fault: the cable of {machine} on {lan} is unplugged")
    for source, destination, lan in faults.get("blocked", []):
        click.echo(f"  fault: nothing goes from {source} to {destination} on {lan}")
    for kind, unit in (("loss", " %"), ("delay", " ms"), ("limit", "")):
        for machine, lan, value in faults.get(kind, []):
            click.echo(f"  fault: {kind} {value}{unit} on the link of {machine} to {lan}")


@main.command()
@name_option
@click.argument("node")
def console(name: str | None, node: str) -> None:
    """Show what a node's process 1 has said."""
    lab = Lab.attach(name)
    lab.plan.require_machine(node)
    click.echo((lab_directory(lab.name) / "nodes" / node / "console.log").read_text(errors="replace"), nl=False)


@main.command()
@name_option
@click.option("--all", "everything", is_flag=True, help="All labs.")
def down(name: str | None, everything: bool) -> None:
    """Remove a lab: processes, namespaces, files."""
    for one in lab_names() if everything else [name]:
        click.echo(f"lab {cluster.remove(one)} is removed")


@main.command()
def check() -> None:
    """Say whether a lab could be made on this machine; if not, what is missing (status 1). Nothing is left behind.

    \b
      safelab check && safelab up
    """
    try_host()
    labs_directory().mkdir(parents=True, exist_ok=True)
    check_place(labs_directory())
    click.echo("A lab can be made on this machine.")


@main.command()
def gc() -> None:
    """Remove what labs that died have left, and installations that no lab uses."""
    for line in cluster.collect_garbage() or ["nothing to remove"]:
        click.echo(line)


main.add_command(chaos)


if __name__ == "__main__":
    standard.run(lambda: main(prog_name="safelab"))
