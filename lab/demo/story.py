"""The demonstration: a database under load loses its server, and nothing else."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Callable

import click

from lab.cluster import Lab, Node
from lab.demo.watch import MODULE, Load, Screen, StateWatcher, reintegration, tree
from lab.errors import LabError
from lab.main import web_lines
from lab.state import lab_names

NAME = "demo"
DIRECTORY = "/data/postgresql"
BACKING = f"{DIRECTORY}_For_SafeKit_Replication"
KEPT = "/var/tmp/acknowledged"
TEMPLATE = "/opt/safekit/Application_Modules/demo/postgresql.safe"
WORKERS = 4
PULSE_MS, TIMEOUT_MS = 150, 1500
FIVE_COMMANDS = (
    ("the states, and what to do next", "bin/safelab run -n demo {prim} -- safekit state"),
    ("why the last decisions were made", "bin/safelab run -n demo {prim} -- safekit why -m postgresql"),
    ("exchange the roles, as for maintenance", "bin/safelab run -n demo {prim} -- safekit swap -m postgresql"),
    ("the rows, through the virtual IP", "bin/safelab run -n demo --env PGPASSWORD=demo client -- {query}"),
    ("take it all away", "bin/safelab down -n demo"),
)


class DemoError(Exception):
    """The demonstration did not show what it should: what was seen, and where to look."""


def substitute(pattern: str, replacement: str, text: str) -> str:
    """Replace the one place that matches. Raises DemoError when there is none."""
    changed, count = re.subn(pattern, lambda _: replacement, text)
    if count != 1:
        raise DemoError(f"the module template has changed: {count} places match {pattern}")
    return changed


class Story:
    """The steps, in order."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.screen = Screen()
        self.lab: Lab

    def run(self) -> bool:
        """True when no acknowledged row is lost and both directories are equal."""
        self.screen.title("1. Two servers, a client, and the product on both servers")
        if NAME in lab_names():
            from lab.cluster import remove

            self.screen.say(f"removing the lab of an earlier demonstration ({remove(NAME)})")
        self.lab = Lab.up(NAME)
        one, two = self.lab.nodes.values()
        self.screen.say(f"lab {NAME} is up: node1 {one.address()}, node2 {two.address()}, virtual IP {self.lab.vip}")
        self.watcher = StateWatcher(self.lab, self.screen)

        self.screen.title("2. A mirror module with PostgreSQL: data directory replicated, address virtual")
        for node in (one, two):
            self.install(node)
        one.safekit("prim", "-m", MODULE)
        self.wait(lambda states: str(states["node1"]) == "ALONE green", "node1 starts PostgreSQL", 90)
        two.safekit("second", "-m", MODULE)
        self.wait_pair("node1", "node2")
        self.make_table(one)

        self.screen.title(f"3. {WORKERS} connections insert rows through {self.lab.vip}")
        load = Load(self.lab, self.lab.vip, WORKERS, KEPT)
        self.wait(lambda _: load.acknowledged > 0, "the first acknowledged row", 30, load)
        self.watch_for(self.seconds, load)
        before = load.acknowledged
        self.screen.say(f"{before} rows acknowledged, {before / self.seconds:.0f} per second")

        self.screen.title("4. The power of node1 fails, in full load")
        fault = time.monotonic()
        one.poweroff()
        self.wait(lambda states: str(states["node2"]) == "ALONE green", "node2 takes over", 60, load)
        self.wait(lambda _: load.acknowledged > before and load.pause < 0.5, "the client goes on", 60, load)
        self.screen.say(f"the client goes on, {time.monotonic() - fault:.1f} s after the power failure")
        self.watch_for(self.seconds, load)

        self.screen.title("5. node1 boots; what it missed is copied while the client goes on")
        self.watcher.booting(one)
        one.poweron()
        self.wait_pair("node2", "node1", load)
        self.watch_for(self.seconds / 2, load)
        load.stop()

        self.screen.title("6. The account")
        return self.account(two, load)

    # --- steps

    def install(self, node: Node) -> None:
        """As the template's comment tells an administrator to do it, with this lab's values."""
        node.run(["mkdir", "-p", DIRECTORY])
        node.safekit("module", "install", "-m", MODULE, TEMPLATE)
        path = f"/opt/safekit/modules/{MODULE}/conf/userconfig.xml"
        values = {"VIRTUAL_IP": self.lab.vip, "PGDIR": DIRECTORY, "PULSE": PULSE_MS, "TIMEOUT": TIMEOUT_MS}
        text = node.read(path)
        for name, value in values.items():
            text = substitute(rf'<macro name="{name}" value="[^"]*"', f'<macro name="{name}" value="{value}"', text)
        node.write(path, text)
        node.safekit("config", "-m", MODULE)
        node.safekit("boot", "-m", MODULE, "on")
        self.screen.say(f"{node.name}: module {MODULE} is installed and configured, and starts at boot")

    def make_table(self, prim: Node) -> None:
        for database, statement in (
            ("postgres", "CREATE ROLE demo LOGIN PASSWORD 'demo'"),
            ("postgres", "CREATE DATABASE demo OWNER demo"),
            ("demo", "CREATE TABLE rows (worker int, row int, payload text, PRIMARY KEY (worker, row))"),
            ("demo", "ALTER TABLE rows OWNER TO demo"),
        ):
            prim.run(["runuser", "-u", "postgres", "--", "psql", "-q", "-d", database, "-c", statement])

    def watch_for(self, seconds: float, load: Load) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.glance(load)

    def glance(self, load: Load | None) -> None:
        """One look at the servers and the client."""
        states = self.watcher.look()
        if load is not None:
            if not load.running:
                raise DemoError("the client program ended; see the output above")
            line = f"{load.acknowledged} rows acknowledged, longest pause of the client {load.longest:.2f} s"
            if any(state.color == "magenta" for state in states.values()):
                line += self.copying(states)
            self.screen.progress(line)
        time.sleep(0.1)

    def copying(self, states: object) -> str:
        for node in self.lab:
            if node.is_on and (line := reintegration(node)) is not None:
                return f"; {node.name} reintegrates: {line}"
        return ""

    def wait(
        self, reached: Callable[[dict[str, object]], bool], what: str, timeout: float, load: Load | None = None
    ) -> None:
        """Watch until it is so. Raises DemoError with the states after `timeout` seconds."""
        end = time.monotonic() + timeout
        while True:
            self.glance(load)
            if reached(dict(self.watcher.last)):
                return
            if time.monotonic() > end:
                states = ", ".join(f"{name} {state}" for name, state in self.watcher.last.items())
                raise DemoError(f"not within {timeout:g} s: {what} ({states})\n{self.log_tails()}")

    def wait_pair(self, prim: str, second: str, load: Load | None = None) -> None:
        begin, shown = time.monotonic(), ""
        wanted = {prim: "PRIM green", second: "SECOND green"}
        end = begin + 180
        while True:
            self.glance(load)
            if all(str(self.watcher.last[name]) == state for name, state in wanted.items()):
                break
            if self.lab.node(second).is_on and str(self.watcher.last[second]) == "SECOND magenta":
                line = reintegration(self.lab.node(second)) or ""
                if line and not line.startswith("0/0") and line != shown:
                    self.screen.say(f"{second}  reintegration: {line}")
                    shown = line
            if time.monotonic() > end:
                raise DemoError(f"not within 180 s: {prim} PRIM, {second} SECOND\n{self.log_tails()}")
        self.screen.say(f"{prim} is primary, {second} secondary, after {time.monotonic() - begin:.1f} s")

    def log_tails(self) -> str:
        tails = []
        for node in self.lab:
            if node.is_on:
                said = (
                    node.safekit("logview", "-m", MODULE, "-s", "15", "-A", check=False).stdout
                    or node.run(f"tail -n 15 /var/safekit/modules/{MODULE}/log/module.log", check=False).stdout
                )
                tails.append(f"--- the log of {node.name}\n{said}")
        return "\n".join(tails)

    def account(self, prim: Node, load: Load) -> bool:
        acknowledged = set(self.lab.client.read(KEPT).splitlines())
        query = ["psql", "-q", "-A", "-t", "-F", " ", "-h", self.lab.vip, "-U", "demo", "-d", "demo"]
        done = self.lab.client.run(
            [*query, "-c", "SELECT worker, row FROM rows"], env={"PGPASSWORD": "demo"}, timeout=120
        )
        lost = acknowledged - set(done.stdout.splitlines())
        prim.run(["runuser", "-u", "postgres", "--", "psql", "-q", "-d", "demo", "-c", "CHECKPOINT"])
        equal, difference = self.equal_directories()

        def judged(text: str, good: bool) -> str:
            return self.screen.paint(text, "32" if good else "31")

        self.screen.plain(f"  rows acknowledged          {len(acknowledged)}")
        self.screen.plain(f"  rows lost                  {judged(str(len(lost)), not lost)}")
        self.screen.plain(
            f"  longest pause of a client  {load.longest:.2f} s  (heartbeat time-out {TIMEOUT_MS / 1000:g} s)"
        )
        self.screen.plain(
            f"  the two directories        {judged('equal' if equal else f'differ: {difference}', equal)}"
        )
        for row in sorted(lost)[:10]:
            self.screen.plain(f"    lost: worker and row {row}")
        return not lost and equal and bool(acknowledged)

    def equal_directories(self) -> tuple[bool, str]:
        """The database writes a little even when nobody asks: look until a moment of rest."""
        end = time.monotonic() + 60
        while True:
            one, two = (tree(node, BACKING) for node in self.lab)
            different = sorted(path for path in one.keys() | two.keys() if one.get(path) != two.get(path))
            if not different:
                return True, ""
            if time.monotonic() > end:
                return False, f"{len(different)} files, for example {different[0]}"
            time.sleep(0.5)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--keep", is_flag=True, help="Leave the lab running, and print five commands to explore it.")
@click.option("--console", is_flag=True, help="As --keep, and print the address of the web console for a browser here.")
@click.option("--seconds", default=8.0, show_default=True, help="Length of each phase under load.")
def main(keep: bool, console: bool, seconds: float) -> None:
    """A database survives the loss of its server.

    Two servers and a client are made on this machine, in namespaces. PostgreSQL runs on one server, its data directory
    is replicated to the other one, clients use a virtual IP address. In full load the primary loses its power. Exit
    status 1 when an acknowledged row is lost, or the two directories differ at the end.
    """
    story = Story(seconds)
    good = False
    try:
        good = story.run()
    except (DemoError, LabError, subprocess.SubprocessError, FileNotFoundError) as error:
        story.screen.plain(f"Error: {error}")
        if isinstance(error, LabError):
            story.screen.plain(f"Next step: {error.next_step}")
    finally:
        if hasattr(story, "lab"):
            finish(story, keep or console)
            if console:
                show_console(story)
    sys.exit(0 if good else 1)


def finish(story: Story, keep: bool) -> None:
    if not keep:
        story.lab.down()
        return
    prim = next((node.name for node in story.lab if str(story.watcher.last.get(node.name)) == "PRIM green"), "node1")
    query = f"psql -h {story.lab.vip} -U demo -d demo -c 'SELECT worker, count(*) FROM rows GROUP BY worker'"
    story.screen.title("The lab stays. Five commands to explore it:")
    for text, command in FIVE_COMMANDS:
        story.screen.plain(f"  # {text}\n  {command.format(prim=prim, query=query)}")


def show_console(story: Story) -> None:
    """Where a browser of this machine finds the cluster that stays."""
    story.screen.title("The web console of the cluster, for a browser on this machine:")
    try:
        for line in web_lines(story.lab):
            story.screen.plain(f"  {line}")
    except LabError as error:
        story.screen.plain(f"Error: {error}")
        story.screen.plain(f"Next step: {error.next_step}")


if __name__ == "__main__":
    main(prog_name="demo")
