"""When the certificates of this server end: known to `safekit state` and to Prometheus, and told in the journal and in
the logs of the modules from 30 days before on. Expired ones stop the console and the distributed commands, not the
modules."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

from safekit.configuration import list_modules
from safekit.disk.expiry import FILE, WARN_SECONDS, Expiry, expiry_file, line_of, to_text
from safekit.disk.files import write_atomic
from safekit.disk.paths import ModulePaths, node_name
from safekit.log.module import ModuleLog
from safekit.model.cluster import give_to_group
from safekit.wire.certificates import of_pem
from safekit.wire.tls import ADMIN_CERTIFICATE, CLIENT_AUTHORITIES, SERVER_AUTHORITIES, SERVER_CERTIFICATE
from safewebserver.modules import runs
from safewebserver.settings import conf_dir

FILES = (SERVER_CERTIFICATE, ADMIN_CERTIFICATE, SERVER_AUTHORITIES, CLIENT_AUTHORITIES)
LOOK_SECONDS = 60.0
TELL_SECONDS = 86400.0


def found_in(conf: Path) -> tuple[Expiry, ...]:
    """When each file's first certificate to end does so. Files that are damaged are left out: who uses them tells."""
    found = []
    for name in FILES:
        try:
            certificates = of_pem((conf / name).read_bytes())
        except (OSError, ValueError):
            continue
        first = min(certificates, key=lambda each: each.ends)
        found.append(Expiry(name, first.name or first.subject, first.begins, first.ends))
    return tuple(found)


def publish(found: tuple[Expiry, ...]) -> None:
    """SAFEVAR/web/certificates.txt, for `safekit state`. Raises OSError."""
    path = expiry_file()
    path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
    give_to_group(path.parent)
    write_atomic(path, to_text(found).encode(), mode=0o640, durable=False)
    give_to_group(path)


class Watch:
    """Looks, publishes what changed, and tells each file at most once a day."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._logs: dict[str, ModuleLog] = {}
        self._known: tuple[Expiry, ...] | None = None
        self._told: dict[str, float] = {}

    def look(self, conf: Path, now: float) -> None:
        """Once. Raises OSError."""
        found = found_in(conf)
        if found != self._known:
            publish(found)
            self._known = found
        for each in found:
            if each.ends - now < WARN_SECONDS and now - self._told.get(each.file, 0.0) >= TELL_SECONDS:
                self._told[each.file] = now
                self._say(f"Warning: {line_of(each, now)}")
                self._log(each)

    def _log(self, each: Expiry) -> None:
        """In the log of each module that runs: who looks there may look nowhere else."""
        date = time.strftime("%Y-%m-%d %H:%M", time.localtime(each.ends))
        for name in list_modules():
            if runs(ModulePaths(name)):
                log = self._logs.setdefault(name, ModuleLog(name, "safewebserver", node_name()))
                log.event("certificate", file=each.file, name=each.name, date=date)


async def watch() -> None:
    """For ever. A disk that refuses is told by everybody else; the next look may write."""
    told = Watch(lambda text: print(f"safewebserver: {text}", flush=True))
    while True:
        try:
            await asyncio.to_thread(told.look, conf_dir(), time.time())
        except OSError as error:
            print(f"safewebserver: {FILE}: {error}", flush=True)
        await asyncio.sleep(LOOK_SECONDS)
