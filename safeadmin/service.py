"""What safeadmin answers on the local bus, and the order of its start and stop (guide 9.2 to 9.4, 10.1).

Operations (all texts of refusals are `cause; next step`):

map_register, map_lookup(name), map_list        the port mapper
state()                                         modules, cluster() of each, this node
members()                                       the cluster as seen here
cluster(module)                                 up, down or unknown, and what the servers tell of the module
control(module, action, who, identity, ...)     see actions.py; who "boot" and "automatic" are heart's words for
                                                the start at boot and the start that nobody asked for
set(module, resource, value, who)               through heart, or into the file of a stopped module
boot(module, value=None)                        on, off, or ask
shutdown(who)                                   stop all modules
reload()                                        read the cluster configuration again
respawn(module, action, ...), ended(module)     from heart
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable

from safeadmin.actions import Refusal, Way, plan
from safeadmin.adminlog import AdminLog
from safeadmin.boot import BootRecord
from safeadmin.joined import Joined
from safeadmin.mapper import Mapper
from safeadmin.modules import Installed, Registry
from safeadmin.processes import find_all
from safeadmin.runtime import ModuleRuntime
from safekit.bus.endpoint import ADMIN, BusError, Endpoint, Fields, Request
from safekit.disk.files import locked, write_atomic
from safekit.disk.paths import ModulePaths, mapper_port, safevar, valid_module_name
from safekit.disk.resources import ResourceWriter, valid_name
from safekit.log.module import ModuleLog
from safekit.model.types import User
from safekit.process.tasks import Beside, told

SET_SECONDS = 5.0
FACTS_SECONDS = 2.0
HEART_SECONDS = 30.0
REGISTRATION_GRACE = 1.5
"""A young safeadmin has asked the processes to register and does not know them all yet."""
STOP_MARGIN = 60.0

Operation = Callable[[Request], Awaitable[Fields | None]]


class Service:
    """The daemon without its process: endpoint, modules, cluster."""

    def __init__(self, log: AdminLog) -> None:
        self.log = log
        self.mapper = Mapper()
        self.registry = Registry()
        self.runtimes: dict[str, ModuleRuntime] = {}
        self.joined = Joined(log, self.registry, self._running)
        self._ports = safevar() / "mapper.ports"
        self._started = time.monotonic()
        self._record = BootRecord(safevar())
        self._beside = Beside(lambda error: log.error(f"defect in safeadmin: {told(error)}"))
        self._operations: dict[str, Operation] = {
            "map_register": self._map_register,
            "map_lookup": self._map_lookup,
            "map_list": self._map_list,
            "ping": self._ping,
            "state": self._state,
            "members": self._members,
            "cluster": self._cluster_status,
            "control": self._control,
            "set": self._set,
            "boot": self._boot,
            "shutdown": self._shutdown,
            "reload": self._reload,
            "respawn": self._respawn,
            "ended": self._ended,
        }

    @property
    def node(self) -> str:
        """The name of this server in its cluster."""
        return self.joined.node

    # Life

    async def start(self) -> None:
        """Take the port, find the modules that run, join the cluster. Raises OSError when the port is taken,
        BusError when the bus key cannot be read."""
        self.bus = await Endpoint.open(ADMIN, self._serve, port=mapper_port())
        self._ask_to_register()
        for name, members in find_all().items():
            self._runtime(name).adopt(members)
        await self.reload()
        self._beside.start(self.joined.follow_facts())

    def _ask_to_register(self) -> None:
        """Whoever registered with the safeadmin before this one, at the port that it had then."""
        with contextlib.suppress(OSError, ValueError):
            for word in self._ports.read_text(encoding="ascii").split():
                if 0 < int(word) < 65536:
                    self.bus.ask_to_register(int(word))

    def _remember_ports(self) -> None:
        ports = " ".join(str(entry.port) for entry in self.mapper.entries())
        try:
            write_atomic(self._ports, ports.encode(), durable=False)
        except OSError as error:
            self.log.error(f"{self._ports}: {error.strerror}; a restarted safeadmin finds the processes later")

    async def start_modules(self) -> None:
        """After a boot: start what is set to boot on. After a crash of safeadmin: take up what lost its
        supervisord and heart meanwhile."""
        if not self._record.is_new():
            for name in self.registry.names():
                await self._runtime(name).rescue()
            return
        await asyncio.gather(*(self._boot_start(m) for m in self.registry.all() if m.boot))
        try:
            self._record.served()
        except OSError as error:
            self.log.error(f"{self._record.path}: {error.strerror}; a restart of safeadmin will count as a boot")

    async def _boot_start(self, module: Installed) -> None:
        runtime = self._runtime(module.name)
        if runtime.running:
            return
        self.log.info(f"module {module.name} is started: its boot setting is on")
        try:
            await self._perform(module.name, {"action": "start", "who": "boot"})
        except BusError as error:
            self.log.error(f"module {module.name} was not started at boot: {error.text}")
            ModuleLog(module.name, ADMIN, self.node).event("internal", text=f"not started at boot: {error.text}")

    async def stop_modules(self, who: str = "SYSTEM") -> float:
        """Stop all running modules in order, each within its bound; the seconds it took."""
        began = time.monotonic()
        running = [runtime for runtime in self.runtimes.values() if runtime.running]
        await asyncio.gather(*(runtime.stop("shutdown", who, self._bound(runtime.name)) for runtime in running))
        return time.monotonic() - began

    async def _stop_all(self, who: str) -> None:
        await self.stop_modules(who)

    def stop_bound(self) -> float:
        """The longest that stop_modules may take, in seconds."""
        return max((self._bound(r.name) for r in self.runtimes.values() if r.running), default=0.0)

    def _bound(self, name: str) -> float:
        module = self.registry.get(name)
        user = (module.config.user if module is not None and module.config is not None else None) or User()
        return user.nicestoptimeout + user.forcestoptimeout + STOP_MARGIN

    async def close(self, *, orderly: bool) -> None:
        """Leave. orderly: the modules were stopped, so the next start is a boot."""
        self._beside.cancel()
        for runtime in self.runtimes.values():
            runtime.close()
        await self.joined.close()
        await self.bus.close()
        if orderly:
            try:
                self._record.forget()
            except OSError as error:
                self.log.error(f"{self._record.path}: {error.strerror}; modules will not start at boot")

    # Cluster

    async def reload(self) -> None:
        """Follow the cluster configuration as it is now; the modules that run follow it too."""
        if await self.joined.reload():
            self._reload_hearts()

    def _reload_hearts(self) -> None:
        """Modules that run take up another cluster configuration, and look names up again (guide 9.3, 12.2)."""
        for name, runtime in self.runtimes.items():
            if runtime.running:
                self._beside.start(self._reload_heart(name))

    async def _reload_heart(self, name: str) -> None:
        try:
            # A heart that was just restarted is found again.
            await self.bus.request(f"{name}/heart", "reload", HEART_SECONDS)
        except BusError as error:
            self.log.error(f"module {name} did not take the cluster configuration up: {error.text}")

    # Modules

    def _running(self, name: str) -> bool:
        runtime = self.runtimes.get(name)
        return runtime is not None and runtime.running

    def _runtime(self, name: str) -> ModuleRuntime:
        if name not in self.runtimes:
            self.runtimes[name] = ModuleRuntime(
                name, self.node, self.registry, self.bus, self.mapper, self.joined.changed
            )
        return self.runtimes[name]

    async def _perform(self, name: str, fields: Fields) -> Fields:
        """Do what control asks. Raises BusError."""
        module, known = self.registry.get(name), self.runtimes.get(name)
        facts = {
            "installed": module is not None,
            "configured": module is not None and module.config is not None,
            "in_cluster": bool(self.joined),
            "running": known is not None and known.running and not known.ending,
            "mode": module.mode if module is not None else "",
            "problem": module.problem if module is not None else "",
        }
        action = str(fields["action"])
        way = plan(action, name, facts)
        if isinstance(way, Refusal):
            text = f"{way.text} ({self.joined.problem})" if way.code == "no_cluster" else way.text
            raise BusError(way.code, text)
        runtime = self._runtime(name)
        if runtime.forcing and way is not Way.FORCE:
            raise BusError("stopping", f"module {name} is being stopped by force; safekit waitstop -m {name}")
        if way is Way.NOTHING:
            return {"accepted": True, "note": f"module {name} is stopped already"}
        if way is Way.FORCE:
            await runtime.forcestop(fields)
            return {"accepted": True}
        if way is Way.SPAWN:
            # Equivalent to stop, then start (guide 9.4).
            start = {**fields, "action": "start"} if action == "stopstart" else fields
            return {"accepted": True, **await runtime.start(start)}
        return {"accepted": True, **await runtime.forward(fields)}

    # Operations

    async def _serve(self, request: Request) -> Fields | None:
        operation = self._operations.get(request.op)
        if operation is None:
            raise BusError("unknown_op", f"safeadmin does not know {request.op!r}")
        return await operation(request)

    def _module(self, request: Request) -> str:
        name = request.text("module")
        if not valid_module_name(name):
            raise BusError("bad_request", f"{name!r} is not a module name; safekit module list")
        return name

    async def _ping(self, request: Request) -> Fields:
        return {"node": self.node}

    async def _map_register(self, request: Request) -> Fields:
        name, pid, port = request.text("name"), request.fields.get("pid"), request.fields["_port"]
        life = request.text("life", "")
        if not isinstance(pid, int):
            raise BusError("bad_request", "map_register: field 'pid' must be a number")
        try:
            entry = self.mapper.register(name, port, pid, life)
        except ValueError as error:
            raise BusError("bad_request", str(error)) from None
        if entry is not None:
            self._remember_ports()
        if entry is not None and name.endswith("/heart"):
            self._runtime(name.partition("/")[0]).heart_registered(entry.pid, entry.born)
        return {}

    async def _map_lookup(self, request: Request) -> Fields:
        name = request.text("name")
        entry = self.mapper.lookup(name)
        while entry is None and time.monotonic() - self._started < REGISTRATION_GRACE:
            await asyncio.sleep(0.02)
            entry = self.mapper.lookup(name)
        if entry is None:
            return {"port": 0, "pid": 0}
        return {"port": entry.port, "pid": entry.pid, "incarnation": entry.incarnation}

    async def _map_list(self, request: Request) -> Fields:
        return {"processes": {e.name: {"port": e.port, "pid": e.pid} for e in self.mapper.entries()}}

    async def _state(self, request: Request) -> Fields:
        modules, cluster = {}, {}
        for module in self.registry.all():
            runtime = self.runtimes.get(module.name)
            modules[module.name] = {
                "id": module.id,
                "mode": module.mode,
                "configured": module.config is not None,
                "running": self._running(module.name),
                "heart": runtime is not None and runtime.heart,
                "boot": "on" if module.boot else "off",
                "signature": module.config.signature if module.config is not None else "",
            }
            cluster[module.name] = self.joined.status(module)
        return {"node": self.node, "modules": modules, "cluster": cluster, "cluster_problem": self.joined.problem}

    async def _members(self, request: Request) -> Fields:
        return self.joined.members()

    async def _cluster_status(self, request: Request) -> Fields:
        return self.joined.servers_of(self.registry.get(self._module(request)))

    async def _control(self, request: Request) -> Fields:
        name = self._module(request)
        request.text("action"), request.text("who")
        fields = {k: v for k, v in request.fields.items() if k not in ("module", "_port")}
        return await self._perform(name, fields)

    async def _set(self, request: Request) -> Fields:
        name, resource, value = self._module(request), request.text("resource"), request.text("value")
        who = request.text("who", request.sender)
        if not valid_name(resource):
            raise BusError("bad_request", f"{resource!r} is not a resource name; write class.id")
        if not 0 < len(value) <= 256 or value.split() != [value]:
            raise BusError("bad_request", f"{value!r} is not a resource value; write one word")
        if self.registry.get(name) is None:
            raise BusError("unknown_module", f"module {name} is not installed on this server; safekit module list")
        if self._running(name):
            reply = await self.bus.request(f"{name}/heart", "set", SET_SECONDS, resource=resource, value=value, who=who)
            return {"changed": bool(reply.get("changed", True))}
        return {"changed": await asyncio.to_thread(self._set_stopped, name, resource, value, who)}

    def _set_stopped(self, name: str, resource: str, value: str, who: str) -> bool:
        paths = ModulePaths(name)
        try:
            paths.var.mkdir(mode=0o770, parents=True, exist_ok=True)
            with locked(paths.var / "resources.lock"):
                writer = ResourceWriter(paths.resources)
                changed = writer.set(resource, value, who)
                writer.flush()
        except ValueError as error:
            raise BusError("bad_request", str(error)) from None
        except OSError as error:
            raise BusError("cannot_write", f"{paths.resources}: {error.strerror}; free space or rights") from None
        if changed:
            ModuleLog(name, ADMIN, self.node).event("resource_set", name=resource, value=value, who=who)
        return changed

    async def _boot(self, request: Request) -> Fields:
        name = self._module(request)
        paths = ModulePaths(name)
        value = request.fields.get("value")
        if self.registry.get(name) is None:
            raise BusError("unknown_module", f"module {name} is not installed on this server; safekit module list")
        if value is not None:
            if value not in ("on", "off"):
                raise BusError("bad_request", f"{value!r} is no boot setting; use on or off")
            try:
                paths.var.mkdir(mode=0o770, parents=True, exist_ok=True)
                write_atomic(paths.boot_file, f"{value}\n".encode())
            except OSError as error:
                raise BusError("cannot_write", f"{paths.boot_file}: {error.strerror}; free space or rights") from None
        module = self.registry.get(name)
        return {"boot": "on" if module is not None and module.boot else "off"}

    async def _shutdown(self, request: Request) -> Fields:
        who = request.text("who", "SYSTEM")
        running = sorted(name for name, runtime in self.runtimes.items() if runtime.running)
        self._beside.start(self._stop_all(who))
        return {"modules": running}

    async def _reload(self, request: Request) -> Fields:
        await self.reload()
        return {"cluster": bool(self.joined), "problem": self.joined.problem}

    async def _respawn(self, request: Request) -> Fields:
        name = self._module(request)
        fields = {k: v for k, v in request.fields.items() if k not in ("module", "_port")}
        fields.setdefault("action", "start")
        fields.setdefault("who", "automatic")
        self._beside.start(self._runtime(name).respawn(fields))
        return {"accepted": True}

    async def _ended(self, request: Request) -> Fields:
        await self._runtime(self._module(request)).ended()
        return {"accepted": True}
