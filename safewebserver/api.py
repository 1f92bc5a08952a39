"""The API under /api/v1 (openapi.json describes it; a test holds both together)."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any

from aiohttp import web

from safekit import __version__
from safekit.disk.paths import ModulePaths, cluster_dir, node_name, safevar, valid_module_name
from safekit.disk.resources import load
from safekit.log.messages import Language
from safekit.log.module import Line
from safekit.log.select import select
from safekit.log.tail import Tail
from safekit.log.timeline import MAX_ENTRIES, local_entries, to_fields
from safekit.model.ports import MAX_MODULE_ID
from safekit.wire.remote import SIGNED_ANSWER, SignatureError, answer_mac, check_body
from safewebserver.child import Commands, Result
from safewebserver.guesses import Busy, Wait
from safewebserver.identity import Caller, Unauthorized
from safewebserver.modules import Modules, paths_of
from safewebserver.permissions import Refusal, Role, judge
from safewebserver.streams import Streams, TooMany

PREFIX = "/api/v1"
MAX_JSON = 1 << 20
MAX_ARCHIVE = 64 << 20
BODY_SECONDS = 300.0
MAX_TIMEOUT = 86400.0
DEFAULT_TIMEOUT = 120.0
EVENT_SECONDS = 0.3
COMMENT_SECONDS = 10.0
ENDED = b"event: ended\ndata: {}\n\n"
"""The last event of a stream whose follower may not see it any more."""
MAX_STREAMS = 50
MAX_UPLOADS = 4
STREAM_SECONDS = 30.0
"""A follower of a log who does not read for so long has gone."""
LEVELS = {"E": frozenset("E"), "I": frozenset("EI"), "A": frozenset("EID")}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class ApiError(Exception):
    """A request that is refused: HTTP status, code for programs, text and next step for people."""

    def __init__(self, status: int, code: str, text: str, next_step: str = "", **more: Any) -> None:
        super().__init__(text)
        self.status = status
        self.body = {"error": code, "text": text, "next_step": next_step, **more}


def caller(request: web.Request) -> Caller:
    """Who asks; set by the middleware before any handler."""
    found: Caller = request["caller"]
    return found


def need(request: web.Request, role: Role) -> Caller:
    """The caller, when the role is enough. Raises ApiError."""
    who = caller(request)
    if who.role < role:
        raise ApiError(403, "forbidden", f"this needs the role {role.label}; {who.name} has {who.role.label}")
    return who


@contextlib.contextmanager
def stream_of(who: Caller, streams: Streams) -> Iterator[None]:
    """While somebody follows a stream; who was not asked for his name is known by his address. Raises ApiError."""
    try:
        with streams.one(who.name if who.anonymous else who.user):
            yield
    except TooMany as error:
        raise ApiError(503, "busy", str(error), "close some of them") from None


def reply(request: web.Request, data: Any, status: int = 200) -> web.Response:
    """JSON, signed when the request was."""
    content = json.dumps(data, ensure_ascii=False).encode()
    headers = {"Cache-Control": "no-store"}
    who: Caller | None = request.get("caller")
    if who is not None and who.signed is not None:
        content += b"\n" + answer_mac(who.signed.key, who.signed.nonce, status, content).encode() + b"\n"
        headers[SIGNED_ANSWER] = "1"
    return web.Response(body=content, status=status, content_type="application/json", headers=headers)


class Still:
    """Asks again and again who follows a stream: his session may end and his password change while it goes on.

    A server of the cluster is not asked: its signature is good for one request.
    """

    def __init__(self, request: web.Request) -> None:
        self._request = request
        self._due = time.monotonic() + COMMENT_SECONDS

    async def check(self) -> None:
        """At most every COMMENT_SECONDS. Raises Unauthorized."""
        if caller(self._request).signed is not None or time.monotonic() < self._due:
            return
        self._due = time.monotonic() + COMMENT_SECONDS
        with contextlib.suppress(Busy, Wait):  # so many log in that this one is asked later
            await self._request["ask_again"]()


async def body_of(request: web.Request, limit: int) -> bytes:
    """The body, at most `limit` bytes, checked against the signature of the request. Raises ApiError."""
    if request.content_length is not None and request.content_length > limit:
        raise ApiError(413, "too_large", f"the body has {request.content_length} bytes; at most {limit} are accepted")
    kept = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in request.content.iter_chunked(65536):
                kept += part
                if len(kept) > limit:
                    raise ApiError(413, "too_large", f"the body has more than {limit} bytes")
    except TimeoutError:
        raise ApiError(408, "slow", f"the body did not arrive within {BODY_SECONDS:g} s") from None
    signed = caller(request).signed
    if signed is None:
        return bytes(kept)
    try:
        return check_body(signed, bytes(kept))
    except SignatureError as error:
        raise ApiError(401, error.kind, error.text) from None


async def json_of(request: web.Request, limit: int = MAX_JSON) -> dict[str, Any]:
    """The JSON object of a body. Raises ApiError."""
    if request.content_type != "application/json":
        # Also what keeps a page of another site from posting in the name of a logged-in administrator.
        raise ApiError(415, "content_type", "the body must be application/json")
    try:
        data = json.loads(await body_of(request, limit))
    except (ValueError, RecursionError):
        raise ApiError(400, "malformed", "the body is not JSON") from None
    if not isinstance(data, dict):
        raise ApiError(400, "malformed", "the body is not a JSON object")
    return data


def number_of(value: Any, default: float, low: float, high: float, name: str) -> float:
    """A bounded number of a request. Raises ApiError."""
    if value is None:
        return default
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if isinstance(value, bool) or not low <= number <= high:
        raise ApiError(400, "malformed", f"{name} is not a number between {low:g} and {high:g}")
    return number


def openapi() -> dict[str, Any]:
    """The description of the API."""
    text = (resources.files("safewebserver") / "openapi.json").read_text(encoding="utf-8")
    described: dict[str, Any] = json.loads(text)
    return described


class Api:
    """The handlers, and what they share."""

    def __init__(self, modules: Modules, commands: Commands) -> None:
        self.modules = modules
        self.commands = commands
        self._streams = Streams(MAX_STREAMS, "logs are followed")
        self._uploads = 0
        self._described = openapi()

    def routes(self) -> list[web.RouteDef]:
        """Every route of the API."""
        module = PREFIX + "/modules/{module}"
        return [
            web.get(f"{PREFIX}/openapi.json", self.openapi),
            web.get(f"{PREFIX}/node", self.node),
            web.get(f"{PREFIX}/modules", self.list_modules),
            web.get(module, self.module),
            web.get(module + "/resources", self.resources),
            web.get(module + "/log", self.log),
            web.get(module + "/log/events", self.log_events),
            web.put(module + "/archive", self.put_archive),
            web.get(f"{PREFIX}/timeline", self.timeline),
            web.post(f"{PREFIX}/command", self.command),
            web.put(f"{PREFIX}/cluster", self.put_cluster),
        ]

    async def openapi(self, request: web.Request) -> web.StreamResponse:
        return web.json_response(self._described)

    async def node(self, request: web.Request) -> web.StreamResponse:
        who = need(request, Role.MONITOR)
        return reply(
            request,
            {
                "node": node_name(),
                "version": __version__,
                "time": time.time(),
                "user": who.user or who.name,
                "role": who.role.label,
                "configured": (cluster_dir() / "cluster.json").exists(),
            },
        )

    async def list_modules(self, request: web.Request) -> web.StreamResponse:
        need(request, Role.MONITOR)
        return reply(request, {"node": node_name(), "modules": await self.modules.all()})

    async def module(self, request: web.Request) -> web.StreamResponse:
        need(request, Role.MONITOR)
        paths = paths_of(request.match_info["module"])
        return reply(request, {"node": node_name(), **await self.modules.describe(paths)})

    async def resources(self, request: web.Request) -> web.StreamResponse:
        need(request, Role.MONITOR)
        found = load(paths_of(request.match_info["module"]).resources)
        return reply(
            request,
            {
                "node": node_name(),
                "resources": {r.name: {"value": r.value, "since": r.since, "setter": r.setter} for r in found.values()},
            },
        )

    # Logs

    async def log(self, request: web.Request) -> web.StreamResponse:
        need(request, Role.MONITOR)
        paths = paths_of(request.match_info["module"])
        level, language = _log_options(request)
        lines = int(number_of(request.query.get("lines"), 300, 1, 10_000, "lines"))
        found = await asyncio.to_thread(lambda: list(select(paths, level, lines)))
        return reply(request, {"node": node_name(), "lines": [_line(line, language) for line in found]})

    async def log_events(self, request: web.Request) -> web.StreamResponse:
        """New lines as server-sent events. A comment every few seconds tells that the service lives."""
        who = need(request, Role.MONITOR)
        paths = paths_of(request.match_info["module"])
        level, language = _log_options(request)
        with stream_of(who, self._streams):
            return await self._follow(request, paths, level, language)

    async def _follow(
        self, request: web.Request, paths: ModulePaths, level: str, language: Language
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Cache-Control": "no-store", "Content-Type": "text/event-stream"})
        await response.prepare(request)
        try:
            tail = Tail(paths.log)
            tail.skip()
            await response.write(b": follows\n\n")
            silent, still = 0.0, Still(request)
            while True:
                await still.check()
                lines = [line for line in tail.poll() if line.level in LEVELS[level]]
                for line in lines:
                    text = json.dumps(_line(line, language), ensure_ascii=False)
                    await _write(response, f"event: line\ndata: {text}\n\n".encode())
                silent = 0.0 if lines else silent + EVENT_SECONDS
                if silent >= COMMENT_SECONDS:
                    silent = 0.0
                    await _write(response, b": alive\n\n")
                await asyncio.sleep(EVENT_SECONDS)
        except (ConnectionResetError, TimeoutError):
            if request.transport is not None:
                request.transport.abort()
            return response
        except Unauthorized:
            await response.write(ENDED)
            return response

    async def timeline(self, request: web.Request) -> web.StreamResponse:
        """Logs and commands of this server by date, with two dates by which the asker compares the clocks."""
        need(request, Role.MONITOR)
        received = time.time()
        module = request.query.get("module")
        if module is not None and not valid_module_name(module):
            raise ApiError(400, "malformed", "this is not the name of a module")
        level, language = _log_options(request)
        count = int(number_of(request.query.get("lines"), 300, 1, MAX_ENTRIES, "lines"))
        entries = await asyncio.to_thread(local_entries, node_name(), module, level, count, language)
        fields = [to_fields(entry) for entry in entries]
        return reply(request, {"node": node_name(), "received": received, "answered": time.time(), "entries": fields})

    # Changes

    async def command(self, request: web.Request) -> web.StreamResponse:
        """Run `safekit WORDS`. Blanks come every second until it has ended: JSON allows them before the value,
        and the asker tells a long command from a dead server."""
        who = caller(request)
        data = await json_of(request)
        words, timeout = (
            data.get("arguments"),
            number_of(data.get("timeout"), DEFAULT_TIMEOUT, 1, MAX_TIMEOUT, "timeout"),
        )
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise ApiError(400, "malformed", "arguments is not a list of words")
        judged = judge(words, who.role)
        if isinstance(judged, Refusal):
            raise ApiError(403 if judged.kind == "forbidden" else 400, judged.kind, judged.text)
        named = judged if "-u" in judged else ("-u", who.name, *judged)
        return await self._run(request, named, timeout)

    async def _run(
        self, request: web.Request, words: tuple[str, ...], timeout: float, upload: _Workplace | None = None
    ) -> web.StreamResponse:
        who = caller(request)
        headers = {"Cache-Control": "no-store", "Content-Type": "application/json"}
        if who.signed is not None:
            headers[SIGNED_ANSWER] = "1"
        response = web.StreamResponse(headers=headers)
        await response.prepare(request)

        async def alive() -> None:
            await response.write(b" ")

        result = await self.commands.run(words, timeout, alive)
        if upload is not None:
            upload.remove()  # the upload may hold keys: whoever has the answer can rely on its having gone
        content = json.dumps(_result(result, timeout), ensure_ascii=False).encode()
        if who.signed is not None:
            content += b"\n" + answer_mac(who.signed.key, who.signed.nonce, 200, content).encode() + b"\n"
        await response.write(content)
        await response.write_eof()
        return response

    async def put_cluster(self, request: web.Request) -> web.StreamResponse:
        """The cluster's files: cluster.xml and its key, applied as `cluster config FILE.zip` does."""
        need(request, Role.ADMIN)
        data = await json_of(request)
        xml, key = data.get("cluster.xml"), data.get("cluster.key")
        if not isinstance(xml, str) or not isinstance(key, str) or set(data) != {"cluster.xml", "cluster.key"}:
            raise ApiError(400, "malformed", "expected the texts cluster.xml and cluster.key, and nothing else")
        try:
            files = {"cluster.xml": xml.encode(), "cluster.key": key.encode("ascii")}
        except UnicodeEncodeError:
            raise ApiError(
                400, "malformed", "cluster.xml or cluster.key has characters that cannot be stored"
            ) from None
        with _Workplace() as upload:
            archive = upload.path / "cluster.zip"
            await asyncio.to_thread(_zip, archive, files)
            words = ("-u", caller(request).name, "cluster", "config", str(archive))
            return await self._run(request, words, DEFAULT_TIMEOUT, upload)

    async def put_archive(self, request: web.Request) -> web.StreamResponse:
        """A module as .safe: installed, and with `configure=1` configured, or everything stays as it was."""
        who = need(request, Role.ADMIN)
        name = request.match_info["module"]
        if not valid_module_name(name):
            raise ApiError(400, "malformed", "this is not the name of a module")
        number = int(number_of(request.query.get("id"), 0, 0, MAX_MODULE_ID, "id"))
        configure = request.query.get("configure", "0")
        if configure not in ("0", "1"):
            raise ApiError(400, "malformed", "configure is neither 0 nor 1")
        if self._uploads >= MAX_UPLOADS:
            raise ApiError(503, "busy", f"{MAX_UPLOADS} modules are being received already", "try again")
        self._uploads += 1
        try:
            content = await body_of(request, MAX_ARCHIVE)
        finally:
            self._uploads -= 1
        words = ["-u", who.name, "module", "deploy", "-m", name]
        words += ["-M", str(number)] if number else []
        words += ["--configure"] if configure == "1" else []
        with _Workplace() as upload:
            archive = upload.path / f"{name}.safe"
            await asyncio.to_thread(archive.write_bytes, content)
            return await self._run(request, (*words, str(archive)), DEFAULT_TIMEOUT, upload)


async def _write(response: web.StreamResponse, data: bytes) -> None:
    async with asyncio.timeout(STREAM_SECONDS):
        await response.write(data)


class _Workplace:
    """A directory of ours for one upload; gone afterwards."""

    def __enter__(self) -> _Workplace:
        base = safevar() / "web"
        base.mkdir(mode=0o750, parents=True, exist_ok=True)
        self._directory = tempfile.TemporaryDirectory(prefix="upload-", dir=base)
        self.path = Path(self._directory.name)
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def remove(self) -> None:
        """Take it away; once is enough."""
        self._directory.cleanup()


def _zip(path: Path, files: dict[str, bytes]) -> None:
    import zipfile

    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "r+b") as handle, zipfile.ZipFile(handle, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)


def _result(result: Result | None, timeout: float) -> dict[str, Any]:
    if result is None:
        return {"node": node_name(), "ended": False, "status": 1, "output": "", "truncated": False, "seconds": timeout}
    return {
        "node": node_name(),
        "ended": True,
        "status": result.status,
        "output": result.output,
        "truncated": result.truncated,
    }


def _log_options(request: web.Request) -> tuple[str, Language]:
    level, language = request.query.get("level", "E"), request.query.get("lang", "en")
    if level not in LEVELS:
        raise ApiError(400, "malformed", f"level is none of {', '.join(LEVELS)}")
    if language not in ("en", "fr"):
        raise ApiError(400, "malformed", "lang is neither en nor fr")
    return level, "fr" if language == "fr" else "en"


def _line(line: Line, language: Language) -> dict[str, Any]:
    return {
        "date": line.date,
        "node": line.node,
        "level": line.level,
        "process": line.process,
        "code": line.code,
        "text": line.text(language),
    }
