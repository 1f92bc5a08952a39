"""The catalogue of messages against the source and against the index of the guide.

`python -m pytest tests/t0_unit/test_messages.py -k emitted -rA -s` prints where each message is emitted.
"""

from __future__ import annotations

import ast
import re
import string
from collections.abc import Iterator

import pytest

from cli.main import COMMANDS
from safekit.log import advice
from safekit.log.messages import MESSAGES, Language, render
from tests.sources import Source, nodes, sources

CATALOGUE = ("safekit.log.messages", "safekit.log.advice")
WRITERS = ("event", "log")
"""What writes a message into the log; other calls with a code hand it on."""


def emitting() -> list[Source]:
    """What may emit a message: all but the catalogue."""
    return [source for source in sources().values() if source.name not in CATALOGUE]


@pytest.fixture(scope="module")
def uses() -> dict[str, list[str]]:
    """Message code -> the places of the source that name it."""
    found: dict[str, list[str]] = {code: [] for code in MESSAGES}
    for source in emitting():
        for node in nodes(source.tree):
            if isinstance(node, ast.Constant) and node.value in found:
                found[node.value].append(f"{source.path}:{node.lineno}")
            elif isinstance(node, ast.JoinedStr):  # log.event(f"print{level}")
                first = node.values[0]
                if isinstance(first, ast.Constant) and first.value == "print":
                    for code in ("printi", "printe"):
                        found[code].append(f"{source.path}:{node.lineno}")
    return found


@pytest.mark.parametrize("code", MESSAGES)
def test_every_message_is_emitted_somewhere(code: str, uses: dict[str, list[str]]) -> None:
    print(f"{code:26} {' '.join(uses[code])}")
    assert uses[code], f"nothing emits {code}: {MESSAGES[code].en}"


def fields(template: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(template) if name}


def written(tree: ast.Module) -> Iterator[tuple[ast.Call, str]]:
    for node in nodes(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in WRITERS:
            first = node.args[0] if node.args else None
            branches = (first.body, first.orelse) if isinstance(first, ast.IfExp) else (first,)
            for branch in branches:
                if isinstance(branch, ast.Constant) and isinstance(branch.value, str):
                    yield node, branch.value


def test_who_writes_a_message_gives_every_field_of_it() -> None:
    wrong, seen = [], 0
    for source in emitting():
        for call, code in written(source.tree):
            given = {keyword.arg for keyword in call.keywords}
            if code not in MESSAGES:
                if call.func.attr == "event":  # type: ignore[attr-defined]
                    wrong.append(f"{source.path}:{call.lineno}: there is no message {code!r}")
                continue
            seen += 1
            if None not in given and (missing := fields(MESSAGES[code].en) - given):
                wrong.append(f"{source.path}:{call.lineno}: {code} lacks {', '.join(sorted(missing))}")
    assert not wrong, "\n".join(wrong)
    assert seen > 100, "the search no longer finds what writes messages"


# The index of the guide (page 355), each line with the message that says it. Its `n1|n2` and `<...>` stand for one
# value each. The guide's chapters 5 and 7 and its screens say "may be not uptodate" three times, its index once "may
# not be": the chapters win.
INDEX: tuple[tuple[str, str, dict[str, object]], ...] = (
    ("Action forcestop called by web@10.0.0.9", "action_called", {"action": "forcestop", "who": "web@10.0.0.9"}),
    ("Action prim called by root", "action_called", {"action": "prim", "who": "root"}),
    ("Action primforce called by root", "action_called", {"action": "primforce", "who": "root"}),
    ("Action restart called by customscript", "action_called", {"action": "restart", "who": "customscript"}),
    ("Action stopstart called by errd", "action_called", {"action": "stopstart", "who": "errd"}),
    ("Action restart from failover rule tcp_failure", "action_rule", {"action": "restart", "rule": "tcp_failure"}),
    ("Action shutdown called by SYSTEM", "action_called", {"action": "shutdown", "who": "SYSTEM"}),
    ("Action start called at boot time", "action_boot", {}),
    ("Action start called automatically", "action_auto", {}),
    ("Action stopstart called by failover-off", "action_called", {"action": "stopstart", "who": "failover-off"}),
    ("Action stopstart called by modulecheck", "action_called", {"action": "stopstart", "who": "modulecheck"}),
    ("Action wait from failover rule ping_failure", "action_rule", {"action": "wait", "rule": "ping_failure"}),
    (
        "Data may be inconsistent for replicated directories (stopped during reintegration)",
        "inconsistent",
        {},
    ),
    (
        "Data may be not uptodate for replicated directories (wait for the start of the remote server)",
        "not_uptodate",
        {},
    ),
    (
        "If you are sure that this server has valid data, run safekit prim to force start as primary",
        "advice_prim",
        {},
    ),
    (
        "If you are sure that this server has valid data, run safekit primforce to force start as primary",
        "advice_primforce",
        {},
    ),
    ("Copied 3 files, 12 KB, 1 s, 12 KB/sec", "copied", {"files": 3, "size": "12 KB", "seconds": 1, "rate": 12}),
    ("Reintegration ended (synchronize)", "reintegration_ended", {}),
    ("Updating directory tree from /replicated", "updating_tree", {"dir": "/replicated"}),
    ("farm load: 128/256 (group FarmProto)", "farm_load", {"bits": 128, "group": "FarmProto"}),
    (
        "farm membership: node1 node2 (group FarmProto)",
        "farm_membership",
        {"members": "node1 node2", "group": "FarmProto"},
    ),
    ("Local state ALONE green", "local_state", {"state": "ALONE", "color": "green"}),
    ("Remote state UNKNOWN grey", "remote_state", {"state": "UNKNOWN", "color": "grey"}),
    (
        "Resource custom.id set to down by customscript",
        "resource_set",
        {"name": "custom.id", "value": "down", "who": "customscript"},
    ),
    ("Script start_prim", "script", {"name": "start_prim"}),
    (
        "Transition RESTART from failover rule customid_failure",
        "transition_rule",
        {"name": "RESTART", "rule": "customid_failure"},
    ),
    ("Transition STOPSTART from failover-off", "transition_from", {"name": "STOPSTART", "who": "failover-off"}),
    ("Transition SWAP from defaultprim", "transition_from", {"name": "SWAP", "who": "defaultprim"}),
    ("Transition SWAP from SYSTEM", "transition_from", {"name": "SWAP", "who": "SYSTEM"}),
    (
        "Transition WAKEUP from failover rule Implicit_WAKEUP",
        "transition_rule",
        {"name": "WAKEUP", "rule": "Implicit_WAKEUP"},
    ),
    ("Begin of Swap", "begin_of_swap", {}),
    ("End of stop", "end_of_stop", {}),
    ("event atleast on proc appli.exe", "errd_event", {"criterion": "atleast", "name": "appli.exe"}),
    ("Failover-off configured", "failover_off", {}),
    ("Previous halt unexpected", "previous_halt", {}),
    ("Reason of failover: no heartbeat", "failover_no_heartbeat", {}),
    ("Reason of failover: remote stop", "failover_remote_stop", {}),
    ("Requested prim start aborted ", "prim_aborted", {}),
    ("Split brain recovery: exiting alone", "splitbrain_exiting", {}),
    ("Split brain recovery: staying alone", "splitbrain_staying", {}),
    ("Stopping loop", "stopping_loop", {}),
    ("Virtual IP 10.0.0.10 set", "vip_set", {"addr": "10.0.0.10"}),
)


@pytest.mark.parametrize(("text", "code", "values"), INDEX, ids=[text[:40] for text, _, _ in INDEX])
def test_the_messages_of_the_index_are_exact_and_events(text: str, code: str, values: dict[str, object]) -> None:
    assert render(code, values) == text
    assert MESSAGES[code].level == "E", "chapter 4 of the guide reads them with a plain logview"


@pytest.mark.parametrize("code", MESSAGES)
def test_french_is_not_english(code: str) -> None:
    message = MESSAGES[code]
    words = "".join(text for text, *_ in string.Formatter().parse(message.en))
    if code != "script" and words.strip():  # a script is one in both languages
        assert message.fr != message.en


# ------------------------------------------------------------------------------- no error without a next step

_LANGUAGES: tuple[Language, ...] = ("en", "fr")


@pytest.mark.parametrize("code", [code for code, message in MESSAGES.items() if message.level == "E"])
def test_an_event_is_news_or_has_a_next_step(code: str) -> None:
    """Each message that people see is exactly one of: news, a fault with its next step, or one that says it itself."""
    kinds = [code in advice.NEWS, code in advice.NEXT_STEPS, code in advice.SAYS_ITSELF]
    assert sum(kinds) == 1, code


def test_what_advises_exists_and_names_commands_that_exist() -> None:
    known = {*advice.NEWS, *advice.NEXT_STEPS, *advice.SAYS_ITSELF}
    assert known <= set(MESSAGES)
    for code in advice.NEXT_STEPS:
        english, french = (advice.next_step(code, "db", language) for language in _LANGUAGES)
        assert english and french and english != french and "{" not in english + french, code
        for word in re.findall(r"safekit (?!-)([a-z]+)", english + " " + french):
            assert word in COMMANDS, (code, word)
