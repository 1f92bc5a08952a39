"""The frame in which every small process of a module runs.

It gives a process its name in `ps`, its own error log, one event loop, an endpoint on the bus, the module
log, an orderly end on SIGTERM, the stacks of its threads and tasks on SIGUSR1, and a measure of how late its loop
wakes up.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import os
import resource
import signal
import sys
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NoReturn

from safekit import syscalls
from safekit.bus.asking import Service, pong
from safekit.bus.endpoint import Endpoint, Handler, Request
from safekit.disk.paths import ModulePaths, cluster_dir, node_name
from safekit.disk.stats import STATS_SECONDS, publish
from safekit.log.module import ModuleLog
from safekit.model.codec import CodecError, from_json
from safekit.model.types import ClusterConfig, ModuleConfig
from safekit.process import ownlog, stacks
from safekit.process.tasks import Beside, told

LATE_SECONDS = 0.5
NOT_CONFIGURED = 2
"""Exit status of a process that the active configuration has no place for."""
KEPT = 1000
"""Measures in memory: a minute of them at the shortest pulse that is useful."""
REALTIME_MEASURED, MEASURED = 1.0, 10.0
"""Seconds between two measures of lateness: of a process that has to be on time, of the others."""


class Lateness:
    """How late the loop woke against what it asked. Kept for a minute, in seconds."""

    def __init__(
        self, interval: float, on_late: Callable[[float], None], woken: Callable[[], None] = lambda: None
    ) -> None:
        """`woken` is called at each measure."""
        self.interval = interval
        self._woken = woken
        self._on_late = on_late
        self._samples: deque[tuple[float, float]] = deque(maxlen=KEPT)

    async def run(self) -> NoReturn:
        """Measure for ever."""
        while True:
            due = time.monotonic() + self.interval
            await asyncio.sleep(self.interval)
            self.note(due)
            self._woken()

    def note(self, due: float) -> None:
        """The loop has woken for something that was due at this monotonic time."""
        now = time.monotonic()
        self._samples.append((due, now - due))
        if now - due > LATE_SECONDS:
            self._on_late(now - due)

    def worst(self, seconds: float) -> float:
        """The largest lateness of the last `seconds`, 0.0 when there is none."""
        since = time.monotonic() - seconds
        return max((late for when, late in self._samples if when >= since), default=0.0)


class NotConfigured(Exception):
    """The active configuration has no place for this process any more: it changed while the process was started. No
    defect; heart is about to end it."""


@dataclass
class Context:
    """What the frame gives to a process."""

    name: str
    module: str
    node: str
    paths: ModulePaths
    config: ModuleConfig
    cluster: ClusterConfig
    log: ModuleLog
    bus: Endpoint
    lateness: Lateness
    arguments: argparse.Namespace = field(default_factory=argparse.Namespace)
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    figures: Callable[[], Mapping[str, Any]] = dict
    """What the process publishes for monitoring beside its own lateness (safekit.disk.stats). Must not wait."""

    def beside(self) -> Beside:
        """For work that nobody awaits: a defect in it goes to the module log."""
        return Beside(lambda error: self.log.event("internal", text=f"{self.name}: {told(error)}"))

    def reload(self) -> None:
        """Read the active configuration again (after a dynamic `config`)."""
        self.config = load_module(self.paths)
        self.cluster = load_cluster()


class Unconfigured(Exception):
    """A configuration is missing or unreadable; the text names the file and the next step."""


def load_module(paths: ModulePaths) -> ModuleConfig:
    """Active configuration of a module. Raises Unconfigured."""
    try:
        return from_json(ModuleConfig, paths.active_json.read_bytes())
    except FileNotFoundError:
        raise Unconfigured(f"module {paths.module} is not configured: run safekit config -m {paths.module}") from None
    except (OSError, CodecError) as error:
        raise Unconfigured(f"{paths.active_json}: {error}; run safekit config -m {paths.module} again") from None


def load_cluster() -> ClusterConfig:
    """Compiled cluster configuration. Raises Unconfigured."""
    path = cluster_dir() / "cluster.json"
    try:
        return from_json(ClusterConfig, path.read_bytes())
    except FileNotFoundError:
        raise Unconfigured("the cluster is not configured: run safekit cluster config FILE") from None
    except (OSError, CodecError) as error:
        raise Unconfigured(f"{path}: {error}; run safekit cluster config again") from None


def set_process_name(name: str) -> None:
    """Name in ps, top and ss, also when started as `python -m`; a system that refuses leaves it as it is."""
    with contextlib.suppress(OSError):
        syscalls.name_process(name)


def lock_memory() -> str | None:
    """Keep this process in memory, page by page as it is touched. The reason when the system refuses."""
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    try:
        syscalls.lock_memory()
    except OSError as error:
        return error.strerror
    return None


def run_realtime(priority: int = 10) -> str | None:
    """Run before ordinary processes; children do not inherit it. The reason when the system refuses.

    A loop that spins for 0.9 s without sleeping is ended by the kernel: it must not take a core from the
    machine for ever.
    """
    try:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_RTTIME, (900_000, 1_000_000))
        os.sched_setscheduler(0, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(priority))
    except OSError as error:
        return str(error.strerror)
    return None


def give_back_memory() -> None:
    """Return to the system what compiling and loading have left: about 5% of a small process."""
    gc.collect()
    syscalls.trim_memory()


def _own_log(paths: ModulePaths, name: str) -> None:
    """Standard output and error go to a file of the process: the supervisor's pipes die with it."""
    descriptor = ownlog.opened(paths, name)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)


def run(
    name: str,
    main: Callable[[Context], Awaitable[int | None]],
    *,
    handler: Callable[[Context], Handler] | None = None,
    realtime: bool = False,
    instance: str | None = None,
    lateness_interval: float = 0.0,
    foreground: Literal["auto", "yes", "no"] = "auto",
) -> NoReturn:
    """Run a process of a module (`-m AM` or SAFEMODULE) until `main` returns or SIGTERM arrives.

    `main` gets the context and must end when `context.stopping` is set. `handler(context)` serves the bus.
    A program that runs several times in a module (a checker) says with `instance` what its extra argument
    is: `--IDENT value` in `context.arguments`, which also ends its name on the bus and its log's name.
    Exits with the status that `main` returns, 2 when the module or the cluster is not configured.
    """
    parser = argparse.ArgumentParser(prog=name)
    parser.add_argument("-m", dest="module", default=os.environ.get("SAFEMODULE"), help="module name")
    if instance is not None:
        parser.add_argument(f"--{instance}", required=True)
    arguments = parser.parse_args()
    module = arguments.module
    full_name = name if instance is None else f"{name}.{getattr(arguments, instance)}"
    if not module:
        parser.error("the module is missing: -m AM or SAFEMODULE")
    set_process_name(name)
    os.umask(0o007)
    os.environ["SAFEMODULE"] = module
    paths = ModulePaths(module)
    if foreground == "no" or (foreground == "auto" and not sys.stderr.isatty()):
        _own_log(paths, full_name.replace("/", "_"))
    stacks.write_on_signal()
    status = asyncio.run(_run(name, full_name, arguments, paths, main, handler, realtime, lateness_interval))
    with contextlib.suppress(OSError):  # a full disk
        sys.stdout.flush()
        sys.stderr.flush()
    # Threads of libraries (a file system loop) must not hold up the end of a process that has cleaned up.
    os._exit(status)


async def _run(
    name: str,
    full_name: str,
    arguments: argparse.Namespace,
    paths: ModulePaths,
    main: Callable[[Context], Awaitable[int | None]],
    handler: Callable[[Context], Handler] | None,
    realtime: bool,
    lateness_interval: float,
) -> int:
    node = node_name()
    module = paths.module
    log = ModuleLog(module, name, node)
    try:
        config, cluster = load_module(paths), load_cluster()
    except Unconfigured as error:
        log.event("internal", text=f"{name}: {error}")
        return 2
    if realtime:
        for code, reason in (("no_memlock", lock_memory()), ("no_realtime", run_realtime())):
            if reason is not None:
                log.event(code, name=name, reason=reason)
    served: list[Handler] = [Service(name, ()).handle]  # nothing, until it can serve more

    async def serve(request: Request) -> dict[str, object] | None:
        return pong(request, lateness.worst(60)) or await served[-1](request)

    told = 0.0

    def woken() -> None:
        """The figures, at a moment at which this process is awake anyway."""
        nonlocal told
        if time.monotonic() - told >= STATS_SECONDS:
            told = time.monotonic()
            publish(paths, full_name, {"late": round(lateness.worst(60), 3), **context.figures()})

    lateness = Lateness(
        lateness_interval or (REALTIME_MEASURED if realtime else MEASURED),
        lambda late: log.event("late", name=name, ms=round(late * 1000)) if realtime else None,
        woken,
    )
    bus = await Endpoint.open(f"{module}/{full_name}", serve)
    context = Context(name, module, node, paths, config, cluster, log, bus, lateness, arguments)
    if handler is not None:
        served.append(handler(context))
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, context.stopping.set)
    stacks.write_on_signal(loop)
    measuring = loop.create_task(lateness.run())
    give_back_memory()
    try:
        return await main(context) or 0
    except NotConfigured as gone:
        log.debug(str(gone))
        return NOT_CONFIGURED
    finally:
        # We are leaving: a signal that meets a closed loop, or a handler that changes, would be reported as a defect.
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT))
        stacks.ignore()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_IGN)
        measuring.cancel()
        await bus.close()
