"""The process safehttp: it reads HTTP, and asks the web service what to answer (safekit/bus/front.py).

It decides nothing. It has no file, no key, no network of its own: a connection is a socket that it was sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import sys

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from multidict import CIMultiDict

from safehttp.orders import SILENT_SECONDS, follow, run
from safekit.bus.front import (
    MAX_FRAME,
    AnswerHead,
    FrameError,
    Kind,
    Link,
    Order,
    RequestHead,
    packed,
    unpacked,
)
from safekit.process.tasks import Beside

NAME = "safehttp"
IDLE_SECONDS = 20.0
"""A connection without a whole request: it holds a descriptor, and may be somebody who wants all of them."""
LINGER_SECONDS = 1.0
"""How long the rest of a refused body is taken and thrown away, so that the answer is read before the end."""
_OURS = frozenset({"connection", "keep-alive", "transfer-encoding", "date"})
"""Headers of an answer that this process makes itself."""
_BETWEEN = frozenset({"expect", "transfer-encoding"})
"""Headers of a request that are between its sender and this process."""


class Links:
    """For each connection the socket to the web service. It ends with its connection, and a connection with it."""

    def __init__(self) -> None:
        self._links: dict[object, Link] = {}

    def add(self, protocol: object, link: Link) -> None:
        """A new connection."""
        self._links[protocol] = link

    def of(self, protocol: object) -> Link:
        """That of a connection. Raises ConnectionResetError when it is gone."""
        if protocol not in self._links:
            raise ConnectionResetError("the connection has ended")
        return self._links[protocol]

    def ended(self, protocol: object) -> None:
        """The connection is gone."""
        link = self._links.pop(protocol, None)
        if link is not None:
            link.close()


class Server(web.Server):
    """aiohttp's, which tells when a connection is gone."""

    def __init__(self, links: Links) -> None:
        super().__init__(
            lambda request: answer(links.of(request.protocol), request),
            access_log=None,
            keepalive_timeout=IDLE_SECONDS,
            lingering_time=LINGER_SECONDS,
        )
        self._links = links

    def connection_lost(self, handler: web.RequestHandler, exc: BaseException | None = None) -> None:
        """Called by aiohttp."""
        self._links.ended(handler)
        super().connection_lost(handler, exc)


def head_of(request: web.BaseRequest) -> bytes:
    """What is asked of the web service. Raises HTTPBadRequest, HTTPRequestHeaderFieldsTooLarge."""
    target, host = request.raw_path, ""
    if not target.startswith("/"):
        # A whole URL is as good (RFC 9112, 3.2.2): its host is the one that counts.
        target, host = request.rel_url.raw_path_qs, request.host
    headers = [(k, v) for k, v in request.headers.items() if k.lower() not in _BETWEEN]
    if host:
        headers = [("Host", host), *((k, v) for k, v in headers if k.lower() != "host")]
    try:
        head = packed(RequestHead(request.method, target, tuple(headers)))
    except ValueError:
        raise web.HTTPBadRequest from None
    if len(head) > MAX_FRAME:
        raise web.HTTPRequestHeaderFieldsTooLarge
    return head


async def answer(link: Link, request: web.BaseRequest) -> web.StreamResponse:
    """Ask, and pass the answer on. Whatever goes wrong between this process and the web service ends the connection."""
    head = head_of(request)
    body: asyncio.Task[None] | None = None
    response: web.StreamResponse | None = None
    try:
        await link.send(Kind.REQUEST, head)
        while (frame := await link.receive()) is not None:
            kind, data = frame
            if kind is Kind.WANT and body is None:
                body = asyncio.create_task(_body(link, request))
            elif kind is Kind.ANSWER and response is None:
                response = _response(unpacked(AnswerHead, data))
                await response.prepare(request)
            elif kind is Kind.DATA and response is not None:
                if request.method != "HEAD":
                    async with asyncio.timeout(SILENT_SECONDS):
                        await response.write(data)
            elif kind is Kind.END and response is not None:
                await response.write_eof()
                return response
            else:
                raise FrameError(f"{kind.name} is not expected")
        raise ConnectionResetError("the web service has ended the connection")
    except (FrameError, ConnectionError, TimeoutError) as error:
        link.close()
        if request.transport is not None:
            request.transport.abort()
        if isinstance(error, TimeoutError):
            raise ConnectionResetError("who asked takes nothing") from None
        raise
    finally:
        if body is not None:
            body.cancel()
            await asyncio.gather(body, return_exceptions=True)


def _response(head: AnswerHead) -> web.StreamResponse:
    headers = CIMultiDict((k, v) for k, v in head.headers if k.lower() not in _OURS)
    response = web.StreamResponse(status=head.status, reason=head.reason, headers=headers)
    if head.close:
        response.force_close()
    return response


async def _body(link: Link, request: web.BaseRequest) -> None:
    """Send the body, then that it was all, or that it is not."""
    try:
        if request.headers.get("Expect", "").lower() == "100-continue":
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            request.writer.output_size = 0
        async for part in request.content.iter_any():
            await link.send(Kind.DATA, part)
        await link.send(Kind.END)
    except BaseException:
        with contextlib.suppress(ConnectionResetError):
            link.put(Kind.BROKEN)
        raise


def _is_ours(record: logging.LogRecord) -> bool:
    """What is no HTTP is answered with 400, and who has gone has gone: strangers must not fill the journal."""
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, (HttpProcessingError, ConnectionError))


async def _serve(orders: socket.socket) -> None:
    links, beside = Links(), Beside()
    server = Server(links)

    async def begin(connection: socket.socket, to_service: socket.socket) -> None:
        protocol = server()
        links.add(protocol, await Link.of(to_service))
        try:
            await asyncio.get_running_loop().connect_accepted_socket(lambda: protocol, connection)
        except OSError:  # who connected has gone again
            links.ended(protocol)
            connection.close()

    def take(order: Order, descriptors: list[int]) -> None:
        if order.op != "serve" or len(descriptors) != 2:
            raise FrameError(f"the order {order.op} with {len(descriptors)} descriptors")
        connection, to_service = (socket.socket(fileno=each) for each in descriptors)
        beside.start(begin(connection, to_service))

    await follow(orders, take)


def main() -> int:
    """Answer until the web service ends."""
    logging.getLogger("aiohttp.server").addFilter(_is_ours)
    return run(NAME, _serve)


if __name__ == "__main__":
    sys.exit(main())
