"""<check> and <errd> of userconfig.xml (13.9 to 13.17) as values."""

from __future__ import annotations

from typing import Any, cast

from safekit.model.findings import Finding
from safekit.model.read import Reader
from safekit.model.types import (
    Check,
    CustomCheck,
    Errd,
    IntfCheck,
    IpCheck,
    ModuleCheck,
    PingCheck,
    Proc,
    SplitbrainCheck,
    TcpCheck,
)
from safekit.model.xmlload import Node


def build_errd(r: Reader) -> Errd:
    """<errd> with its processes."""
    procs = []
    for index, child in enumerate(r.node.named("proc")):
        p = _child(r, child, f"errd.procs[{index}]")
        procs.append(
            Proc(
                name=p.text("name", "name", ""),
                proc_class=p.text("class", "proc_class", ""),
                service=p.onoff("service", "service", False),
                nameregex=p.expression("nameregex", "nameregex"),
                argregex=p.expression("argregex", "argregex"),
                atleast=p.number("atleast", "atleast", 1),
                atmax=p.number("atmax", "atmax", -1),
                action=p.text("action", "action", "stopstart"),
                start_after=p.number("start_after", "start_after", 0),
            )
        )
    return Errd(polltimer=r.number("polltimer", "polltimer", 30), procs=tuple(procs))


def build_check(r: Reader) -> tuple[Check, list[Finding]]:
    """<check> with every checker that the file names, and what is wrong with their targets."""
    findings: list[Finding] = []
    tcp: list[TcpCheck] = []
    ping: list[PingCheck] = []
    intf: list[IntfCheck] = []
    ip: list[IpCheck] = []
    custom: list[CustomCheck] = []
    modules: list[ModuleCheck] = []

    def target(node: Node, path: str) -> Reader | None:
        given = [child for child in node.children if child.tag == "to"]
        usable = [child for child in given if child.usable]
        if not given:
            message = "there is no <to>; expected what to check"
            findings.append(Finding(r.places.file, node.line, node.tag, message))
        return Reader(usable[0], path, r.places) if usable else None

    for node in r.node.named("tcp"):
        path = f"check.tcp[{len(tcp)}]"
        n, to = _child(r, node, path), target(node, path)
        if to is not None:
            tcp.append(
                TcpCheck(
                    ident=n.text("ident", "ident", ""),
                    when=cast(Any, n.text("when", "when", "prim")),
                    addr=to.text("addr", "addr", ""),
                    port=to.number("port", "port", 0),
                    interval=to.number("interval", "interval", 10),
                    timeout=to.number("timeout", "timeout", 5),
                )
            )
    for node in r.node.named("ping"):
        path = f"check.ping[{len(ping)}]"
        n, to = _child(r, node, path), target(node, path)
        if to is not None:
            ping.append(
                PingCheck(
                    ident=n.text("ident", "ident", ""),
                    addr=to.text("addr", "addr", ""),
                    when=cast(Any, n.text("when", "when", "pre")),
                    interval=to.number("interval", "interval", 10),
                    timeout=to.number("timeout", "timeout", 5),
                )
            )
    for node in r.node.named("intf"):
        path = f"check.intf[{len(intf)}]"
        n, to = _child(r, node, path), target(node, path)
        if to is not None:
            intf.append(IntfCheck(n.text("ident", "ident", ""), to.text("local_addr", "local_addr", "")))
    for node in r.node.named("ip"):
        path = f"check.ip[{len(ip)}]"
        n, to = _child(r, node, path), target(node, path)
        if to is not None:
            interval = to.number("interval", "interval", 10)
            ip.append(IpCheck(n.text("ident", "ident", ""), to.text("addr", "addr", ""), interval=interval))
    for node in r.node.named("custom"):
        n = _child(r, node, f"check.custom[{len(custom)}]")
        custom.append(
            CustomCheck(
                ident=n.text("ident", "ident", ""),
                when=cast(Any, n.text("when", "when", "prim")),
                exec=n.text("exec", "exec", ""),
                arg=n.text("arg", "arg", ""),
            )
        )
    for node in r.node.named("module"):
        modules.extend(_modules(r, node, len(modules)))
    splitbrain = None
    for node in r.node.named("splitbrain")[:1]:
        n = _child(r, node, "check.splitbrain")
        kind = cast(Any, n.text("exec", "exec", "ping"))
        splitbrain = SplitbrainCheck(n.text("ident", "ident", ""), n.text("arg", "arg", ""), kind)
    check = Check(tuple(tcp), tuple(ping), tuple(intf), tuple(ip), tuple(custom), tuple(modules), splitbrain)
    return check, findings


def _child(parent: Reader, node: Node, path: str) -> Reader:
    parent.places.note(path, node.line, node.tag)
    return Reader(node, path, parent.places)


def _modules(r: Reader, node: Node, first: int) -> list[ModuleCheck]:
    """One checker per target; without a target the local server is checked. Idents stay different."""
    targets = node.named("to")
    found = []
    for offset, to in enumerate(targets or [None]):
        path = f"check.module[{first + offset}]"
        n = _child(r, node, path)
        t = Reader(to, path, r.places) if to is not None else None
        name = n.text("name", "name", "")
        addr = t.text("addr", "addr", "") if t else "127.0.0.1"
        ident = n.text("ident", "ident", f"{name}_{addr}")
        if len(targets) > 1 and "ident" in node.attributes:
            ident = f"{ident}_{addr}"
        found.append(
            ModuleCheck(
                ident=ident,
                name=name,
                addr=addr,
                port=t.number("port", "port", 9010) if t else 9010,
                interval=t.number("interval", "interval", 10) if t else 10,
                timeout=t.number("timeout", "timeout", 5) if t else 5,
                secure=t.onoff("secure", "secure", False) if t else False,
            )
        )
    return found
