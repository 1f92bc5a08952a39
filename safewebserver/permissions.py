"""Which commands may be asked through the web service, and by whom (guide 9.1, 11.4.3). Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from safekit.spelling import plain_dashes

MAX_WORDS = 100
MAX_WORD = 4096

_MONITOR = frozenset(
    "state level log userlog why confinfo waitstart waitstop waitstate simulate farm help".split()  # noqa: SIM905
)
_CONTROL = frozenset(
    """
    start stop restart swap stopstart stopwait prim primforce second forcestop errd checker failover
    update kill checkloop resetloop confcheck shutdown diff
    """.split()  # noqa: SIM905 - a table to read
)
_LOCAL_ONLY = {
    "logview": "it follows the log of one server",
    "timeline": "it asks the servers itself",
    "completion": "it is for the shell of one server",
    "scripts": "a script is tried where its output is watched",
    "webserver": "it would end the service that carries it",
}
_MONITOR_WORDS = {
    "module": frozenset({"list", "listid", "getports"}),
    "cluster": frozenset({"state", "confinfo"}),
    "boot": frozenset({"status", "webstatus", "snmpstatus"}),
}


class Role(IntEnum):
    """What somebody may do; each role includes the lower ones."""

    MONITOR = 1
    CONTROL = 2
    ADMIN = 3

    @property
    def label(self) -> str:
        """As in group.conf and in the guide."""
        return self.name.capitalize()


@dataclass(frozen=True)
class Refusal:
    """Why a command is not run: `forbidden` (the role), `local` or `malformed`."""

    kind: str
    text: str


def command_word(words: Sequence[str]) -> tuple[str, tuple[str, ...]] | None:
    """The command of a line and what follows it; before it only `-m AM` may stand. None when it is unclear.

    Stricter than the command line itself: what is judged here must be what is run there.
    """
    index = 0
    while index + 1 < len(words) and words[index] == "-m":
        if words[index + 1].startswith("-"):
            return None
        index += 2
    if index >= len(words) or words[index].startswith("-"):
        return None
    return words[index], tuple(words[index + 1 :])


def judge(arguments: Sequence[str], role: Role) -> Refusal | tuple[str, ...]:
    """The words to run, or why not. Never raises."""
    if not 0 < len(arguments) <= MAX_WORDS or not all(map(_is_word, arguments)):
        return Refusal("malformed", f"a command has 1 to {MAX_WORDS} words of at most {MAX_WORD} characters")
    words = tuple(plain_dashes(word) for word in arguments)
    found = command_word(words)
    if found is None:
        return Refusal("local", f"safekit {' '.join(words)}: options before the command are for this server only")
    command, rest = found
    if command in _LOCAL_ONLY:
        return Refusal("local", f"safekit {command} is for this server only: {_LOCAL_ONLY[command]}")
    if command == "farm" and "--watch" in rest:
        return Refusal("local", "safekit farm --watch is for this server only: it goes on until it is interrupted")
    needed = _needed(command, rest)
    if role < needed:
        return Refusal("forbidden", f"safekit {command} needs the role {needed.label}; yours is {role.label}")
    if role < Role.ADMIN and any(word.startswith(("-u", "-i", "--user", "--identity")) for word in rest):
        return Refusal("forbidden", "the options -u and -i, which name who asks, need the role Admin")
    return words


def _is_word(word: str) -> bool:
    """Whether a process can be given the word: no NUL, no half of a character."""
    return len(word) <= MAX_WORD and "\0" not in word and not any("\ud800" <= c <= "\udfff" for c in word)


def _needed(command: str, rest: Sequence[str]) -> Role:
    if command in _MONITOR:
        return Role.MONITOR
    if command == "boot":
        return Role.MONITOR if _is_status(rest) else Role.ADMIN
    if command in _MONITOR_WORDS:
        # What follows must be the very next word: an option before it might have it as its value.
        return Role.MONITOR if rest and rest[0] in _MONITOR_WORDS[command] else Role.ADMIN
    return Role.CONTROL if command in _CONTROL else Role.ADMIN


def _is_status(rest: Sequence[str]) -> bool:
    words = list(rest)
    while len(words) >= 2 and words[0] == "-m":
        del words[:2]
    while len(words) >= 2 and words[-2] == "-m":
        del words[-2:]
    return len(words) <= 1 and all(word in _MONITOR_WORDS["boot"] for word in words)
