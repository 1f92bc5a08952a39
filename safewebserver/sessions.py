"""Sessions of people at the console: a cookie instead of the password with every request (guide 3.10, 11.4.4).

A session lives in the memory of the service. It ends when nobody has asked for anything for a while, when its user
logs out, and when the user's password, group or entry in user.conf has changed.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TypeGuard

from aiohttp import web

from safekit.disk.paths import node_name
from safekit.wire.invitation import USER as INVITED
from safekit.wire.proof import PROOF_PATH, ProofError
from safekit.wire.remote import SCHEME
from safewebserver.api import PREFIX, ApiError, json_of, reply
from safewebserver.identity import Asked, Caller, Gate, Unauthorized
from safewebserver.permissions import Role
from safewebserver.roles import BEHALF, ROLE, Person
from safewebserver.settings import People

COOKIE = "safekit_session"
CONSOLE_HEADER = "X-SafeKit-Console"
"""Sent by our own pages: they ask for the password themselves, a browser's dialog would know no log out."""
IDLE_SECONDS = 1800.0
WATCH_SECONDS = 12 * 3600.0
"""Of the role Monitor, which changes nothing: a screen on the wall."""
MAX_SESSIONS = 1000
MAX_OF_USER = 50
"""Somebody who logs in again and again ends his own sessions, not those of others."""
MAX_NAME = 255


@dataclass(frozen=True)
class Session:
    """Somebody who gave the right password. `stamp` changes with his entry in user.conf; `used` is monotonic."""

    user: str
    stamp: str
    role: Role
    used: float
    elsewhere: bool = False
    """Of a directory, not of user.conf: who follows the session asks there."""

    def ended(self, now: float) -> bool:
        """Whether nobody used it for too long."""
        return now - self.used > (WATCH_SECONDS if self.role == Role.MONITOR else IDLE_SECONDS)


class Sessions:
    """The sessions by the hash of their cookie. `clock` is monotonic."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._known: dict[str, Session] = {}
        self._people = People()
        self._people.refresh()

    def open(self, user: str, role: Role, *, elsewhere: bool = False) -> str:
        """A new session; what its cookie holds."""
        now = self._clock()
        self._known = {key: each for key, each in self._known.items() if not each.ended(now)}
        own = [key for key, each in self._known.items() if each.user == user]
        if len(own) >= MAX_OF_USER:
            del self._known[self._idle_longest(own)]
        while len(self._known) >= MAX_SESSIONS:
            del self._known[self._idle_longest(self._known)]
        token = secrets.token_urlsafe(32)
        self._known[_key(token)] = Session(user, self._stamp(user), role, now, elsewhere)
        return token

    def _idle_longest(self, keys: Iterable[str]) -> str:
        return min(keys, key=lambda key: self._known[key].used)

    def find(self, token: str, *, use: bool = True) -> tuple[str, Role] | None:
        """User and role of a session; None when it has ended. `use`: its user did something."""
        key, now = _key(token), self._clock()
        found = self._known.get(key)
        if found is None:
            return None
        stamp = self._stamp(found.user)
        role = found.role if found.elsewhere else self._people.role_of(found.user)
        if self._people.vanished and not found.elsewhere:
            return None  # for now
        if found.ended(now) or stamp != found.stamp or (not stamp and not found.elsewhere) or role is None:
            del self._known[key]
            return None
        if use:
            self._known[key] = replace(found, used=now)
        return found.user, min(role, found.role)

    def elsewhere(self, token: str) -> bool:
        """Whether the user of a session is one of a directory."""
        found = self._known.get(_key(token))
        return found is not None and found.elsewhere

    def close(self, token: str) -> None:
        """Log out."""
        self._known.pop(_key(token), None)

    def _stamp(self, user: str) -> str:
        self._people.refresh()
        hashed = self._people.hash_of(user)
        return hashlib.sha256(hashed).hexdigest() if hashed else ""


def _key(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()


def from_console(request: web.Request) -> bool:
    """Whether a page of the console asks."""
    return CONSOLE_HEADER in request.headers


async def who_asks(gate: Gate, sessions: Sessions, request: web.Request) -> Caller:
    """The caller of a request: by its header, else by its session, else by the certificate of the connection. Raises
    Unauthorized, Busy, Wait, ApiError."""
    header, token = request.headers.get("Authorization"), request.cookies.get(COOKIE)
    person = None
    if header is None and token is not None and gate.settings.authenticated:
        person = await _in_session(gate, sessions, token, use=not request.path.endswith("/events"))
    asked = replace(asked_of(request), header=header, session=person)
    if header is not None and header.startswith(f"{SCHEME} "):
        asked = replace(asked, behalf=behalf_of(request.query))
    return await gate.identify(asked)


async def _in_session(gate: Gate, sessions: Sessions, token: str, *, use: bool) -> Person:
    """The user of a session, who may have lost his group meanwhile. Raises Unauthorized."""
    found = sessions.find(token, use=use)
    if found is not None and gate.directory is not None and sessions.elsewhere(token):
        person = await gate.directory.person(found[0])
        if person is None or person.role is None:
            sessions.close(token)
            found = None
        else:
            found = found[0], min(person.role, found[1])
    if found is None:
        raise Unauthorized("session", "the session has ended; log in again", tried=False)
    return Person(*found)


def asked_of(request: web.Request) -> Asked:
    """What the connection of a request tells."""
    name, certificate = (request.get_extra_info(each) for each in ("sockname", "certificate"))
    return Asked(
        request.method,
        request.raw_path,
        port=int(name[1]) if name else 0,
        secure=request.secure,
        address=request.remote or "unknown",
        certificate=certificate,
        console=from_console(request),
    )


def behalf_of(query: Mapping[str, str]) -> Person | None:
    """The person for whom a server of the cluster asks: part of what it signed. Raises ApiError."""
    if BEHALF not in query and ROLE not in query:
        return None
    name, role = query.get(BEHALF, ""), next((r for r in Role if r.label == query.get(ROLE)), None)
    if not 0 < len(name) <= MAX_NAME or not name.isprintable() or name.startswith("-") or role is None:
        raise ApiError(400, "malformed", f"{BEHALF} or {ROLE} is not right")
    return Person(name, role)


def _is_name(user: object) -> TypeGuard[str]:
    return isinstance(user, str) and 0 < len(user) <= MAX_NAME and ":" not in user


class SessionApi:
    """Logging in and out."""

    def __init__(self, gate: Gate, sessions: Sessions) -> None:
        self._gate = gate
        self._sessions = sessions

    def routes(self) -> list[web.RouteDef]:
        """Its routes. Logging in is for everybody."""
        path = f"{PREFIX}/session"
        return [
            web.post(path, self.log_in),
            web.delete(path, self.log_out),
            web.post(PROOF_PATH, self.prove),
        ]

    async def log_in(self, request: web.Request) -> web.StreamResponse:
        """Name and password for a cookie."""
        request["caller"] = Caller("", Role.MONITOR)
        data = await json_of(request, 4096)
        user, password = data.get("user"), data.get("password")
        if not _is_name(user) or not isinstance(password, str):
            raise ApiError(400, "malformed", "expected the texts user and password")
        asked = asked_of(request)
        try:
            person = await self._gate.person_of(user, password, asked.address)
        except UnicodeEncodeError:
            raise ApiError(400, "malformed", "user or password has half a character") from None
        caller = await self._gate.identify(replace(asked, session=person))
        response = reply(request, {"user": user, "role": caller.role.label})
        response.set_cookie(
            COOKIE,
            self._sessions.open(user, caller.role, elsewhere=self._gate.hash_of(user) is None),
            httponly=True,
            samesite="Strict",
            secure=request.secure,
            path="/",
        )
        return response

    async def prove(self, request: web.Request) -> web.StreamResponse:
        """One of the two steps in which somebody and this server show each other that they know a password."""
        request["caller"] = Caller("", Role.MONITOR)
        data = await json_of(request, 4096)
        user, message = data.get("user"), data.get("message")
        if not _is_name(user) or not (message is None or (isinstance(message, str) and len(message) <= 4096)):
            raise ApiError(400, "malformed", "expected the texts user and, in the second step, message")
        if not self._gate.settings.authenticated and user != INVITED:
            raise ApiError(409, "no_proof", "nobody is asked for a password here")
        address = asked_of(request).address
        try:
            if message is None:
                return reply(request, {"node": node_name(), "salt": await self._gate.salt(user, address)})
            own = await self._gate.prove(user, bytes.fromhex(message), address)
        except (ValueError, ProofError):
            raise ApiError(400, "malformed", "user or message is not right") from None
        return reply(request, {"node": node_name(), "message": own.hex()})

    async def log_out(self, request: web.Request) -> web.StreamResponse:
        """End the session of the cookie; whoever has none is logged out already."""
        self._sessions.close(request.cookies.get(COOKIE, ""))
        response = reply(request, {"user": "", "role": "Monitor"})
        response.del_cookie(COOKIE, path="/")
        return response
