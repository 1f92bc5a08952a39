"""From the checked XML of userconfig.xml to the ModuleConfig tree (chapter 13).

What is decided here: defaults that depend on other values, the old syntax with addresses instead of
lan names, and how often an element may appear. References are checked by safekit.model.checks.
"""

from __future__ import annotations

import posixpath
import re
from dataclasses import replace
from typing import Any, cast

from safekit.model import ports
from safekit.model.build_check import build_check, build_errd
from safekit.model.findings import Finding, Places
from safekit.model.read import Reader
from safekit.model.types import (
    DEFAULT_REIPACKETSIZE,
    DEFAULT_SUFFIX,
    ClusterConfig,
    Failover,
    Farm,
    FarmLan,
    Group,
    Heart,
    Heartbeat,
    Host,
    Interface,
    ModuleConfig,
    Replicated,
    Rfs,
    Rule,
    Service,
    User,
    Vip,
    VirtualAddr,
    VirtualHostname,
)
from safekit.model.xmlload import Node

_SECTIONS = ("heart", "farm", "vip", "rfs", "user", "vhost", "errd", "check", "failover")
#: Children that may appear once at most.
ONCE = {
    "safe": ("service",),
    "service": _SECTIONS,
    "vip": ("interface_list", "loadbalancing_list"),
    "interface": ("real_interface", "virtual_interface"),
    "group": ("cluster",),
    "rfs": ("flow",),
    "check": ("splitbrain",),
    "tcp": ("to",),
    "ping": ("to",),
    "intf": ("to",),
    "ip": ("to",),
}
#: Attributes of another operating system, with what they are for.
_WINDOWS_ONLY = {
    "iotimeout": "the I/O time-out of the Windows filter",
    "allocthreshold": "the allocation of disk space on Windows",
    "nfsbox_options": "the policy for reparse points of Windows",
}


class Builder:
    """Compiles one file. `findings` fills up on the way; `places` says where each value stands."""

    def __init__(self, file: str, cluster: ClusterConfig | None) -> None:
        self.places = Places(file)
        self.findings: list[Finding] = []
        self.cluster = cluster
        self._legacy: list[str] = []
        self._named: list[str] = []

    def module(self, root: Node, name: str, module_id: int) -> ModuleConfig | None:
        """The whole tree; None when there is no usable <service>."""
        self.places.note("", root.line, root.tag)
        self._once(root)
        services = root.named("service")
        if not services:
            if not any(child.tag == "service" for child in root.children):
                self._error("", "there is no <service>; expected exactly one")
            return None
        node = services[0]
        heart, farm, vip, rfs, user, vhost, errd, check, failover = (
            next(iter(node.named(tag)), None) for tag in _SECTIONS
        )
        config = ModuleConfig(name=name, id=module_id, service=self._service(node))
        config = replace(
            config,
            heart=self._heart(heart, module_id) if heart else None,
            farm=self._farm(farm, module_id) if farm else None,
            vip=self._vip(vip, config.service.mode) if vip else None,
            user=self._user(user) if user else None,
            vhost=self._vhost(vhost) if vhost else (),
            errd=build_errd(self._reader(errd, "errd")) if errd else None,
            failover=self._failover(failover) if failover else Failover(),
        )
        if check:
            built, found = build_check(self._reader(check, "check"))
            config = replace(config, check=built)
            self.findings.extend(found)
        if rfs:
            config = replace(config, rfs=self._rfs(rfs, module_id, config.heart))
        if self._legacy and self._named:
            self._error(
                self._legacy[0],
                "server addresses (syntax before 7.2) and lan names are mixed in one file; "
                'expected name="lan of the cluster" everywhere',
            )
        return config

    # ------------------------------------------------------------------ helpers

    def _error(self, path: str, message: str) -> None:
        self.findings.append(self.places.finding(path, message))

    def _warn(self, path: str, message: str) -> None:
        self.findings.append(self.places.finding(path, message, "warning"))

    def _reader(self, node: Node, path: str) -> Reader:
        self.places.note(path, node.line, node.tag)
        return Reader(node, path, self.places)

    def _once(self, node: Node) -> None:
        for tag in ONCE.get(node.tag, ()):
            for extra in [child for child in node.children if child.tag == tag][1:]:
                message = f"a second <{tag}>; expected at most one in <{node.tag}>"
                self.findings.append(Finding(self.places.file, extra.line, tag, message))
        for child in node.children:
            self._once(child)

    def _lan_name(self, node: Node, reader: Reader, legacy_tag: str) -> str:
        """The lan that a heartbeat, farm lan or flow names, in the syntax of 7.2 or in the old one."""
        addresses = [child.attributes.get("addr", "") for child in node.named(legacy_tag)]
        name = reader.optional("name", "name")
        where = reader.path
        if name is not None:
            self._named.append(where)
            if addresses:
                self._error(where, f"both name and <{legacy_tag}> are given; expected the name of a lan alone")
            return name
        if not addresses:
            if "name" in node.attributes or node.attribute_lines.get("name"):
                return ""
            self._error(where, "the attribute 'name' is missing; expected the name of a lan of the cluster")
            return ""
        self._legacy.append(where)
        for lan in self.cluster.lans if self.cluster else ():
            if set(addresses) <= {n.addr for n in lan.nodes}:
                self.places.note(f"{where}.name", node.line, node.tag)
                return lan.name
        self._error(
            where, f'no lan of the cluster has the addresses {", ".join(addresses)}; write name="lan of the cluster"'
        )
        return ""

    # ----------------------------------------------------------------- sections

    def _service(self, node: Node) -> Service:
        r = self._reader(node, "service")
        return Service(
            mode=cast(Any, r.text("mode", "mode", "mirror")),
            failover=r.onoff("failover", "failover", True),
            defaultprim=r.text("defaultprim", "defaultprim", "alone"),
            maxloop=r.number("maxloop", "maxloop", 3),
            loop_interval_h=r.number("loop_interval", "loop_interval_h", 24),
            automatic_reboot=r.onoff("automatic_reboot", "automatic_reboot", False),
        )

    def _heart(self, node: Node, module_id: int) -> Heart:
        r = self._reader(node, "heart")
        port = r.number("port", "port", ports.heart_port(module_id))
        pulse = r.number("pulse", "pulse_ms", 700)
        timeout = r.number("timeout", "timeout_ms", 30000)
        arp = r.onoff("permanent_arp", "permanent_arp", True)
        beats = []
        for index, child in enumerate(node.named("heartbeat")):
            b = self._reader(child, f"heart.heartbeats[{index}]")
            name = self._lan_name(child, b, "server")
            legacy = bool(child.named("server"))
            beats.append(
                Heartbeat(
                    name=name,
                    ident=b.text("ident", "ident", str(index) if legacy else name),
                    port=b.number("port", "port", port),
                    pulse_ms=b.number("pulse", "pulse_ms", pulse),
                    timeout_ms=b.number("timeout", "timeout_ms", timeout),
                    permanent_arp=b.onoff("permanent_arp", "permanent_arp", arp),
                )
            )
        if not any(child.tag == "heartbeat" for child in node.children):
            self._error("heart", "there is no <heartbeat>; expected at least one")
        return Heart(tuple(beats))

    def _farm(self, node: Node, module_id: int) -> Farm:
        r = self._reader(node, "farm")
        lans = []
        for index, child in enumerate(node.named("lan")):
            lans.append(FarmLan(self._lan_name(child, self._reader(child, f"farm.lans[{index}]"), "node")))
        if not any(child.tag == "lan" for child in node.children):
            self._error("farm", "there is no <lan>; expected at least one")
        return Farm(
            port=r.number("port", "port", ports.farm_port(module_id)),
            lans=tuple(lans),
            pulse_ms=r.number("pulse", "pulse_ms", 1000),
            mlost_count=r.number("mlost_count", "mlost_count", 5),
            slost_count=r.number("slost_count", "slost_count", 5),
        )

    def _vip(self, node: Node, mode: str) -> Vip:
        r = self._reader(node, "vip")
        listed = [i for entry in node.named("interface_list")[:1] for i in entry.named("interface")]
        groups = [g for entry in node.named("loadbalancing_list")[:1] for g in entry.named("group")]
        if not any(child.tag == "interface" for n in node.walk() for child in n.children):
            self._error("vip", "there is no <interface>; expected <interface_list> with at least one")
        return Vip(
            tcpreset=r.onoff("tcpreset", "tcpreset", True),
            interfaces=tuple(self._interface(n, f"vip.interfaces[{i}]", mode) for i, n in enumerate(listed)),
            groups=tuple(self._group(n, f"vip.groups[{i}]") for i, n in enumerate(groups)),
            engine=cast(Any, r.text("engine", "engine", "nftables")),
        )

    def _interface(self, node: Node, path: str, mode: str) -> Interface:
        r = self._reader(node, path)
        holders = node.named("real_interface") + node.named("virtual_interface")
        if len(holders) > 1:
            self._error(path, "both <real_interface> and <virtual_interface> are given; expected one of them")
        kind, mac = "real", None
        addresses: list[VirtualAddr] = []
        if not any(child.tag == "virtual_addr" for n in node.walk() for child in n.children):
            self._error(path, "there is no <virtual_addr>; expected at least one in a <real_interface>")
        for holder in holders[:1]:
            if holder.tag == "virtual_interface":
                h = Reader(holder, path, self.places)
                kind = h.text("type", "kind", "vmac_directed")
                mac = h.optional("addr", "mac")
                if not self.places.written(f"{path}.kind"):
                    self.places.note(f"{path}.kind", holder.line, holder.tag)
            default = "alias" if kind != "real" and mode == "farm" else "one_side_alias"
            for index, child in enumerate(holder.named("virtual_addr")):
                a = self._reader(child, f"{path}.addresses[{index}]")
                addresses.append(
                    VirtualAddr(
                        addr=a.text("addr", "addr", ""),
                        where=cast(Any, a.text("where", "where", default)),
                        check=a.onoff("check", "check", True),
                        netmask=a.optional("netmask", "netmask"),
                    )
                )
        return Interface(
            addresses=tuple(addresses),
            kind=cast(Any, kind),
            check=r.onoff("check", "check", True),
            arpreroute=r.onoff("arpreroute", "arpreroute", False),
            arpinterval=r.number("arpinterval", "arpinterval", 60),
            arpelapse=r.number("arpelapse", "arpelapse", 1200),
            name=r.optional("name", "name"),
            mac=mac,
        )

    def _group(self, node: Node, path: str) -> Group:
        r = self._reader(node, path)
        hosts, rules = [], []
        for index, child in enumerate([h for c in node.named("cluster")[:1] for h in c.named("host")]):
            h = self._reader(child, f"{path}.hosts[{index}]")
            hosts.append(Host(name=h.text("name", "name", ""), power=h.number("power", "power", 1)))
        for index, child in enumerate(node.named("rule")):
            x = self._reader(child, f"{path}.rules[{index}]")
            port = x.text("port", "port", "*")
            addr = x.text("virtual_addr", "virtual_addr", "*")
            rules.append(
                Rule(
                    proto=cast(Any, x.text("proto", "proto", "tcp")),
                    filter=cast(Any, x.text("filter", "filter", "on_addr")),
                    virtual_addr=None if addr == "*" else addr,
                    port=None if port == "*" else int(port),
                )
            )
        return Group(name=r.text("name", "name", ""), hosts=tuple(hosts), rules=tuple(rules))

    def _rfs(self, node: Node, module_id: int, heart: Heart | None) -> Rfs:
        r = self._reader(node, "rfs")
        for attribute, purpose in _WINDOWS_ONLY.items():
            if attribute in node.attributes:
                self.places.note(f"rfs.{attribute}", node.line_of(attribute), f"rfs {attribute}")
                self._warn(f"rfs.{attribute}", f"{purpose} has no meaning on Linux; the attribute is ignored")
        packetsize = r.optional_number("packetsize", "packetsize")
        if packetsize is not None:
            self._warn("rfs.packetsize", "there is no NFS mount on this system: it only bounds reipacketsize")
        default_rei = min(packetsize or DEFAULT_REIPACKETSIZE, DEFAULT_REIPACKETSIZE)
        reipacketsize = r.number("reipacketsize", "reipacketsize", default_rei)
        zone_default = reipacketsize if "reipacketsize" in node.attributes else DEFAULT_REIPACKETSIZE
        policy = r.number("namespacepolicy", "namespacepolicy", 4)
        if policy != 4:
            self._warn(
                "rfs.namespacepolicy",
                "a complete copy that is interrupted begins again, with 4 it goes on; zones are used all the same",
            )
        if r.number("nbremconn", "nbremconn", 1) != 1:
            self._warn("rfs.nbremconn", "one connection carries all changes in their order; the attribute is ignored")
        replicated = tuple(self._replicated(n, f"rfs.replicated[{i}]") for i, n in enumerate(node.named("replicated")))
        return Rfs(
            replicated=replicated,
            async_mode=cast(Any, r.text("async", "async_mode", "second")),
            acl=r.onoff("acl", "acl", False),
            locktimeout=r.number("locktimeout", "locktimeout", 100),
            sendtimeout=r.number("sendtimeout", "sendtimeout", 30),
            nbrei=r.number("nbrei", "nbrei", 3),
            ruzone_blocksize=r.number("ruzone_blocksize", "ruzone_blocksize", zone_default),
            reipacketsize=reipacketsize,
            packetsize=packetsize,
            reitimeout=r.number("reitimeout", "reitimeout", 150),
            reicommit=r.number("reicommit", "reicommit", 0),
            reidetail=r.onoff("reidetail", "reidetail", False),
            nbremconn=r.number("nbremconn", "nbremconn", 1),
            checktime=r.number("checktime", "checktime", 220000),
            checkintv=r.number("checkintv", "checkintv", 120),
            reiallowedbw=r.optional_number("reiallowedbw", "reiallowedbw"),
            scripts=r.onoff("scripts", "scripts", False),
            namespacepolicy=policy,
            syncdelta=r.number("syncdelta", "syncdelta", 0),
            syncat=r.optional("syncat", "syncat"),
            cache=cast(Any, r.text("cache", "cache", "none")),
            suffix=r.text("mountoversuffix", "suffix", DEFAULT_SUFFIX),
            flow=self._flow(node, heart),
            port=ports.rfs_port(module_id),
        )

    def _flow(self, node: Node, heart: Heart | None) -> str:
        for child in node.named("flow")[:1]:
            return self._lan_name(child, self._reader(child, "rfs.flow"), "server")
        if heart is None or not heart.heartbeats:
            return ""
        return (heart.heartbeat("flow") or heart.heartbeats[0]).name

    def _replicated(self, node: Node, path: str) -> Replicated:
        r = self._reader(node, path)
        directory = r.text("dir", "dir", "")
        lists: dict[str, list[str]] = {"tocheck": [], "notreplicated_paths": [], "notreplicated_regex": []}

        def take(child: Node, attribute: str, target: str) -> None:
            at = f"{path}.{target}[{len(lists[target])}]"
            self.places.note(at, child.line_of(attribute), f"{child.tag} {attribute}")
            value = child.attributes[attribute]
            lists[target].append(value if attribute == "regexpath" else posixpath.normpath(value))

        for child in node.named("tocheck"):
            take(child, "path", "tocheck")
        for child in node.named("notreplicated"):
            given = [a for a in ("path", "regexpath") if a in child.attributes]
            if len(given) != 1:
                self.findings.append(
                    Finding(self.places.file, child.line, child.tag, "expected either path or regexpath")
                )
                continue
            take(child, given[0], "notreplicated_paths" if given[0] == "path" else "notreplicated_regex")
        return Replicated(
            dir=directory.rstrip("/") or directory[:1],
            read_only=r.text("mode", "read_only", "") == "read_only",
            notreplicated_paths=tuple(lists["notreplicated_paths"]),
            notreplicated_regex=tuple(lists["notreplicated_regex"]),
            tocheck=tuple(lists["tocheck"]),
        )

    def _user(self, node: Node) -> User:
        r = self._reader(node, "user")
        variables = []
        for index, child in enumerate(node.named("var")):
            v = self._reader(child, f"user.vars[{index}]")
            variables.append((v.text("name", "name", ""), v.text("value", "value", "")))
        return User(
            nicestoptimeout=r.number("nicestoptimeout", "nicestoptimeout", 300),
            forcestoptimeout=r.number("forcestoptimeout", "forcestoptimeout", 300),
            logging=cast(Any, r.text("logging", "logging", "userlog")),
            userlogsize_kb=r.number("userlogsize", "userlogsize_kb", 2048),
            vars=tuple(variables),
        )

    def _vhost(self, node: Node) -> tuple[VirtualHostname, ...]:
        self._reader(node, "vhost")
        names = []
        for index, child in enumerate(node.named("virtualhostname")):
            v = self._reader(child, f"vhost[{index}]")
            when = v.text("when", "when", "prim")
            names.append(VirtualHostname(v.text("name", "name", ""), v.text("envfile", "envfile", ""), cast(Any, when)))
        return tuple(names)

    def _failover(self, node: Node) -> Failover:
        r = self._reader(node, "failover")
        # whole blank lines go, the indentation of the first rule stays: messages tell columns
        rules = re.sub(r"\A(?:[^\S\n]*\n)+", "", node.text).rstrip()
        if rules:
            self.places.note("failover.rules", node.text_line, "failover")
        return Failover(
            extends=r.text("extends", "extends", "yes") == "yes",
            period_ms=r.number("period", "period_ms", 5000),
            handle_time_ms=r.number("handle_time", "handle_time_ms", 15000),
            rules=rules,
            rules_line=node.text_line if rules else 0,
        )
