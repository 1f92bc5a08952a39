"""Who asks: a server of the cluster by its signature, a person by password, proof, session or certificate, or nobody in
particular where the administrator opened the service. What is found is judged in roles.py (guide 11.2 to 11.4)."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import os
import sys
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import bcrypt

from safekit.disk.files import write_atomic
from safekit.disk.paths import node_name, safevar
from safekit.model.httpd import Member
from safekit.wire import invitation, proof
from safekit.wire.certificates import Certificate, of_der
from safekit.wire.keys import cluster_key
from safekit.wire.remote import SCHEME, Nonces, SignatureError, Signed, verify
from safewebserver.guesses import MAX_QUEUE_ADDRESS, Busy, Guesses, Turns
from safewebserver.permissions import Role
from safewebserver.roles import Denied, Granted, Means, Person, Presented, decide
from safewebserver.settings import CertificateRules, People, Settings

MEMORY_SECONDS = 300.0
MEMORY_ENTRIES = 1000
STRANGER_SECONDS = 60.0
MAX_STRANGERS = 1000
MAX_PROOFS = 256
MAX_CERTIFICATES = 1000
# A hash of nothing that anybody knows: an unknown user costs as much time as a known one.
_NOBODY = bcrypt.hashpw(os.urandom(16).hex().encode(), bcrypt.gensalt(10))
_PLAIN64 = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_BCRYPT64 = b"./ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"


class Unauthorized(Exception):
    """Nobody who may ask. `kind` for programs: credentials, certificate, port, or a kind of SignatureError. `tried`:
    with something that is wrong, which is noted; a request without anything only asks how to log in."""

    def __init__(self, kind: str, text: str, skew: float = 0.0, *, tried: bool = True) -> None:
        super().__init__(text)
        self.kind = kind
        self.text = text
        self.skew = skew
        self.tried = tried


class Directory(Protocol):
    """Users that live elsewhere (`Define useldap`)."""

    async def check(self, name: str, password: str) -> Person | None:
        """The user when the password is right; None when it is not. Raises Unauthorized when nobody can tell."""

    async def person(self, name: str) -> Person | None:
        """The user of a session, as the directory knew him at most a minute ago. Raises Unauthorized."""


@dataclass(frozen=True)
class Asked:
    """What of a request tells who it is from. `certificate`: DER, of a handshake that checked it."""

    method: str
    path: str
    port: int
    secure: bool
    address: str
    header: str | None = None
    session: Person | None = None
    certificate: bytes | None = None
    behalf: Person | None = None
    console: bool = False


@dataclass(frozen=True)
class Caller:
    """Who asks. `name` is how the logs call him: a user or CN with the address that he asked from, a server with who
    asked there. `signed` when the request was signed and the answer must be; `user` without the address."""

    name: str
    role: Role
    signed: Signed | None = None
    means: Means = Means.NOTHING
    user: str = ""

    @property
    def server(self) -> bool:
        """Whether a server of the cluster asks."""
        return self.means is Means.SERVER

    @property
    def anonymous(self) -> bool:
        """Whether nobody was asked who he is."""
        return self.means is Means.NOTHING


class Passwords:
    """Checks passwords in threads, in fair turns; a right one is remembered for some minutes as a keyed hash, for the
    address that it came from: elsewhere it is a guess like every other."""

    def __init__(self) -> None:
        self._secret = os.urandom(32)
        self._known: dict[bytes, float] = {}
        self._turns = Turns()
        self._elsewhere: Counter[str] = Counter()
        self.guesses = Guesses()

    def forget(self) -> None:
        """The users have changed."""
        self._known.clear()

    async def right(self, name: str, password: str, hashed: bytes | None, address: str) -> bool:
        """Raises Busy, Wait."""
        content = f"{name}\0{address}\0{password}".encode()
        entry = hashlib.blake2b(content, key=self._secret, salt=_digest(hashed or b"")).digest()
        if hashed is not None and self._known.get(entry, 0.0) > time.monotonic():
            return True
        await self.in_turn(name, address)
        async with self._turns.turn(self.guesses.rank(name, address, time.monotonic()), address):
            right = await asyncio.to_thread(_matches, password.encode(), hashed or _NOBODY) and hashed is not None
        self.guessed(name, address, right=right)
        if right:
            if len(self._known) >= MEMORY_ENTRIES:
                self._known.clear()
            self._known[entry] = time.monotonic() + MEMORY_SECONDS
        return right

    @contextlib.contextmanager
    def elsewhere(self, address: str) -> Iterator[None]:
        """While a directory is asked, which may take seconds: a guess counts only afterwards, so that one address could
        have hundreds at once. Raises Busy."""
        place = proof.guesser(address)
        if self._elsewhere[place] >= MAX_QUEUE_ADDRESS:
            raise Busy
        self._elsewhere[place] += 1
        try:
            yield
        finally:
            self._elsewhere[place] -= 1
            self._elsewhere += Counter()  # without those at zero

    async def in_turn(self, name: str, address: str) -> None:
        """Before a password is looked at, here or in a directory. Raises Wait."""
        delay = self.guesses.check(name, address, time.monotonic())
        if delay:
            await asyncio.sleep(delay)

    def guessed(self, name: str, address: str, *, right: bool) -> None:
        """Note how it ended."""
        (self.guesses.right if right else self.guesses.wrong)(name, address, time.monotonic())

    def proved(self, name: str, address: str) -> None:
        """What `prove` noted as a guess was none. Else who proves his password twenty times had to wait."""
        self.guesses.withdraw(name, address, time.monotonic())
        self.guesses.right(name, address, time.monotonic())

    async def salt(self, name: str, hashed: bytes | None, address: str) -> str:
        """The salt of a user; of one that nobody knows, one that does not tell so. Raises Wait."""
        self.guesses.check(name, address, time.monotonic())
        if hashed is not None:
            return proof.salt_of(hashed)
        made = base64.b64encode(_digest(self._secret + name.encode())).rstrip(b"=")
        return "$2y$10$" + made.translate(bytes.maketrans(_PLAIN64, _BCRYPT64)).decode()

    async def prove(self, name: str, hashed: bytes | None, message: bytes, address: str) -> tuple[bytes, bytes]:
        """Our message and the key that the asker has when he knows the password. It is a guess until he has shown it.
        Raises Busy, Wait, ProofError."""
        await self.in_turn(name, address)
        async with self._turns.turn(self.guesses.rank(name, address, time.monotonic()), address):
            found = await asyncio.to_thread(proof.answer, name, node_name(), hashed or _NOBODY, message)
        self.guesses.wrong(name, address, time.monotonic())
        return found


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


def _matches(password: bytes, hashed: bytes) -> bool:
    """A password that bcrypt would cut is wrong, and takes as long as every other one."""
    whole = len(password) <= proof.MAX_BYTES and b"\0" not in password
    try:
        return bcrypt.checkpw(password if whole else b"", hashed) and whole
    except ValueError:
        return False


@dataclass(frozen=True)
class _Proof:
    user: str
    address: str
    key: bytes
    until: float


class Proofs:
    """Keys of people who say that they know a password, until they have signed one request with them."""

    def __init__(self) -> None:
        self._waiting: OrderedDict[bytes, _Proof] = OrderedDict()

    def add(self, user: str, address: str, key: bytes, now: float) -> None:
        """A key that was just agreed on. Raises Busy."""
        while self._waiting and next(iter(self._waiting.values())).until < now:
            self._waiting.popitem(last=False)
        if len(self._waiting) >= MAX_PROOFS:
            raise Busy
        self._waiting[key] = _Proof(user, address, key, now + proof.PROOF_SECONDS)

    def keys(self, address: str, now: float) -> list[bytes]:
        """The keys with which a request from that address may be signed."""
        return [key for key, each in self._waiting.items() if each.until >= now and each.address == address]

    def take(self, key: bytes) -> str | None:
        """Whose key it is; it is used up. None for another key."""
        found = self._waiting.pop(key, None)
        return found.user if found is not None else None


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


def _invited(asked: Asked) -> Person:
    """Who proved the code of an invitation: it is for one thing. Raises Unauthorized."""
    if (asked.method, asked.path) != ("PUT", "/api/v1/cluster") or invitation.present() is None:
        raise Unauthorized("no_invitation", "the code of safekit cluster join brings a server into a cluster, no more")
    return Person(invitation.USER, Role.ADMIN)


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
        shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in why)
        self._say(f"refused a request of {address}: {shown}{more}")
        self._seen[address] = (now, 0)
        self._seen.move_to_end(address)
        while len(self._seen) > MAX_STRANGERS:
            self._seen.popitem(last=False)


class Gate:
    """Finds out who a request comes from."""

    def __init__(self, settings: Settings, directory: Directory | None = None) -> None:
        self.settings = settings
        self.directory = directory
        where = safevar() / "web"
        where.mkdir(mode=0o750, parents=True, exist_ok=True)
        self._journal = Journal(where / "nonces")
        self._people = People(lambda text: print(f"safewebserver: {text}", file=sys.stderr, flush=True))
        self._people.refresh()
        self._rules = CertificateRules()
        with contextlib.suppress(ValueError, OSError):  # told with the first request that has a certificate
            self._rules.now()
        self._passwords = Passwords()
        self._proofs = Proofs()
        self._certificates: dict[bytes, Certificate] = {}

    async def identify(self, asked: Asked) -> Caller:
        """The caller of a request. Raises Unauthorized, Busy, Wait."""
        signed, person = None, asked.session
        if asked.header is not None and asked.header.startswith(f"{SCHEME} "):
            signed, person = self._signed(asked)
        elif asked.header is not None and asked.header.startswith("Basic "):
            person = await self._with_password(asked.header, asked.address)
        groups, gone = self._certificate_rules() if asked.certificate else ((), frozenset())
        found = decide(
            Presented(
                port=self.settings.role_of(asked.port, secure=asked.secure),
                secure=asked.secure,
                asked=self.settings.authenticated,
                server=signed.sender if signed is not None and person is None else "",
                behalf=asked.behalf,
                person=person,
                certificate=self._certificate(asked.certificate),
                groups=groups,
                revoked=gone,
                now=time.time(),
            )
        )
        if isinstance(found, Denied):
            raise Unauthorized(found.kind, found.text, tried=found.tried)
        return Caller(_logged(found, asked), found.role, signed, found.means, found.name)

    async def person_of(self, name: str, password: str, address: str) -> Person:
        """The user with that name and password. Raises Unauthorized, Busy, Wait."""
        hashed = self.hash_of(name)
        if hashed is None and self.directory is not None:
            await self._passwords.in_turn(name, address)
            with self._passwords.elsewhere(address):
                found = await self.directory.check(name, password)
            self._passwords.guessed(name, address, right=found is not None)
        else:
            right = await self._passwords.right(name, password, hashed, address)
            found = Person(name, self._people.role_of(name)) if right else None
        if found is None:
            raise Unauthorized("credentials", "wrong name or password (SAFE/web/conf/user.conf)")
        return found

    def hash_of(self, name: str) -> bytes | None:
        """The hash of a user of user.conf as it is now. The file does not count where users are in a directory alone:
        the installer's user `admin` is in it for ever."""
        if self.settings.useldap and not self.settings.usefile:
            return None
        if self._people.refresh():
            self._passwords.forget()
        return self._people.hash_of(name)

    async def salt(self, name: str, address: str) -> str:
        """What a user's password is hashed with. Raises Unauthorized, Wait."""
        return await self._passwords.salt(name, self._provable(name), address)

    async def prove(self, name: str, message: bytes, address: str) -> bytes:
        """Our message of a proof. Raises Unauthorized, Busy, Wait, ProofError."""
        if name == invitation.USER and not await asyncio.to_thread(invitation.spend):
            raise Unauthorized("no_invitation", "this server waits for no cluster: safekit cluster join there")
        own, key = await self._passwords.prove(name, self._provable(name), message, address)
        self._proofs.add(name, address, key, time.monotonic())
        return own

    def _provable(self, name: str) -> bytes | None:
        if name == invitation.USER:
            invited = invitation.present()
            return invited.hashed.encode() if invited is not None else None
        hashed = self.hash_of(name)
        if hashed is None and self.directory is not None:
            raise Unauthorized("no_proof", "passwords of users of a directory cannot be proved, only sent", tried=False)
        return hashed

    def _signed(self, asked: Asked) -> tuple[Signed, Person | None]:
        """The signature, and whose password it proves; None for that of a server."""
        proofs = self._proofs.keys(asked.address, time.monotonic())
        try:
            keys = [cluster_key(), *proofs]
        except (OSError, ValueError):
            keys = proofs
        header, nonces = asked.header or "", self._journal.nonces
        try:
            # The journal is not forced to the disk: a power failure may have taken its end.
            boot = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
            signed = verify(header, keys, node_name(), asked.method, asked.path, nonces, not_before=boot)
        except SignatureError as error:
            raise Unauthorized(error.kind, error.text, error.skew) from None
        user = self._proofs.take(signed.key)
        if user is None:
            return signed, None
        self._passwords.proved(user, asked.address)
        if user == invitation.USER:
            return signed, _invited(asked)
        return signed, Person(user, self._people.role_of(user) if self.hash_of(user) is not None else None)

    async def _with_password(self, header: str, address: str) -> Person:
        try:
            text = base64.b64decode(header[6:].strip(), validate=True).decode()
        except ValueError:  # no base64, no ASCII, no UTF-8
            raise Unauthorized("credentials", "the Authorization header is malformed") from None
        name, _, password = text.partition(":")
        return await self.person_of(name, password, address)

    def _certificate_rules(self) -> tuple[tuple[Member, ...], frozenset[tuple[str, int]]]:
        try:
            return self._rules.now()
        except (ValueError, OSError) as error:
            text = f"no certificate is accepted (SAFE/web/conf/sslgroup.conf, clca.crl): {error}"
            raise Unauthorized("certificate", text) from None

    def _certificate(self, der: bytes | None) -> Certificate | None:
        """What a certificate says; looked at once for each."""
        if der is None:
            return None
        if der not in self._certificates:
            if len(self._certificates) >= MAX_CERTIFICATES:
                self._certificates.clear()
            try:
                self._certificates[der] = of_der(der)
            except ValueError as error:
                raise Unauthorized("certificate", f"the certificate cannot be read: {error}") from None
        return self._certificates[der]


def _logged(found: Granted, asked: Asked) -> str:
    """How the logs call somebody: web@ADDRESS for a console without a name (guide 7.3), else NAME@ADDRESS."""
    if found.means is Means.SERVER:
        return found.name
    name = "web" if found.means is Means.NOTHING and asked.console else found.name
    return f"{name}@{asked.address}"
