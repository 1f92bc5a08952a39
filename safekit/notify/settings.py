"""The settings of notification, SAFE/conf/notify.conf: who is told, and through what. Pure.

[mail]
server = smtp.example.org
port = 587                  ; 587 with starttls, 465 with tls, 25 with none
security = starttls         ; starttls, tls or none
user = cluster              ; with a password; leave both out where the server asks for none
password = secret
from = cluster@example.org
to = admin@example.org, night@example.org
[webhook]
url = https://hooks.example.org/safekit
[limits]
settle = 10                 ; seconds in which changes become one message
per_hour = 6                ; messages about one module; more become one summary
"""

from __future__ import annotations

import configparser
from dataclasses import dataclass, field
from enum import Enum
from urllib.parse import urlsplit


class Security(Enum):
    """How the connection to the mail server is protected."""

    STARTTLS = "starttls"
    TLS = "tls"
    NONE = "none"

    @property
    def port(self) -> int:
        """The usual one."""
        return {Security.STARTTLS: 587, Security.TLS: 465, Security.NONE: 25}[self]


class BadSettings(ValueError):
    """notify.conf cannot be used; the text names section and key."""


@dataclass(frozen=True)
class Mail:
    """A mail server and who is written to."""

    server: str
    port: int
    security: Security
    sender: str
    to: tuple[str, ...]
    user: str = ""
    password: str = field(default="", repr=False)


@dataclass(frozen=True)
class Limits:
    """`settle` in seconds; `per_hour` for each module."""

    settle: float = 10.0
    per_hour: int = 6


@dataclass(frozen=True)
class NotifySettings:
    """Empty: nobody is told."""

    mail: Mail | None = None
    webhook: str = field(default="", repr=False)
    limits: Limits = field(default_factory=Limits)

    @property
    def channels(self) -> tuple[str, ...]:
        """Names of what is set up."""
        return (("mail",) if self.mail else ()) + (("webhook",) if self.webhook else ())


_KEYS = {
    "mail": {"server", "port", "security", "user", "password", "from", "to"},
    "webhook": {"url"},
    "limits": {"settle", "per_hour"},
}


def parse_settings(text: str) -> NotifySettings:
    """Raises BadSettings: a typing error must not be found out by a message that did not come."""
    parser = configparser.ConfigParser(interpolation=None, inline_comment_prefixes=(";",))
    try:
        parser.read_string(text)
    except configparser.Error as error:
        raise BadSettings(" ".join(str(error).split())) from None
    for section in parser.sections():
        unknown = set(parser[section]) - _KEYS.get(section, set())
        if section not in _KEYS:
            raise BadSettings(f"[{section}] is not one of {', '.join(f'[{name}]' for name in _KEYS)}")
        if unknown:
            raise BadSettings(f"[{section}] has no {min(unknown)}: {', '.join(sorted(_KEYS[section]))}")
    mail = _mail(parser["mail"]) if parser.has_section("mail") else None
    webhook = parser.get("webhook", "url", fallback="")
    if webhook and (urlsplit(webhook).scheme not in ("http", "https") or not urlsplit(webhook).hostname):
        raise BadSettings(f"[webhook] url: {webhook} is not an address that begins with https:// or http://")
    return NotifySettings(mail, webhook, _limits(parser))


def _limits(parser: configparser.ConfigParser) -> Limits:
    settle = _number(parser.get("limits", "settle", fallback="10"), "[limits] settle", 0, 600)
    return Limits(settle, int(_number(parser.get("limits", "per_hour", fallback="6"), "[limits] per_hour", 1, 1000)))


def _number(text: str, name: str, low: float, high: float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not low <= value <= high:
        raise BadSettings(f"{name}: {text} is not a number between {low:g} and {high:g}")
    return value


def _mail(section: configparser.SectionProxy) -> Mail:
    server, to = section.get("server", ""), tuple(a.strip() for a in section.get("to", "").split(",") if a.strip())
    if not server or not to:
        raise BadSettings("[mail] needs server and to")
    if any("@" not in address or any(c.isspace() for c in address) for address in to):
        raise BadSettings(f"[mail] to: {section['to']} is not a list of addresses, separated by commas")
    try:
        security = Security(section.get("security", "starttls"))
    except ValueError:
        raise BadSettings(f"[mail] security: {section['security']} is not starttls, tls or none") from None
    port = int(_number(section.get("port", str(security.port)), "[mail] port", 1, 65535))
    user, password = section.get("user", ""), section.get("password", "")
    if bool(user) != bool(password):
        raise BadSettings("[mail] user and password belong together")
    if user and security is Security.NONE:
        raise BadSettings("[mail] a password is not sent in clear text: set security to starttls or tls")
    return Mail(server, port, security, section.get("from", f"safekit@{server}"), to, user, password)
