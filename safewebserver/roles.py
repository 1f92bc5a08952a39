"""Who a request is from and what he may do: the one place where it is decided (guide 11.1 to 11.4). Pure.

The first line of this table that fits is the one that counts; docs/web-service.md shows it to administrators.

| the request has | who | role at most |
| --- | --- | --- |
| a signature of a server of the cluster | whoever asked there | what that server signed for him, and not more than the role of the certificate of the connection, if that has one |
| a name and a password, or a session or proof made with them; over HTTPS where passwords are asked for | the user | group.conf or the group of the directory; Admin when there are none |
| a client certificate (HTTPS) | its CN | sslgroup.conf by CN and issuer; for who is not in it the OU |
| nothing, over HTTP, where nobody is asked for a password | anonymous | Admin |
| anything else | nobody | refused |

Each of them also has at most the role of the port. A port that nobody configured has none.
"""  # noqa: E501 - a table

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from safekit.model.httpd import Member, members
from safekit.wire.certificates import Certificate
from safewebserver.permissions import Role

BEHALF, ROLE = "on_behalf", "role"
"""Of the query, and so of what is signed: for whom a server asks, and what that person may do."""
LABELS = tuple(role.label for role in reversed(Role))


class Means(Enum):
    """By what somebody is known."""

    SERVER = "signature"
    PERSON = "password"
    CERTIFICATE = "certificate"
    NOTHING = "nothing"


@dataclass(frozen=True)
class Person:
    """A user whose password is right. `role` is None for one who is in no group."""

    name: str
    role: Role | None


@dataclass(frozen=True)
class Presented:
    """What is known of a request, everything checked. `port`: the highest role of the port that it came through, None
    for one that is not configured. `server`: the sender of a right signature."""

    port: Role | None
    secure: bool = False
    asked: bool = True
    """People are asked for a password (`Define usefile` or `useldap`)."""
    server: str = ""
    behalf: Person | None = None
    """For whom that server says that it asks."""
    person: Person | None = None
    certificate: Certificate | None = None
    groups: tuple[Member, ...] = ()
    """The lines of sslgroup.conf."""
    revoked: frozenset[tuple[str, int]] = frozenset()
    """Of clca.crl: issuer and serial number."""
    now: float = 0.0
    """Unix time: a connection may live longer than the certificate that began it."""


@dataclass(frozen=True)
class Granted:
    """Who it is, by what, and what he may do."""

    name: str
    role: Role
    means: Means


@dataclass(frozen=True)
class Denied:
    """Why it is nobody who may ask. `kind` for programs; `tried`: with something that is wrong."""

    kind: str
    text: str
    tried: bool = True


def decide(what: Presented) -> Granted | Denied:
    """The table above."""
    found = _known(what)
    if isinstance(found, Denied):
        return found
    if what.port is None:
        return Denied("port", "this port gives no role: it is not one of httpd.conf")
    return Granted(found.name, min(found.role, what.port), found.means)


def _known(what: Presented) -> Granted | Denied:
    certificate = what.certificate
    if certificate is not None and (certificate.issuer_name, certificate.serial) in what.revoked:
        text = f"the certificate of {certificate.name or certificate.subject} was revoked (SAFE/web/conf/clca.crl)"
        return Denied("certificate", text)
    if certificate is not None and certificate.ends < what.now:
        text = f"the certificate of {certificate.name or certificate.subject} has expired on this connection"
        return Denied("certificate", text)
    if what.server:
        limit = certified(what.certificate, what.groups) if what.certificate is not None else None
        asker = what.behalf or Person(f"root@{what.server}", Role.ADMIN)
        return Granted(asker.name, min(asker.role or Role.MONITOR, limit or Role.ADMIN), Means.SERVER)
    if what.person is not None:
        if what.secure and not what.asked:
            text = "no password is accepted: httpd.conf has neither `Define usefile` nor `Define useldap`"
            return Denied("credentials", text)
        if what.person.role is None:
            text = f"user {what.person.name} is in no group that gives a role (SAFE/web/conf/group.conf)"
            return Denied("credentials", text)
        return Granted(what.person.name, what.person.role, Means.PERSON)
    if what.certificate is not None:
        return _with_certificate(what.certificate, what.groups)
    if what.secure and not what.asked:
        text = "a client certificate of SAFE/web/conf/clcacert.crt is needed, or the signature of a server"
        return Denied("certificate", text, tried=False)
    if what.asked:
        return Denied("credentials", "a name and a password are needed (SAFE/web/conf/user.conf)", tried=False)
    return Granted("anonymous", Role.ADMIN, Means.NOTHING)


def _with_certificate(certificate: Certificate, groups: Iterable[Member]) -> Granted | Denied:
    who = certificate.name or certificate.subject
    if not certificate.usable("client"):
        return Denied("certificate", f"the certificate of {who} is not for Client Authentication (Extended Key Usage)")
    if not certificate.name:
        return Denied("certificate", f"the certificate {who} has no CN that can be printed, or several: it is nobody")
    role = certified(certificate, groups)
    if role is None:
        text = f"the certificate of {who} gives no role: sslgroup.conf does not name it with its issuer"
        return Denied("certificate", f"{text} {certificate.issuer!r}, and its OU is no role")
    return Granted(certificate.name, role, Means.CERTIFICATE)


def certified(certificate: Certificate, groups: Iterable[Member]) -> Role | None:
    """The role of a certificate that a known authority issued, None when it gives none.

    By sslgroup.conf the highest one of its lines, as for a user of several groups. By the OU the lowest one: an
    administrator wrote the file, and the OU may have been written by anybody's authority.
    """
    if not certificate.usable("client") or not certificate.name:
        return None
    issuers = ("", certificate.issuer, certificate.issuer_name)
    listed = [m.role for m in groups if m.name == certificate.name and m.issuer in issuers]
    if listed:
        return max(Role[role.upper()] for role in listed)
    return min((Role[unit.upper()] for unit in certificate.units if unit in LABELS), default=None)


def parse_groups(text: str) -> dict[str, Role]:
    """Name -> role of the lines of group.conf, the highest one for a user of several groups."""
    roles: dict[str, Role] = {}
    for member in members(text, LABELS):
        role = Role[member.role.upper()]
        roles[member.name] = max(role, roles.get(member.name, role))
    return roles


def parse_certificate_groups(text: str) -> tuple[Member, ...]:
    """The lines of sslgroup.conf."""
    return tuple(members(text, LABELS))
