"""The process safenotify: looks at the files of the modules every LOOK_SECONDS, and sends what waits."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safekit.bus.asking import Service
from safekit.bus.endpoint import BusError, Endpoint
from safekit.configuration import list_modules
from safekit.disk.files import boot_identity
from safekit.disk.paths import ModulePaths, cluster_dir, node_name
from safekit.disk.resources import load
from safekit.notify import queue
from safekit.notify.deliver import NotDelivered, deliver
from safekit.notify.settings import BadSettings, NotifySettings, parse_settings
from safekit.process import stacks
from safekit.process.frame import give_back_memory, set_process_name
from safekit.view.decisions import parse
from safekit.view.module import view_of
from safekit.view.story import sentence
from safenotify.events import Event, Events, Limit, View, headline, speaks

NAME = "safenotify"
LOOK_SECONDS = 2.0
DECISIONS = 5
DECIDED_SECONDS = 5.0
"""A decision comes a moment before the change that it makes."""
MAX_HISTORY = 64 << 10


def look() -> Iterator[View]:
    """All configured modules."""
    boot = boot_identity()
    for name in list_modules():
        paths = ModulePaths(name)
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            service = json.loads(paths.active_json.read_bytes())["service"]
            running = paths.marker.is_file() and paths.marker.read_text(errors="replace").strip() == boot
            known = {"running": running, "heart": running, "mode": service["mode"], "id": 1}
            view = view_of(name, known, load(paths.resources))
            verdict = view.verdict
            down = tuple(n for n, r in view.resources.items() if running and r.value == "down" and _checked(n))
            yield View(
                name, view.mode, view.state, view.color, view.since, view.remote_state, verdict.kind.value,
                verdict.reason, verdict.next_step, down,
            )  # fmt: skip


def _checked(name: str) -> bool:
    """What a checker or a heartbeat found, not the module's own notes, which the verdict puts into words."""
    return not name.startswith(("state.", "rfs.", "usersetting.", "remote."))


def decisions(module: str, since: float) -> list[str]:
    """What heart decided since then, the last few, as `safekit why` tells it."""
    path = ModulePaths(module).why / "decisions.jsonl"
    found = []
    with contextlib.suppress(OSError):
        with open(path, "rb") as handle:
            handle.seek(max(0, path.stat().st_size - MAX_HISTORY))
            lines = handle.read().decode("utf-8", "replace").splitlines()
        for entry in filter(None, map(parse, lines)):
            if entry.time >= since and (told := sentence(entry)):
                found.append(f"{_clock(entry.time)} {told}")
    return found[-DECISIONS:]


def _clock(when: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(when))


def peer_of(node: str) -> str:
    """The other server of a cluster of two; '' in others."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        lans = json.loads((cluster_dir() / "cluster.json").read_bytes())["lans"]
        others = {str(n["name"]) for lan in lans for n in lan["nodes"]} - {node}
        return others.pop() if len(others) == 1 else ""
    return ""


def message_of(event: Event, node: str, skipped: int) -> dict[str, Any]:
    """What is sent: subject and text for people, the rest for programs."""
    peer = peer_of(node)
    after, subject = event.after, headline(event, node, peer)
    lines = [f"{subject}, at {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(event.began))}.", ""]
    reasons = decisions(after.module, event.began - DECIDED_SECONDS)
    if reasons:
        lines += ["Because:", *(f"  {text}" for text in reasons), ""]
    if after.serves:
        lines += [f"The application answers on {node} since {_clock(after.since)}.", ""]
    there = f", {peer or 'the other server'} is {after.remote_state}" if after.remote_state else ""
    before = f"{event.before.state} {event.before.color}"
    lines.append(f"Now: {node} is {after.state} {after.color}{there}; before: {node} was {before}.")
    lines.append(f"Verdict: {after.verdict}: {after.reason}.")
    if after.down:
        lines.append(f"Down: {', '.join(after.down)}.")
    if after.next_step:
        lines.append(f"Next step: {after.next_step}.")
    if skipped:
        lines += ["", f"{skipped} more changes of this module were not told one by one (per_hour in notify.conf)."]
    lines += ["", f"More: safekit why -m {after.module}; safekit log -m {after.module}"]
    return {
        "id": uuid.uuid4().hex, "date": time.time(), "subject": f"[SafeKit] {subject}", "text": "\n".join(lines) + "\n",
        "node": node, "module": after.module, "state": after.state, "color": after.color, "before": event.before.state,
        "remote_state": after.remote_state, "verdict": after.verdict, "began": event.began, "states": list(event.path),
    }  # fmt: skip


def load_settings() -> NotifySettings:
    """Raises BadSettings, OSError; a missing file is an empty one."""
    try:
        return parse_settings(queue.settings_file().read_text(encoding="utf-8", errors="replace"))
    except FileNotFoundError:
        return NotifySettings()


class Notifier:
    """Follows the modules, and delivers."""

    def __init__(self) -> None:
        self.node = node_name()
        self.settings = NotifySettings()
        self._stamp: object = None
        self._events = Events(10.0)
        self._limit = Limit(6)

    def refresh(self) -> None:
        """Read the settings again when they have changed; those in force stay while the new ones are wrong."""
        path: Path = queue.settings_file()
        try:
            status = path.stat()
            stamp: object = (status.st_mtime_ns, status.st_ino)
        except OSError:
            stamp = None
        if stamp == self._stamp and self._stamp is not None:
            return
        changed, self._stamp = stamp != self._stamp, stamp
        try:
            self.settings = load_settings()
            self._events.settle, self._limit.per_hour = self.settings.limits.settle, self.settings.limits.per_hour
        except (BadSettings, OSError) as error:
            if changed:
                print(f"{NAME}: {path}: {error}; the former settings stay in force", file=sys.stderr, flush=True)

    def look(self, now: float) -> None:
        """One look at the modules. Raises OSError when a message cannot be kept."""
        for event in self._events.see(list(look()), now):
            if not speaks(event) or not self.settings.channels:
                continue
            skipped = self._limit.take(event.after.module, now)
            if skipped is not None:
                queue.put(message_of(event, self.node, skipped), self.settings.channels)
        for module in self._limit.owed(now):
            for view in look():
                if view.module == module:
                    skipped = self._limit.take(module, now)
                    queue.put(message_of(Event(view, view, now, ()), self.node, skipped or 0), self.settings.channels)

    def send(self) -> None:
        """Try what is due. In a thread: it may wait for a server."""
        for item in queue.waiting():
            if item.due > time.time():
                continue
            try:
                deliver(self.settings, item.channel, item.message)
                item.path.unlink(missing_ok=True)
            except NotDelivered as error:
                later = None if error.final else queue.after_failure(item, time.time(), error.text)
                if later is None or item.tries == 0:
                    given_up = " (given up)" if later is None else ""
                    print(f"{NAME}: {error.text}{given_up}; see {error.next_step}", file=sys.stderr, flush=True)
                if later is None:
                    item.path.unlink(missing_ok=True)
                else:
                    with contextlib.suppress(OSError):
                        queue.write(later)


async def _serve() -> int:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    stacks.write_on_signal(loop)
    bus = await Endpoint.open(NAME, Service(NAME, ()).handle)
    notifier = Notifier()
    notifier.refresh()
    print(f"{NAME}: tells by {', '.join(notifier.settings.channels) or 'nothing: see notify.conf'}", flush=True)
    give_back_memory()
    sending: asyncio.Task[None] | None = None
    try:
        while not stopping.is_set():
            notifier.refresh()
            try:
                notifier.look(time.time())
            except OSError as error:
                print(f"{NAME}: a message is lost: {error}", file=sys.stderr, flush=True)
            if sending is None or sending.done():
                sending = loop.create_task(asyncio.to_thread(notifier.send))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_SECONDS):
                    await stopping.wait()
    finally:
        await bus.close()
        stacks.ignore()
    return 0


def main() -> int:
    """Tell until SIGTERM."""
    set_process_name(NAME)
    stacks.write_on_signal()
    os.umask(0o007)
    try:
        status = asyncio.run(_serve())
    except (OSError, BusError) as error:
        print(f"{NAME}: {error}", file=sys.stderr)
        return 1
    sys.stdout.flush()
    return status


if __name__ == "__main__":
    sys.exit(main())
