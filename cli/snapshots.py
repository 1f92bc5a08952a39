"""Dumps and snapshots of a module: what is needed to understand a problem afterwards (guide 9.7, 8.5.3).

SAFEVAR/snapshot/modules/AM keeps the last three dumps and the last three configurations. No key is in them.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

from safekit.disk.paths import ModulePaths, cluster_dir, safe, safevar
from safekit.wire.keys import MODULE_KEY

KEPT = 3
COMMAND_SECONDS = 10.0
MAX_COPY = 64 << 20
NO_SAFEADMIN = "safeadmin administrator daemon not running"
COMMANDS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("processes", ("ps", "axwwo", "pid,ppid,user,stat,lstart,time,rss,args")),
    ("addresses", ("ip", "-details", "address")),
    ("routes", ("ip", "route", "show", "table", "all")),
    ("neighbours", ("ip", "neighbour")),
    ("sockets", ("ss", "-tunap")),
    ("filter", ("nft", "list", "ruleset")),
    ("mounts", ("findmnt", "--all")),
    ("disks", ("df", "-h")),
    ("memory", ("free", "-m")),
    ("kernel", ("uname", "-a")),
    ("kernel_messages", ("dmesg", "-T")),
    ("safeadmin_journal", ("journalctl", "-u", "safeadmin", "-n", "2000", "--no-pager")),
    ("safewebserver_journal", ("journalctl", "-u", "safewebserver", "-n", "500", "--no-pager")),
)
OWN_COMMANDS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("level", ("level",)),
    ("modules", ("module", "listid")),
    ("boot", ("boot", "status")),
    ("cluster_confinfo", ("cluster", "confinfo")),
    ("cluster_state", ("cluster", "state")),
)
_COPY = re.compile(r"(?P<module>.+)_(?P<date>\d{4}-\d\d-\d\d_\d\d:\d\d:\d\d)\.safe")


def place(module: str) -> Path:
    """Where the dumps of a module are."""
    return safevar() / "snapshot" / "modules" / ModulePaths(module).module


Tell = Callable[[str], None]


def _nobody(text: str) -> None:
    """Nobody watches."""


def dump(module: str, tell: Tell = _nobody) -> Path:
    """Make a dump; its directory. What cannot be had is said in the file instead. `tell` gets each step. Raises
    OSError."""
    paths, base = ModulePaths(module), place(module)
    base.mkdir(mode=0o770, parents=True, exist_ok=True)
    directory = base / time.strftime("dump_%Y-%m-%d_%H-%M-%S")
    number = 1
    while directory.exists():
        number += 1
        directory = base / f"{time.strftime('dump_%Y-%m-%d_%H-%M-%S')}.{number}"
    fresh = base / f".{directory.name}"
    fresh.mkdir(mode=0o770)
    try:
        tell("dump: logs and configuration")
        _files(paths, fresh)
        own = (("state", ("state", "-v", "-m", module)), *OWN_COMMANDS)
        commands = (*COMMANDS, *((name, (_safekit(), *words)) for name, words in own))
        silent = ""
        for number, (name, command) in enumerate(commands, 1):
            tell(f"dump: {name.replace('_', ' ')} ({number} of {len(commands)})")
            text = silent if silent and command[0] == _safekit() else _output(command)
            if NO_SAFEADMIN in text:
                silent = text  # each command would wait for it again
            (fresh / f"{name}.txt").write_text(text, encoding="utf-8", errors="replace")
        fresh.rename(directory)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    _keep(base, "dump_")
    return directory


def _safekit() -> str:
    return str(safe() / "safekit")


def _output(command: tuple[str, ...]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, timeout=COMMAND_SECONDS, check=False)
    except FileNotFoundError:
        return f"{command[0]} is not on this system\n"
    except (subprocess.TimeoutExpired, OSError) as error:
        return f"{' '.join(command)}: {error}\n"
    return (done.stdout + done.stderr).decode("utf-8", "replace")


def _files(paths: ModulePaths, target: Path) -> None:
    """Logs, resources, decisions, the active configuration without its key, and what the server has."""
    for source, name in (
        (paths.log_dir, "log"),
        (paths.why, "why"),
        (paths.active / "conf", "conf"),
    ):
        if source.is_dir():
            (target / name).mkdir(mode=0o770)
            for path in sorted(source.iterdir()):
                _copy(path, target / name / path.name)
    for path in (
        paths.resources,
        paths.userlog,
        paths.supervisor_conf,
        paths.id_file,
        paths.boot_file,
        paths.var / "rfsverifylog.xml",
        paths.var / "rfsdifflog.xml",
        cluster_dir() / "cluster.xml",
        safevar() / "commandlog",
        safevar() / "commandlog.1",
        safevar() / "safeadmin.log",
        safevar() / "safeadmin.log.1",
    ):
        _copy(path, target / path.name)


def _copy(source: Path, target: Path) -> None:
    """The last MAX_COPY bytes of a plain file; nothing for a key or a file that is not there."""
    if source.suffix == ".key" or source.is_symlink() or not source.is_file():
        return
    with open(source, "rb") as handle:
        handle.seek(0, os.SEEK_END)
        handle.seek(max(0, handle.tell() - MAX_COPY))
        target.write_bytes(handle.read(MAX_COPY))


def _keep(base: Path, prefix: str) -> None:
    """Remove all but the last three."""
    found = sorted(
        (path for path in base.iterdir() if path.name.startswith(prefix)), key=lambda path: path.stat().st_mtime_ns
    )
    for old in found[:-KEPT]:
        if old.is_dir():
            shutil.rmtree(old)
        else:
            old.unlink()


def gather_configurations(module: str) -> None:
    """The last three configurations beside the dumps, without keys. Raises OSError."""
    base, last = place(module), safe() / "modules" / "lastconfig"
    found = []
    for path in sorted(last.iterdir()) if last.is_dir() else ():
        name = _COPY.fullmatch(path.name)
        if name is not None and name["module"] == module:
            found.append(path)
    for stale in base.glob("config_*.safe"):
        stale.unlink()
    for path in found[-KEPT:]:
        match = _COPY.fullmatch(path.name)
        assert match is not None
        _without_key(path, base / f"config_{match['date'].replace(':', '-')}.safe")


def _without_key(source: Path, target: Path) -> None:
    with zipfile.ZipFile(source) as opened, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as made:
        for entry in opened.infolist():
            if not entry.filename.endswith(MODULE_KEY):
                made.writestr(entry, opened.read(entry))


def snapshot(module: str, target: Path, tell: Tell = _nobody, packed: Callable[[int, int], None] | None = None) -> int:
    """Make a dump and put the last three dumps and configurations in a zip; the number of files. `tell` gets the
    steps of the dump, `packed` the bytes that are packed, of how many. Raises OSError."""
    dump(module, tell)
    gather_configurations(module)
    base = place(module)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    files = [
        (path, path.relative_to(base))
        for path in sorted(base.rglob("*"))
        if path.is_file() and not path.relative_to(base).parts[0].startswith(".")
    ]
    done, total = 0, sum(path.stat().st_size for path, _ in files)
    try:
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o640)
        with os.fdopen(descriptor, "r+b") as handle, zipfile.ZipFile(handle, "w", zipfile.ZIP_DEFLATED) as made:
            for path, relative in files:
                if packed is not None:
                    packed(done, total)
                made.write(path, f"{module}/{relative.as_posix()}")
                done += path.stat().st_size
        os.rename(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return len(files)
