"""What can be proved about the failover rules of a configuration before it runs (13.18).

A text that cannot be read is an error. Everything else here is a warning, and only what is certain is told:
a resource that nothing sets, a checker that no rule looks at, a condition that no states of the resources make
true. Pure: the default rules come as text.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from safekit.model.findings import Finding, Places
from safekit.model.types import ModuleConfig
from safekit.rules.ast import Act, And, Assign, Call, Compare, Expression, Not, Or, Resource, Rule, Text, Verb
from safekit.rules.evaluator import View, evaluate
from safekit.rules.lexer import RuleError
from safekit.rules.order import module_rules
from safekit.rules.parser import parse

MAX_COMBINATIONS = 20_000
"""States of resources that are tried for one rule, at most; a rule with more is believed."""

_STATES = ("up", "down", "unknown")
_RFS = ("uptodate", "swapping", "lastprimstate", "degraded", "paired", "syncat")
_ENDS_WAIT = (Verb.WAIT, Verb.STOP, Verb.STOPSTART)


@dataclass(frozen=True, slots=True)
class _Checker:
    resource: str
    path: str
    when: str
    tag: str


def check_rules(config: ModuleConfig, places: Places, default: str) -> list[Finding]:
    """Every finding about the rules of `config`; `default` is the text of the default rules."""
    try:
        own = parse(config.failover.rules)
    except RuleError as error:
        line = max(config.failover.rules_line, 1) + error.position.line - 1
        message = f"column {error.position.column}: found {error.found}; expected {error.expected}"
        return [Finding(places.file, line, "failover", message)]
    rules = module_rules(config.failover.rules, default if config.failover.extends else None)
    found = [*_own_rules(config, own, places), *_checkers_without_rule(config, rules, places)]
    return found


def advice(config: ModuleConfig, places: Places) -> list[Finding]:
    """Single points of a mirror: what one fault takes away. For `config` and `confcheck`."""
    found = []
    if config.service.mode == "mirror" and config.heart is not None:
        if len(config.heart.heartbeats) == 1:
            name = config.heart.heartbeats[0].name
            found.append(
                places.finding(
                    "heart",
                    f'there is one heartbeat: when the network "{name}" fails, both servers become ALONE; '
                    "add a <heartbeat> on a second network",
                    "warning",
                )
            )
        if config.check.splitbrain is None:
            found.append(
                places.finding(
                    "heart",
                    "there is no witness: when all heartbeats fail, both servers become ALONE; "
                    "add a <splitbrain> checker",
                    "warning",
                )
            )
    return found


# ---------------------------------------------------------------------------- what sets resources


def _checkers(config: ModuleConfig) -> Iterator[_Checker]:
    check = config.check
    for tag in ("tcp", "ping", "intf", "ip", "custom", "module"):
        for index, item in enumerate(getattr(check, tag)):
            yield _Checker(f"{tag}.{item.ident}", f"check.{tag}[{index}]", getattr(item, "when", "pre"), tag)


def _automatic(config: ModuleConfig) -> tuple[str, ...]:
    """Stand-ins for the automatic checkers: the network of an interface is known on the server only."""
    names: list[str] = []
    for interface in config.vip.interfaces if config.vip is not None else ():
        if interface.check:
            names.append("intf.*")
        names += [f"ip.{address.addr}" for address in interface.addresses if address.check]
    return tuple(names)


def settable(config: ModuleConfig) -> frozenset[str]:
    """The resources that something of this module sets. `class.*` stands for names not known here."""
    names = {checker.resource for checker in _checkers(config)} | set(_automatic(config))
    if config.check.splitbrain is not None:
        names |= {f"splitbrain.{config.check.splitbrain.ident}", "splitbrain.uptodate"}
    if config.heart is not None:
        names |= {f"heartbeat.{beat.ident}" for beat in config.heart.heartbeats} | {"heartbeat.flow"}
    if config.rfs is not None:
        names |= {f"rfs.{name}" for name in _RFS} | {"rfs_bandwidth.*"}
        if config.rfs.syncdelta > 1:
            names.add("rfs.synced")
    if config.errd is not None:
        names |= {f"proc.{proc.name}" for proc in config.errd.procs}
    return frozenset(names | {"state.*", "usersetting.*"})


def is_set(config: ModuleConfig, name: str) -> bool:
    """Whether something of this module sets the resource of that name."""
    cls, _, ident = name.partition(".")
    return any(_matches(Resource(False, cls, ident), known) for known in settable(config))


def _matches(resource: Resource, name: str) -> bool:
    cls, _, ident = name.partition(".")
    return resource.cls in ("?", "*", cls) and (resource.ident in ("?", "*", ident) or ident == "*")


def _resources(node: Expression) -> Iterator[Resource]:
    match node:
        case Resource():
            yield node
        case And(left, right) | Or(left, right) | Compare(_, left, right):
            yield from _resources(left)
            yield from _resources(right)
        case Not(operand):
            yield from _resources(operand)
        case _:
            return


def _calls(node: Expression) -> Iterator[str]:
    match node:
        case Call(function):
            yield function
        case And(left, right) | Or(left, right) | Compare(_, left, right):
            yield from _calls(left)
            yield from _calls(right)
        case Not(operand):
            yield from _calls(operand)
        case _:
            return


# --------------------------------------------------------------------------------- own rules


def _own_rules(config: ModuleConfig, own: tuple[Rule, ...], places: Places) -> list[Finding]:
    known = settable(config) | {rule.outcome.name for rule in own if isinstance(rule.outcome, Assign)}
    mirror = config.service.mode == "mirror"
    found: list[Finding] = []

    def warn(rule: Rule, message: str) -> None:
        line = max(config.failover.rules_line, 1) + rule.position.line - 1
        found.append(Finding(places.file, line, "failover", f"rule {rule.label}: {message}", "warning"))

    for rule in own:
        for resource in dict.fromkeys(_resources(rule.condition)):
            if resource.remote and not mirror:
                warn(rule, f"remote.{resource.name} exists in a mirror only; it is always unknown here")
            elif not any(_matches(resource, name) for name in known):
                set_by_hand = " unless a script does it with safekit set" if not resource.is_pattern else ""
                warn(rule, f"nothing in this module sets {resource.name}{set_by_hand}; expected a checker of that name")
        if isinstance(rule.outcome, Act) and rule.outcome.verb is Verb.SWAP and not mirror:
            warn(rule, "swap() is for mirror modules only; expected restart(), stopstart(), wait() or stop()")
        outcomes = {bool(evaluate((rule,), view).fired) for view in _views(rule, known)}
        if outcomes == {False}:
            warn(rule, "no states of the resources make the condition true; the rule can never fire")
        elif outcomes == {True}:
            warn(rule, "every state of the resources makes the condition true; the rule always fires")
    return found


def _views(rule: Rule, known: Iterable[str]) -> Iterator[View]:
    """Every combination of what the rule can see; nothing when there are too many."""
    names = frozenset(known)
    axes: list[tuple[str, bool, tuple[str, ...]]] = []
    for resource in dict.fromkeys(_resources(rule.condition)):
        if resource.is_pattern:
            members = {name.replace("*", "some") for name in names if _matches(resource, name)}
            # a resource set by hand may be of any class
            members = members or {f"{resource.cls.strip('?*') or 'custom'}.{resource.ident.strip('?*') or 'some'}"}
        else:
            members = {resource.name}
        axes += [(name, resource.remote, _STATES) for name in sorted(members)]
    axes = list(dict.fromkeys(axes))
    calls = set(_calls(rule.condition))
    clusters = _STATES if "cluster" in calls else ("unknown",)
    primaries = (True, False) if "isdefaultprim" in calls else (False,)
    hosts = _hosts(rule) if "hostname" in calls else ("",)
    count = 3 ** len(axes) * len(clusters) * len(primaries) * len(hosts)
    if count > MAX_COMBINATIONS:
        return
    for values in itertools.product(*(states for _, _, states in axes)):
        local: dict[str, str] = {}
        remote: dict[str, str] = {}
        for (name, far, _), value in zip(axes, values, strict=True):
            (remote if far else local)[name] = value
        for cluster, primary, host in itertools.product(clusters, primaries, hosts):
            yield View(local, remote, host, primary, cluster)


def _hosts(rule: Rule) -> tuple[str, ...]:
    """A host of each name that the rule mentions, and one of none."""

    def texts(node: Expression) -> Iterator[str]:
        match node:
            case Text(value):
                yield value
            case And(left, right) | Or(left, right) | Compare(_, left, right):
                yield from texts(left)
                yield from texts(right)
            case Not(operand):
                yield from texts(operand)
            case _:
                return

    return (*dict.fromkeys(texts(rule.condition)), "\0another")


# --------------------------------------------------------------------------------- checkers


def _checkers_without_rule(config: ModuleConfig, rules: Iterable[Rule], places: Places) -> list[Finding]:
    looked_at: list[tuple[Resource, Rule]] = [
        (resource, rule) for rule in rules for resource in _resources(rule.condition) if not resource.remote
    ]
    found = []
    for checker in _checkers(config):
        using = [rule for resource, rule in looked_at if _matches(resource, checker.resource)]
        if not using:
            found.append(
                places.finding(
                    checker.path,
                    f"no failover rule looks at {checker.resource}: nothing happens when it is down; expected for "
                    f"example {_example(checker)}",
                    "warning",
                )
            )
        elif checker.when == "pre" and not any(_leaves_wait_alone(rule) for rule in using):
            found.append(
                places.finding(
                    checker.path,
                    f'when="pre" and no rule answers {checker.resource} == down with wait(): the module is started and '
                    f"restarted while it is down; expected for example {_example(checker)}",
                    "warning",
                )
            )
        if checker.tag != "ip" and checker.when in ("prim", "second") and config.service.mode != "mirror":
            found.append(
                places.finding(
                    checker.path,
                    f'when="{checker.when}" never comes in a {config.service.mode} module; expected when="both"',
                    "warning",
                )
            )
    return found


def _leaves_wait_alone(rule: Rule) -> bool:
    return isinstance(rule.outcome, Act) and rule.outcome.verb in _ENDS_WAIT


def _example(checker: _Checker) -> str:
    action = "wait" if checker.when == "pre" else "restart"
    label = checker.resource.replace(".", "_").replace(":", "_")
    return f"{label}_failure: if ({checker.resource} == down) then {action}();"
