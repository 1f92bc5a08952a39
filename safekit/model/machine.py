"""What must hold between a configuration and this server: directories, mounts, other modules, names."""

from __future__ import annotations

import os
import posixpath
import threading
from collections.abc import Iterable, Mapping

from safekit.disk.paths import safe, safevar
from safekit.model.checks import ip_address, overlap, valid_netmask
from safekit.model.cluster import resolve
from safekit.model.directories import Mount, State, explain, state
from safekit.model.findings import Finding, Places
from safekit.model.types import ClusterConfig, Interface, ModuleConfig, Rfs, VirtualAddr
from safekit.process.vhost import library

#: How long the look-up of all names together may take, in seconds.
RESOLVE_SECONDS = 5.0


def check_machine(
    config: ModuleConfig,
    places: Places,
    *,
    cluster: ClusterConfig,
    node: str,
    others: Mapping[str, ModuleConfig],
    mounts: Iterable[Mount],
) -> list[Finding]:
    """Every finding about this server. `others` are the active configurations of the other modules.

    Reads directories and looks names up; changes nothing.
    """
    found = _lans(config, places, cluster, node)
    table = tuple(mounts)
    if config.rfs is not None:
        found += _replicated(config.rfs, places, others, table)
    found += _addresses(config, places, others)
    found += _ports(config, places, others)
    found += _names(config, places)
    found += _vhost(config, places)
    return found


def _vhost(config: ModuleConfig, places: Places) -> list[Finding]:
    found = []
    if config.vhost and not library().exists():
        message = f"{library()} is missing; install gcc, then run safekitinstall again"
        found.append(places.finding("vhost", message))
    own = safe() / "modules" / config.name / "bin"
    for index, host in enumerate(config.vhost):
        if not os.path.isabs(host.envfile) and (own / host.envfile).exists():
            message = f"{own / host.envfile} exists already; expected the name of a file that config may make"
            found.append(places.finding(f"vhost[{index}].envfile", message))
    return found


def _lans(config: ModuleConfig, places: Places, cluster: ClusterConfig, node: str) -> list[Finding]:
    beats = config.heart.heartbeats if config.heart is not None else ()
    found = []
    for index, beat in enumerate(beats):
        lan = cluster.lan(beat.name)
        if lan is not None and lan.node(node) is None:
            found.append(
                places.finding(
                    f"heart.heartbeats[{index}].name",
                    f'this server ({node}) is not on the lan "{beat.name}"; add it in cluster.xml or use another lan',
                )
            )
    return found


def _replicated(
    rfs: Rfs, places: Places, others: Mapping[str, ModuleConfig], table: tuple[Mount, ...]
) -> list[Finding]:
    found: list[Finding] = []
    for index, replicated in enumerate(rfs.replicated):
        path = f"rfs.replicated[{index}].dir"
        directory = replicated.dir
        if not directory.startswith("/") or posixpath.normpath(directory) != directory or directory == "/":
            continue  # told by the pure checks
        try:
            current = state(directory, rfs.suffix, table)
            problem = explain(directory, rfs.suffix, current)
        except OSError as error:
            current, problem = State.MISSING, f"cannot be read: {error.strerror}; give root access to it"
        if problem is not None:
            found.append(places.finding(path, problem))
        elif current is State.PLAIN and os.statvfs(posixpath.dirname(directory)).f_flag & os.ST_RDONLY:
            found.append(places.finding(path, f"the file system of {directory} is read-only; mount it writable"))
        real = _real(directory)
        for name, own in (("SAFE", safe()), ("SAFEVAR", safevar())):
            if overlap(real, _real(str(own)), "", ""):
                message = f"{directory} overlaps with {name}={own}; expected a directory of the application"
                found.append(places.finding(path, message))
        below = (directory + "/", rfs.backing(replicated) + "/")
        for mount in table:
            if current is not State.MOUNTED and mount.point.startswith(below):
                message = (
                    f"another file system is mounted inside, on {mount.point}; "
                    "replicate it as a directory of its own, or exclude it with <notreplicated>"
                )
                found.append(places.finding(path, message, "warning"))
        for module, other in others.items():
            for taken in other.rfs.replicated if other.rfs is not None else ():
                if other.rfs is not None and overlap(real, _real(taken.dir), rfs.suffix, other.rfs.suffix):
                    message = f"{directory} overlaps with {taken.dir} of the module {module}; expected another one"
                    found.append(places.finding(path, message))
    return found


def _real(directory: str) -> str:
    """The path with links resolved in its parents; its last part may be a link of ours."""
    parent, name = posixpath.split(directory.rstrip("/"))
    return posixpath.join(os.path.realpath(parent), name)


def _addresses(config: ModuleConfig, places: Places, others: Mapping[str, ModuleConfig]) -> list[Finding]:
    taken = {
        str(ip_address(address.addr) or address.addr.lower()): module
        for module, other in others.items()
        for interface in (other.vip.interfaces if other.vip is not None else ())
        for address in interface.addresses
    }
    found = []
    for number, interface in enumerate(config.vip.interfaces if config.vip is not None else ()):
        path = f"vip.interfaces[{number}]"
        for index, address in enumerate(interface.addresses):
            homeless = _homeless(interface, address)
            if homeless is not None:
                found.append(places.finding(f"{path}.addresses[{index}].addr", homeless, "warning"))
            owner = taken.get(str(ip_address(address.addr) or address.addr.lower()))
            if owner is not None:
                message = f"{address.addr} is a virtual address of the module {owner} already; expected another address"
                found.append(places.finding(f"{path}.addresses[{index}].addr", message))
    return found


def _homeless(interface: Interface, address: VirtualAddr) -> str | None:
    """Why the address could not be set on this server now; None when it could. An interface may come later."""
    ip = ip_address(address.addr)
    if ip is None or (address.netmask is not None and not valid_netmask(address.netmask)):
        return None
    from safekit.net import addresses

    try:
        addresses.place(ip, addresses.links(), addresses.addresses(), name=interface.name, netmask=address.netmask)
    except addresses.PlaceError as error:
        return f"{address.addr}: {error}"
    return None


def _ports(config: ModuleConfig, places: Places, others: Mapping[str, ModuleConfig]) -> list[Finding]:
    taken = {
        beat.port: module
        for module, other in others.items()
        for beat in (other.heart.heartbeats if other.heart is not None else ())
    }
    found = []
    for index, beat in enumerate(config.heart.heartbeats if config.heart is not None else ()):
        if beat.port in taken:
            message = f"UDP port {beat.port} is used by the module {taken[beat.port]}; expected another port"
            found.append(places.finding(f"heart.heartbeats[{index}].port", message))
    return found


def _names(config: ModuleConfig, places: Places) -> list[Finding]:
    """A warning for each host name that nobody can tell the address of, within one bounded wait."""
    wanted: dict[str, str] = {}
    for number, interface in enumerate(config.vip.interfaces if config.vip is not None else ()):
        for index, address in enumerate(interface.addresses):
            wanted[f"vip.interfaces[{number}].addresses[{index}].addr"] = address.addr
    check = config.check
    for kind, targets in (
        ("tcp", [c.addr for c in check.tcp]),
        ("ping", [c.addr for c in check.ping]),
        ("ip", [c.addr for c in check.ip]),
        ("module", [c.addr for c in check.module]),
    ):
        for index, target in enumerate(targets):
            wanted[f"check.{kind}[{index}].addr"] = target
    if check.splitbrain is not None:
        wanted["check.splitbrain.arg"] = check.splitbrain.arg
    names = sorted({name for name in wanted.values() if name and ip_address(name) is None})
    answers: dict[str, tuple[str, ...]] = {}

    def look_up() -> None:
        for name in names:
            answers[name] = resolve(name)

    if names:
        # A daemon thread: a resolver that hangs must not hold the command.
        thread = threading.Thread(target=look_up, daemon=True)
        thread.start()
        thread.join(RESOLVE_SECONDS)
    found = []
    for path, name in wanted.items():
        if name in names and not answers.get(name):
            message = f'the name "{name}" cannot be resolved on this node; add it to /etc/hosts, or write its address'
            found.append(places.finding(path, message, "warning"))
    return found
