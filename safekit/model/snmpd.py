"""SAFE/snmp/conf/snmpd.conf, read as its users write it for net-snmp (guide 10.8.1). Pure.

Lines that the agent does not know are named once in the journal and mean nothing: an agent that stands still because of
a line for another program watches nothing. A line that gives access and is not understood gives none.
"""

from __future__ import annotations

import getopt
import ipaddress
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import Enum

DEFAULT_PORT = 3600
TRAP_PORT = 162
MIN_PASSPHRASE = 8
"""RFC 3414, 11.2; net-snmp refuses shorter ones too."""

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Oid = tuple[int, ...]


class Family(Enum):
    """Which kind of address a socket has."""

    IPV4 = "udp"
    IPV6 = "udp6"


class Level(Enum):
    """Security level of SNMPv3, in rising order."""

    NOAUTH = "noAuthNoPriv"
    AUTH = "authNoPriv"
    PRIV = "authPriv"

    def reaches(self, other: Level) -> bool:
        """Whether this level is at least the other one."""
        order = list(Level)
        return order.index(self) >= order.index(other)


class SinkKind(Enum):
    """How a message is sent to a manager."""

    TRAP1 = "trapsink"
    TRAP2 = "trap2sink"
    INFORM = "informsink"


@dataclass(frozen=True)
class Listen:
    """A socket to open. `address` is '' for all addresses of the family."""

    family: Family
    address: str
    port: int


@dataclass(frozen=True)
class Community:
    """One line rocommunity or rwcommunity. `source` None: no address is named; `subtree` (): everything."""

    name: str
    write: bool
    source: Network | None = None
    subtree: Oid = ()


@dataclass(frozen=True)
class User:
    """A user of SNMPv3: createUser with rouser or rwuser; `level` is the lowest one that is accepted. Without `access`
    it may ask nothing: it is named by trapsess only."""

    name: str
    auth: str = ""
    auth_key: str = field(default="", repr=False)
    priv: str = ""
    priv_key: str = field(default="", repr=False)
    access: bool = False
    write: bool = False
    level: Level = Level.AUTH
    subtree: Oid = ()

    @property
    def best(self) -> Level:
        """The highest level that its keys allow."""
        return Level.PRIV if self.priv else Level.AUTH if self.auth else Level.NOAUTH


@dataclass(frozen=True)
class Sink:
    """Where messages are sent. `host` may be a name: it is looked up for each message. With a `user` they are sent by
    SNMPv3 at that level, as notifications (TRAP2) or informs, else with the community."""

    kind: SinkKind
    host: str
    port: int
    community: str
    user: str = ""
    level: Level = Level.NOAUTH


@dataclass(frozen=True)
class AgentSettings:
    """All of snmpd.conf. `unknown`: words of lines that mean nothing here; `problems`: lines that are refused."""

    listen: tuple[Listen, ...]
    communities: tuple[Community, ...]
    users: tuple[User, ...] = ()
    sinks: tuple[Sink, ...] = ()
    contact: str = ""
    location: str = ""
    name: str = ""
    unknown: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


class BadLine(ValueError):
    """A line that the agent should understand and cannot; the text says what is wrong with it."""


@dataclass
class _Draft:
    listen: list[Listen] = field(default_factory=list)
    communities: list[Community] = field(default_factory=list)
    created: dict[str, User] = field(default_factory=dict)
    rights: dict[str, tuple[bool, Level, Oid]] = field(default_factory=dict)
    sinks: list[Sink] = field(default_factory=list)
    sessions: list[tuple[Sink, Level | None]] = field(default_factory=list)
    trap_community: str = "public"
    texts: dict[str, str] = field(default_factory=dict)
    unknown: dict[str, None] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


_TEXTS = ("syscontact", "syslocation", "sysname")
_COMMUNITY: dict[str, tuple[bool, Family | None]] = {
    "rocommunity": (False, None),
    "rwcommunity": (True, None),
    "rocommunity6": (False, Family.IPV6),
    "rwcommunity6": (True, Family.IPV6),
}
_AUTH = ("MD5", "SHA", "SHA-224", "SHA-256", "SHA-384", "SHA-512")
_PRIV = ("DES", "AES")
_SESSION_LEVELS = {level.value.lower(): level for level in Level}
_LEVELS = {"noauth": Level.NOAUTH, "auth": Level.AUTH, "priv": Level.PRIV}


def parse_settings(text: str, file: str = "snmpd.conf") -> AgentSettings:
    """The settings of a text. Never raises: what is wrong is in `problems`, each with its line and what to do.

    Without a line agentaddress the agent listens on UDP 3600 of all addresses (guide 10.8.1). Without a line that
    gives access nobody has any.
    """
    draft = _Draft()
    for number, line in enumerate(text.splitlines(), 1):
        try:
            words = shlex.split(line, comments=True)
        except ValueError as error:
            draft.problems.append(f"{file}:{number}: {error}: close the quotation; the line means nothing")
            continue
        if not words:
            continue
        try:
            _take(draft, words[0].lower(), words[1:])
        except BadLine as error:
            draft.problems.append(f"{file}:{number}: {words[0]}: {error}; the line means nothing")
    return _finish(draft, file)


def _take(draft: _Draft, word: str, rest: Sequence[str]) -> None:
    if word == "agentaddress":
        draft.listen += [_listen(part) for part in _need(rest, 1)[0].split(",") if part]
    elif word in _COMMUNITY:
        write, family = _COMMUNITY[word]
        draft.communities.append(_community(write, family, rest))
    elif word in [kind.value for kind in SinkKind]:
        draft.sinks.append(_sink(SinkKind(word), rest, draft.trap_community))
    elif word == "trapsess":
        _session(draft, rest)
    elif word == "trapcommunity":
        draft.trap_community = _need(rest, 1)[0]
    elif word == "createuser":
        user = _created(rest)
        draft.created[user.name] = user
    elif word in ("rouser", "rwuser"):
        name, level, subtree = _rights(rest)
        if word == "rwuser" and level is None:
            level = Level.PRIV
        draft.rights[name] = (word == "rwuser", level or Level.AUTH, subtree)
    elif word in _TEXTS:
        draft.texts[word] = " ".join(rest)
    else:
        draft.unknown.setdefault(word)


def _finish(draft: _Draft, file: str) -> AgentSettings:
    users = []
    for name, (write, level, subtree) in draft.rights.items():
        made = draft.created.get(name)
        if made is None:
            draft.problems.append(f"{file}: user {name} has rights and is not there; add a line createUser {name}")
            continue
        users.append(User(name, made.auth, made.auth_key, made.priv, made.priv_key, True, write, level, subtree))
    sinks = list(draft.sinks)
    for sink, asked in draft.sessions:
        made = draft.created.get(sink.user)
        if made is None:
            draft.problems.append(f"{file}: trapsess: add a line createUser {sink.user} with its keys")
            continue
        wanted = asked or made.best
        if not made.best.reaches(wanted):
            draft.problems.append(f"{file}: trapsess: createUser {sink.user} has no keys for {wanted.value}")
            continue
        sinks.append(replace(sink, level=wanted))
        if all(user.name != made.name for user in users):
            users.append(made)
    both = (Listen(Family.IPV4, "", DEFAULT_PORT), Listen(Family.IPV6, "", DEFAULT_PORT))
    return AgentSettings(
        tuple(dict.fromkeys(draft.listen)) or both,
        tuple(draft.communities),
        tuple(users),
        tuple(sinks),
        draft.texts.get("syscontact", ""),
        draft.texts.get("syslocation", ""),
        draft.texts.get("sysname", ""),
        tuple(draft.unknown),
        tuple(draft.problems),
    )


def _need(rest: Sequence[str], count: int) -> Sequence[str]:
    if len(rest) < count:
        raise BadLine("something is missing after it")
    return rest


def _listen(text: str) -> Listen:
    """`3600`, `127.0.0.1:3600`, `udp:3600`, `udp6:[::1]:3600`, `[::1]:3600` (man snmpd, LISTENING ADDRESSES)."""
    family, host, port = _place(text, DEFAULT_PORT)
    if host:
        try:
            found = ipaddress.ip_address(host)
        except ValueError:
            raise BadLine(f"{host} is not an address of this server") from None
        family = Family.IPV6 if found.version == 6 else Family.IPV4
    return Listen(family or Family.IPV4, host, port)


def _place(text: str, default: int) -> tuple[Family | None, str, int]:
    """Family (None: not said), host and port of a transport address."""
    family: Family | None = None
    rest = text
    kind, colon, after = text.partition(":")
    if colon and kind.lower() in ("udp", "udp6", "udpv6", "udpipv6"):
        family, rest = (Family.IPV4 if kind.lower() == "udp" else Family.IPV6), after
    elif colon and re.fullmatch(r"tcp6?|tls\w*|dtls\w*|unix|ssh|ipx|aal5pvc", kind.lower()):
        raise BadLine(f"{kind} is not spoken here: use udp or udp6")
    found = re.fullmatch(r"\[([^\]]*)\](?::(\d+))?|([^:]*):(\d+)|(\d+)|([^:]*)|([0-9a-fA-F:.%]+)", rest)
    if found is None:
        raise BadLine(f"{text} is neither a port nor an address")
    host = found[1] or found[3] or found[6] or found[7] or ""
    port = int(found[2] or found[4] or found[5] or default)
    if not 0 < port < 65536:
        raise BadLine(f"{port} is not a port")
    return family, host, port


def _subtree(text: str) -> Oid:
    if not re.fullmatch(r"\.?\d+(\.\d+)*", text):
        raise BadLine(f"{text} is not a numeric object identifier (views are not known here)")
    return tuple(int(part) for part in text.strip(".").split("."))


def _community(write: bool, family: Family | None, rest: Sequence[str]) -> Community:
    name = _need(rest, 1)[0]
    source: Network | None = None
    if len(rest) > 1 and rest[1].lower() != "default":
        try:
            source = ipaddress.ip_network(rest[1], strict=False)
        except ValueError:
            raise BadLine(f"{rest[1]} is not an address or a network (names are not looked up)") from None
    if family is Family.IPV6 and source is None:
        source = ipaddress.ip_network("::/0") if not write else None
    return Community(name, write, source, _subtree(rest[2]) if len(rest) > 2 else ())


def _sink(kind: SinkKind, rest: Sequence[str], community: str) -> Sink:
    _, host, port = _place(_need(rest, 1)[0], TRAP_PORT)
    if not host:
        raise BadLine("the address of the manager is missing")
    if len(rest) > 2:
        if not rest[2].isdecimal() or not 0 < int(rest[2]) < 65536:
            raise BadLine(f"{rest[2]} is not a port")
        port = int(rest[2])
    return Sink(kind, host, port, rest[1] if len(rest) > 1 else community)


def _session(draft: _Draft, rest: Sequence[str]) -> None:
    """`trapsess [options of net-snmp's commands] HOST`, of which version, community, user, level, keys and inform mean
    something (man snmpd.conf, snmpcmd)."""
    try:
        options, places = getopt.getopt(list(rest), "v:c:u:l:a:A:x:X:C:n:r:t:")
    except getopt.GetoptError as error:
        raise BadLine(f"{error.msg} (options known here: -v -c -u -l -a -A -x -X -Ci)") from None
    given = {name[1:]: value for name, value in options}
    if given.get("n"):
        raise BadLine("contexts (-n) are not known here: leave it out")
    kind = SinkKind.INFORM if "i" in given.get("C", "") else SinkKind.TRAP2
    version = given.get("v", "3")
    if version not in ("1", "2c", "3"):
        raise BadLine(f"-v {version} is not 1, 2c or 3")
    if version != "3":
        kind = SinkKind.TRAP1 if version == "1" else kind
        draft.sinks.append(_sink(kind, places[:1], given.get("c", draft.trap_community)))
        return
    sink = _sink(kind, places[:1], "")
    if not given.get("u"):
        raise BadLine("the user is missing: -u NAME")
    if given.get("l") and given["l"].lower() not in _SESSION_LEVELS:
        raise BadLine(f"-l {given['l']} is not one of {', '.join(level.value for level in Level)}")
    if "A" in given:
        words = [given["u"], given.get("a", "SHA"), given["A"]]
        draft.created[given["u"]] = _created(words + ([given.get("x", "AES"), given["X"]] if "X" in given else []))
    draft.sessions.append((replace(sink, user=given["u"]), _SESSION_LEVELS.get(given.get("l", "").lower())))


def _created(rest: Sequence[str]) -> User:
    words = list(rest)
    if words[:1] == ["-e"]:
        raise BadLine("the engine of this agent is its own: leave -e and its value out")
    name = _need(words, 1)[0]
    if len(words) == 1:
        return User(name)
    auth = _need(words, 3)[1].upper()
    if auth not in _AUTH:
        raise BadLine(f"{words[1]} is not one of {', '.join(_AUTH)}")
    if len(words) == 3:
        return User(name, auth, _passphrase(words[2]))
    priv = {"AES128": "AES", "AES-128": "AES"}.get(words[3].upper(), words[3].upper())
    if priv not in _PRIV:
        raise BadLine(f"{words[3]} is not one of {', '.join(_PRIV)}")
    return User(name, auth, _passphrase(words[2]), priv, _passphrase(words[4] if len(words) > 4 else words[2]))


def _passphrase(text: str) -> str:
    if len(text) < MIN_PASSPHRASE:
        raise BadLine(f"a pass phrase has at least {MIN_PASSPHRASE} characters")
    return text


def _rights(rest: Sequence[str]) -> tuple[str, Level | None, Oid]:
    words = list(rest)
    if words[:1] == ["-s"]:
        if words[1:2] != ["usm"]:
            raise BadLine("only the security model usm is spoken here")
        words = words[2:]
    name = _need(words, 1)[0]
    if len(words) == 1:
        return name, None, ()
    if words[1] not in _LEVELS:
        raise BadLine(f"{words[1]} is not one of {', '.join(_LEVELS)}")
    return name, _LEVELS[words[1]], _subtree(words[2]) if len(words) > 2 else ()
