"""Who asks: a server of the cluster by its signature, a person by name and password, or nobody in particular
where the administrator opened the service (guide 11.2, 11.4.4)."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import os
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import bcrypt

from safekit.disk.files import write_atomic
from safekit.disk.paths import node_name, safevar
from safekit.wire.keys import cluster_key
from safekit.wire.remote import SCHEME, Nonces, SignatureError, Signed, verify
from safewebserver.permissions import Role
from safewebserver.settings import People, Settings

MEMORY_SECONDS = 300.0
MEMORY_ENTRIES = 1000
MAX_WAITING = 20
STRANGER_SECONDS = 60.0
MAX_STRANGERS = 1000
# A hash of nothing that anybody knows: an unknown user costs as much time as a known one.
_NOBODY = bcrypt.hashpw(os.urandom(16).hex().encode(), bcrypt.gensalt(10))


class Unauthorized(Exception):
    """Nobody who may ask. `kind` for programs: credentials, or a kind of SignatureError. `tried`: with something that
    is wrong, which is noted; a request without anything only asks how to log in."""

    def __init__(self, kind: str, text: str, skew: float = 0.0, *, tried: bool = True) -> None:
        super().__init__(text)
        self.kind = kind
        self.text = text
        self.skew = skew
        self.tried = tried


class Busy(Exception):
    """Too many passwords are being checked."""


@dataclass(frozen=True)
class Caller:
    """Who asks. `signed` when it is a server of the cluster."""

    name: str
    role: Role
    signed: Signed | None = None
    anonymous: bool = False


class Passwords:
    """Checks passwords in threads; a right one is remembered for some minutes, as a keyed hash."""

    def __init__(self) -> None:
        self._secret = os.urandom(32)
        self._known: dict[bytes, float] = {}
        self._turn = asyncio.Semaphore(2)
        self._waiting = 0

    def forget(self) -> None:
        """The users have changed."""
        self._known.clear()

    async def right(self, name: str, password: str, hashed: bytes | None) -> bool:
        """Raises Busy."""
        content = f"{name}\0{password}".encode()
        entry = hashlib.blake2b(content, key=self._secret, salt=_salt(hashed)).digest()
        now = time.monotonic()
        if hashed is not None and self._known.get(entry, 0.0) > now:
            return True
        if self._waiting >= MAX_WAITING:
            raise Busy
        self._waiting += 1
        try:
            async with self._turn:
                right = await asyncio.to_thread(_matches, password.encode(), hashed or _NOBODY)
        finally:
            self._waiting -= 1
        if right and hashed is not None:
            if len(self._known) >= MEMORY_ENTRIES:
                self._known.clear()
            self._known[entry] = now + MEMORY_SECONDS
            return True
        return False


def _salt(hashed: bytes | None) -> bytes:
    return hashlib.blake2b(hashed or b"", digest_size=16).digest()


def _matches(password: bytes, hashed: bytes) -> bool:
    try:
        return bcrypt.checkpw(password[:72], hashed)
    except ValueError:
        return False


class Journal:
    """The nonces on disk: a restart of the service must not open the door to old requests."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lines = 0
        self.nonces = Nonces(note=self._note)
        now = time.time()
        try:
            text = path.read_text(encoding="ascii", errors="replace")
        except FileNotFoundError:
            text = ""
        for line in text.splitlines():
            nonce, _, until = line.partition(" ")
            if until.isdecimal() and int(until) >= now:
                self.nonces.remember(nonce, float(until))
        self._rewrite(now)

    def _rewrite(self, now: float) -> None:
        kept = self.nonces.entries(now)
        text = "".join(f"{nonce} {until:.0f}\n" for nonce, until in kept)
        write_atomic(self._path, text.encode(), mode=0o640, durable=False)
        self._lines = len(kept)

    def _note(self, nonce: str, until: float) -> None:
        self._lines += 1
        if self._lines > 10_000:
            self._rewrite(time.time())
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        try:
            os.write(descriptor, f"{nonce} {until + 1:.0f}\n".encode())
        finally:
            os.close(descriptor)


class Strangers:
    """One line a minute for each address that is refused: who tries passwords or repeats requests is seen."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._seen: OrderedDict[str, tuple[float, int]] = OrderedDict()

    def refused(self, address: str, why: str, now: float) -> None:
        """Note a refusal at monotonic time `now`. The name that was tried may be a password: it is not written."""
        since, silent = self._seen.get(address, (float("-inf"), 0))
        if now - since < STRANGER_SECONDS:
            self._seen[address] = (since, silent + 1)
            return
        more = f" ({silent} more since the last such line)" if silent else ""
        self._say(f"refused a request of {address}: {why}{more}")
        self._seen[address] = (now, 0)
        self._seen.move_to_end(address)
        while len(self._seen) > MAX_STRANGERS:
            self._seen.popitem(last=False)


class Gate:
    """Decides who a request comes from."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        directory = safevar() / "web"
        directory.mkdir(mode=0o750, parents=True, exist_ok=True)
        self._journal = Journal(directory / "nonces")
        self._people = People()
        self._passwords = Passwords()

    async def identify(self, header: str | None, method: str, path: str, port: int) -> Caller:
        """The caller of a request that came in through `port`. Raises Unauthorized, Busy."""
        limit = dict(self.settings.listen).get(port, Role.MONITOR)
        if header is not None and header.startswith(f"{SCHEME} "):
            signed = self._signed(header, method, path)
            return Caller(f"root@{signed.sender}", limit, signed)
        if header is not None and header.startswith("Basic "):
            return await self._person(header, limit)
        if not self.settings.authenticated:
            return Caller("anonymous", limit, anonymous=True)
        text = "a name and a password are needed (SAFE/web/conf/user.conf)"
        raise Unauthorized("credentials", text, tried=False)

    def _signed(self, header: str, method: str, path: str) -> Signed:
        try:
            keys = [cluster_key()]
        except (OSError, ValueError):
            keys = []
        try:
            # The journal is not forced to the disk: a power failure may have taken its end.
            boot = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
            return verify(header, keys, node_name(), method, path, self._journal.nonces, not_before=boot)
        except SignatureError as error:
            raise Unauthorized(error.kind, error.text, error.skew) from None

    async def _person(self, header: str, limit: Role) -> Caller:
        try:
            text = base64.b64decode(header[6:].strip(), validate=True).decode()
        except (binascii.Error, UnicodeDecodeError):
            raise Unauthorized("credentials", "the Authorization header is malformed") from None
        name, _, password = text.partition(":")
        if self._people.refresh():
            self._passwords.forget()
        right = await self._passwords.right(name, password, self._people.hash_of(name))
        if not right:
            raise Unauthorized("credentials", "wrong name or password (SAFE/web/conf/user.conf)")
        role = self._people.role_of(name)
        if role is None:
            raise Unauthorized("credentials", f"user {name} is in no group of SAFE/web/conf/group.conf")
        return Caller(name, min(role, limit))
