"""SAFE/web/conf: ports, users and groups (guide 10.5.1, 11.2, 11.4). Reading only; nothing here listens."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from safekit.disk.files import stamp_of
from safekit.disk.paths import safe, speaks_https
from safekit.model.httpd import (
    DEFAULT_HTTP,
    DEFAULT_HTTPS,
    HTTP_PORTS,
    HTTPS_PORT,
    HttpdError,
    Member,
    defines,
    port_of,
)
from safekit.wire.certificates import revoked
from safekit.wire.tls import CLIENT_AUTHORITIES, REVOKED
from safewebserver.permissions import Role
from safewebserver.roles import parse_certificate_groups, parse_groups

MAX_FILE = 1 << 20
AGAIN = "write it again, or, when that is meant: safekit webserver restart"


class SettingsError(Exception):
    """A file of SAFE/web/conf that cannot be used; the text names it and the next step."""


@dataclass(frozen=True)
class Settings:
    """What httpd.conf says. `listen`: port -> the highest role that a request through it may have; `https` its port.
    `values`: every definition by its lower-case name, '' for one without a value. `secure`: conf/ssl is filled, and
    then the ports of `listen` tell only which server is ready."""

    listen: tuple[tuple[int, Role], ...] = ((DEFAULT_HTTP, Role.ADMIN),)
    https: int = DEFAULT_HTTPS
    secure: bool = False
    values: Mapping[str, str] = field(default_factory=lambda: {"usefile": ""})

    @property
    def usefile(self) -> bool:
        """Users are in user.conf."""
        return "usefile" in self.values

    @property
    def useldap(self) -> bool:
        """Users are in a directory."""
        return "useldap" in self.values

    @property
    def authenticated(self) -> bool:
        """People must give a name and a password."""
        return self.usefile or self.useldap

    def role_of(self, port: int, *, secure: bool) -> Role | None:
        """The highest role of a request through a port; None for one that is not configured, or only for health."""
        if secure:
            return Role.ADMIN if self.secure and port == self.https else None
        return None if self.secure else dict(self.listen).get(port)


def conf_dir() -> Path:
    """Directory of the web service's configuration."""
    return safe() / "web" / "conf"


def parse_settings(text: str, file: str = "httpd.conf", *, secure: bool = False) -> Settings:
    """The Define lines of httpd.conf; other lines belong to Apache and mean nothing here.

    Raises SettingsError for a port that is none, one that is used twice, or when no port is defined.
    """
    try:
        found = defines(text, file)
        ports = {name: port_of(found[name], file) for name in (*HTTP_PORTS, HTTPS_PORT) if name in found}
    except HttpdError as error:
        raise SettingsError(str(error)) from None
    https = ports.pop(HTTPS_PORT, DEFAULT_HTTPS)
    used = [*ports.values(), *([https] if secure else [])]
    for number in used:
        if used.count(number) > 1:
            raise SettingsError(f"{file}: port {number} is defined twice; give each role its own")
    if not ports and not secure:
        raise SettingsError(f"{file}: none of {', '.join(HTTP_PORTS)} is defined; uncomment one, then restart")
    listen = tuple((ports[name], Role(3 - HTTP_PORTS.index(name))) for name in HTTP_PORTS if name in ports)
    return Settings(listen, https, secure, {name: each.value or "" for name, each in found.items()})


def load_settings() -> Settings:
    """The settings of this server. A missing file means the safe default: port 9010, users from user.conf.

    Raises SettingsError, OSError.
    """
    path = conf_dir() / "httpd.conf"
    secure = speaks_https()
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return Settings(secure=secure)
    return parse_settings(text, str(path), secure=secure)


def parse_users(text: str) -> dict[str, bytes]:
    """Name -> bcrypt hash of the lines of user.conf. Other kinds of hashes are left out: nobody can log in
    with them, and `htpasswd` tells how to make them new."""
    users = {}
    for line in text.splitlines():
        name, colon, hashed = line.strip().partition(":")
        if colon and name and not name.startswith("#") and hashed.startswith(("$2y$", "$2b$", "$2a$")):
            users[name] = hashed.encode("utf-8")
    return users


class CertificateRules:
    """sslgroup.conf and clca.crl, read again when they change.

    A file that was there and is not any more is a closed door until the service is started again: what it took from
    somebody (a role, a lost certificate) must not come back while an editor writes it anew.
    """

    def __init__(self) -> None:
        self._stamp: object = None
        self._now: tuple[tuple[Member, ...], frozenset[tuple[str, int]]] = ((), frozenset())
        self._had: set[str] = set()

    def now(self) -> tuple[tuple[Member, ...], frozenset[tuple[str, int]]]:
        """Who has which role, and which certificates are revoked; neither without its file. Raises ValueError for a
        list that cannot be trusted, and for a file that has vanished; OSError."""
        groups, lists, authorities = (conf_dir() / name for name in ("sslgroup.conf", REVOKED, CLIENT_AUTHORITIES))
        stamp = tuple(stamp_of(path) for path in (groups, lists, authorities))
        if stamp != self._stamp:
            members = parse_certificate_groups(_read(groups) or "")
            gone = revoked(lists.read_bytes(), authorities.read_bytes()) if lists.exists() else frozenset()
            for name, there in ((groups.name, bool(members)), (REVOKED, lists.exists())):
                if there:
                    self._had.add(name)
                elif name in self._had:
                    raise ValueError(f"{name} had lines and has none any more; {AGAIN}")
            self._now = members, gone
            self._stamp = stamp
        return self._now


class People:
    """user.conf and group.conf, read again when they change. A group.conf that was there and is not any more gives no
    role to anybody until the service is started again: without one, everybody would be Admin."""

    def __init__(self, say: Callable[[str], None] = lambda text: None) -> None:
        """`say` is told when group.conf has vanished."""
        self._say = say
        self._stamp: object = None
        self._users: dict[str, bytes] = {}
        self._groups: dict[str, Role] | None = None
        self.vanished = False

    def refresh(self) -> bool:
        """Look at the files; True when they changed. Raises OSError."""
        paths = (conf_dir() / "user.conf", conf_dir() / "group.conf")
        stamp = tuple(stamp_of(path) for path in paths)
        if stamp == self._stamp:
            return False
        texts = [_read(path) for path in paths]
        self._users = parse_users(texts[0] or "")
        self._take_groups(texts[1])
        self._stamp = stamp
        return True

    def _take_groups(self, text: str | None) -> None:
        vanished = text is None and (self._groups is not None or self.vanished)
        if vanished and not self.vanished:
            self._say(f"group.conf has vanished: nobody has a role by his password; {AGAIN}")
        self.vanished = vanished
        self._groups = None if text is None else parse_groups(text)

    def hash_of(self, name: str) -> bytes | None:
        """The password's hash; None for an unknown user."""
        return self._users.get(name)

    def role_of(self, name: str) -> Role | None:
        """The role of a known user: Admin without a group.conf; None for a user in no group."""
        if self.vanished:
            return None
        return Role.ADMIN if self._groups is None else self._groups.get(name)


def _read(path: Path) -> str | None:
    try:
        with open(path, encoding="utf-8", errors="replace") as handle:
            return handle.read(MAX_FILE)
    except FileNotFoundError:
        return None
