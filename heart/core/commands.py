"""Commands of administrators, checkers and failover rules, and the count of automatic ones (guide 9.4, 13.2)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from heart.core import former, hearing, leaving, plans, swap, syncat, trouble, waiting
from heart.core.actions import Exit, Marker, Processes, Reboot
from heart.core.turn import Turn, step
from heart.core.values import Color, Command, Role

STARTS = {"start": "start", "prim": "prim", "primforce": "primforce", "second": "second"}
STOPS = ("stop", "shutdown", "forcestop", "stopstart", "stopwait")
COUNTED = ("restart", "stopstart", "stopwait", "swap")
"""Automatic actions that count in maxloop."""

TRANSITIONS = {
    "restart": "RESTART",
    "stopstart": "STOPSTART",
    "stopwait": "WAIT_TR",
    "swap": "SWAP",
    "stop": "STOP",
    "start": "START",
    "prim": "PRIM",
    "primforce": "PRIM",
    "second": "SECOND",
    "forcestop": "FORCESTOP",
    "shutdown": "STOP",
}
SETTINGS = {"failover": "usersetting.failover", "checker": "usersetting.checker", "errd": "usersetting.errd"}
SAID = {("errd", "off"): "errd suspend", ("errd", "on"): "errd resume"}
"""What an administrator typed, where the resource says it otherwise."""


def order(t: Turn, command: Command) -> None:
    """Take a command: refuse it, carry it out, or keep it until the plan in progress is over."""
    s = t.s
    why = refusal(t, command)
    if why:
        t.because("refused", command.action, why=why, who=command.who)
        started = command.action == "start" and not s.stopping
        t.reply(command.token, False, "already" if started else "refused", why)
        return
    t.reply(command.token)
    if command.action in ("incloop", "resetloop"):
        _loop_command(t, command)
        return
    if command.action in SETTINGS:
        _setting(t, command)
        return
    if command.action == "update":
        t.log("action_called", action="update", who=command.who)
        s.rules_seen = ()
        return
    _announce(t, command)
    if not command.rule:
        # a rule has told its inputs already
        t.because("command", command.action, who=command.who, **({"why": command.why} if command.why else {}))
    if command.automatic:
        if command.action in COUNTED and count_loop(t):
            t.log("stopping_loop")
            t.because(
                "maxloop", "-> STOP", count=s.loop_count, maxloop=s.setup.maxloop, who=command.who, why=command.why
            )
            t.remember({"state.stopcause": "maxloop"})
            blamed = f"{command.who} ({command.why})" if command.why else command.who
            trouble.note(t, trouble.STOP, f"{blamed} asked for {command.action} for the {_nth(s.loop_count)} time")
            begin_stop(t, "stop", "stop")
            return
    elif not _by_itself(t, command):
        forget_loop(t)
    if command.action in ("restart", "swap") and not t.idle():
        s.pending = (*s.pending, command)
        return
    carry_out(t, command)


def _stopped(t: Turn, _: Command) -> bool:
    return t.s.role is Role.STOP and not t.s.intent and not t.s.stopping


def _leaves(t: Turn, _: Command) -> bool:
    return bool(t.s.stopping)


class Refusal(NamedTuple):
    """These actions are not possible while `when` holds."""

    actions: tuple[str, ...]
    when: Callable[[Turn, Command], bool]
    text: str


REFUSALS = (
    Refusal(
        (*SETTINGS, "update"),
        lambda t, _: t.s.role is Role.STOP or bool(t.s.stopping),
        "the module is {state}: {action} needs a running module",
    ),
    Refusal(
        tuple(SETTINGS),
        lambda _, command: command.option not in ("on", "off"),
        "{action}: found {option!r}, expected on or off",
    ),
    Refusal(
        ("prim", "primforce", "second", "swap"),
        lambda t, _: not t.s.setup.mirror,
        "{action} is for mirror modules; this one is a {mode} module",
    ),
    Refusal(("start",), _leaves, "the module is being stopped"),
    Refusal(("start",), lambda t, c: not _stopped(t, c), "the module is already started ({state})"),
    Refusal(
        ("prim", "primforce", "second"),
        lambda t, c: not _stopped(t, c),
        "the module is already {state}; stop it first to use {action}",
    ),
    Refusal((*STOPS, "restart", "swap"), _stopped, "the module is stopped"),
    Refusal(("stopstart", "stopwait", "restart", "swap"), _leaves, "the module is being stopped"),
    Refusal(
        ("restart",),
        lambda t, _: not t.s.role.running,
        "the module is {state}: restart needs ALONE, PRIM, SECOND or UP",
    ),
    Refusal(
        ("stopwait",),
        lambda t, _: not (t.s.role.running or t.s.role is Role.WAIT),
        "the module is {state}: stopwait needs a running module",
    ),
)
"""Of those that hold, the first one is said."""
ALWAYS = ("incloop", "resetloop")
KNOWN = frozenset({*ALWAYS, *(action for refusal in REFUSALS for action in refusal.actions)})


def refusal(t: Turn, command: Command) -> str:
    """Why a command is not possible here and now, "" when it is."""
    s, action = t.s, command.action
    if action not in KNOWN:
        return f"unknown action {action!r}"
    for actions, when, text in REFUSALS:
        if action in actions and when(t, command):
            return text.format(action=action, option=command.option, state=s.role, mode=s.setup.mode)
    return swap.possible(t) if action == "swap" and not s.pending else ""


def _nth(count: int) -> str:
    ends = {1: "st", 2: "nd", 3: "rd"}
    return f"{count}{ends.get(count if count < 20 else count % 10, 'th')}"


def _announce(t: Turn, command: Command) -> None:
    name = TRANSITIONS[command.action]
    if command.rule:
        action = "wait" if command.action == "stopwait" else command.action
        t.log("action_rule", action=action, rule=command.rule)
        t.log("transition_rule", name=name, rule=command.rule)
        return
    if command.action == "start" and command.who == "boot":
        t.log("action_boot")
    elif command.action == "start" and command.who == "automatic":
        t.log("action_auto")
    else:
        t.log("action_called", action=command.action, who=command.who)
    if command.action == "swap":
        t.log("transition_from", name="SWAP", who=command.who if command.automatic else "SYSTEM")
    else:
        t.log("transition_info", name=name, who=command.who)


def carry_out(t: Turn, command: Command) -> None:
    """Begin what an accepted command asks for."""
    s, action = t.s, command.action
    if action in STARTS:
        begin_start(t, "fullsync" if command.option == "fullsync" else STARTS[action])
    elif action in ("stop", "shutdown"):
        begin_stop(t, "stop", "stop")
    elif action == "forcestop":
        _force_stop(t)
    elif action == "stopstart":
        s.rebooting = command.automatic and s.setup.automatic_reboot
        begin_stop(t, "stopstart", "stopstart")
    elif action == "stopwait":
        _stop_wait(t, command)
    elif action == "restart":
        restart(t)
    elif action == "swap":
        why = swap.possible(t)
        if why:
            t.log("swap_abandoned", reason=why)
        else:
            swap.begin(t, nosync=command.option == "nosync")


def begin_start(t: Turn, intent: str, word: str = "start") -> None:
    """STOP -> WAIT.  prestart and the first transition get `word`: they tell a start from a stopstart (guide 10.6)."""
    s = t.s
    s.intent, s.action, s.stopping, s.blocked = intent, "start", "", ""
    s.consistent, s.retry_at, s.listening = True, 0.0, False
    s.failover = s.setup.failover
    t.actions.append(Marker(True))
    former.forget_former(t)
    syncat.begins(t)
    trouble.begins(t)
    for phase in ("pre", "both", "prim", "second"):
        t.reset_checks(phase)
    if s.setup.witness:
        t.remember({"splitbrain.uptodate": "up"})
    if s.setup.mirror:
        t.remember({"usersetting.failover": "on" if s.failover else "off"})
    t.remember(
        {
            "usersetting.checker": "on",
            "usersetting.errd": "on",
            "state.wasprim": "up" if s.lastprim else "down",
            "state.command": "start",
            "state.reboot": "none",
            "state.stopcause": "none",
            waiting.WAITS_FOR: "none",
        }
    )
    t.memory(swapping=False, degraded=False)
    t.become(Role.WAIT, Color.MAGENTA)
    t.follow(*plans.start(word))


def begin_stop(t: Turn, kind: str, word: str) -> None:
    """Any started state -> STOP, kindly."""
    s = t.s
    if s.stopping:
        # a stopstart that becomes a stop: only its end changes
        s.stopping = kind if s.stopping == "stopstart" and kind != "stopstart" else s.stopping
        t.remember({"state.command": s.stopping})
        return
    s.pending = ()
    t.remember({"state.command": kind})
    if s.role.running:
        s.stopping = kind
        if s.leaving:
            return
        leaving.leave(t, word)
    elif s.role is Role.WAIT:
        waiting.stop(t, kind, word)


def _force_stop(t: Turn) -> None:
    s = t.s
    t.drop_effect()
    s.pending = ()
    s.stopping, s.action, s.listening, s.intent, s.claim, s.eligible = "forcestop", "stop", False, "", 0, False
    s.breaking, s.break_asked, s.leaving = "", "", s.role.running
    within = leaving.time_left(t) if s.hurried else 0.0
    t.remember({"state.command": "stop"})
    if s.role is Role.SECOND:
        t.memory(uptodate=False)
    t.become(s.role, Color.MAGENTA)
    t.follow(*plans.forced_stop(s.role, "stop", within=within))


def _stop_wait(t: Turn, command: Command) -> None:
    s = t.s
    if s.role.running and not s.leaving:
        s.blocked = command.rule
        leaving.leave(t, "stopwait")


def restart(t: Turn) -> None:
    """Stop and start the application in place.  A role that was left meanwhile has nothing to restart."""
    s = t.s
    if not s.role.running:
        t.because("restart", "nothing to restart", role=s.role.value)
        return
    s.action = "restart"
    t.become(s.role, Color.MAGENTA)
    t.follow(*plans.restart(s.role))


def _setting(t: Turn, command: Command) -> None:
    s = t.s
    said = SAID.get((command.action, command.option), f"{command.action} {command.option}")
    t.log("action_called", action=said, who=command.who)
    t.because("command", said, who=command.who)
    t.remember({SETTINGS[command.action]: command.option})
    if command.action == "failover":
        s.failover = command.option == "on"
    elif command.action == "checker":
        _switch_checkers(t, command.option == "on")
    else:
        return
    t.log("action_info", action="update", who=command.action)
    s.rules_seen = ()


def _switch_checkers(t: Turn, on: bool) -> None:
    s = t.s
    phases = ("pre", *plans.phases(s.role)) if s.role is not Role.STOP else ()
    s.plan = (*s.plan, *(Processes(on, phase, errd=False) for phase in phases if s.setup.checks_of(phase)))


# -- maxloop


def count_loop(t: Turn) -> bool:
    """Count an automatic action; True when this one exceeds maxloop within loop_interval."""
    s = t.s
    if s.setup.loop_interval <= 0:
        return False
    if s.loop_count and t.now - s.loop_since >= s.setup.loop_interval:
        s.loop_count = 0
    if not s.loop_count:
        s.loop_since = t.now
    s.loop_count += 1
    t.remember({"state.loop": str(s.loop_count), "state.loopsince": str(round(s.loop_since + s.clock))})
    return s.loop_count > s.setup.maxloop


def recall_loop(t: Turn) -> None:
    """Take up the count of a heart before this one; a clock that was set back makes it young, never negative."""
    s = t.s
    count, since = s.resources.get("state.loop", ""), s.resources.get("state.loopsince", "")
    if count.isdigit() and since.isdigit():
        s.loop_count = int(count)
        s.loop_since = min(float(since) - s.clock, t.now)


def forget_loop(t: Turn) -> None:
    """The count begins again."""
    t.s.loop_count = 0
    if t.s.resource("state.loop", "0") != "0":
        t.remember({"state.loop": "0"})


def _by_itself(t: Turn, command: Command) -> bool:
    """No administrator is behind this command: the start after our own stop, or after our own reboot."""
    return command.who == "automatic" or (command.who == "boot" and t.s.resource("state.reboot") == "automatic")


def loop_reached(count: int, since: float, now: float, maxloop: int, interval: float) -> bool:
    """checkloop: the counter is over its limit, within the interval."""
    return interval > 0 and count > maxloop and now - since < interval


def _loop_command(t: Turn, command: Command) -> None:
    if command.action == "incloop":
        count_loop(t)
        t.because("incloop", "counted", who=command.who, count=t.s.loop_count)
    else:
        forget_loop(t)
        t.because("resetloop", "counter is 0", who=command.who)


# -- end of a stop


@step
def end_of_stop(t: Turn, _: str) -> None:
    """Everything is stopped; start again when that was asked for."""
    s = t.s
    kind = s.stopping
    t.log("end_of_stop")
    s.stopping, s.leaving, s.intent, s.grant, s.blocked = "", False, "", (0, 0), ""
    s.fence = 0
    t.memory(degraded=False)
    t.become(Role.STOP, Color.RED)
    if kind != "stopstart" or s.rebooting:
        hearing.hush(t)
    if kind == "stopstart" and s.rebooting:
        t.remember({"state.reboot": "automatic"})
        t.actions.append(Marker(False))
        t.actions.append(Reboot())
        t.actions.append(Exit())
    elif kind == "stopstart":
        t.log("action_auto")
        begin_start(t, "start", "stopstart")
    else:
        t.actions.append(Marker(False))
        t.remember({"state.command": "none"})
        t.actions.append(Exit(respawn=kind == "respawn"))
