"""Users of a directory (`Define useldap`, guide 11.4.3): asked through the process safeldap, remembered for seconds.

safeldap is a child of the web service that runs as nobody and knows the settings alone; the LDAP library with what it
may do wrong is there. What is remembered is at most REMEMBER_SECONDS old, whatever was asked meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import pwd
import socket
import sys
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from safekit.disk.paths import process_program
from safekit.model.ldap import LdapSettings, LdapSettingsError, ldap_settings, usable_name
from safewebserver.identity import Unauthorized
from safewebserver.permissions import Role
from safewebserver.roles import Person
from safewebserver.settings import SettingsError

REMEMBER_SECONDS = 30.0
WRONG_SECONDS = 3.0
"""A browser that repeats a wrong password must not lock an account of the directory."""
MAX_REMEMBERED = 1000
ASK_SECONDS = 15.0
MAX_WAITING = 200
AGAIN_SECONDS = 1.0
"""Between two starts of a process that ends at once."""
MAX_LINE = 64 << 10
LABELS = {role.label: role for role in Role}


@dataclass(frozen=True)
class _Remembered:
    person: Person | None
    until: float


class LdapDirectory:
    """The directory of the settings. Answers of it are Person; None is a wrong password, or somebody unknown."""

    def __init__(self, settings: LdapSettings) -> None:
        self._settings = settings
        self._secret = os.urandom(32)
        self._remembered: OrderedDict[bytes, _Remembered] = OrderedDict()
        self._process: asyncio.subprocess.Process | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._number = 0
        self._begun = -AGAIN_SECONDS
        self._starting = asyncio.Lock()

    async def check(self, name: str, password: str) -> Person | None:
        """The user when the password is right. Raises Unauthorized when nobody can tell."""
        # Here too: what comes next may say yes to an empty password.
        if not password or not usable_name(name):
            return None
        key = hashlib.blake2b(f"{name}\0{password}".encode(), key=self._secret).digest()
        return await self._known(key, name, {"op": "check", "name": name, "password": password})

    async def person(self, name: str) -> Person | None:
        """The user as the directory knew him at most REMEMBER_SECONDS ago. Raises Unauthorized when nobody can tell."""
        if not usable_name(name):
            return None
        key = hashlib.blake2b(name.encode(), key=self._secret).digest()
        return await self._known(key, name, {"op": "person", "name": name})

    async def _known(self, key: bytes, name: str, question: dict[str, Any]) -> Person | None:
        asked = time.monotonic()
        found = self._remembered.get(key)
        if found is not None and found.until > asked:
            return found.person
        answer = await self._ask(question)
        if "error" in answer:
            text = f"nobody can tell who {name} is: {answer['error']}"
            raise Unauthorized("directory", text, tried=False)
        person = Person(name, LABELS.get(str(answer["role"]))) if answer["found"] else None
        # From when it was asked, not from when it was answered: the group may have changed meanwhile.
        self._remembered[key] = _Remembered(person, asked + (REMEMBER_SECONDS if person else WRONG_SECONDS))
        self._remembered.move_to_end(key)
        while len(self._remembered) > MAX_REMEMBERED:
            self._remembered.popitem(last=False)
        return person

    async def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        if len(self._waiting) >= MAX_WAITING:
            return {"error": "too many wait for the directory"}
        try:
            writer = await self._started()
        except OSError as error:
            return {"error": f"safeldap cannot be started: {error}"}
        self._number += 1
        number = self._number
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        try:
            writer.write(json.dumps({"id": number, **question}).encode() + b"\n")
            async with asyncio.timeout(ASK_SECONDS):
                return await future
        except TimeoutError:
            return {"error": f"no answer within {ASK_SECONDS:.0f} s"}
        finally:
            self._waiting.pop(number, None)

    async def _started(self) -> asyncio.StreamWriter:
        """The way to the process, which is started when it is not there. Raises OSError."""
        async with self._starting:
            if self._writer is not None and not self._writer.is_closing():
                return self._writer
            await asyncio.sleep(max(0.0, self._begun + AGAIN_SECONDS - time.monotonic()))
            self._begun = time.monotonic()
            ours, theirs = socket.socketpair()
            with theirs:
                self._process = await asyncio.create_subprocess_exec(*_program(), stdin=theirs.fileno(), **_as_nobody())
            reader, writer = await asyncio.open_connection(sock=ours, limit=MAX_LINE)
            writer.write(json.dumps(self._settings.to_json()).encode() + b"\n")
            self._reading = asyncio.create_task(self._read(reader, writer, self._process))
            self._writer = writer
            return writer

    async def _read(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, process: asyncio.subprocess.Process
    ) -> None:
        with contextlib.suppress(ConnectionError, ValueError):
            while line := await reader.readline():
                answer = json.loads(line)
                future = self._waiting.get(answer["id"])
                if future is not None and not future.done():
                    future.set_result(answer)
        writer.close()
        status = await process.wait()
        if self._writer is writer:
            self._writer = None
            print(f"safewebserver: safeldap has ended ({status}); it is started again", file=sys.stderr, flush=True)
            for future in self._waiting.values():
                if not future.done():
                    future.set_result({"error": f"safeldap has ended ({status}); see journalctl -u safewebserver"})

    async def close(self) -> None:
        """The process ends with its socket."""
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()
        if self._process is not None:
            try:
                async with asyncio.timeout(2):
                    await self._process.wait()
            except TimeoutError:
                self._process.kill()
        if self._reading is not None:
            self._reading.cancel()


def _program() -> list[str]:
    installed = process_program("safeldap")
    return [installed] if os.access(installed, os.X_OK) else [sys.executable, "-m", "safeldap.main"]


def _as_nobody() -> dict[str, Any]:
    """Rights of the process: none. Of who runs the web service where that is not root."""
    if os.geteuid() != 0:
        return {}
    try:
        nobody = pwd.getpwnam("nobody")
    except KeyError:
        return {"user": 65534, "group": 65534, "extra_groups": []}
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


def directory_of(values: Mapping[str, str], file: str = "httpd.conf") -> LdapDirectory | None:
    """The directory that the definitions name; None without `useldap`. Raises SettingsError."""
    if "useldap" not in values:
        return None
    try:
        return LdapDirectory(ldap_settings(values))
    except LdapSettingsError as error:
        raise SettingsError(f"{file}: {error}; correct it, then safekit webserver restart") from None
