"""`safekit simulate`: what the module would do if something failed, decided by the production core.

Nothing is changed anywhere. The configuration is that of SAFE/modules/AM, applied or not; with --active the one
that runs.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace

from heart.core.values import Role, Setup
from heart.scenario import Runaway, Scenario, Told, partner
from heart.shell import configured
from safekit.configuration import ConfigureError, active, current_signature
from safekit.disk import resources
from safekit.disk.paths import ModulePaths, node_name
from safekit.model.findings import ConfigError
from safekit.model.rules_check import is_set
from safekit.model.types import ClusterConfig, ModuleConfig
from safekit.process.frame import Unconfigured, load_cluster
from safekit.rules.lexer import RuleError
from safekit.rules.source import RulesFileError

MIRROR_STATES = ("ALONE", "PRIM", "SECOND", "WAIT", "STOP")
OTHER_STATES = ("UP", "WAIT", "STOP")
VALUES = ("up", "down", "init", "unknown")
SPOKEN = frozenset(
    """take_over become_alone become_second become_up witness split_brain maxloop now_alone failover_off
    Implicit_WAKEUP secondary_not_complete blocked refused fenced pair""".split()  # noqa: SIM905 - a table to read
)
"""Reasons that are told beside those of the rules."""


class Refused(Exception):
    """The question makes no sense; the text says why, the next step what would."""

    def __init__(self, text: str, next_step: str) -> None:
        super().__init__(text)
        self.next_step = next_step


def load(module: str, use_active: bool, cluster: ClusterConfig) -> tuple[ModuleConfig, str]:
    """The configuration to ask about, and what it is called. Raises Refused, ConfigError, ConfigureError."""
    from safekit.configuration import module_id
    from safekit.model.findings import errors
    from safekit.model.module import examine_module

    if use_active:
        return active(module), "the active configuration"
    examined = examine_module(ModulePaths(module).userconfig, module, module_id(module), cluster)
    if examined.config is None or errors(examined.findings):
        raise ConfigError(errors(examined.findings))
    try:
        applied = active(module).signature == current_signature(module).signature
    except ConfigureError:
        applied = False
    name = "the active configuration" if applied else f"SAFE/modules/{module}, not applied yet"
    return examined.config, name


def build(config: ModuleConfig, cluster: ClusterConfig, node: str) -> tuple[Setup, Setup | None]:
    """What the cores of this server and of its peer get. Raises Unusable, RuleError, RulesFileError, OSError."""
    here = configured.read(config, cluster, node).setup
    if not here.mirror:
        return here, None
    peer = configured.read(config, cluster, here.peer).setup
    return here, _named(peer, here.peer)


def _named(setup: Setup, node: str) -> Setup:
    # the host name of the other server is not known here; its node name stands for it
    return replace(setup, hostname=node)


def parse_settings(words: Iterable[str], here: Setup, there: Setup | None) -> list[tuple[str, str, str]]:
    """(node, resource, value) of each --set [remote.]class.id=value. Raises Refused."""
    found = []
    for word in words:
        name, equals, value = word.partition("=")
        value = value.lower()
        node = here.node
        if name.startswith("remote."):
            name = name.removeprefix("remote.")
            if there is None:
                raise Refused(f"{word}: this module has no other server", "only a mirror has remote resources")
            node = there.node
        elif name.startswith("local."):
            name = name.removeprefix("local.")
        if not equals or "." not in name or value not in VALUES:
            raise Refused(f"{word!r} is not class.id=state", f"write for example tcp.id=down ({', '.join(VALUES)})")
        found.append((node, name, value))
    return found


def strangers(config: ModuleConfig, words: Iterable[str]) -> list[str]:
    """The resources of --set that nothing of the module sets: perhaps a slip of the pen."""
    names = [word.partition("=")[0].removeprefix("remote.").removeprefix("local.") for word in words]
    return [name for name in dict.fromkeys(names) if not is_set(config, name)]


def ask(
    here: Setup,
    there: Setup | None,
    state: Role,
    remote: Role,
    settings: Sequence[tuple[str, str, str]],
    *,
    down: Sequence[str] = (),
    cut: bool = False,
    stays: bool = False,
) -> Scenario:
    """Run the scenario until it comes to rest. Raises Runaway."""
    setups = [here] if there is None else [here, there]
    scenario = Scenario(setups, heals=not stays)
    states = {here.node: state} | ({there.node: remote} if there is not None else {})
    scenario.begin(states)
    for node, name, value in settings:
        scenario.set(node, name, value)
    if cut:
        scenario.cut_heartbeats()
    for node in down:
        scenario.power_off(node)
    scenario.settle()
    return scenario


def lines(scenario: Scenario, rules: frozenset[str]) -> list[str]:
    """The account for people: facts, messages, what is run, and why."""
    width = max(len(node) for node in scenario.servers)
    found = []
    for told in _account(scenario.told, rules):
        mark = {"reason": "  because ", "effect": "  "}.get(told.kind, "")
        found.append(f"{told.at:8.1f} s  {told.node or '-':{width}}  {mark}{told.text}")
    return found


def _account(told: Iterable[Told], rules: frozenset[str]) -> list[Told]:
    kept: list[Told] = []
    for item in told:
        if item.kind == "message" and item.level != "E":
            continue
        if item.kind == "reason" and item.code not in rules | SPOKEN:
            continue
        if item.kind == "message" and kept and kept[-1].text == item.text and kept[-1].node == item.node:
            continue
        kept.append(item)
    return kept


def quiet(scenario: Scenario) -> bool:
    """Nothing but the facts themselves happened."""
    return not any(
        told.kind == "effect" or told.code in ("local_state", "action_rule", "action_called") for told in scenario.told
    )


def parser() -> argparse.ArgumentParser:
    """The command line; cli.simulate hands it over as it is."""
    made = argparse.ArgumentParser(
        prog="safekit simulate",
        description="Tell what a module would do, and why. Nothing is changed.",
        epilog="Example: safekit simulate -m mirror --state PRIM --set tcp.id=down",
    )
    made.add_argument("-m", dest="module", default=os.environ.get("SAFEMODULE"), metavar="AM", help="the module")
    made.add_argument("--state", help="state of this server (default: as it is now, PRIM or UP of a stopped module)")
    made.add_argument("--remote-state", help="state of the other server of a mirror (PRIM for SECOND and so on)")
    made.add_argument(
        "--set", dest="settings", action="append", default=[], metavar="RESOURCE=STATE",
        help="a resource becomes up, down, init or unknown; remote.class.id for the other server",
    )  # fmt: skip
    made.add_argument("--node-down", dest="down", action="append", default=[], metavar="NODE", help="power failure")
    made.add_argument("--cut", action="store_true", help="all heartbeats fail, both servers live")
    made.add_argument("--stays", action="store_true", help="a restart does not repair what failed")
    made.add_argument("--active", action="store_true", help="the configuration that runs, not SAFE/modules/AM")
    made.add_argument("--json", action="store_true", help="JSON, one event a line")
    return made


def run(argv: Sequence[str]) -> int:
    """One command line; the exit status."""
    arguments = parser().parse_args(argv)
    try:
        if not arguments.module:
            raise Refused("which module? the name is missing", "add -m AM, or set SAFEMODULE")
        cluster = load_cluster()
        config, name = load(arguments.module, arguments.active, cluster)
        here, there = build(config, cluster, node_name())
        scenario = _asked(arguments, here, there)
    except ConfigError as error:
        for finding in error.findings:
            print(finding, file=sys.stderr)
        return _failed("the configuration is not correct", "correct the lines above")
    except ConfigureError as error:
        return _failed(error.text, error.next_step)
    except Refused as error:
        return _failed(str(error), error.next_step)
    except (Unconfigured, configured.Unusable, RuleError, RulesFileError, ValueError, OSError) as error:
        return _failed(str(error), f"safekit confcheck -m {arguments.module}")
    except Runaway as error:
        return _failed(str(error), "look at rules that undo each other")
    rules = frozenset(rule.label for rule in here.rules)
    if arguments.json:
        for told in scenario.told:
            print(json.dumps(asdict(told)))
        return 0
    print(f"Simulation of module {arguments.module} with {name}; nothing is changed.")
    print("Begin: " + ", ".join(f"{node} {role}" for node, role in scenario.begun.items()))
    for resource in strangers(config, arguments.settings):
        print(f"Note: nothing in this module sets {resource}, unless a script does it with safekit set.")
    for line in lines(scenario, rules):
        print(line)
    if quiet(scenario):
        print("Nothing is done: no rule acts on this.")
    print("End: " + ", ".join(f"{node} {state}" for node, state in scenario.states().items()))
    return 0


def _asked(arguments: argparse.Namespace, here: Setup, there: Setup | None) -> Scenario:
    known = MIRROR_STATES if here.mirror else OTHER_STATES
    state = _role(arguments.state or _now(arguments.module, known) or known[1 if here.mirror else 0], known)
    remote = _role(arguments.remote_state, known) if arguments.remote_state else partner(state)
    nodes = [here.node] + ([there.node] if there is not None else [])
    for node in arguments.down:
        if node not in nodes:
            raise Refused(f"{node} does not run this module", f"the nodes are {', '.join(nodes)}")
    settings = parse_settings(arguments.settings, here, there)
    return ask(here, there, state, remote, settings, down=arguments.down, cut=arguments.cut, stays=arguments.stays)


def _now(module: str, known: Sequence[str]) -> str:
    """The state of the module that runs here, "" when it does not run."""
    found = resources.load(ModulePaths(module).resources)
    state, color = found.get("state.local"), found.get("state.color")
    running = state is not None and color is not None and color.value == "green" and state.value in known
    return state.value if running and state is not None else ""


def _role(word: str, known: Sequence[str]) -> Role:
    if word.upper() not in known:
        raise Refused(f"{word!r} is not a state of this module", f"write one of {', '.join(known)}")
    return Role(word.upper())


def _failed(text: str, next_step: str) -> int:
    print(f"Error: {text}\nNext step: {next_step}", file=sys.stderr)
    return 1


def main() -> int:
    """Entry point of safesimulate."""
    return run(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
