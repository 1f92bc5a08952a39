"""heart: the process that decides for a mirror module (guide 4.2, 5, 13.3, 13.18).

Bus operations:

control(action, who, identity, nosync, fullsync, value)   a command; refused with a sentence
set(resource, value, who)                                a resource; {changed}
event(kind, reason)                                      news from nfsadmin and vipd
pair(peer)                                               end of a reintegration: memory first
process(name, on)                                        have the supervisor run or end a process
status()                                                 state, peer, loop counter, last decisions
reload()                                                 dynamic configuration
incloop, checkloop, resetloop                            maxloop counter: {count, maxloop, reached}
"""

from __future__ import annotations

import asyncio
import time
from typing import Any, NoReturn

from heart.core.commands import loop_reached
from heart.core.events import Born, Ordered, PairAsked, Replication
from heart.core.values import Command, Role
from heart.shell.configured import Unusable
from heart.shell.following import CLUSTER_FILE, Following
from heart.shell.publish import RunningMark
from heart.shell.shell import FIRST_COMMAND_SECONDS, Shell
from safekit.bus.endpoint import BusError, Handler, Request
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

    async def handle(self, request: Request) -> dict[str, Any] | None:
        """One request.  Raises BusError for a refusal."""
        operation = getattr(self, f"_{request.op}", None)
        if operation is None or request.op.startswith("_"):
            raise BusError("unknown_op", f"heart does not serve {request.op!r}")
        return await operation(request)  # type: ignore[no-any-return]

    async def _control(self, request: Request) -> dict[str, Any]:
        fields = request.fields
        identity = fields.get("identity")
        who = str(identity or request.text("who", "root"))
        option = "nosync" if fields.get("nosync") else "fullsync" if fields.get("fullsync") else ""
        option = option or str(fields.get("value") or "")
        for word in fields.get("args") or []:
            option = option or str(word)
        command = Command(
            action=request.text("action"),
            who="boot" if who in BOOT_WORDS else who,
            automatic=bool(identity),
            option=option,
        )
        await self._answered(lambda token: Ordered(_with_token(command, token)))
        return {"accepted": True}

    async def _answered(self, make: Any) -> None:
        try:
            reply = await self.shell.ask(make)
        except TimeoutError:
            raise BusError("no_answer", "heart did not decide in time") from None
        if not reply.ok:
            raise BusError(reply.code, reply.text)

    async def _set(self, request: Request) -> dict[str, Any]:
        name, value = request.text("resource"), request.text("value")
        if not valid_name(name):
            raise BusError("bad_request", f"{name!r} is not a resource name; write class.id")
        if not 0 < len(value) <= 256 or value.split() != [value]:
            raise BusError("bad_request", f"{value!r} is not a resource value; write one word")
        return {"changed": self.shell.set_resource(name, value, request.text("who", request.sender))}

    async def _event(self, request: Request) -> dict[str, Any]:
        kind = request.text("kind")
        if kind in NEWS:
            fields = request.fields
            self.shell.feed(Replication(kind, str(fields.get("reason", "")), str(fields.get("attempt", ""))))
        else:
            self.shell.context.log.debug(f"{request.sender}: {kind} {request.fields.get('reason', '')}")
        return {}

    async def _pair(self, request: Request) -> dict[str, Any]:
        await self._answered(PairAsked)
        return {}

    async def _process(self, request: Request) -> dict[str, Any]:
        name, on = request.text("name"), bool(request.fields.get("on"))
        if name not in ("nfsbox", "reintegre", "nfscheck", "arpreroute"):
            raise BusError("bad_request", f"{name!r} is not a process that can be asked for")
        processes = self.shell.effects.processes
        try:
            await (processes.start_process(name) if on else processes.stop_process(name))
        except Exception as error:
            raise BusError("supervisor", str(error)) from error
        return {}

    async def _reload(self, request: Request) -> dict[str, Any]:
        try:
            await self.following.reload()
        except (Unconfigured, Unusable, RuleError, RulesFileError, OSError, ValueError) as error:
            raise BusError("unusable", str(error)) from None
        return {}

    async def _status(self, request: Request) -> dict[str, Any]:
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
            "datagrams": self.shell.datagrams(),
            "busy": str(s.busy_step) if s.busy_step is not None else "",
            "stopping": s.stopping,
            "loop": s.loop_count,
            "history": [
                {"time": at, "rule": r.rule, "action": r.outcome, "inputs": dict(r.inputs)}
                for at, r in list(self.shell.recent)[-40:]
            ],
        }

    async def _incloop(self, request: Request) -> dict[str, Any]:
        await self._loop("incloop", request)
        return self._count()

    async def _resetloop(self, request: Request) -> dict[str, Any]:
        await self._loop("resetloop", request)
        return self._count()

    async def _checkloop(self, request: Request) -> dict[str, Any]:
        return self._count()

    async def _loop(self, action: str, request: Request) -> None:
        who = str(request.fields.get("identity") or request.text("who", request.sender))
        command = Command(action, who, True)
        await self._answered(lambda token: Ordered(_with_token(command, token)))

    def _count(self) -> dict[str, Any]:
        s = self.shell.state
        reached = loop_reached(s.loop_count, s.loop_since, time.monotonic(), s.setup.maxloop, s.setup.loop_interval)
        return {"count": s.loop_count, "maxloop": s.setup.maxloop, "reached": reached}


def _with_token(command: Command, token: int) -> Command:
    return Command(command.action, command.who, command.automatic, command.rule, command.option, token)


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
        self.service: Service | None = None

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
        self.service = Service(shell, following)
        mark = shell.mark.state()
        resources = shell.published.loaded()
        shell.published.clear_remote()
        shell.publish_encryption()
        shell.feed(
            Born(
                tuple(resources.items()),
                halted=bool(mark),
                adopt=mark == "same",
                unix=time.time(),
                gap=shell.life.gap(),
                unproved=mark == "same",
            )
        )
        if not left:
            following.keep_cluster()
        await shell.open_links()
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
