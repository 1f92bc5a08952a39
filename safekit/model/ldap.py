"""The directory of users that httpd.conf names: useldap, binddn, bindpwd, searchurl and the groups (guide 11.4.3.2).

Pure. Beyond the guide: `Define ldapstarttls`, `Define ldapcacert FILE`, and several servers in searchurl, separated by
blanks.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

GROUPS = (("admingroup", "Admin"), ("controlgroup", "Control"), ("monitorgroup", "Monitor"))
SCOPES = ("base", "one", "sub")
MEMBER_OF = "memberOf"
MAX_NAME = 255
_ATTRIBUTE = re.compile(r"[A-Za-z][A-Za-z0-9.-]*", re.ASCII)


class LdapSettingsError(Exception):
    """A definition that cannot be used; the text names it and the next step."""


@dataclass(frozen=True)
class LdapSettings:
    """Where users are. `servers` are asked in this order; `attribute` is the one that holds the name, `membership` the
    one of a user that lists his groups; `groups` are (role, DN), the highest role first."""

    servers: tuple[str, ...]
    base: str
    attribute: str
    membership: str = MEMBER_OF
    scope: str = "sub"
    filter: str = "(objectClass=*)"
    binddn: str = ""
    bindpwd: str = ""
    groups: tuple[tuple[str, str], ...] = ()
    starttls: bool = False
    authority: str = ""

    def to_json(self) -> dict[str, object]:
        """For the process that asks."""
        return {**self.__dict__}

    @classmethod
    def from_json(cls, data: Mapping[str, object]) -> LdapSettings:
        """What `to_json` made."""
        values = dict(data)
        values["servers"] = tuple(values["servers"])  # type: ignore[arg-type]
        values["groups"] = tuple((str(role), str(dn)) for role, dn in values["groups"])  # type: ignore[attr-defined]
        return cls(**values)  # type: ignore[arg-type]


def ldap_settings(values: Mapping[str, str]) -> LdapSettings:
    """From the definitions by lower-case name. Raises LdapSettingsError."""
    url = values.get("searchurl", "")
    if not url:
        raise LdapSettingsError('useldap needs: Define searchurl "ldap://HOST:389/BASE?ATTRIBUTE?sub?(objectClass=*)"')
    scheme, _, rest = url.partition("://")
    hosts, slash, query = rest.partition("/")
    if scheme.lower() not in ("ldap", "ldaps") or not hosts.strip() or not slash:
        raise LdapSettingsError(f"searchurl: {url[:200]!r} is not ldap://HOST:PORT/BASE?ATTRIBUTE?SCOPE?FILTER")
    base, attributes, scope, chosen = [unquote(part).strip() for part in [*query.split("?"), "", "", ""][:4]]
    names = [each.strip() for each in attributes.split(",") if each.strip()] or ["uid"]
    if not all(_ATTRIBUTE.fullmatch(name) for name in names):
        raise LdapSettingsError(f"searchurl: {attributes[:200]!r} is no list of attributes")
    scope = scope.lower() or "sub"
    if scope not in SCOPES:
        raise LdapSettingsError(f"searchurl: the scope is {scope[:40]!r}; use one of {', '.join(SCOPES)}")
    chosen = chosen or "(objectClass=*)"
    if not chosen.startswith("("):
        chosen = f"({chosen})"
    if bool(values.get("bindpwd")) != bool(values.get("binddn")):
        raise LdapSettingsError("binddn and bindpwd belong together: define both, or none for an anonymous search")
    starttls = "ldapstarttls" in values
    if starttls and scheme.lower() == "ldaps":
        raise LdapSettingsError("ldapstarttls is for ldap://; with ldaps:// everything is encrypted from the beginning")
    return LdapSettings(
        servers=tuple(_server(scheme.lower(), host) for host in hosts.split()),
        base=base,
        attribute=names[0],
        membership=names[1] if len(names) > 1 else MEMBER_OF,
        scope=scope,
        filter=chosen,
        binddn=values.get("binddn", ""),
        bindpwd=values.get("bindpwd", ""),
        groups=tuple((role, values[name]) for name, role in GROUPS if values.get(name)),
        starttls=starttls,
        authority=values.get("ldapcacert", ""),
    )


def _server(scheme: str, host: str) -> str:
    try:
        parts = urlsplit(f"{scheme}://{host}")
        name, port = parts.hostname, parts.port or (636 if scheme == "ldaps" else 389)
    except ValueError:
        name, port = None, 0
    if not name:
        raise LdapSettingsError(f"searchurl: {host[:100]!r} is not HOST or HOST:PORT")
    return f"{scheme}://{f'[{name}]' if ':' in name else name}:{port}"


def usable_name(name: str) -> bool:
    """Whether somebody can have that name in a directory."""
    return 0 < len(name) <= MAX_NAME and name.isprintable() and not any("\ud800" <= c <= "\udfff" for c in name)


def same_dn(text: str) -> str:
    """A form in which two spellings of a DN are equal: blanks beside `,` and `=` and the case mean nothing."""
    parts = re.split(r"(?<!\\),", text)
    return ",".join("=".join(half.strip() for half in part.split("=", 1)) for part in parts).casefold()
