"""Who may use the CA service: CA_admin, by a password that startcaserv asked for, and that is hard to guess here.

An address that guesses wrongly waits longer each time. All strangers together have MAX_WRONG guesses in WINDOW
seconds; this server itself, and addresses that gave the password before, are not held up by them.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import ipaddress
import json
import os
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from caserv import places, proof
from caserv.client import USER
from caserv.errors import PkiError

FREE_TRIES = 5
LONGEST_WAIT = 300.0
WINDOW = 600.0
MAX_WRONG = 60
MAX_ADDRESSES = 1000
MAX_WAITING = 5
MEMORY_SECONDS = 300.0
NONCE_SECONDS = 60
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
    """What proves the password, without telling it."""

    salt: bytes
    key: bytes

    @classmethod
    def of(cls, password: str) -> Access:
        """Raises PkiError for a password that is too short."""
        if len(password) < MIN_PASSWORD or len(password) > 128 or not password.isprintable():
            raise PkiError(
                f"the password of {USER} has {MIN_PASSWORD} to 128 printable characters",
                "choose a longer one: who knows it makes himself Admin of the cluster",
            )
        salt = os.urandom(proof.SALT_BYTES)
        return cls(salt, proof.password_key(password, salt))

    def save(self) -> None:
        """For the service that is started next. Raises OSError."""
        data = json.dumps({"salt": self.salt.hex(), "key": self.key.hex()}).encode()
        places.write(places.service() / "access.json", data, places.SECRET)

    @classmethod
    def load(cls) -> Access:
        """Raises PkiError when the service was not started by startcaserv."""
        try:
            data = json.loads((places.service() / "access.json").read_bytes())
            return cls(bytes.fromhex(data["salt"]), bytes.fromhex(data["key"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise PkiError(f"the CA service has no password: {error}", "start it by SAFE/web/bin/startcaserv") from None


def network_of(address: str) -> str:
    """Who can choose the second half of an IPv6 address is one guesser."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped is not None:
            return str(found.ipv4_mapped)
        return str(ipaddress.ip_network((int(found) >> 64 << 64, 64)))
    return str(found)


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
        network, now = network_of(address), self.clock()
        until = self._tries.get(network, (0, 0.0))[1]
        full = len(self._wrong) == MAX_WRONG and not _is_own(network) and network not in self._friends
        return max(0.0, until - now, self._wrong[0] + WINDOW - now if full else 0.0)

    def wrong(self, address: str) -> None:
        """Note a guess."""
        network, now = network_of(address), self.clock()
        count = self._tries.pop(network, (0, 0.0))[0] + 1
        delay = min(LONGEST_WAIT, 2.0 ** (count - FREE_TRIES)) if count >= FREE_TRIES else 0.0
        self._tries[network] = (count, now + delay)
        while len(self._tries) > MAX_ADDRESSES:
            self._tries.popitem(last=False)
        if not _is_own(network):
            self._wrong.append(now)

    def right(self, address: str) -> None:
        """Forgive."""
        network = network_of(address)
        self._tries.pop(network, None)
        if len(self._friends) < MAX_ADDRESSES:
            self._friends.add(network)


class Gate:
    """Judges the Authorization header of a request. `certificate`: the service's own, DER."""

    def __init__(self, access: Access, certificate: bytes, clock: Callable[[], float] = time.monotonic) -> None:
        self.access = access
        self.certificate = certificate
        self.guesses = Guesses(clock)
        self.used = clock()
        """When somebody with the password last asked."""
        self._clock = clock
        self._secret = os.urandom(32)
        self._known: dict[bytes, float] = {}
        self._spent: dict[str, int] = {}
        self._turn = asyncio.Semaphore(1)
        self._waiting = 0

    def challenge(self) -> dict[str, str]:
        """A number for the next request. It is kept nowhere: nobody can fill the memory with them."""
        head = int(time.time() + NONCE_SECONDS).to_bytes(4, "big") + os.urandom(4)
        return {"salt": self.access.salt.hex(), "nonce": (head + self._sign(head)).hex()}

    def _sign(self, head: bytes) -> bytes:
        return hmac.new(self._secret, head, "sha256").digest()[:8]

    def _fresh(self, nonce: str) -> bool:
        data, now = bytes.fromhex(nonce), time.time()
        self._spent = {each: until for each, until in self._spent.items() if until > now}
        right = hmac.compare_digest(data[8:], self._sign(data[:8]))
        return right and int.from_bytes(data[:4], "big") >= now and nonce not in self._spent

    async def admit(self, header: str, address: str, method: str, path: str, body: bytes) -> str:
        """The number that the answer must be signed with, '' where a name and a password were given. Raises
        Refused."""
        wait = self.guesses.wait(address)
        if wait > 0:
            raise Refused(f"too many wrong passwords; try again in {wait:.0f} s", max(1.0, wait))
        if not header:
            raise Refused(f"the password of {USER} is needed, which was entered at startcaserv")
        signed = proof.parse_authorization(header)
        nonce = ""
        if signed is not None:
            nonce, mac = signed
            if not self._fresh(nonce):
                raise Refused("this request is too old, or was made before")
            right = proof.is_right(self.access.key, nonce, mac, self.certificate, method, path, body)
        else:
            right = await self._basic(header)
        if not right:
            self.guesses.wrong(address)
            raise Refused(f"wrong name or password; the name is {USER}")
        if nonce:
            self._spent[nonce] = int.from_bytes(bytes.fromhex(nonce)[:4], "big")
        self.guesses.right(address)
        self.used = self._clock()
        return nonce

    async def _basic(self, header: str) -> bool:
        scheme, _, rest = header.partition(" ")
        try:
            text = base64.b64decode(rest.strip(), validate=True).decode() if scheme.lower() == "basic" else ""
        except (binascii.Error, UnicodeDecodeError):
            return False
        name, colon, password = text.partition(":")
        if not colon or len(password) > 128:
            return False
        memory = hashlib.blake2b(text.encode(), key=self._secret).digest()
        now = self._clock()
        if self._known.get(memory, 0.0) > now:
            return True
        if self._waiting >= MAX_WAITING:
            raise Refused("too many passwords are being checked", 1.0)
        self._waiting += 1
        try:
            async with self._turn:
                key = await asyncio.to_thread(proof.password_key, password, self.access.salt)
        finally:
            self._waiting -= 1
        right = hmac.compare_digest(key, self.access.key) & hmac.compare_digest(name.encode(), USER.encode())
        if right:
            self._known = {memory: now + MEMORY_SECONDS}
        return right
