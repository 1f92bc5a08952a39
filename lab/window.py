"""A window into a lab: addresses of this host's loopback that lead to the web services of the lab's nodes.

A browser of this host cannot see the lab's networks, which exist in namespaces only. One process listens on
127.88.N.(10+i), which means node i and cannot be reached from another machine, and carries every connection over the
lab's client: a node that is cut off or without power is so for the browser too. It ends with the lab.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from lab import kernel
from lab.errors import LabError
from lab.state import Process, lab_directory, load
from safekit import syscalls
from safekit.process import stacks

PORTS = (9010, 9011, 9012, 9453)
NOTE = "window.json"
START_SECONDS = 10.0
CONNECT_SECONDS = 5.0
_LABS = range(255)


def addresses(number: int, nodes: int) -> list[str]:
    """Of the nodes, for the window of that number."""
    return [f"127.88.{number}.{10 + i}" for i in range(1, nodes + 1)]


def open_window(name: str) -> dict[str, str]:
    """Node -> URL of its web service for a browser of this host. A window that is open is used. Raises LabError."""
    note = lab_directory(name) / NOTE
    found = _read(note)
    if found is not None:
        return found
    note.unlink(missing_ok=True)
    log = lab_directory(name) / "window.log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "lab.window", name],
            cwd=Path(__file__).resolve().parents[1],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        found = _read(note)
        if found is not None:
            return found
        if process.poll() is not None:
            break
        time.sleep(0.02)
    raise LabError(f"the window into lab {name} did not open", f"see {log}")


def _read(note: Path) -> dict[str, str] | None:
    try:
        data = json.loads(note.read_text())
        alive = Process(int(data["pid"]), int(data["start"])).alive
        return {str(node): str(url) for node, url in data["urls"].items()} if alive else None
    except (FileNotFoundError, ValueError, KeyError):
        return None


class Window:
    """Listens for a lab until its keeper has gone."""

    def __init__(self, name: str) -> None:
        state = load(lab_directory(name))
        if state is None or not state.alive:
            raise LabError(f"lab {name} is gone", f"safelab up --name {name}")
        self.state = state
        self.name = name
        self._maker = ThreadPoolExecutor(1, initializer=self._enter)

    def _enter(self) -> None:
        """The thread that makes sockets lives in the network of the lab's client."""
        descriptor = os.open(f"/proc/{self.state.machines['client'].pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            kernel.enter(descriptor, kernel.CLONE_NEWNET)
        finally:
            os.close(descriptor)

    def _listen(self) -> list[tuple[str, str, list[socket.socket]]]:
        """(node, address, listening sockets), all of the first number that is free."""
        nodes = self.state.plan.nodes
        for number in _LABS:
            found: list[tuple[str, str, list[socket.socket]]] = []
            try:
                for node, address in zip(nodes, addresses(number, len(nodes)), strict=True):
                    socks = [socket.create_server((address, port), backlog=64) for port in PORTS]
                    found.append((node, address, socks))
            except OSError as error:
                for _, _, socks in found:
                    for sock in socks:
                        sock.close()
                if error.errno != errno.EADDRINUSE:
                    raise
                continue
            return found
        raise LabError("no address of the loopback is free", "safelab down removes labs")

    async def serve(self) -> None:
        """Until the lab is gone."""
        loop = asyncio.get_running_loop()
        stacks.write_on_signal(loop)
        listening = self._listen()
        urls = {}
        for node, address, socks in listening:
            urls[node] = f"http://{address}:{PORTS[0]}"
            there = self.state.plan.cable(node, self.state.plan.lans[0]).ipv4
            for sock, port in zip(socks, PORTS, strict=True):
                await asyncio.start_server(partial(self._carry, loop, there, port), sock=sock)
        me = Process.of(os.getpid())
        note = lab_directory(self.name) / NOTE
        new = note.with_suffix(".new")
        new.write_text(json.dumps({"pid": me.pid, "start": me.start, "urls": urls}))
        new.replace(note)
        while self.state.keeper.alive:
            await asyncio.sleep(0.5)

    async def _carry(
        self,
        loop: asyncio.AbstractEventLoop,
        address: str,
        port: int,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        """One connection, both ways, until either side ends."""
        with contextlib.suppress(OSError, TimeoutError):
            sock = await loop.run_in_executor(self._maker, socket.socket, socket.AF_INET, socket.SOCK_STREAM)
            sock.setblocking(False)
            async with asyncio.timeout(CONNECT_SECONDS):
                await loop.sock_connect(sock, (address, port))
            there, back = await asyncio.open_connection(sock=sock)
            ways = [asyncio.create_task(_pump(reader, back)), asyncio.create_task(_pump(there, writer))]
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            for way in ways:
                way.cancel()
            back.close()
        writer.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()


if __name__ == "__main__":
    syscalls.name_process("safelab-window")
    try:
        asyncio.run(Window(sys.argv[1]).serve())
    except LabError as error:
        sys.exit(f"Error: {error}")
