"""The errd process: watches the processes and services of a module's <errd>, and asks heart to act.

A death is seen through a pidfd at once; the poll of the guide stays as the safety net, and sees what no pidfd
can: too many processes (atmax), processes that appear, services.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from errd.core import Criterion, Watch, disable, enable, judge, resource_value, resume
from errd.memory import MemoryFile
from errd.processes import Matcher, own
from errd.services import State, service_state
from safekit.bus.asking import Service
from safekit.bus.endpoint import BusError, Handler
from safekit.bus.requests import errd as asked
from safekit.bus.requests import heart
from safekit.disk import resources
from safekit.disk.files import write_atomic
from safekit.model.regex import BadExpression
from safekit.model.types import Errd, Proc, User
from safekit.process import offspring, ordinary
from safekit.process.frame import Context, run
from safekit.process.scripts import environment as script_environment
from safekit.process.scripts import open_output
from safekit.process.table import Process, programs

SETTLE = 1.0
AUTOMATIC_ACTIONS = ("restart", "stopstart", "stop")
HANDLER_LIMIT = 300.0
TERMINATE_GRACE = 2.0
MAX_LISTED = 400
MAX_ANSWER = 40_000


def _end_group(leader: int) -> None:
    """A handler leads its process group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)


def bounded(lines: list[str]) -> tuple[str, ...]:
    """What fits into one answer; the file errdlist has everything."""
    kept, size = list[str](), 0
    for line in lines[:MAX_LISTED]:
        size += len(line.encode("utf-8", "replace"))
        if size > MAX_ANSWER:
            break
        kept.append(line)
    return tuple(kept)


class Watcher:
    """State of the process: one watch per <proc>, one pidfd per process that counts."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.configuration = context.config.errd or Errd()
        self.watches = [Watch(proc) for proc in self.configuration.procs]
        self.matchers = [Matcher.of(proc) for proc in self.configuration.procs]
        self.suspended = False
        self.wake = asyncio.Event()
        self._pidfds: dict[int, int] = {}
        self._published: dict[str, str] = {}
        self._services: dict[str, State] = {}
        self._silent = False
        self._handlers = context.beside()
        self._memory = MemoryFile(context.paths.var)
        self._resume()

    def _resume(self) -> None:
        """Take up the classes of a predecessor that was killed."""
        left = self._memory.load()
        if not left.classes:
            return
        now = asyncio.get_running_loop().time()
        self.watches = [
            resume(watch, watch.proc.name in left.seen, now, self.configuration.polltimer)
            if watch.proc.proc_class in left.classes
            else watch
            for watch in self.watches
        ]
        self.context.log.event("errd_resumed", classes=", ".join(sorted(left.classes)))

    def _remember(self) -> None:
        enabled = [watch for watch in self.watches if watch.enabled]
        try:
            self._memory.save((w.proc.proc_class for w in enabled), (w.proc.name for w in enabled if w.seen))
        except OSError as error:
            self.context.log.debug(f"errd: what it watches cannot be kept for a successor: {error}")

    # ------------------------------------------------------------------ commands

    def service(self) -> Service:
        """What errd serves."""
        return Service(
            asked.ERRD,
            [
                (asked.Enable, self._enable),
                (asked.Disable, self._disable),
                (asked.ListWatched, self._list),
                (asked.Kill, self._kill),
                (asked.Look, self._look),
                (asked.Reload, self._reload),
            ],
        )

    async def _enable(self, ask: asked.Enable) -> asked.Watched:
        now = asyncio.get_running_loop().time()
        return self._switch(ask.proc_class, lambda watch: enable(watch, now, self.configuration.polltimer))

    async def _disable(self, ask: asked.Disable) -> asked.Watched:
        return self._switch(ask.proc_class, disable)

    def _switch(self, proc_class: str, change: Callable[[Watch], Watch]) -> asked.Watched:
        known = sum(watch.proc.proc_class == proc_class for watch in self.watches)
        self.watches = [change(watch) if watch.proc.proc_class == proc_class else watch for watch in self.watches]
        self._remember()
        self.wake.set()
        return asked.Watched(known)

    async def _list(self, _: asked.ListWatched) -> asked.Lines:
        return asked.Lines(bounded(self.listing()))

    async def _look(self, _: asked.Look) -> None:
        self.wake.set()

    async def _reload(self, _: asked.Reload) -> None:
        self.reload()

    async def _kill(self, ask: asked.Kill) -> asked.Killed:
        try:
            matcher = Matcher(ask.name, None, ask.argregex or None)
        except BadExpression as error:
            raise BusError("bad_request", f"argregex is not a regular expression: {error}") from None
        everything = programs()
        spared = {os.getpid(), ask.caller}
        named = [process for process in matcher.select(everything) if process.pid not in spared]
        found = own(self.context.module, named, self._watched(everything))
        if ask.level != "test":
            number = signal.SIGKILL if ask.level == "9" else signal.SIGTERM
            for process in found:
                process.send(number)
            self.context.log.event("killed", signal=number.name, count=len(found), name=ask.name, who=ask.who)
            if ask.level == "terminate":
                await self._survivors(found)
        lines = [f"{p.pid} {p.name} {p.line} (parent={p.parent})" for p in found]
        return asked.Killed(len(found), len(named) - len(found), bounded(lines))

    def _watched(self, everything: Sequence[Process]) -> Iterator[Process]:
        """All that the <proc> of the module count, enabled or not."""
        for watch, matcher in zip(self.watches, self.matchers, strict=True):
            counted = self._counted(watch.proc, matcher, everything)
            yield from counted[1] if counted is not None else ()

    async def _survivors(self, found: Iterable[Process]) -> None:
        """terminate: what a SIGTERM does not end in a while is killed."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + TERMINATE_GRACE
        left = [process for process in found if process.alive]
        while left and loop.time() < deadline:
            await asyncio.sleep(0.05)
            left = [process for process in left if process.alive]
        for process in left:
            process.send(signal.SIGKILL)

    def reload(self) -> None:
        """Take a new configuration over: a <proc> that did not change keeps what was seen of it."""
        self.context.reload()
        known = {watch.proc: watch for watch in self.watches}
        classes = {watch.proc.proc_class for watch in self.watches if watch.enabled}
        self.configuration = self.context.config.errd or Errd()
        now = asyncio.get_running_loop().time()
        self.watches = []
        for proc in self.configuration.procs:
            fresh = Watch(proc)
            if proc.proc_class in classes:
                fresh = enable(fresh, now, self.configuration.polltimer)
            self.watches.append(known.get(proc, fresh))
        self.matchers = [Matcher.of(proc) for proc in self.configuration.procs]
        self.wake.set()

    def listing(self) -> list[str]:
        """What is watched, and the processes that count, one a line; also written to SAFEVAR/modules/AM/errdlist."""
        everything = programs()
        lines = []
        for watch, matcher in zip(self.watches, self.matchers, strict=True):
            proc = watch.proc
            state = "suspended" if self.suspended else resource_value(watch)
            lines.append(
                f"{proc.name} class={proc.proc_class} atleast={proc.atleast} atmax={proc.atmax}"
                f" action={proc.action} {'enabled' if watch.enabled else 'disabled'} {state}"
            )
            counted = self._counted(proc, matcher, everything)
            lines += [f"  {p.pid} {p.line}" for p in (counted[1] if counted else ())]
        supervisor = os.getppid()
        # SafeKit's own processes of this module are its supervisor and our brothers below it.
        ours = (p for p in everything if supervisor in (p.parent, p.pid) and supervisor > 1)
        lines += [f"{process.name} class=safekit pid={process.pid}" for process in ours]
        write_atomic(self.context.paths.var / "errdlist", ("\n".join(lines) + "\n").encode(), durable=False)
        return lines

    # ------------------------------------------------------------------ watching

    def _counted(
        self, proc: Proc, matcher: Matcher, everything: Sequence[Process]
    ) -> tuple[int, tuple[Process, ...]] | None:
        """How many count, and the processes to follow; an active service counts once, whatever its processes are.
        None when nobody knows."""
        if proc.service:
            known = self._services.get(proc.name)
            if known is None:
                return None
            active, pid = known
            main = tuple(process for process in everything if process.pid == pid)
            return int(active and (bool(main) or not pid)), main
        own = os.getpid()
        found = tuple(process for process in matcher.select(everything) if process.pid != own)
        return len(found), found

    async def ask_services(self) -> None:
        """What systemd says of the services that are watched now."""
        names = {watch.proc.name for watch in self.watches if watch.enabled and watch.proc.service}
        answers = await asyncio.gather(*(service_state(name) for name in names))
        self._services = {name: state for name, state in zip(names, answers, strict=True) if state is not None}
        silent = len(self._services) < len(names)
        if silent and not self._silent:
            self.context.log.event("errd_silent", names=", ".join(sorted(names - set(self._services))))
        self._silent = silent

    def look(self) -> None:
        """Count, judge and act. One pass without a pause, so that a command never meets half of it."""
        self._follow_setting()
        everything = programs()
        now = asyncio.get_running_loop().time()
        following: set[int] = set()
        for index, (watch, matcher) in enumerate(zip(self.watches, self.matchers, strict=True)):
            if not watch.enabled:
                continue
            counted = self._counted(watch.proc, matcher, everything)
            if counted is None:
                continue
            count, processes = counted
            following |= {process.pid for process in processes}
            if self.suspended:
                continue
            self.watches[index], event = judge(watch, count, now)
            if event is not None:
                self._react(watch.proc, event, count)
        self._follow(following)
        self._remember()

    def _follow_setting(self) -> None:
        """`safekit errd suspend|resume` is a resource, so that it is visible and survives our restart."""
        setting = resources.load(self.context.paths.resources).get("usersetting.errd")
        self.suspended = setting is not None and setting.value == "off"

    def _follow(self, pids: set[int]) -> None:
        loop = asyncio.get_running_loop()
        for pid in set(self._pidfds) - pids:
            descriptor = self._pidfds.pop(pid)
            loop.remove_reader(descriptor)
            os.close(descriptor)
        for pid in pids - set(self._pidfds):
            try:
                descriptor = os.pidfd_open(pid)
            except ProcessLookupError:
                self.wake.set()
                continue
            self._pidfds[pid] = descriptor
            loop.add_reader(descriptor, self._died, pid, descriptor)

    def _died(self, pid: int, descriptor: int) -> None:
        asyncio.get_running_loop().remove_reader(descriptor)
        os.close(descriptor)
        self._pidfds.pop(pid, None)
        self.wake.set()

    async def _publish(self) -> None:
        """Tell heart the resources that changed; what it does not take is told again after the next look."""
        for watch in list(self.watches):
            name, value = f"proc.{watch.proc.name}", resource_value(watch)
            if self._published.get(name) == value:
                continue
            with contextlib.suppress(BusError):
                await self.context.bus.ask(self.context.module, heart.SetResource(name, value, "errd"), 1.0)
                self._published[name] = value

    # ------------------------------------------------------------------ reacting

    def _react(self, proc: Proc, event: Criterion, count: int) -> None:
        log = self.context.log
        log.event("errd_event", criterion=event.value, name=proc.name)
        log.event("errd_counted", name=proc.name, count=count, atleast=proc.atleast, atmax=proc.atmax, died="")
        if proc.action == "noaction":
            return
        bound = f"at least {proc.atleast}" if event is Criterion.ATLEAST else f"at most {proc.atmax}"
        found = f"{count} of process {proc.name} run, {bound} should"
        work = self._ask(proc.action, found) if proc.action in AUTOMATIC_ACTIONS else self._run_handler(proc)
        self._handlers.start(work)

    async def _ask(self, action: str, why: str) -> None:
        for _ in range(10):
            try:
                await self.context.bus.ask(self.context.module, heart.Control(action, "errd", "errd", why=why))
                return
            except BusError as error:
                self.context.log.info(f"errd: {action} not accepted yet: {error}")
                await asyncio.sleep(1.0)

    async def _run_handler(self, proc: Proc) -> None:
        """A special handler: exit status 0 is success, anything else means stopstart (13.9.3).

        Its output goes where that of the scripts goes: what it starts again outlives this process, and its pipes.
        """
        paths, user = self.context.paths, self.context.config.user or User()
        program = Path(proc.action) if os.path.isabs(proc.action) else paths.userbin / proc.action
        mark = offspring.mark(paths.module, f"handler.{proc.name}/")
        try:
            output = open_output(paths, user)
            try:
                with ordinary.oom_score():
                    process = await asyncio.create_subprocess_exec(
                        str(program),
                        stdin=asyncio.subprocess.DEVNULL,
                        stdout=output,
                        stderr=output,
                        env={**script_environment(paths, user), **mark},
                        cwd=str(paths.userbin),
                        start_new_session=True,
                        umask=ordinary.UMASK,
                    )
            finally:
                os.close(output)
            try:
                status: object = await asyncio.wait_for(process.wait(), HANDLER_LIMIT)
            except TimeoutError:
                _end_group(process.pid)
                status = f"killed after {HANDLER_LIMIT:g} s"
            except asyncio.CancelledError:
                # the module stops: what a finished handler started is its application, an unfinished one goes
                _end_group(process.pid)
                raise
        except OSError as error:
            status = str(error)
        self.context.log.event("errd_handler", handler=str(program), name=proc.name, status=str(status))
        if status != 0:
            await self._ask("stopstart", f"handler {proc.action} of process {proc.name}: {status}")

    async def run(self) -> int:
        """Watch until told to stop."""
        loop = asyncio.get_running_loop()
        next_poll = loop.time()
        while not self.context.stopping.is_set():
            await self.ask_services()
            self.look()
            await self._publish()
            if loop.time() >= next_poll:
                next_poll = loop.time() + self.configuration.polltimer
            # While an application starts its processes appear one by one: look often, to watch them from
            # their first second on.
            unseen = any(watch.enabled and not watch.seen for watch in self.watches)
            delay = SETTLE if unseen or self._silent else max(next_poll - loop.time(), 0.0)
            stopping = asyncio.ensure_future(self.context.stopping.wait())
            waking = asyncio.ensure_future(self.wake.wait())
            await asyncio.wait([stopping, waking], timeout=delay, return_when=asyncio.FIRST_COMPLETED)
            stopping.cancel()
            waking.cancel()
            self.wake.clear()
        self._memory.forget()
        await self._handlers.end()
        return 0


def main() -> None:
    """Entry point."""
    processes: list[Watcher] = []

    def handler(context: Context) -> Handler:
        processes.append(Watcher(context))
        return processes[0].service().handle

    async def watch(context: Context) -> int:
        return await processes[0].run()

    run("errd", watch, handler=handler)


if __name__ == "__main__":
    main()
