"""SAFE/web/conf/httpd.conf and the files of roles beside it (guide 10.5, 11.2, 11.4). Pure: no file is read here.

Only the lines `Define NAME [VALUE]` mean something; the others belong to another web server. A value with blanks stands
in quotes, straight or as a printed guide has them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

HTTP_PORTS = ("httpadminport", "httpcontrolport", "httpmonitorport")
"""By the highest role of whoever comes through, Admin first."""
HTTPS_PORT = "httpsport"
DEFAULT_HTTP, DEFAULT_HTTPS = 9010, 9453
SSL_FILE = "httpd.webconsolessl.conf"
"""Copied into conf/ssl, it makes the web service speak HTTPS (10.5.4)."""

_DEFINE = re.compile(r"\s*Define\s+(\w+)(?:\s+(\S.*?))?\s*", re.ASCII | re.IGNORECASE)
_QUOTES = str.maketrans({"\u201c": '"', "\u201d": '"', "\u201e": '"'})
_WORD = re.compile(r'(?:(\w+)\s*=\s*)?(?:"((?:[^"\\]|\\.)*)"|([^\s"]+))', re.ASCII)


class HttpdError(Exception):
    """A line that cannot be used; the text tells which one and why."""


@dataclass(frozen=True)
class Define:
    """One definition. `value` is None for a name alone."""

    name: str
    value: str | None
    line: int


def unquoted(text: str) -> str:
    """A value without the quotes around it. Raises ValueError for a quote without its other half."""
    plain = text.translate(_QUOTES)
    if plain[:1] not in ('"', "'"):
        return text
    if len(plain) < 2 or plain[-1] != plain[0]:
        raise ValueError(f"{text} has a quote without its other half")
    return re.sub(r"\\(.)", r"\1", plain[1:-1])


def defines(text: str, file: str = "httpd.conf") -> dict[str, Define]:
    """The definitions by lower-case name; the last one of a name counts. Raises HttpdError."""
    found = {}
    for number, line in enumerate(text.splitlines(), 1):
        match = _DEFINE.fullmatch(line)
        if match is None:
            continue
        try:
            value = None if match[2] is None else unquoted(match[2])
        except ValueError as error:
            raise HttpdError(f"{file}:{number}: {error}") from None
        found[match[1].lower()] = Define(match[1].lower(), value, number)
    return found


def port_of(define: Define, file: str = "httpd.conf") -> int:
    """The value as a TCP port. Raises HttpdError."""
    value = define.value
    if value is None or not (value.isascii() and value.isdecimal()) or not 0 < int(value) < 65536:
        raise HttpdError(f"{file}:{define.line}: {value!r} is not a port; correct it, then restart")
    return int(value)


def web_ports(text: str, *, secure: bool = True) -> tuple[int, ...]:
    """Every port that the web service listens on, with that of HTTPS when it is `secure`. Lines that are wrong are
    left out; the service itself refuses them by name."""
    try:
        found = defines(text)
    except HttpdError:
        found = {}
    ports = set() if HTTPS_PORT in found or not secure else {DEFAULT_HTTPS}
    if not secure:
        found.pop(HTTPS_PORT, None)
    for name in (*HTTP_PORTS, HTTPS_PORT):
        if name in found:
            try:
                ports.add(port_of(found[name]))
            except HttpdError:
                continue
    if not text:
        ports.add(DEFAULT_HTTP)
    return tuple(sorted(ports))


@dataclass(frozen=True)
class Member:
    """One name of a line of group.conf or sslgroup.conf; `issuer` narrows it to certificates of that issuer."""

    role: str
    name: str
    issuer: str = ""


def members(text: str, roles: tuple[str, ...]) -> Iterator[Member]:
    """The members of the lines `ROLE: name "name with blanks" ...`, roles as in `roles`.

    `"NAME" issuer="CA"` is for certificates that this authority issued, by its CN or its whole name. Lines of other
    groups are passed over, as Apache does.
    """
    for line in text.splitlines():
        group, colon, rest = line.translate(_QUOTES).strip().partition(":")
        role = next((each for each in roles if each.lower() == group.strip().lower()), "")
        if not colon or not role or group.startswith("#"):
            continue
        waiting: Member | None = None
        for word in _WORD.finditer(rest):
            value = word[3] if word[2] is None else re.sub(r"\\(.)", r"\1", word[2])
            if word[1] and word[1].lower() == "issuer" and waiting is not None:
                waiting = Member(role, waiting.name, value)
                continue
            if waiting is not None:
                yield waiting
            waiting = Member(role, f"{word[1]}={value}" if word[1] else value)
        if waiting is not None:
            yield waiting
