"""Who may use the CA service: CA_admin, by a password that startcaserv asked for, and that is hard to guess here.

An address that guesses wrongly waits longer each time. All strangers together have MAX_WRONG guesses in WINDOW
seconds; this server itself, and addresses that gave the password before, are not held up by them.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import os
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import bcrypt

from caserv import places, proof
from caserv.client import USER
from caserv.errors import PkiError
from safekit.wire.proof import MAX_BYTES, PROOF_SECONDS, answer, guesser, salt_of

T = TypeVar("T")

FREE_TRIES = 5
FIRST_WAIT = 1.0
LONGEST_WAIT = 300.0
WINDOW = 600.0
MAX_WRONG = 60
MAX_ADDRESSES = 1000
MAX_WAITING = 5
MEMORY_SECONDS = 300.0
MAX_SESSIONS = 256
ROUNDS = 11
MIN_PASSWORD = 7
"""As short as the guide's own example; guesses are limited."""


class Refused(Exception):
    """Who asks is not CA_admin. `wait`: seconds until he may try again, 0 when he may at once."""

    def __init__(self, text: str, wait: float = 0.0) -> None:
        super().__init__(text)
        self.text = text
        self.wait = wait


@dataclass(frozen=True)
class Access:
    """What proves the password, without telling it: its bcrypt hash."""

    hashed: bytes

    @classmethod
    def of(cls, password: str) -> Access:
        """Raises PkiError for a password that is too short, or one that bcrypt would cut."""
        long = len(password.encode("utf-8", "replace")) > MAX_BYTES
        if len(password) < MIN_PASSWORD or long or not password.isprintable():
            raise PkiError(
                f"the password of {USER} has {MIN_PASSWORD} printable characters or more, in {MAX_BYTES} bytes at most",
                "choose a longer one: who knows it makes himself Admin of the cluster",
            )
        return cls(bcrypt.hashpw(password.encode(), bcrypt.gensalt(ROUNDS)))

    def save(self) -> None:
        """For the service that is started next. Raises OSError."""
        data = json.dumps({"hash": self.hashed.decode()}).encode()
        places.write(places.service() / "access.json", data, places.SECRET)

    @classmethod
    def load(cls) -> Access:
        """Raises PkiError when the service was not started by startcaserv."""
        try:
            data = json.loads((places.service() / "access.json").read_bytes())
            return cls(data["hash"].encode())
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise PkiError(f"the CA service has no password: {error}", "start it by SAFE/web/bin/startcaserv") from None

    def is_right(self, password: str) -> bool:
        """Whether it is that password."""
        try:
            data = password.encode()
            return len(data) <= MAX_BYTES and bcrypt.checkpw(data, self.hashed)
        except ValueError:  # a NUL, half of a character
            return False


def _is_own(network: str) -> bool:
    return network.startswith("127.") or network == "::/64"


@dataclass
class Guesses:
    """Wrong passwords, by address and of all. `clock` is monotonic."""

    clock: Callable[[], float] = time.monotonic
    _tries: OrderedDict[str, tuple[int, float]] = field(default_factory=OrderedDict)
    _wrong: deque[float] = field(default_factory=lambda: deque(maxlen=MAX_WRONG))
    _friends: set[str] = field(default_factory=set)

    def wait(self, address: str) -> float:
        """Seconds until the address may try."""
        network, now = guesser(address), self.clock()
        until = self._tries.get(network, (0, 0.0))[1]
        full = len(self._wrong) == MAX_WRONG and not _is_own(network) and network not in self._friends
        return max(0.0, until - now, self._wrong[0] + WINDOW - now if full else 0.0)

    def wrong(self, address: str) -> None:
        """Note a guess."""
        network, now = guesser(address), self.clock()
        count = self._tries.pop(network, (0, 0.0))[0] + 1
        delay = min(LONGEST_WAIT, FIRST_WAIT * 2.0 ** (count - FREE_TRIES)) if count >= FREE_TRIES else 0.0
        self._tries[network] = (count, now + delay)
        while len(self._tries) > MAX_ADDRESSES:
            self._tries.popitem(last=False)
        if not _is_own(network):
            self._wrong.append(now)

    def withdraw(self, address: str) -> None:
        """What was noted as a guess turned out to be right."""
        if self._wrong and not _is_own(guesser(address)):
            self._wrong.pop()

    def right(self, address: str) -> None:
        """Forgive."""
        network = guesser(address)
        self._tries.pop(network, None)
        if len(self._friends) < MAX_ADDRESSES:
            self._friends.add(network)


@dataclass(frozen=True)
class _Session:
    key: bytes
    address: str
    until: float


class Gate:
    """Judges the Authorization header of a request. `certificate`: the service's own, DER."""

    def __init__(self, access: Access, certificate: bytes, clock: Callable[[], float] = time.monotonic) -> None:
        self.guesses = Guesses(clock)
        self.used = clock()
        """When somebody with the password last asked."""
        self._access = access
        self._name = proof.name_of(certificate)
        self._clock = clock
        self._secret = os.urandom(32)
        self._known: dict[bytes, float] = {}
        self._sessions: dict[str, _Session] = {}
        self._turn = asyncio.Semaphore(1)
        self._waiting = 0

    def challenge(self) -> dict[str, str]:
        """What the password is hashed with."""
        return {"salt": salt_of(self._access.hashed)}

    async def begin(self, message: bytes, address: str) -> dict[str, str]:
        """Our half of a key, for the next request of that address. Until it has come this is a guess. Raises Refused,
        ProofError."""
        self._hold(address)
        own, key = await self._in_turn(answer, USER, self._name, self._access.hashed, message)
        self.guesses.wrong(address)
        now = self._clock()
        self._sessions = {name: each for name, each in self._sessions.items() if each.until > now}
        if len(self._sessions) >= MAX_SESSIONS:
            raise Refused("too many ask at once", 1.0)
        session = os.urandom(proof.SESSION_BYTES).hex()
        self._sessions[session] = _Session(key, address, now + PROOF_SECONDS)
        return {"message": own.hex(), "session": session}

    def _hold(self, address: str) -> None:
        wait = self.guesses.wait(address)
        if wait > 0:
            raise Refused(f"too many wrong passwords; try again in {wait:.0f} s", max(1.0, wait))

    async def _in_turn(self, work: Callable[..., T], *arguments: Any) -> T:
        """What costs time, one after the other and beside the loop."""
        if self._waiting >= MAX_WAITING:
            raise Refused("too many passwords are being checked", 1.0)
        self._waiting += 1
        try:
            async with self._turn:
                return await asyncio.to_thread(work, *arguments)
        finally:
            self._waiting -= 1

    async def admit(self, header: str, address: str, method: str, path: str, body: bytes) -> bytes:
        """The key that the answer must be signed with, empty where a name and a password were given. Raises
        Refused."""
        signed = proof.parse_authorization(header)
        if signed is not None:
            return self._signed(*signed, address, method, path, body)
        self._hold(address)
        if not header:
            raise Refused(f"the password of {USER} is needed, which was entered at startcaserv")
        if not await self._basic(header):
            self.guesses.wrong(address)
            raise Refused(f"wrong name or password; the name is {USER}")
        self._admitted(address)
        return b""

    def _signed(self, session: str, mac: str, address: str, method: str, path: str, body: bytes) -> bytes:
        found = self._sessions.pop(session, None)
        if found is None or found.until < self._clock() or found.address != address:
            raise Refused("this request is too old, or was made before")
        if not proof.is_right(found.key, mac, method, path, body):
            raise Refused("wrong password, or somebody stands in between")  # it was counted when it began
        self.guesses.withdraw(address)
        self._admitted(address)
        return found.key

    def _admitted(self, address: str) -> None:
        self.guesses.right(address)
        self.used = self._clock()

    async def _basic(self, header: str) -> bool:
        scheme, _, rest = header.partition(" ")
        try:
            text = base64.b64decode(rest.strip(), validate=True).decode() if scheme.lower() == "basic" else ""
        except ValueError:  # no base64, no ASCII, no UTF-8
            return False
        name, colon, password = text.partition(":")
        if not colon or len(password) > MAX_BYTES:
            return False
        memory = hashlib.blake2b(text.encode(), key=self._secret).digest()
        now = self._clock()
        if self._known.get(memory, 0.0) > now:
            return True
        right = await self._in_turn(self._access.is_right, password)
        right = right & hmac.compare_digest(name.encode(), USER.encode())
        if right:
            self._known = {memory: now + MEMORY_SECONDS}
        return right
