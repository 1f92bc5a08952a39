"""What both processes do with the socket to the web service, which is their standard input."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import Callable, Coroutine
from typing import Any

from safekit.bus.front import FrameError, Order, Told, packed, unpacked
from safekit.process import stacks
from safekit.process.confined import confine
from safekit.process.frame import set_process_name

MAX_MESSAGE = 4096
MAX_DESCRIPTORS = 2
AT_ONCE = 64
"""Orders that are taken before others have their turn."""
SILENT_SECONDS = 60.0
"""A client who takes nothing for so long has gone."""

Taken = Callable[[Order, list[int]], None]
"""Called with descriptors, which are its own from then on."""


async def follow(orders: socket.socket, take: Taken) -> None:
    """Say that this process is ready, then give each order to `take`, with its descriptors, until the web service has
    ended. Raises FrameError."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()

    def readable() -> None:
        try:
            for _ in range(AT_ONCE):
                data, descriptors, flags, _address = socket.recv_fds(orders, MAX_MESSAGE, MAX_DESCRIPTORS)
                if not data:
                    ended.set_result(None)
                    loop.remove_reader(orders.fileno())
                    return
                order = unpacked(Order, data)
                if order.op == "serve" and flags & socket.MSG_CTRUNC:
                    # No descriptor was free: that connection ends, not all of them.
                    for descriptor in descriptors:
                        os.close(descriptor)
                    continue
                take(order, descriptors)
        except BlockingIOError:
            return
        except ConnectionError:  # it has ended with something unread
            loop.remove_reader(orders.fileno())
            ended.set_result(None)
        except FrameError as error:
            loop.remove_reader(orders.fileno())
            ended.set_exception(error)

    orders.setblocking(False)
    loop.add_reader(orders.fileno(), readable)
    orders.send(packed(Told("ready")))
    await ended


def run(name: str, serve: Callable[[socket.socket], Coroutine[Any, Any, None]]) -> int:
    """The frame of a process: confined, then `serve` until the web service ends."""
    set_process_name(name)
    stacks.write_on_signal()
    os.umask(0o077)
    try:
        orders = socket.socket(fileno=os.dup(0))
        orders.getpeername()
    except OSError:
        print(f"{name}: it is started by the web service: safekit webserver start", file=sys.stderr)
        return 2
    os.chdir("/")
    for lack in confine():
        print(f"{name}: not confined as it should be: {lack}", file=sys.stderr, flush=True)
    asyncio.run(serve(orders))
    return 0
