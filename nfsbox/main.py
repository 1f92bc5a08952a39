"""The process nfsbox: replicated file system of a module. What it does is in box.py, what it serves in control.py."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import sys
from typing import NoReturn

from nfsbox.box import Box
from nfsbox.control import Announcer, Control
from nfsbox.place import BoxError, Place
from safekit.process.frame import Context, run
from safekit.wire.keys import KeysNow

_control = Control()


async def _ticks(box: Box) -> None:
    while True:
        await asyncio.sleep(1.0)
        await asyncio.to_thread(box.tick)


async def _names(box: Box) -> None:
    """Beside the ticks, which must not wait for a DNS."""
    while True:
        await asyncio.sleep(1.0)
        if box.listening.unnamed:
            await asyncio.to_thread(box.listening.begin_when_named)


async def _main(context: Context) -> int:
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    rfs = context.config.rfs
    if rfs is None:
        context.log.event("internal", text="nfsbox: the module replicates nothing (no <rfs>)")
        return 2
    # Modes of replicated entries are exactly what the application asked for.
    os.umask(0)
    # Each file that is open in the replicated directories costs a descriptor here, and one on the secondary.
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    # A thread that serves the file system must not wait long for the interpreter while another one computes.
    sys.setswitchinterval(0.0005)
    try:
        keys = KeysNow(context.module)
    except (OSError, ValueError) as error:
        context.log.event("internal", text=f"nfsbox: no key for the network: {error}; run safekit cluster config")
        return 2
    address = context.cluster.bind_address(rfs.flow, context.node)
    place = Place(context.module, context.node, context.paths.rfs, keys, (address, rfs.port) if address else None)
    announcer = Announcer(context.module, context.bus, asyncio.get_running_loop())
    try:
        box = Box(place, rfs, announcer.notify, announcer.pair)
    except BoxError as error:
        context.log.event("internal", text=f"nfsbox: {error.text}")
        return 2
    _control.begin(box)
    beside = context.beside()
    beside.start(announcer.run())
    beside.start(_ticks(box))
    beside.start(_names(box))
    context.figures = box.figures
    await context.stopping.wait()
    try:
        await asyncio.to_thread(box.release)
    except BoxError as error:
        context.log.event("internal", text=f"nfsbox: {error.text}")
        return 1
    finally:
        beside.cancel()
    return 0


def main() -> NoReturn:
    """Entry point."""
    run("nfsbox", _main, handler=lambda _: _control.requests().handle)


if __name__ == "__main__":
    main()
