"""Asking the other servers of the cluster in the name of a person (guide 3.3.1: with the port of the page).

A request that is signed with the cluster key is one of a server, which may do everything. So the person's role is
judged here before anything is signed, and is signed with the request: the other server judges again, by that role.
Only addresses of cluster.xml are asked.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import ssl
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode

import aiohttp
from aiohttp import web
from yarl import URL

from safekit.disk.paths import node_name, speaks_https
from safekit.model.cluster import ClusterError, load_cluster
from safekit.model.types import ClusterConfig
from safekit.wire.keys import asking_keys
from safekit.wire.remote import SIGNED_ANSWER, SignatureError, check_answer, seal_body, sign
from safekit.wire.targets import Target
from safekit.wire.tls import CHECK, TlsError, client_context, refusal_of, stamp
from safekit.wire.webclient import CONNECT_SECONDS, IDLE_SECONDS
from safewebserver.api import MAX_ARCHIVE, MAX_JSON, PREFIX, ApiError, body_of, caller, reply
from safewebserver.permissions import Refusal, Role, judge
from safewebserver.roles import BEHALF, ROLE
from safewebserver.settings import conf_dir

MAX_ANSWER = 64 << 20
MAX_NAME = 128
LONG_SECONDS = 86400.0
FORMER_SECONDS = 600.0
_ADDRESS = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]{0,252}|[0-9A-Fa-f:.]{2,45}(%[\w.-]{1,15})?", re.ASCII)
PROBE_SECONDS = 3.0
PROXY_HEADER = "X-SafeKit-Proxy"
"""Of a console that was opened with proxy=true in its address (guide 11.3.2.2.2)."""
PATIENT = ("/snapshot", "/deploy", "/archive", "cluster/apply", "/configurations")
PATIENT_SECONDS = 300.0


class Unreachable(Exception):
    """Another server that did not answer: `kind` is connect, silent, or a kind of SignatureError."""

    def __init__(self, kind: str, text: str, next_step: str = "") -> None:
        super().__init__(text)
        self.kind, self.text, self.next_step = kind, text, next_step


@dataclass(frozen=True)
class Reply:
    """What another server answered, its signature checked."""

    status: int
    content_type: str
    body: bytes

    def json(self) -> dict[str, Any]:
        """The JSON object. Raises Unreachable for something else."""
        try:
            data = json.loads(self.body)
        except ValueError:
            data = None
        if not isinstance(data, dict):
            raise Unreachable("http", "an answer that is not of SafeKit", "what listens on this port?")
        return data


def targets_of(cluster: ClusterConfig, node: str, scheme: str, port: int) -> list[Target]:
    """The addresses of a node, that of the network of the commands first. Empty for an unknown one."""
    lan = cluster.command_lan
    lans = [*([lan] if lan is not None else []), *(each for each in cluster.lans if each is not lan)]
    others = frozenset(n.name for each in lans for n in each.nodes) - {node}
    found = [Target(n.name, scheme, n.addr, port, others=others) for each in lans for n in each.nodes if n.name == node]
    return list(dict.fromkeys(found))


def described_cluster() -> ClusterConfig:
    """The active configuration of the cluster. Raises ApiError where there is none."""
    try:
        return load_cluster()
    except ClusterError as error:
        raise ApiError(409, "no_cluster", str(error), "safekit cluster config cluster.xml") from None


async def _close_later(client: aiohttp.ClientSession) -> None:
    """Close connections with former certificates when what is asked over them has ended."""
    try:
        await asyncio.sleep(FORMER_SECONDS)
    finally:
        await client.close()


class Relay:
    """Asks other servers; one connection is used again and again."""

    def __init__(self) -> None:
        self._clients: dict[bool, tuple[object, aiohttp.ClientSession]] = {}
        """With proxy.crtkey and without: the files that the connections were made with, and these."""
        self._former: set[asyncio.Task[None]] = set()

    async def session(self, *, proxy: bool = False) -> aiohttp.ClientSession:
        """The connections; new ones after certificates were renewed. Raises Unreachable."""
        files = stamp(conf_dir()) if speaks_https() else None
        made = self._clients.get(proxy)
        if made is not None and made[0] == files:
            return made[1]
        context: ssl.SSLContext | bool = True
        if made is not None:
            self._former.add(asyncio.create_task(_close_later(made[1])))
            del self._clients[proxy]
        if files is not None:
            try:
                context = client_context(conf_dir(), proxy=proxy)
            except TlsError as error:
                raise Unreachable("certificate", error.text, error.next_step) from None
        connector = aiohttp.TCPConnector(limit=0, limit_per_host=20, keepalive_timeout=30, ssl=context)
        client = aiohttp.ClientSession(
            connector=connector, trust_env=False, auto_decompress=False, cookie_jar=aiohttp.DummyCookieJar()
        )
        self._clients[proxy] = files, client
        return client

    async def close(self) -> None:
        """Leave no connection."""
        for task in self._former:
            task.cancel()
        await asyncio.gather(*self._former, return_exceptions=True)
        for _, client in self._clients.values():
            await client.close()

    async def ask(
        self,
        targets: list[Target],
        method: str,
        path: str,
        body: bytes = b"",
        *,
        content_type: str = "application/json",
        secret: bool = False,
        proxy: bool = False,
        seconds: float = LONG_SECONDS,
        silent: float = IDLE_SECONDS,
    ) -> Reply:
        """One signed request, tried at the addresses in turn until one takes the connection, and with the keys that
        the server may have; over HTTPS with the certificate of proxy.crtkey, or admin.crt. Raises Unreachable."""
        problem: Unreachable | None = None
        keys = asking_keys()
        if not keys:
            raise Unreachable("key", "this server has no cluster key", "safekit cluster config cluster.xml")
        for target in targets:
            # As `call` does: over HTTP nothing is sealed with a former key, which somebody in between may have.
            for key in keys[:1] if secret and target.protocol == "http" else keys:
                try:
                    return await self._once(
                        target, key, method, path, body, content_type, secret, proxy, seconds, silent
                    )
                except Unreachable as error:
                    problem = error
                    if error.kind != "key":
                        break
            if problem is not None and problem.kind != "connect":
                break
        raise problem or Unreachable("connect", "cluster.xml has no address of it")

    async def _once(
        self,
        target: Target,
        key: bytes,
        method: str,
        path: str,
        body: bytes,
        content_type: str,
        secret: bool,
        proxy: bool,
        seconds: float,
        silent: float,
    ) -> Reply:
        content = seal_body(key, body) if secret else body
        header, nonce = sign(key, node_name(), target.node, method, path, content, sealed=secret)
        timeout = aiohttp.ClientTimeout(total=seconds, sock_connect=CONNECT_SECONDS, sock_read=silent)
        web_there = f"safekit webserver start, on {target.node}"
        try:
            session = await self.session(proxy=proxy)
            async with session.request(
                method,
                URL(target.url + path, encoded=True),
                data=content or None,
                headers={"Authorization": header, "Content-Type": content_type},
                timeout=timeout,
                allow_redirects=False,
            ) as response:
                data = bytearray()
                async for block in response.content.iter_chunked(65536):
                    data += block
                    if len(data) > MAX_ANSWER:
                        raise Unreachable("too_large", f"its answer has more than {MAX_ANSWER >> 20} MB")
                status, kind = response.status, response.content_type
                signed = response.headers.get(SIGNED_ANSWER) == "1"
        except aiohttp.ConnectionTimeoutError:
            text = f"no connection to {target.url} within {CONNECT_SECONDS:.0f} s"
            raise Unreachable("connect", text, "is it up, and the port open in its firewall?") from None
        except TimeoutError:
            raise Unreachable("silent", f"{target.url} said nothing for {silent:.0f} s", web_there) from None
        except aiohttp.ClientSSLError as error:
            raise Unreachable("certificate", f"{target.url}: {_tls_reason(error, target.host)}", CHECK) from None
        except aiohttp.ClientConnectorError as error:
            reason = getattr(error.os_error, "strerror", None) or "no connection"
            raise Unreachable("connect", f"{target.url}: {reason}", web_there) from None
        except (aiohttp.ClientError, OSError) as error:
            raise Unreachable("connect", f"{target.url}: {error or type(error).__name__}", web_there) from None
        return _checked(key, nonce, status, kind, bytes(data), signed)


def _tls_reason(error: aiohttp.ClientSSLError, host: str) -> str:
    cause = error.certificate_error if isinstance(error, aiohttp.ClientConnectorCertificateError) else error.os_error
    return refusal_of(cause, host)[0] if isinstance(cause, ssl.SSLError) else str(error)


def _checked(key: bytes, nonce: str, status: int, kind: str, data: bytes, signed: bool) -> Reply:
    """An answer whose signature is right, or a refusal of ours that tells why there is none. Raises Unreachable."""
    if not signed and status == 401:
        refusal = Reply(status, kind, data).json()
        raise Unreachable(str(refusal.get("error")), str(refusal.get("text")), str(refusal.get("next_step", "")))
    try:
        return Reply(status, kind, check_answer(key, nonce, status, data))
    except SignatureError as error:
        raise Unreachable("altered", error.text, "see who answers at this address; use HTTPS") from None


class RelayApi:
    """The routes of other servers under /nodes/NODE, and the look at a server that is to become one."""

    def __init__(self, relay: Relay) -> None:
        self.relay = relay

    def routes(self) -> list[web.RouteDef]:
        """Its routes."""
        path = PREFIX + "/nodes/{node}/{path:.+}"
        return [
            *(web.route(method, path, self.pass_on) for method in ("GET", "POST", "PUT", "DELETE")),
            web.get(f"{PREFIX}/probe", self.probe),
        ]

    async def pass_on(self, request: web.Request) -> web.StreamResponse:
        """What the person may ask there, asked there."""
        who = caller(request)
        if who.server:
            raise ApiError(400, "relay", "a server of the cluster asks the others itself")
        node, path = request.match_info["node"], request.match_info["path"]
        if path.startswith("nodes/") or path.endswith("events") or path == "session":
            raise ApiError(400, "relay", f"{path[:64]} is not passed on")
        body = await body_of(request, MAX_ARCHIVE if who.role == Role.ADMIN else MAX_JSON)
        needed = _needed(request.method, path, body, who.role)
        if who.role < needed:
            raise ApiError(403, "forbidden", f"this needs the role {needed.label}; yours is {who.role.label}")
        targets = targets_of(described_cluster(), node, *here(request))
        if not targets:
            raise ApiError(404, "no_node", f"cluster.xml has no node {node[:64]}", "safekit cluster confinfo")
        query = [(k, v) for k, v in request.query.items() if k not in (BEHALF, ROLE)]
        if "If-Match" in request.headers:
            query.append(("match", request.headers["If-Match"].strip('"')))
        query += [(BEHALF, who.name), (ROLE, who.role.label)]
        try:
            answer = await self.relay.ask(
                targets,
                request.method,
                f"{PREFIX}/{quote(path, safe='/')}?{urlencode(query)}",
                body,
                content_type=request.content_type if body else "application/json",
                secret=bool(body) and request.method == "PUT",
                proxy=PROXY_HEADER in request.headers,
                # A command says every second that it lives; a snapshot or a deployment is silent until its end.
                silent=PATIENT_SECONDS if path.endswith(PATIENT) else IDLE_SECONDS,
            )
        except Unreachable as error:
            body_ = {"error": error.kind, "text": f"{node}: {error.text}", "next_step": error.next_step, "node": node}
            return reply(request, body_, 502)
        return web.Response(
            body=answer.body,
            status=answer.status,
            content_type=answer.content_type,
            headers={"Cache-Control": "no-store"},
        )

    async def probe(self, request: web.Request) -> web.StreamResponse:
        """Who is at an address that is to become a node: its host name or nothing (guide 3.3.1)."""
        if caller(request).role < Role.ADMIN:
            raise ApiError(403, "forbidden", "this needs the role Admin")
        address = request.query.get("address", "")
        if _ADDRESS.fullmatch(address) is None:
            raise ApiError(400, "malformed", "this is not an address")
        scheme, port = here(request)
        try:
            url = URL.build(scheme=scheme, host=address, port=port, path=f"{PREFIX}/who")
        except ValueError:
            raise ApiError(400, "malformed", "this is not an address") from None
        name = ""
        with contextlib.suppress(Unreachable, aiohttp.ClientError, OSError, TimeoutError, ValueError):
            session = await self.relay.session()
            async with asyncio.timeout(PROBE_SECONDS), session.get(url, allow_redirects=False) as response:
                data = json.loads(await response.content.read(4096))
                name = str(data.get("node", ""))[:MAX_NAME] if isinstance(data, dict) else ""
        return reply(request, {"address": address, "node": name, "answers": bool(name)})


def here(request: web.Request) -> tuple[str, int]:
    """Protocol and port of the page, with which the other servers are asked too."""
    name = request.transport.get_extra_info("sockname") if request.transport is not None else None
    return request.scheme, int(name[1]) if name else 9010


def _needed(method: str, path: str, body: bytes, role: Role) -> Role:
    """The least role for a request to another server. What it needs beyond, that server judges. Raises ApiError."""
    if method == "GET":
        return Role.MONITOR
    if method == "POST" and path == "command":
        try:
            words = json.loads(body).get("arguments")
        except (ValueError, AttributeError, RecursionError):
            raise ApiError(400, "malformed", "the body is not a command") from None
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise ApiError(400, "malformed", "arguments is not a list of words")
        judged = judge(words, role)
        if isinstance(judged, Refusal):
            raise ApiError(403 if judged.kind == "forbidden" else 400, judged.kind, judged.text)
        return Role.MONITOR
    return Role.ADMIN
