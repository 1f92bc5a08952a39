"""Finds out what has to be known of this server: systemd, /proc, the directories, accounts. Changes nothing."""

from __future__ import annotations

import contextlib
import grp
import hashlib
import os
import pwd
import re
import shlex
import shutil
import stat
import subprocess
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from cli.base import installed_modules
from cli.protect.facts import Account, Directory, Listening, Needed, Server, Setting, Unit
from safekit.configuration import ConfigureError, active
from safekit.disk.paths import node_name, safe
from safekit.model import directories as replicated
from safekit.model.checks import overlap
from safekit.model.types import DEFAULT_SUFFIX

ASK_SECONDS = 10.0
COUNT_SECONDS = 20.0
"""How long the entries of one directory are counted."""
MAX_ACCOUNTS = 5000
MAX_SETTINGS = 500
_PROPERTIES = (
    "Id,LoadState,ActiveState,UnitFileState,Type,User,MainPID,FragmentPath,TriggeredBy,ConsistsOf,"
    "WorkingDirectory,StateDirectory,ExecStart"
)
_ARGV = re.compile(r"argv\[\]=(.*?) ;")
_PLACES = ("/var/lib/", "/srv/", "/var/www", "/var/opt/", "/opt/", "/data", "/home/", "/usr/local/")
_LISTEN = "0A"


def server(service: str, wanted: Sequence[str], address: str = "") -> Server:
    """Everything about this server."""
    unit = find_unit(service)
    modules = _replicated_by()
    return Server(
        node=node_name(),
        release=_release(),
        clock=time.time(),
        root=os.geteuid() == 0,
        systemd=systemctl("show", "-p", "Version") is not None,
        unit=unit,
        directories=tuple(directory(path, modules) for path in wanted),
        accounts=tuple(_accounts()),
        listening=listening(),
        networks=tuple(server_networks()),
        settings=tuple(_settings(unit, wanted)),
        modules=tuple(installed_modules()),
        taken=bool(address) and _answers(address),
        fuse=os.path.exists("/dev/fuse"),
    )


def _release() -> str:
    try:
        return (safe() / "private" / "version").read_text().split("\n")[0].strip()
    except OSError:
        return ""


def run(words: Sequence[str], seconds: float = ASK_SECONDS) -> str | None:
    """What a program says; None when it is not there, does not end, or fails."""
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, errors="replace", check=False, timeout=seconds,
            stdin=subprocess.DEVNULL, env={**os.environ, "LC_ALL": "C"},
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def systemctl(*words: str) -> str | None:
    """The answer of systemd."""
    return run(["systemctl", *words])


# --- the service


def _shown(unit: str) -> dict[str, str]:
    said = systemctl("show", "-p", _PROPERTIES, "--", unit) or ""
    return dict(line.split("=", 1) for line in said.splitlines() if "=" in line)


def find_unit(service: str) -> Unit:
    """The service with that name, which may lack its `.service`."""
    name = service if service.endswith(".service") else f"{service}.service"
    shown = _shown(name)
    if shown.get("LoadState") != "loaded":
        return Unit(name)
    # An alias (mysql, redis) is known by its own name: what it stands for is what runs and is disabled.
    name = shown.get("Id") or name
    main = int(shown.get("MainPID") or 0)
    parts = () if main else tuple(_running(shown.get("ConsistsOf", "").split()))
    package, version = _package(shown.get("FragmentPath", ""))
    workers = [shown, *(_shown(part) for part in parts)]
    return Unit(
        name=name,
        found=True,
        active=shown.get("ActiveState") in ("active", "reloading"),
        enabled=shown.get("UnitFileState", ""),
        kind=shown.get("Type", ""),
        user=next((each["User"] for each in workers if each.get("User")), ""),
        package=package,
        version=version,
        main_pid=main or next((int(each.get("MainPID") or 0) for each in workers), 0),
        sockets=tuple(_running([each for w in workers for each in w.get("TriggeredBy", "").split()], ".socket")),
        parts=parts,
        needs=tuple(_needs(workers)),
        data=tuple(_data(workers)),
    )


def _running(units: Iterable[str], kind: str = ".service") -> list[str]:
    """Those of the kind that run (for a socket: that wait)."""
    return [
        each for each in dict.fromkeys(units)
        if each.endswith(kind) and _shown(each).get("ActiveState") in ("active", "activating", "reloading")
    ]  # fmt: skip


def _package(path: str) -> tuple[str, str]:
    """The package that brought a file, and its version; empty for none."""
    if not path:
        return "", ""
    real = os.path.realpath(path)
    # dpkg knows a merged /usr by the names of before.
    for each in dict.fromkeys((path, real, real.removeprefix("/usr"))):
        owner = run(["dpkg-query", "-S", each])
        if owner:
            name = owner.splitlines()[0].rpartition(": ")[0].split(",")[0].strip()
            return name, (run(["dpkg-query", "-W", "-f", "${Version}", name]) or "").strip()
    said = run(["rpm", "-qf", "--queryformat", "%{NAME}\t%{VERSION}-%{RELEASE}\n", path])
    name, _, version = (said or "").partition("\n")[0].partition("\t")
    return name, version


def _words(shown: dict[str, str]) -> list[str]:
    try:
        return shlex.split(found[1]) if (found := _ARGV.search(shown.get("ExecStart", ""))) else []
    except ValueError:
        return []


def _needs(workers: Iterable[dict[str, str]]) -> Iterator[Needed]:
    """The files that the commands of the units name, but for what they write."""
    seen: set[str] = set()
    for shown in workers:
        fragment = shown.get("FragmentPath", "")
        for path in (fragment, *(word for word in _words(shown) if word.startswith("/"))):
            if path and path not in seen and not path.startswith(("/run/", "/var/run/", "/dev/", "/proc/")):
                seen.add(path)
                if not os.path.isdir(path):
                    yield Needed(path, _digest(path))


def _digest(path: str) -> str:
    if _package(path)[0]:
        return "package"
    try:
        with open(path, "rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()
    except OSError:
        return ""


def _data(workers: Iterable[dict[str, str]]) -> Iterator[str]:
    """Directories that look like the data of the units."""
    found: dict[str, None] = {}
    for shown in workers:
        pid = int(shown.get("MainPID") or 0)
        with contextlib.suppress(OSError):
            found.setdefault(os.readlink(f"/proc/{pid}/cwd"))
        found.setdefault(shown.get("WorkingDirectory", "").lstrip("-!"))
        found.update({f"/var/lib/{name}": None for name in shown.get("StateDirectory", "").split()})
    for path in found:
        if path.startswith(_PLACES) and os.path.isdir(path) and not path.startswith("/var/lib/systemd"):
            yield path


def listeners() -> list[tuple[str, tuple[Listening, ...]]]:
    """The services of this server that wait for clients, and where."""
    found: dict[str, list[Listening]] = {}
    for each in listening():
        if each.owner.endswith(".service") and not each.owner.startswith(("safe", "ssh", "systemd-")):
            found.setdefault(each.owner, []).append(each)
    return sorted((name, tuple(ports)) for name, ports in found.items())


# --- who listens


def listening() -> tuple[Listening, ...]:
    """Every TCP socket that waits for clients, with the unit or the process that has it."""
    owners = _socket_owners()
    found = {}
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            lines = Path(table).read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            if len(fields) > 9 and fields[3] == _LISTEN:
                address, _, port = fields[1].rpartition(":")
                each = Listening(_address(address), int(port, 16), owners.get(fields[9], ""))
                found[(each.address, each.port)] = each
    return tuple(sorted(found.values(), key=lambda each: (each.port, each.address)))


def _address(text: str) -> str:
    """An address as the kernel prints it: words of four bytes in the order of the machine."""
    import ipaddress
    import sys

    raw = bytes.fromhex(text)
    if sys.byteorder == "little":
        raw = b"".join(raw[at : at + 4][::-1] for at in range(0, len(raw), 4))
    return str(ipaddress.ip_address(raw))


def _socket_owners() -> dict[str, str]:
    """Inode of a socket -> unit, else name of the process."""
    found: dict[str, str] = {}
    for pid in (name for name in os.listdir("/proc") if name.isdecimal()):
        try:
            inodes = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
        except OSError:
            continue  # it has ended, or is not ours to look at
        sockets = [link[8:-1] for link in inodes if link.startswith("socket:[")]
        if sockets:
            owner = _owner(pid)
            found.update(dict.fromkeys(sockets, owner))
    return found


def _owner(pid: str) -> str:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
            for part in reversed(line.split("/")):
                if part.endswith(".service"):
                    return part.replace("\\x2d", "-")
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


# --- directories, accounts, the rest


def _replicated_by() -> list[tuple[str, str]]:
    """(directory, module) of every active configuration."""
    found = []
    for module in installed_modules():
        with contextlib.suppress(ConfigureError):
            rfs = active(module).rfs
            found += [(each.dir, module) for each in (rfs.replicated if rfs is not None else ())]
    return found


def directory(path: str, modules: Iterable[tuple[str, str]] = ()) -> Directory:
    """What is at a place. Counting ends after COUNT_SECONDS."""
    table = replicated.mounts()
    try:
        found = replicated.state(path, DEFAULT_SUFFIX, table)
        problem = replicated.explain(path, DEFAULT_SUFFIX, found) or ""
    except OSError as error:
        return Directory(path, "MISSING", f"{path} cannot be read: {error.strerror}", free=_free(path))
    module = next((name for taken, name in modules if overlap(path, taken, DEFAULT_SUFFIX, DEFAULT_SUFFIX)), "")
    if not os.path.isdir(path):
        return Directory(path, found.name, problem, free=_free(path), module=module)
    about = os.stat(path)
    count, size, uids, gids, whole = _counted(path)
    return Directory(
        path, found.name, problem, stat.S_IMODE(about.st_mode), about.st_uid, about.st_gid, size, count, whole,
        tuple(sorted(uids)), tuple(sorted(gids)),
        tuple(mount.point for mount in table if mount.point.startswith(path.rstrip("/") + "/")),
        _free(path), module,
    )  # fmt: skip


def _counted(top: str) -> tuple[int, int, set[int], set[int], bool]:
    count, size, whole = 0, 0, True
    uids: set[int] = set()
    gids: set[int] = set()
    deadline = time.monotonic() + COUNT_SECONDS
    waiting = [top]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                found = list(entries)
        except PermissionError:
            found, whole = [], False
        except OSError:
            found = []  # what runs makes and removes files meanwhile
        for entry in found:
            with contextlib.suppress(FileNotFoundError):
                about = entry.stat(follow_symlinks=False)
                count += 1
                uids.add(about.st_uid)
                gids.add(about.st_gid)
                if stat.S_ISREG(about.st_mode):
                    size += min(about.st_size, about.st_blocks * 512)
                elif stat.S_ISDIR(about.st_mode):
                    waiting.append(entry.path)
        if time.monotonic() > deadline:
            return count, size, uids, gids, False
    return count, size, uids, gids, whole


def _free(path: str) -> int:
    """Bytes that root can still write where the directory is, or would be made."""
    place = path
    while not os.path.isdir(place) and place != "/":
        place = os.path.dirname(place)
    return shutil.disk_usage(place).free


def _accounts() -> Iterator[Account]:
    for number, user in enumerate(pwd.getpwall()):
        if number < MAX_ACCOUNTS:
            yield Account("user", user.pw_name, user.pw_uid)
    for number, group in enumerate(grp.getgrall()):
        if number < MAX_ACCOUNTS:
            yield Account("group", group.gr_name, group.gr_gid)


def server_networks() -> Iterator[str]:
    """The networks of the interfaces, but for the loopback."""
    from safekit.net import addresses

    loopback = {link.index for link in addresses.links() if link.loopback}
    for each in addresses.addresses():
        if each.index not in loopback and not each.ip.is_link_local:
            yield str(each.network)


def _settings(unit: Unit, wanted: Sequence[str]) -> Iterator[Setting]:
    """The files below /etc that go by the name of the service or its package, outside the data."""
    stem = unit.name.removesuffix(".service").partition("@")[0]
    names = dict.fromkeys((stem, unit.package, unit.package.partition("-")[0]))
    seen = 0
    for top in (f"/etc/{name}" for name in names if name):
        if not os.path.isdir(top) or any(overlap(top, path, "", "") for path in wanted):
            continue
        for base, below, files in os.walk(top):
            below.sort()
            for name in sorted(files):
                path = os.path.join(base, name)
                if seen < MAX_SETTINGS and os.path.isfile(path) and os.path.getsize(path) < 1 << 20:
                    seen += 1
                    try:
                        digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
                    except OSError:
                        digest = ""  # not ours to read
                    yield Setting(path, digest)


def _answers(address: str) -> bool:
    return run(["ping", "-n", "-c", "1", "-W", "1", "--", address], 5.0) is not None
