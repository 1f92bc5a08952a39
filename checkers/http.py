"""The little of HTTP that checkers need: one GET, bounded in time and size, no child process."""

from __future__ import annotations

import asyncio
import socket
import ssl
from typing import Any
from urllib.parse import SplitResult, urlsplit

from checkers.frame import resolve

MAX_HEAD = 16 * 1024
SHUTDOWN_SECONDS = 1.0


class HttpError(Exception):
    """No usable answer; the text says why."""


def split_url(url: str) -> SplitResult:
    """The parts of an http or https URL. Raises ValueError."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{url!r} is not an http or https URL")
    if parts.port is not None and not 0 < parts.port < 65536:
        raise ValueError(f"{url!r}: the port is out of range")
    if any(c.isspace() or ord(c) < 33 for c in url):
        raise ValueError(f"{url!r} holds a blank")
    return parts


async def get(
    host: str, port: int, path: str, timeout: float, *, limit: int = 0, tls: ssl.SSLContext | None = None
) -> tuple[int, bytes]:
    """Status and up to `limit` bytes of the body. Raises HttpError within `timeout` seconds."""
    shown = f"[{host}]" if ":" in host else host
    request = f"GET {path} HTTP/1.1\r\nHost: {shown}:{port}\r\nConnection: close\r\nAccept: */*\r\n\r\n"
    try:
        async with asyncio.timeout(timeout):
            reader, writer = await _connect(host, port, tls)
            try:
                writer.write(request.encode("latin-1"))
                head = await reader.readuntil(b"\r\n\r\n")
                status = _status(head)
                body = await _body(reader, head, limit) if limit else b""
            finally:
                writer.close()
                if tls is None:
                    # abort() of a TLS transport raises TypeError in Python 3.11; it has its time-out instead
                    writer.transport.abort()
    except TimeoutError:
        raise HttpError(f"no answer within {timeout:g} s") from None
    except (OSError, ssl.SSLError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError) as error:
        raise HttpError(str(error) or type(error).__name__) from None
    return status, body


async def _connect(
    host: str, port: int, tls: ssl.SSLContext | None
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """To the first address of the host that takes the connection. Raises OSError, ssl.SSLError of the last one."""
    bound: dict[str, Any] = {} if tls is None else {"ssl_shutdown_timeout": SHUTDOWN_SECONDS, "server_hostname": host}
    problem: OSError = OSError(f"{host} has no address")
    for _, (address, _) in await resolve(host, port, socket.SOCK_STREAM):
        try:
            return await asyncio.open_connection(address, port, ssl=tls, limit=MAX_HEAD, **bound)
        except OSError as error:
            problem = error
    raise problem


def _status(head: bytes) -> int:
    words = head.split(b"\r\n", 1)[0].split()
    if len(words) < 2 or not words[0].startswith(b"HTTP/1.") or not words[1].isdigit() or len(words[1]) != 3:
        raise ValueError("not an answer of a web server")
    return int(words[1])


async def _body(reader: asyncio.StreamReader, head: bytes, limit: int) -> bytes:
    length = None
    for line in head.lower().split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name == b"content-length" and value.strip().isdigit():
            length = int(value)
        if name == b"transfer-encoding" and b"chunked" in value:
            raise ValueError("a chunked answer is not supported")
    data = b""
    while len(data) < (limit if length is None else min(length, limit)):
        part = await reader.read(min(limit - len(data), 65536))
        if not part:
            break
        data += part
    return data
