"""The process safekairosdbd: `safekairosdbd URL`."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gzip
import http.client
import json
import os
import signal
import sys
import time
import urllib.error
import urllib.request
from urllib.parse import urlsplit

import pyinotify

from safekairosdb.points import Buffer, Changes, Point
from safekit.configuration import list_modules
from safekit.disk.files import boot_identity
from safekit.disk.paths import ModulePaths, node_name
from safekit.disk.resources import Resource, load
from safekit.disk.watch import DirectoryWatch
from safekit.process import stacks
from safekit.process.frame import give_back_memory, set_process_name

NAME = "safekairosdbd"
RESCAN_SECONDS = 5.0
POST_SECONDS = 10.0
LONGEST = 60.0
PATH = "/api/v1/datapoints"


class Refused(Exception):
    """KairosDB does not want these points and never will."""


def resources_of(paths: ModulePaths, boot: str, now: float) -> dict[str, Resource]:
    """The resources of a module; of one that does not run its state, which is STOP whatever the file says."""
    try:
        running = paths.marker.read_text(errors="replace").strip() == boot
    except OSError:
        running = False
    found = load(paths.resources)
    if running:
        return found
    known = found.get("state.local")
    since = known.since if known is not None and known.value == "STOP" else 0.0
    return {
        "state.local": Resource("state.local", "STOP", since, NAME),
        "state.color": Resource("state.color", "red", since, NAME),
    }


def post(url: str, batch: list[Point]) -> None:
    """Raises OSError when KairosDB is away, Refused."""
    data = gzip.compress(json.dumps(batch).encode(), 1)
    request = urllib.request.Request(url + PATH, data, {"Content-Type": "application/gzip"})
    try:
        with urllib.request.urlopen(request, timeout=POST_SECONDS) as answer:
            answer.read(1024)
    except urllib.error.HTTPError as error:
        said = error.read(300).decode("utf-8", "replace")
        if 400 <= error.code < 500:
            raise Refused(f"{error.code} {said}") from None
        raise OSError(f"{error.code} {error.reason}") from None
    except http.client.HTTPException as error:
        raise OSError(f"{type(error).__name__}") from None


class Daemon:
    """Follows the modules and sends."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self.buffer = Buffer()
        self._changes: dict[str, Changes] = {}
        self._boot, self._node = boot_identity(), node_name()
        self._something = asyncio.Event()
        self._away = False

    def look(self) -> None:
        """All modules; what changed goes into the buffer."""
        now = time.time()
        names = list_modules()
        for name in names:
            known = self._changes.setdefault(name, Changes(name, self._node))
            with contextlib.suppress(OSError):
                self.buffer.add(known.see(resources_of(ModulePaths(name), self._boot, now), now))
        for gone in self._changes.keys() - set(names):
            del self._changes[gone]
        if len(self.buffer):
            self._something.set()

    async def follow(self) -> None:
        """For ever."""
        mask = pyinotify.IN_MOVED_TO | pyinotify.IN_DELETE
        while True:
            with contextlib.ExitStack() as stack:
                places = [ModulePaths(name).var for name in list_modules()]
                watches = [stack.enter_context(DirectoryWatch(place, mask)) for place in places if place.is_dir()]
                end = time.monotonic() + RESCAN_SECONDS
                while True:
                    self.look()
                    left = end - time.monotonic()
                    if left <= 0:
                        break
                    waits = [asyncio.create_task(watch.wait(left)) for watch in watches]
                    waits = waits or [asyncio.create_task(asyncio.sleep(left, False))]
                    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
                    for wait in waits:
                        wait.cancel()

    async def send(self) -> None:
        """For ever: one line when KairosDB goes, one when it comes back."""
        pause = 1.0
        while True:
            await self._something.wait()
            batch = self.buffer.batch()
            if not batch:
                self._something.clear()
                continue
            try:
                await asyncio.to_thread(post, self.url, batch)
            except Refused as error:
                print(f"{NAME}: {len(batch)} points are refused: {error}", file=sys.stderr, flush=True)
            except OSError as error:
                reason = getattr(error, "reason", None) or error
                if not self._away:
                    print(
                        f"{NAME}: {self.url} does not take data: {reason}; they wait here", file=sys.stderr, flush=True
                    )
                self._away = True
                await asyncio.sleep(pause)
                pause = min(2 * pause, LONGEST)
                continue
            self.buffer.sent(batch)
            pause = 1.0
            if self._away:
                self._away = False
                lost = f"; {self.buffer.dropped} points were lost" if self.buffer.dropped else ""
                print(f"{NAME}: {self.url} takes data again{lost}", file=sys.stderr, flush=True)
                self.buffer.dropped = 0


async def _serve(url: str) -> int:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    stacks.write_on_signal(loop)
    daemon = Daemon(url)
    print(f"{NAME}: sends to {daemon.url}", flush=True)
    give_back_memory()
    tasks = [loop.create_task(daemon.follow()), loop.create_task(daemon.send())]
    waiting = loop.create_task(stopping.wait())
    await asyncio.wait([waiting, *tasks], return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        if task.done():
            task.result()
        task.cancel()
    return 0


def main() -> int:
    """Send until SIGTERM. 2 when the URL is none."""
    parser = argparse.ArgumentParser(prog=NAME, description="Send the resources of the modules to KairosDB.")
    parser.add_argument("url", help="of KairosDB: http://127.0.0.1:8080")
    url = parser.parse_args().url
    if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
        print(f"{NAME}: {url} is not an URL; put one like http://127.0.0.1:8080 into ExecStart", file=sys.stderr)
        return 2
    set_process_name(NAME)
    stacks.write_on_signal()
    os.umask(0o007)
    status = asyncio.run(_serve(url))
    sys.stdout.flush()
    os._exit(status)  # a thread may wait for an answer that nobody needs any more


if __name__ == "__main__":
    sys.exit(main())
