"""Sessions of people at the console: a cookie instead of the password with every request (guide 3.10, 11.4.4).

A session lives in the memory of the service. It ends when nobody has asked for anything for a while, when its user
logs out, and when the user's password, group or entry in user.conf has changed.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from aiohttp import web

from safewebserver.api import PREFIX, ApiError, json_of, reply
from safewebserver.identity import Caller, Gate, Unauthorized
from safewebserver.permissions import Role
from safewebserver.settings import People

COOKIE = "safekit_session"
CONSOLE_HEADER = "X-SafeKit-Console"
"""Sent by our own pages: they ask for the password themselves, a browser's dialog would know no log out."""
IDLE_SECONDS = 1800.0
WATCH_SECONDS = 12 * 3600.0
"""Of the role Monitor, which changes nothing: a screen on the wall."""
MAX_SESSIONS = 1000
MAX_NAME = 255


@dataclass(frozen=True)
class Session:
    """Somebody who gave the right password. `stamp` changes with his entry in user.conf; `used` is monotonic."""

    user: str
    stamp: str
    role: Role
    used: float

    def ended(self, now: float) -> bool:
        """Whether nobody used it for too long."""
        return now - self.used > (WATCH_SECONDS if self.role == Role.MONITOR else IDLE_SECONDS)


class Sessions:
    """The sessions by the hash of their cookie. `clock` is monotonic."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._known: dict[str, Session] = {}
        self._people = People()

    def open(self, user: str, role: Role) -> str:
        """A new session; what its cookie holds."""
        now = self._clock()
        self._known = {key: each for key, each in self._known.items() if not each.ended(now)}
        while len(self._known) >= MAX_SESSIONS:
            del self._known[min(self._known, key=lambda key: self._known[key].used)]
        token = secrets.token_urlsafe(32)
        self._known[_key(token)] = Session(user, self._stamp(user), role, now)
        return token

    def find(self, token: str, *, use: bool = True) -> tuple[str, Role] | None:
        """User and role of a session; None when it has ended. `use`: its user did something."""
        key, now = _key(token), self._clock()
        found = self._known.get(key)
        if found is None:
            return None
        stamp = self._stamp(found.user)
        role = self._people.role_of(found.user)
        if found.ended(now) or stamp != found.stamp or not stamp or role is None:
            del self._known[key]
            return None
        if use:
            self._known[key] = replace(found, used=now)
        return found.user, min(role, found.role)

    def close(self, token: str) -> None:
        """Log out."""
        self._known.pop(_key(token), None)

    def _stamp(self, user: str) -> str:
        self._people.refresh()
        hashed = self._people.hash_of(user)
        return hashlib.sha256(hashed).hexdigest() if hashed else ""


def _key(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()


@dataclass(frozen=True)
class Visitor(Caller):
    """A person at the console. The logs tell `web@ADDRESS` (guide 7.3), the page shows `user`."""

    user: str = ""


def from_console(request: web.Request) -> bool:
    """Whether a page of the console asks."""
    return CONSOLE_HEADER in request.headers


async def who_asks(gate: Gate, sessions: Sessions, request: web.Request) -> Caller:
    """The caller of a request: by its header, else by its session. Raises Unauthorized, Busy."""
    name = request.transport.get_extra_info("sockname") if request.transport is not None else None
    port = int(name[1]) if name else 0
    limit = dict(gate.settings.listen).get(port, Role.MONITOR)
    header, token = request.headers.get("Authorization"), request.cookies.get(COOKIE)
    known_as = f"web@{request.remote or 'unknown'}"
    if header is None and token is not None and gate.settings.authenticated:
        found = sessions.find(token, use=not request.path.endswith("/events"))
        if found is None:
            raise Unauthorized("session", "the session has ended; log in again", tried=False)
        return Visitor(known_as, min(found[1], limit), user=found[0])
    found_caller = await gate.identify(header, request.method, request.raw_path, port)
    if found_caller.anonymous and from_console(request):
        return Visitor(known_as, found_caller.role, anonymous=True)
    return found_caller


class SessionApi:
    """Logging in and out."""

    def __init__(self, gate: Gate, sessions: Sessions) -> None:
        self._gate = gate
        self._sessions = sessions

    def routes(self) -> list[web.RouteDef]:
        """Its routes. Logging in is for everybody."""
        path = f"{PREFIX}/session"
        return [web.post(path, self.log_in), web.delete(path, self.log_out)]

    async def log_in(self, request: web.Request) -> web.StreamResponse:
        """Name and password for a cookie."""
        request["caller"] = Caller("", Role.MONITOR)
        data = await json_of(request, 4096)
        user, password = data.get("user"), data.get("password")
        if not (isinstance(user, str) and isinstance(password, str) and 0 < len(user) <= MAX_NAME and ":" not in user):
            raise ApiError(400, "malformed", "expected the texts user and password")
        sockname = request.transport.get_extra_info("sockname") if request.transport is not None else None
        try:
            pair = base64.b64encode(f"{user}:{password}".encode()).decode()
        except UnicodeEncodeError:
            raise ApiError(400, "malformed", "user or password has half a character") from None
        port = int(sockname[1]) if sockname else 0
        caller = await self._gate.identify(f"Basic {pair}", request.method, request.raw_path, port)
        response = reply(request, {"user": user, "role": caller.role.label})
        response.set_cookie(
            COOKIE,
            self._sessions.open(user, caller.role),
            httponly=True,
            samesite="Strict",
            secure=request.secure,
            path="/",
        )
        return response

    async def log_out(self, request: web.Request) -> web.StreamResponse:
        """End the session of the cookie; whoever has none is logged out already."""
        self._sessions.close(request.cookies.get(COOKIE, ""))
        response = reply(request, {"user": "", "role": "Monitor"})
        response.del_cookie(COOKIE, path="/")
        return response
