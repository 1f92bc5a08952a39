"""What would keep a module from working if it were started now: told before anything is started."""

from __future__ import annotations

import errno
import os
import socket
import stat
from pathlib import Path

from safekit.model.fit import misfit
from safekit.model.regex import BadExpression, Expression
from safekit.model.types import ClusterConfig, ModuleConfig

FUSE = Path("/dev/fuse")


def obstacle(config: ModuleConfig, cluster: ClusterConfig, node: str, fuse: Path = FUSE) -> str:
    """The first obstacle and what to do about it; "" when there is none.

    An address that is not there is none: its interface may come later. A heartbeat whose port belongs to somebody
    else would never be heard, and both servers would become ALONE.
    """
    if reason := misfit(config, cluster, node) or _unreadable(config):
        return reason
    if config.service.mode != "mirror":
        return ""
    for beat in config.heart.heartbeats if config.heart is not None else ():
        own = cluster.bind_address(beat.name, node)
        if own is not None and _taken(own, beat.port, socket.SOCK_DGRAM):
            return _told("UDP", beat.port, own, f"heartbeat {beat.ident}", f"ss -lunp sport = {beat.port}")
    if config.rfs is None:
        return ""
    own = cluster.bind_address(config.rfs.flow, node)
    if own is not None and _taken(own, config.rfs.port, socket.SOCK_STREAM):
        return _told("TCP", config.rfs.port, own, "file replication", f"ss -ltnp sport = {config.rfs.port}")
    try:
        there = stat.S_ISCHR(os.stat(fuse).st_mode)
    except OSError:
        there = False
    return "" if there else f"{fuse} is missing: file replication needs the kernel's FUSE; modprobe fuse"


def _unreadable(config: ModuleConfig) -> str:
    """An expression that a former release read and this one does not: without it nobody knows what it was to mean."""
    expressions = [
        *((p.nameregex, "nameregex", False) for p in (config.errd.procs if config.errd is not None else ())),
        *((p.argregex, "argregex", False) for p in (config.errd.procs if config.errd is not None else ())),
        *((e, "regexpath", True) for r in (config.rfs.replicated if config.rfs else ()) for e in r.notreplicated_regex),
    ]
    for expression, attribute, of_names in expressions:
        try:
            if expression is not None:
                Expression(expression, of_names=of_names)
        except BadExpression as error:
            return (
                f"{attribute} {expression!r} of the active configuration cannot be used: {error}; write it without "
                f"look-around and back references in userconfig.xml, and apply it: safekit config -m {config.name}"
            )
    return ""


def _told(protocol: str, port: int, address: str, purpose: str, command: str) -> str:
    return (
        f"{protocol} port {port} of {address} ({purpose}) is used by another program; "
        f"find it with '{command}' and end it, or choose another port in userconfig.xml"
    )


def _taken(address: str, port: int, kind: socket.SocketKind) -> bool:
    """Another program has the port. What cannot be looked up or bound for another reason is not taken."""
    try:
        family, _, _, _, where = socket.getaddrinfo(address, port, type=kind)[0]
        with socket.socket(family, kind) as sock:
            if kind is socket.SOCK_STREAM:
                # connections of an earlier life that linger do not count, a listener does
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(where)
    except OSError as error:
        return error.errno == errno.EADDRINUSE
    return False
