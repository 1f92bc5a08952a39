"""The application of a farm's campaign: answers every connection to the virtual address with the name of its server.

Stands alone, inside a node: `server.py start|stop ADDRESS`.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import selectors
import signal
import socket
import sys
import time
from typing import NoReturn

NAME = "chaosapp"
LOCK, PID, PORT = "/witness/runner", "/run/chaosapp.pid", 80
_PR_SET_NAME, _IP_FREEBIND = 15, 15


def serve(address: str, ready: int) -> NoReturn:
    """Until killed."""
    held = os.open(LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    fcntl.lockf(held, fcntl.LOCK_EX)
    name = os.uname().nodename.encode()
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
    listener.bind((address, PORT))
    listener.listen(256)
    listener.setblocking(False)
    os.write(ready, b"ready")
    os.close(ready)
    with selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is listener:
                    connection, _ = listener.accept()
                    connection.setblocking(False)
                    selector.register(connection, selectors.EVENT_READ, connection)
                    continue
                selector.unregister(key.data)
                try:
                    if key.data.recv(64):
                        key.data.sendall(name)
                except OSError:
                    pass  # the client has gone
                key.data.close()


def start(address: str) -> int:
    """Start it in the background; its end of the pipe says when it listens."""
    read, write = os.pipe()
    if os.fork() == 0:
        os.setsid()
        ctypes.CDLL(None).prctl(_PR_SET_NAME, NAME.encode())
        os.close(read)
        null = os.open("/dev/null", os.O_RDWR)
        for number in range(3):
            os.dup2(null, number)
        with open(PID, "w") as file:
            file.write(str(os.getpid()))
        serve(address, write)
    os.close(write)
    return 0 if os.read(read, 5) == b"ready" else 1


def stop(_: str) -> int:
    """End it, and wait until it is gone."""
    try:
        with open(PID) as file:
            pid = int(file.read() or "0")
    except FileNotFoundError:
        return 0
    for _number in range(200):
        try:
            with open(f"/proc/{pid}/comm") as file:
                if file.read().strip() != NAME:
                    break
            os.kill(pid, signal.SIGKILL)
        except (FileNotFoundError, ProcessLookupError):
            break
        time.sleep(0.01)
    return 0


if __name__ == "__main__":
    sys.exit({"start": start, "stop": stop}[sys.argv[1]](sys.argv[2]))
