"""The process safeagent."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyinotify

from safeagent.engine import Agent
from safeagent.inventory import Action, Files, Inventory, Module, Outcome, load_numbers, save_numbers
from safeagent.traps import Sender
from safeagent.tree import Counters, Host, Tree
from safekit import __version__
from safekit.bus.asking import Service
from safekit.bus.endpoint import BusError, Endpoint
from safekit.bus.requests.safeadmin.modules import Control, GetState
from safekit.disk.paths import ModulePaths, node_name, safe
from safekit.disk.watch import DirectoryWatch
from safekit.log import commands
from safekit.log.tail import Tail
from safekit.model.snmpd import AgentSettings, parse_settings
from safekit.process import stacks
from safekit.process.frame import give_back_memory, set_process_name
from safekit.process.tasks import Beside

NAME = "safeagent"
MAX_FILE = 1 << 20
LOOK_SECONDS = 0.5
"""A manager that walks asks a thousand times; the files are looked at once in this time."""
ADMIN_SECONDS = 5.0
RESCAN_SECONDS = 10.0
"""Modules that come and go; what inotify may have missed."""
CONTROL_SECONDS = 20.0
REPLACED = pyinotify.IN_MOVED_TO | pyinotify.IN_DELETE
"""Of the directory of a module: the resource file is replaced by a rename, the mark of a running module removed. heart
signs its life there several times a second, which must not wake the agent."""


def settings_file() -> Path:
    """SAFE/snmp/conf/snmpd.conf."""
    return safe() / "snmp" / "conf" / "snmpd.conf"


def load_settings() -> AgentSettings:
    """The settings of this server; without the file nobody has access. Raises OSError."""
    path = settings_file()
    try:
        with open(path, encoding="utf-8", errors="replace") as handle:
            return parse_settings(handle.read(MAX_FILE), str(path))
    except FileNotFoundError:
        return parse_settings("")


class Watcher:
    """Follows the files of the modules and keeps the inventory."""

    def __init__(self, inventory: Inventory, sender: Sender, bus: Endpoint) -> None:
        self.inventory = inventory
        self.tree: Tree | None = None
        self._sender = sender
        self._bus = bus
        self._files = Files()
        self._admin: dict[str, Any] = {}
        self._asked = -ADMIN_SECONDS
        self._looked = -LOOK_SECONDS
        self._tails: dict[str, Tail] = {}
        self._beside = Beside()
        self._follows: dict[str, asyncio.Task[None]] = {}
        self._complained = False

    def look(self) -> None:
        """Before an answer: the files are at most LOOK_SECONDS old, what safeadmin knows a little older."""
        now = time.monotonic()
        if now - self._looked >= LOOK_SECONDS:
            self.refresh()
        if now - self._asked >= ADMIN_SECONDS:
            self._asked = now
            self._beside.start(self._ask_admin())

    def refresh(self) -> None:
        """Look at all files now."""
        self._looked = time.monotonic()
        self.inventory.observe(self._files.sights(self._admin))
        try:
            save_numbers(self.inventory)
            self._complained = False
        except OSError as error:
            if not self._complained:
                print(f"{NAME}: the numbers of resources are not kept: {error}", file=sys.stderr, flush=True)
                self._complained = True

    async def _ask_admin(self) -> None:
        known: dict[str, Any] = {}
        with contextlib.suppress(BusError):
            answer = await self._bus.ask("", GetState(), timeout=1.0)
            known = answer.get("modules", {})
            for name, peer in answer.get("cluster", {}).items():
                known.get(name, {})["cluster"] = peer
        self._admin = known
        self.refresh()

    def ask(self, number: int, action: Action, who: str) -> str:
        """See engine.Ask."""
        module = self.inventory.modules.get(number)
        if module is None:
            return "there is no such module"
        if module.outcome is Outcome.PENDING:
            return "the last action has not been answered yet"
        self._set(module, Outcome.PENDING, "asked for", action)
        self._beside.start(self._act(module, action, who))
        return ""

    async def _act(self, module: Module, action: Action, who: str) -> None:
        word = action.name.lower()
        entry = commands.started(f"{word} -m {module.name} -u {who}")
        code = 1
        try:
            await self._bus.ask("", Control(module.name, word, who), timeout=CONTROL_SECONDS)
            code = 0
            self._set(module, Outcome.RUNNING, f"{word}: accepted")
        except BusError as error:
            self._set(module, Outcome.REFUSED, error.text)
        finally:
            commands.finished(entry, code)

    def _set(self, module: Module, outcome: Outcome, message: str, action: Action | None = None) -> None:
        module.outcome, module.message, module.asked = outcome, message, time.time()
        module.action = module.action if action is None else action
        self.inventory.version += 1

    async def run(self) -> None:
        """Follow for ever."""
        self.refresh()
        while True:
            names = {module.name for module in self.inventory.modules.values()}
            there = {name for name in names if ModulePaths(name).log_dir.is_dir()}
            for name in there - self._follows.keys():
                self._follows[name] = asyncio.get_running_loop().create_task(self._follow(name))
            for name in self._follows.keys() - there:
                self._follows.pop(name).cancel()
            await asyncio.sleep(RESCAN_SECONDS)
            self.refresh()

    async def _follow(self, name: str) -> None:
        """One module: its resource file, and its log when there is somebody to tell."""
        paths = ModulePaths(name)
        watches = [DirectoryWatch(paths.var, REPLACED)]
        watches += [DirectoryWatch(paths.log_dir)] if self._sender.wanted else []
        tail = Tail(paths.log)
        tail.skip()
        with contextlib.ExitStack() as stack:
            entered = [stack.enter_context(watch) for watch in watches]
            while True:
                waits = [asyncio.create_task(watch.wait(RESCAN_SECONDS)) for watch in entered]
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
                for wait in waits:
                    wait.cancel()
                self.refresh()
                self._tell(name, tail)

    def _tell(self, name: str, tail: Tail) -> None:
        module = self.inventory.by_name(name)
        for line in tail.poll():
            if module is not None and self._sender.wanted and line.level in ("E", "I") and self.tree is not None:
                self._sender.tell(module, line, self.tree.uptime())


def _say(settings: AgentSettings) -> Iterator[str]:
    """What the administrator should know of the settings, once at the start."""
    yield from (f"Warning: {problem}" for problem in settings.problems)
    if settings.unknown:
        yield f"lines that mean nothing here: {', '.join(settings.unknown)}"
    if not settings.communities and not any(user.access for user in settings.users):
        yield f"Warning: nobody has access: add a line rocommunity to {settings_file()}"
    if any(line.write and line.source is None for line in settings.communities):
        yield "rwcommunity without an address: writing from this server only; name the manager's address to allow it"


async def _serve() -> int:
    settings = load_settings()
    for text in _say(settings):
        print(f"{NAME}: {text}", flush=True)
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    stacks.write_on_signal(loop)
    bus = await Endpoint.open(NAME, Service(NAME, ()).handle)
    try:
        numbers = load_numbers()
    except (OSError, ValueError, AttributeError) as error:
        print(f"{NAME}: the rows of resources are numbered anew: {error}", file=sys.stderr, flush=True)
        numbers = {}
    counters, inventory = Counters(), Inventory(numbers)
    system = os.uname()
    host = Host(
        node_name(), __version__, f"SafeKit {__version__} on {system.sysname} {system.release}", time.monotonic(),
        settings.contact, settings.location, settings.name,
    )  # fmt: skip
    sender = Sender(settings.sinks, counters)
    watcher = Watcher(inventory, sender, bus)
    watcher.tree = tree = Tree(inventory, host, counters)
    agent = Agent(settings, tree, watcher.ask, watcher.look)
    sender.secure = agent.notify
    following = loop.create_task(watcher.run())
    try:
        for place in agent.open(settings.listen):
            print(f"{NAME}: {place.family.value} {place.address or '*'} port {place.port}", flush=True)
        give_back_memory()
        await asyncio.wait([loop.create_task(stopping.wait()), following], return_when=asyncio.FIRST_COMPLETED)
        if following.done():
            following.result()
    finally:
        following.cancel()
        agent.close()
        await sender.close()
        await bus.close()
        stacks.ignore()
    return 0


def main() -> int:
    """Answer until SIGTERM. 1 when a port cannot be had."""
    set_process_name(NAME)
    stacks.write_on_signal()
    os.umask(0o007)
    try:
        return asyncio.run(_serve())
    except (OSError, BusError) as error:
        print(f"{NAME}: {error}; see who has the port: ss -lunp; safekit safeagent restart", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
