"""Certificates of clients that were revoked: each server fetches the list, conf/clca.crl, from the others.

A list is signed by an authority of clcacert.crt and numbered, so it does not matter who gives it: a higher number is
taken, everything else is not. It is for everybody to have, as it names no person.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp
from aiohttp import web
from cryptography import x509

from safekit.disk.files import write_atomic
from safekit.disk.paths import cluster_dir, node_name
from safekit.model.httpd import DEFAULT_HTTPS, HTTPS_PORT, SSL_FILE, HttpdError, defines, port_of
from safekit.wire.certificates import Authorities, lists_in, whole_lists
from safewebserver.settings import conf_dir

PATH = "/certs/clca.crl"
FILE, AUTHORITIES = "clca.crl", "clcacert.crt"
FETCH_SECONDS = 30.0
ANSWER_SECONDS = 5.0
MAX_LIST = 1 << 20


def _lists(data: bytes, authorities: bytes) -> dict[x509.Name, tuple[int, bytes]]:
    """Issuer -> number and PEM of each list that an authority has signed; others are not there."""
    try:
        known = Authorities(authorities)
    except ValueError:
        raise ValueError(f"{AUTHORITIES} cannot be read: SAFE/web/bin/checkcert -t all tells why") from None
    found: dict[x509.Name, tuple[int, bytes]] = {}
    for block in lists_in(data):
        try:
            crl = x509.load_pem_x509_crl(block)
            number = crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
        except (ValueError, x509.ExtensionNotFound, x509.DuplicateExtension):
            continue
        if known.signed(crl) and number > found.get(crl.issuer, (-1, b""))[0]:
            found[crl.issuer] = (number, block if block.endswith(b"\n") else block + b"\n")
    return found


def newer(current: bytes, offered: bytes, authorities: bytes) -> bytes | None:
    """The lists with those of `offered` that are newer and signed; None when there are none. Raises ValueError for
    authorities that cannot be read, and for a `current` that has something else: it is not ours to write over."""
    have, given = _lists(current, authorities), _lists(offered, authorities)
    better = {issuer: each for issuer, each in given.items() if each[0] > have.get(issuer, (-1, b""))[0]}
    if not better:
        return None
    own = whole_lists(current) if current else []
    kept = [block for block in own if x509.load_pem_x509_crl(block).issuer not in better]
    return b"".join([*kept, *(block for _, block in better.values())])


async def serve(_: web.Request) -> web.StreamResponse:
    """The list of this server, for everybody."""
    try:
        content = (conf_dir() / FILE).read_bytes()
    except FileNotFoundError:
        raise web.HTTPNotFound from None
    return web.Response(body=content, content_type="application/x-pem-file")


def https_port() -> int | None:
    """The port of https; None where it is off, as then no client has a certificate."""
    if not (conf_dir() / "ssl" / SSL_FILE).is_file():
        return None
    try:
        found = defines((conf_dir() / "httpd.conf").read_text(encoding="utf-8", errors="replace"))
        return port_of(found[HTTPS_PORT]) if HTTPS_PORT in found else DEFAULT_HTTPS
    except (OSError, HttpdError):
        return DEFAULT_HTTPS


def others() -> Iterator[list[str]]:
    """The addresses of each other server of the cluster."""
    try:
        lans = json.loads((cluster_dir() / "cluster.json").read_bytes())["lans"]
        nodes = [(str(node["name"]), str(node["addr"])) for lan in lans for node in lan["nodes"]]
    except (OSError, ValueError, KeyError, TypeError):
        return
    for name in sorted({name for name, _ in nodes} - {node_name()}):
        yield list(dict.fromkeys(address for owner, address in nodes if owner == name))


class Revocations:
    """Fetches the list while the service runs."""

    def __init__(self) -> None:
        self._told = ""

    async def run(self) -> None:
        """For ever."""
        # The content is signed, so the server that gives it needs to prove nothing: not even a certificate in time.
        connector = aiohttp.TCPConnector(ssl=False, limit=4)
        timeout = aiohttp.ClientTimeout(total=ANSWER_SECONDS)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
            while True:
                try:
                    await self._look(session)
                except (OSError, ValueError) as error:
                    self._tell(f"{FILE} is not renewed: {error}")
                await asyncio.sleep(FETCH_SECONDS)

    async def _look(self, session: aiohttp.ClientSession) -> None:
        port = https_port()
        if port is None or not (conf_dir() / AUTHORITIES).is_file():
            return
        offered = await asyncio.gather(*(self._fetch(session, addresses, port) for addresses in others()))
        await asyncio.to_thread(self._take, b"".join(offered))

    async def _fetch(self, session: aiohttp.ClientSession, addresses: list[str], port: int) -> bytes:
        """What a server has; nothing when it does not answer, which others tell."""
        for address in addresses:
            host = f"[{address}]" if ":" in address else address
            try:
                async with session.get(f"https://{host}:{port}{PATH}", allow_redirects=False) as answer:
                    data = b""
                    async for chunk in answer.content.iter_chunked(1 << 16):
                        data += chunk
                        if len(data) > MAX_LIST:
                            return b""
                    return data if answer.status == 200 else b""
            except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
                continue
        return b""

    def _take(self, offered: bytes) -> None:
        path: Path = conf_dir() / FILE
        current = path.read_bytes() if path.is_file() else b""
        better = newer(current, offered, (conf_dir() / AUTHORITIES).read_bytes())
        if better is not None:
            write_atomic(path, better, mode=0o644)
            self._tell(f"{FILE} is renewed from another server")

    def _tell(self, text: str) -> None:
        if text != self._told or "renewed from" in text:
            print(f"safewebserver: {text}", file=sys.stderr, flush=True)
        self._told = text


async def following(_: web.Application) -> AsyncIterator[None]:
    """While the application runs."""
    task = asyncio.create_task(Revocations().run())
    yield
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
