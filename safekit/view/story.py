"""The decisions of heart in plain sentences, for `safekit why` and for messages to people.

A sentence says who wanted what, because of what, and what came of it. Decisions that only servers care for (claims,
grants, fences) have none: `safekit why -v` shows every one, with its values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from safekit.model.agreement import words as differing
from safekit.view.decisions import Decision
from safekit.view.words import duration

Inputs = Mapping[str, str]

FOLLOWED = 900.0
"""Seconds within which a settled state is what came of the decision before it."""


@dataclass(frozen=True)
class Event:
    """A decision in words, and what came of it ("" when that is not known)."""

    time: float
    node: str
    text: str
    outcome: str = ""


def values(decision: Decision) -> dict[str, str]:
    """The inputs without who set them."""
    return {
        name: str(given.get("value", "") if isinstance(given, dict) else given)
        for name, given in decision.inputs.items()
    }


def _facts(inputs: Inputs) -> str:
    """`tcp.web is down and remote.rfs.uptodate is unknown`."""
    return " and ".join(f"{name} is {value}" for name, value in inputs.items())


def _command(action: str, i: Inputs) -> str:
    return f"{i.get('who', 'somebody')} asked for {action}" + (f", because {i['why']}" if i.get("why") else "")


def _refused(action: str, i: Inputs) -> str:
    by = i.get("by") or i.get("who") or ""
    wanted = f"{action} of {'rule ' if 'by' in i else ''}{by}" if by else action
    return f"{wanted.replace('()', '')} is not possible now: {i.get('why', 'it is set by SafeKit alone')}"


def _farm(action: str, i: Inputs) -> str:
    name, _, value = action.partition("=")
    kind, _, ident = name.partition(".")
    if value == "init" or (kind == "member" and value == "up" and i.get("before") == "init"):
        return ""
    if kind == "member":
        return f"{ident} takes part in the farm" if value == "up" else f"{ident} takes no part in the farm any more"
    return f"this server takes {value} of the load of {ident}"


def _script(_: str, i: Inputs) -> str:
    said = f"; it said: {i['said']}" if i.get("said") else ""
    name = i.get("script", "")
    after = "; the module goes on, but the application may not run" if name.startswith("start_") else ""
    return f"script {name} ended badly: {i.get('problem', '')}{said}{after}"


def _split(action: str, _: Inputs) -> str:
    stays = action == "stays"
    what = "this server stays" if stays else "this server stops, and gives up what it wrote since then"
    return f"both servers ran the application (split brain): {what}"


def _news(action: str, i: Inputs) -> str:
    return action + (f": {i['reason']}" if i.get("reason") else "")


def _maxloop(_: str, i: Inputs) -> str:
    why = f", because {i['why']}" if i.get("why") else ""
    return (
        f"the module is stopped (maxloop): this was automatic action number {i.get('count', '')}, "
        f"{i.get('maxloop', '')} are allowed, and it was asked for by {i.get('who', '')}{why}"
    )


def _swap(action: str, i: Inputs) -> str:
    return f"in a swap asked for on {i.get('issuer', '')}, this server {action}"


_LOST = {
    "no heartbeat": "the other server is not heard any more",
    "remote stop": "the other server has stopped it, or waits",
}

_SENTENCES: Mapping[str, Callable[[str, Inputs], str]] = {
    "command": _command,
    "refused": _refused,
    "farm": _farm,
    "script_failed": _script,
    "split_brain": _split,
    "swap": _swap,
    "replication_lost": _news,
    "secondary_lost": _news,
    "nfsbox_died": _news,
    "rfs_synced": _news,
    "rfs_failed": _news,
    "maxloop": _maxloop,
    "settled": lambda action, _: f"the module is {action}",
    "effect_failed": lambda action, i: f"{action} failed: {i.get('text') or i.get('code', '')}",
    "prepare_failed": lambda _, i: f"the module stops: its replicated directories cannot be used: {i.get('text', '')}",
    "primary_failed": lambda _, i: f"the module stops: its replicated directories cannot be used: {i.get('text', '')}",
    "secondary_failed": lambda _, i: f"this server cannot be the secondary now: {i.get('text', '')}",
    "take_over": lambda _, i: f"this server takes the application over: {_LOST.get(i.get('why', ''), '')}",
    "become_alone": lambda _, i: f"this server starts the application: {i.get('why', '')}",
    "become_second": lambda _, i: f"this server becomes the secondary of a server that is {i.get('peer', '')}",
    "become_up": lambda _, __: "this server starts the application",
    "pair": lambda _, __: "the secondary is complete: this server is not alone any more",
    "now_alone": lambda _, i: f"this server goes on without a secondary: {i.get('cause', '')}",
    "blocked": lambda _, i: f"this server waits: {i.get('why', '')}",
    "served_elsewhere": lambda _, __: "this server waits until the other one, which may have served later, is heard",
    "Implicit_WAKEUP": lambda _, i: f"nothing keeps this server waiting any more (it was {i.get('was', '')})",
    "previous_halt": lambda action, _: f"the module had not ended by a stop (power failure?); its data: {action}",
    "adopted": lambda action, _: f"heart was started again, and goes on with the module as it was: {action}",
    "supervisor_died": lambda _, __: "supervisord of the module died: the module is stopped and started",
    "parts_lost": lambda _, __: "parts of the module were missing, and are started again",
    "synced": lambda _, __: "the data of this server is up to date",
    "fenced": lambda _, __: "the primary goes on without this server, whose data is out of date from now on",
    "gone_on_alone": lambda _, __: "the other server has gone on alone: the data here is out of date",
    "failover_off": lambda _, i: f"the failover is switched off, so this server does not take over: {i.get('why', '')}",
    "prim_refused": lambda _, i: f"prim is refused, and the module stops: {i.get('why', '')}",
    "second_refused": lambda _, i: f"second is refused, and the module stops: {i.get('why', '')}",
    "swap_refused": lambda _, __: "a swap is refused: there is no complete secondary",
    "swap_abandoned": lambda action, i: f"a swap is given up, {action}: {i.get('why', '')}",
    "unapplied_acknowledgements": lambda _, __: "writes that this server had acknowledged are not on its disk",
    "secondary_not_complete": lambda _, i: f"this secondary stops, as its data is not complete: {i.get('why', '')}",
    "two_secondaries": lambda _, __: "both servers were secondary: this one leaves, so that the other is primary",
    "stream_lost": lambda _, i: f"this secondary synchronises again: {i.get('why', '')}",
    "witness": lambda action, i: (
        f"the witness was asked: this server {action}" + (f" ({i['text']})" if i.get("text") else "")
        if action in ("goes on", "is cut off")
        else ""
    ),
    "overslept": lambda _, i: f"this server stood still for {i.get('seconds', '')} s",
    "degraded": lambda action, _: f"the replication of this server does not work: {action}",
    "resetloop": lambda _, i: f"{i.get('who', '')} set the count of automatic actions to 0",
    "configured": lambda action, _: action,
}
_QUIET = frozenset(
    {"claim", "grant", "announce", "stale", "older_term", "incloop", "pair_complete", "pair_broken", "no_rival",
     "left_to_secondary", "left_to_rival", "witness_wait", "restart", "copied_memory", "set_back"}
)  # fmt: skip
_VERBS = (
    ("() asked for", "rule {rule} asks for {verb}, because {facts}; it is done if that lasts"),
    ("() at once", "rule {rule} does {verb} at once, because {facts}"),
    ("()", "rule {rule} does {verb}, because {facts}"),
)


def sentence(decision: Decision) -> str:
    """A decision in one sentence without its full stop; "" for one that says nothing to people."""
    inputs = values(decision)
    if decision.rule in _SENTENCES:
        return _SENTENCES[decision.rule](decision.action, inputs)
    if decision.rule in _QUIET:
        return ""
    return _of_rule(decision, inputs)


def _of_rule(decision: Decision, inputs: dict[str, str]) -> str:
    """What a failover rule decided."""
    rule, action = decision.rule, decision.action
    if not action:
        return decision.text or rule
    if action.endswith("() withdrawn"):
        after = inputs.pop("after", "some time")
        verb = action.removesuffix("() withdrawn")
        return f"rule {rule} withdraws {verb} after {after}: {_facts(inputs)} now"
    for ending, text in _VERBS:
        if action.endswith(ending):
            facts = _facts(inputs) or "its condition is true"
            return text.format(rule=rule, verb=action.removesuffix(ending), facts=facts)
    if action == "blocked in WAIT":
        return f"rule {rule} keeps this server waiting, because {_facts(inputs)}"
    if action == "told":
        peer = inputs.pop("peer", "the other server")
        return f"{differing(','.join(inputs))} differ from {peer}: {_facts(inputs)}"
    name, equals, value = action.partition("=")
    if equals:
        return f"rule {rule} sets {name} to {value}, because {_facts(inputs)}"
    because = f", because {_facts(inputs)}" if inputs else ""
    return f"{rule}: {action}{because}"


_LEADS = frozenset(
    {
        *("command", "maxloop", "supervisor_died", "previous_halt", "failover_off", "split_brain"),
        *("take_over", "become_alone", "become_second", "become_up", "pair", "now_alone"),
        *("prepare_failed", "primary_failed", "secondary_failed"),
    }
)


def _begins(decision: Decision) -> bool:
    """Whether something is to come of it."""
    rule = decision.rule
    if rule in _LEADS:
        return True
    return rule not in _SENTENCES and decision.action.endswith(("()", "() at once", "blocked in WAIT"))


def story(decisions: Sequence[Decision]) -> list[Event]:
    """Decisions, oldest first, in sentences: the state that a server settled in is told with what led to it."""
    events: list[Event] = []
    open_by_node: dict[str, list[int]] = {}
    for decision in decisions:
        waiting = open_by_node.setdefault(decision.node, [])
        if decision.rule == "settled" and waiting:
            for index in waiting:
                begun = events[index]
                if decision.time - begun.time <= FOLLOWED:
                    after = duration(max(decision.time - begun.time, 0.0))
                    events[index] = Event(begun.time, begun.node, begun.text, f"{decision.action} {after} later")
            told = any(decision.time - events[index].time <= FOLLOWED for index in waiting)
            waiting.clear()
            if told:
                continue
        text = sentence(decision)
        if not text:
            continue
        if _begins(decision):
            waiting.append(len(events))
        events.append(Event(decision.time, decision.node, text))
    return events
