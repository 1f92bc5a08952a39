"""SAFE/web/conf: ports, users and groups (guide 10.5.1, 11.2, 11.4.4). Reading only; nothing here listens."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from safekit.disk.paths import safe
from safewebserver.permissions import Role

MAX_FILE = 1 << 20
_DEFINE = re.compile(r"\s*Define\s+(\w+)(?:\s+(\S+))?\s*", re.ASCII)
_PORTS = ("httpadminport", "httpcontrolport", "httpmonitorport")


class SettingsError(Exception):
    """A file of SAFE/web/conf that cannot be used; the text names it and the next step."""


@dataclass(frozen=True)
class Settings:
    """What httpd.conf says. `listen`: port -> the highest role that a request through it may have.
    `authenticated`: people must give a name and a password (`Define usefile`)."""

    listen: tuple[tuple[int, Role], ...] = ((9010, Role.ADMIN),)
    authenticated: bool = True


def conf_dir() -> Path:
    """Directory of the web service's configuration."""
    return safe() / "web" / "conf"


def parse_settings(text: str, file: str = "httpd.conf") -> Settings:
    """The Define lines of httpd.conf; other lines belong to Apache and mean nothing here.

    Raises SettingsError for a port that is none, one that is used twice, or when no port is defined.
    """
    listen: list[tuple[int, Role]] = []
    authenticated = False
    for number, line in enumerate(text.splitlines(), 1):
        found = _DEFINE.fullmatch(line)
        if found is None:
            continue
        name, value = found[1].lower(), found[2]
        if name == "usefile":
            authenticated = True
        elif name in _PORTS:
            if value is None or not value.isdecimal() or not 0 < int(value) < 65536:
                raise SettingsError(f"{file}:{number}: {value!r} is not a port; correct it, then restart")
            if int(value) in dict(listen):
                raise SettingsError(f"{file}:{number}: port {value} is defined twice; give each role its own")
            listen.append((int(value), Role(3 - _PORTS.index(name))))
    if not listen:
        raise SettingsError(f"{file}: none of {', '.join(_PORTS)} is defined; uncomment one, then restart")
    return Settings(tuple(listen), authenticated)


def load_settings() -> Settings:
    """The settings of this server. A missing file means the safe default: port 9010, users from user.conf.

    Raises SettingsError, OSError.
    """
    path = conf_dir() / "httpd.conf"
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return Settings()
    return parse_settings(text, str(path))


def parse_users(text: str) -> dict[str, bytes]:
    """Name -> bcrypt hash of the lines of user.conf. Other kinds of hashes are left out: nobody can log in
    with them, and `htpasswd` tells how to make them new."""
    users = {}
    for line in text.splitlines():
        name, colon, hashed = line.strip().partition(":")
        if colon and name and not name.startswith("#") and hashed.startswith(("$2y$", "$2b$", "$2a$")):
            users[name] = hashed.encode("utf-8")
    return users


def parse_groups(text: str) -> dict[str, Role]:
    """Name -> role of the lines of group.conf, the highest one for a user of several groups."""
    roles: dict[str, Role] = {}
    for line in text.splitlines():
        group, colon, members = line.strip().partition(":")
        role = next((r for r in Role if r.label.lower() == group.strip().lower()), None)
        if not colon or role is None:
            continue
        for name in members.split():
            roles[name] = max(role, roles.get(name, role))
    return roles


class People:
    """user.conf and group.conf, read again when they change."""

    def __init__(self) -> None:
        self._stamp: object = None
        self._users: dict[str, bytes] = {}
        self._groups: dict[str, Role] | None = None

    def refresh(self) -> bool:
        """Look at the files; True when they changed. Raises OSError."""
        paths = (conf_dir() / "user.conf", conf_dir() / "group.conf")
        stamp = tuple(_stamp(path) for path in paths)
        if stamp == self._stamp:
            return False
        texts = [_read(path) for path in paths]
        self._users = parse_users(texts[0] or "")
        self._groups = None if texts[1] is None else parse_groups(texts[1])
        self._stamp = stamp
        return True

    def hash_of(self, name: str) -> bytes | None:
        """The password's hash; None for an unknown user."""
        return self._users.get(name)

    def role_of(self, name: str) -> Role | None:
        """The role of a known user: Admin without a group.conf; None for a user in no group."""
        return Role.ADMIN if self._groups is None else self._groups.get(name)


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def _read(path: Path) -> str | None:
    try:
        with open(path, encoding="utf-8", errors="replace") as handle:
            return handle.read(MAX_FILE)
    except FileNotFoundError:
        return None
