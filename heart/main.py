"""heart: the process that decides for a mirror module (guide 4.2, 5, 13.3, 13.18).

What it can be asked stands in safekit.bus.requests.heart.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import Any, NoReturn

from heart.core.commands import loop_reached
from heart.core.events import Born, Ordered, PairAsked, Replication
from heart.core.values import Command, Role
from heart.shell.configured import Unusable
from heart.shell.following import CLUSTER_FILE, Following
from heart.shell.publish import RunningMark
from heart.shell.shell import FIRST_COMMAND_SECONDS, Shell
from safekit.bus import asking
from safekit.bus.endpoint import BusError, Handler, Request
from safekit.bus.requests import heart as asked
from safekit.disk.files import machine_identity
from safekit.disk.resources import valid_name
from safekit.model.codec import CodecError, from_json
from safekit.model.types import ClusterConfig
from safekit.process.frame import Context, Unconfigured, run
from safekit.rules.lexer import RuleError
from safekit.rules.source import RulesFileError

BOOT_WORDS = ("boot", "at boot time")
NEWS = ("replication_lost", "nfsbox_died", "secondary_lost", "rfs_synced", "rfs_failed")


class Service:
    """The bus side of heart."""

    def __init__(self, shell: Shell, following: Following) -> None:
        self.shell = shell
        self.following = following

    def requests(self) -> asking.Service:
        """What heart serves."""
        return asking.Service(
            asked.HEART,
            [
                (asked.Control, self._control),
                (asked.SetResource, self._set),
                (asked.Event, self._event),
                (asked.Pair, self._pair),
                (asked.RunProcess, self._process),
                (asked.Reload, self._reload),
                (asked.GetStatus, self._status),
                (asked.CountLoop, self._count_loop),
                (asked.ResetLoop, self._reset_loop),
                (asked.CheckLoop, self._check_loop),
            ],
        )

    async def _control(self, ask: asked.Control) -> asked.Accepted:
        who = ask.identity or ask.who
        options = ("nosync" if ask.nosync else "", "fullsync" if ask.fullsync else "", ask.value, *ask.args)
        command = Command(
            action=ask.action,
            who="boot" if who in BOOT_WORDS else who,
            automatic=bool(ask.identity),
            option=next(filter(None, options), ""),
            why=ask.why,
        )
        await self._answered(lambda token: Ordered(_with_token(command, token)))
        return asked.Accepted()

    async def _answered(self, make: Any) -> None:
        try:
            reply = await self.shell.ask(make)
        except TimeoutError:
            raise BusError("no_answer", "heart did not decide in time") from None
        if not reply.ok:
            raise BusError(reply.code, reply.text)

    async def _set(self, ask: asked.SetResource) -> asked.Changed:
        if not valid_name(ask.resource):
            raise BusError("bad_request", f"{ask.resource!r} is not a resource name; write class.id")
        if not 0 < len(ask.value) <= 256 or ask.value.split() != [ask.value]:
            raise BusError("bad_request", f"{ask.value!r} is not a resource value; write one word")
        return asked.Changed(self.shell.set_resource(ask.resource, ask.value, ask.who))

    async def _event(self, ask: asked.Event) -> None:
        if ask.kind in NEWS:
            self.shell.feed(Replication(ask.kind, ask.reason, ask.attempt))
        else:
            self.shell.context.log.debug(f"{ask.kind}: {ask.reason}")

    async def _pair(self, _: asked.Pair) -> None:
        await self._answered(PairAsked)

    async def _process(self, ask: asked.RunProcess) -> None:
        if ask.name not in ("nfsbox", "reintegre", "nfscheck", "arpreroute"):
            raise BusError("bad_request", f"{ask.name!r} is not a process that can be asked for")
        processes = self.shell.effects.processes
        try:
            await (processes.start_process(ask.name) if ask.on else processes.stop_process(ask.name))
        except Exception as error:
            raise BusError("supervisor", str(error)) from error

    async def _reload(self, _: asked.Reload) -> None:
        try:
            await self.following.reload()
        except (Unconfigured, Unusable, RuleError, RulesFileError, OSError, ValueError) as error:
            raise BusError("unusable", str(error)) from None

    async def _status(self, _: asked.GetStatus) -> asking.Document:
        s = self.shell.state
        peer = s.peer
        return {
            "state": s.role.value,
            "color": s.color.value,
            "remote": s.remote[0].value,
            "remote_color": s.remote[1].value,
            "peer": {"node": s.setup.peer, "incarnation": peer.incarnation if peer else 0},
            "incarnation": s.incarnation,
            "links": dict(s.links),
            "datagrams": self.shell.heartbeats.datagrams(),
            "busy": str(s.busy_step) if s.busy_step is not None else "",
            "stopping": s.stopping,
            "loop": s.loop_count,
            "history": [
                {"time": at, "rule": r.rule, "action": r.outcome, "inputs": dict(r.inputs)}
                for at, r in list(self.shell.recent)[-40:]
            ],
        }

    async def _count_loop(self, ask: asked.CountLoop) -> asked.Counter:
        await self._loop("incloop", ask.identity or ask.who)
        return self._counter()

    async def _reset_loop(self, ask: asked.ResetLoop) -> asked.Counter:
        await self._loop("resetloop", ask.identity or ask.who)
        return self._counter()

    async def _check_loop(self, _: asked.CheckLoop) -> asked.Counter:
        return self._counter()

    async def _loop(self, action: str, who: str) -> None:
        command = Command(action, who, True)
        await self._answered(lambda token: Ordered(_with_token(command, token)))

    def _counter(self) -> asked.Counter:
        s = self.shell.state
        reached = loop_reached(s.loop_count, s.loop_since, time.monotonic(), s.setup.maxloop, s.setup.loop_interval)
        return asked.Counter(s.loop_count, s.setup.maxloop, reached)


def _with_token(command: Command, token: int) -> Command:
    return replace(command, token=token)


def former_cluster(context: Context, error: Unusable) -> Shell:
    """The shell of a module that runs although the cluster has become unusable for it, with the cluster as it was:
    only a heart that understands what runs can stop it in order (M5). Raises `error` when the module does not run."""
    if RunningMark(context.paths.marker).state() != "same":
        raise error
    try:
        context.cluster = from_json(ClusterConfig, (context.paths.var / CLUSTER_FILE).read_bytes())
    except (OSError, CodecError):
        raise error from None
    return Shell(context)


class Heart:
    """Glue between the frame and the shell."""

    def __init__(self) -> None:
        self.ready = asyncio.Event()
        self.service: asking.Service | None = None

    def handler(self, context: Context) -> Handler:
        """Requests wait until heart knows its state."""

        async def handle(request: Request) -> dict[str, Any] | None:
            await asyncio.wait_for(self.ready.wait(), 5.0)
            assert self.service is not None
            return await self.service.handle(request)

        return handle

    async def main(self, context: Context) -> int:
        """Run until the module has stopped, or SIGTERM (then the module goes on: heart is restarted)."""
        left = ""
        try:
            try:
                shell = Shell(context)
            except Unusable as error:
                shell, left = former_cluster(context, error), str(error)
        except (Unusable, RuleError, RulesFileError, OSError, ValueError) as error:
            context.log.event("internal", text=f"heart cannot start: {error}")
            return 1
        following = Following(shell)
        self.service = Service(shell, following).requests()
        mark = shell.mark.state()
        resources = shell.published.loaded()
        shell.published.clear_remote()
        shell.publish_encryption()
        gap, unconfirmed = shell.life.ages()
        shell.feed(
            Born(
                tuple(resources.items()),
                halted=bool(mark),
                adopt=mark == "same",
                unix=time.time(),
                gap=gap,
                unproved=mark == "same",
                unconfirmed=unconfirmed,
                place=machine_identity(),
            )
        )
        if not left:
            following.keep_cluster()
        await shell.heartbeats.open()
        shell.start_watching()
        if mark == "same":
            shell.start_task(shell.prove())
        self.ready.set()
        if left:
            following.leave_cluster(left)
        loop = asyncio.get_running_loop()
        loop.call_later(FIRST_COMMAND_SECONDS, self._unused, shell)
        waits = [loop.create_task(shell.ended.wait()), loop.create_task(context.stopping.wait())]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        await shell.close()
        return 0

    def _unused(self, shell: Shell) -> None:
        """Started and never ordered anything: there is nothing to decide."""
        if shell.state.role is Role.STOP and shell.exit is None and not shell.state.intent:
            shell.ended.set()


def main() -> NoReturn:
    """Entry point of the process."""
    heart = Heart()
    run("heart", heart.main, handler=heart.handler, realtime=True)


if __name__ == "__main__":
    main()
