"""What must hold between the values of a configuration, and between it and the cluster.

Everything here is pure: no file, no socket, no clock. What needs the machine is in
safekit.model.machine. `defaultprim` may be a node or a host name (13.2.3); a host name cannot be
judged here, so an unknown one is a warning.
"""

from __future__ import annotations

import ipaddress
import posixpath
import re
import shlex
from collections import Counter
from collections.abc import Callable, Iterable

from safekit.model import schedule
from safekit.model.findings import Finding, Places
from safekit.model.programs import ACTIONS
from safekit.model.regex import BadExpression, Expression
from safekit.model.types import (
    ClusterConfig,
    Errd,
    Heart,
    Heartbeat,
    LanNode,
    ModuleConfig,
    Replicated,
    Rfs,
    SplitbrainCheck,
    Vip,
    VirtualAddr,
)

_PATH_PART_MAX = 255
_PAIR = 2
_ADDRESS = re.compile(r"[A-Za-z0-9_.:%\-]{1,253}")
_HTTP_URL = re.compile(r"https?://(\[[0-9A-Fa-f:.%]+\]|[A-Za-z0-9_.\-]+)(:[0-9]{1,5})?(/[!-~]*)?")


def ip_address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The address that `text` is; None for a host name."""
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def check_module(config: ModuleConfig, cluster: ClusterConfig, places: Places) -> list[Finding]:
    """Every finding about the tree itself and about its references to the cluster."""
    checker = _Checker(config, cluster, places)
    checker.run()
    return checker.findings


class _Checker:
    def __init__(self, config: ModuleConfig, cluster: ClusterConfig, places: Places) -> None:
        self.config = config
        self.cluster = cluster
        self.places = places
        self.findings: list[Finding] = []

    def error(self, path: str, message: str) -> None:
        self.findings.append(self.places.finding(path, message))

    def warn(self, path: str, message: str) -> None:
        self.findings.append(self.places.finding(path, message, "warning"))

    def run(self) -> None:
        config = self.config
        self._mode()
        self._service()
        if config.heart is not None:
            self._heart(config.heart)
        if config.farm is not None:
            for index, lan in enumerate(config.farm.lans):
                self._lan(lan.name, f"farm.lans[{index}].name")
        if config.rfs is not None:
            self._rfs(config.rfs)
            self._syncat(config.rfs)
        if config.vip is not None:
            self._vip(config.vip)
            self._balancing(config.vip)
        if config.errd is not None:
            self._errd(config.errd)
        self._checkers()
        self._user_and_vhost()
        self._failover()

    # ------------------------------------------------------------------- parts

    def _mode(self) -> None:
        mode = self.config.service.mode
        sections: tuple[tuple[str, object, str], ...] = (
            ("heart", self.config.heart, "mirror"),
            ("rfs", self.config.rfs, "mirror"),
            ("farm", self.config.farm, "farm"),
        )
        for name, value, wanted in sections:
            if value is not None and mode != wanted:
                self.error(name, f'not allowed with mode="{mode}"; expected only with mode="{wanted}"')
        if mode == "mirror" and self.config.heart is None:
            self.error("service", "a mirror has no <heart>; expected <heart> with at least one <heartbeat>")
        if mode == "farm" and self.config.farm is None:
            self.error("service", "a farm has no <farm>; expected <farm> with at least one <lan>")

    def _service(self) -> None:
        service = self.config.service
        if service.mode != "mirror":
            for attribute in ("failover", "defaultprim"):
                if self.places.written(f"service.{attribute}"):
                    self.warn(f"service.{attribute}", "only a mirror module uses it; the attribute is ignored")
        known = {"alone", "lastprim", *(name.lower() for name in self.cluster.node_names)}
        if service.defaultprim.lower() not in known:
            self.warn(
                "service.defaultprim",
                f'"{service.defaultprim}" is not a node of the cluster and is taken as a host name; '
                f"expected alone, lastprim or one of {', '.join(self.cluster.node_names)}",
            )

    def _lan(self, name: str, path: str) -> None:
        if not name:
            return
        lan = self.cluster.lan(name)
        framework = ", ".join(known.name for known in self.cluster.framework_lans) or "none"
        if lan is None:
            self.error(path, f'"{name}" is not a lan of the cluster; expected one of {framework}')
        elif not lan.framework:
            self.error(path, f'the lan "{name}" has framework="off" in cluster.xml; expected one of {framework}')

    def _heart(self, heart: Heart) -> None:
        path = "heart.heartbeats[{}]".format
        for index, beat in enumerate(heart.heartbeats):
            self._lan(beat.name, f"{path(index)}.name")
            if beat.timeout_ms <= beat.pulse_ms:
                self.error(
                    f"{path(index)}.timeout_ms",
                    f"the timeout of {beat.timeout_ms} ms is not longer than the pulse of {beat.pulse_ms} ms; "
                    "expected several pulses",
                )
            elif beat.timeout_ms < 3 * beat.pulse_ms:
                self.warn(
                    f"{path(index)}.timeout_ms",
                    f"the timeout of {beat.timeout_ms} ms is less than three pulses of {beat.pulse_ms} ms; "
                    "one lost packet may look like the death of the peer",
                )
        self._pair(heart)
        idents = [(beat.ident, f"{path(i)}.ident") for i, beat in enumerate(heart.heartbeats) if beat.ident]
        self._unique(idents, "the ident {!r} is used by two heartbeats; give each its own")
        flows = [(f"{b.name} {b.port}", f"{path(i)}.name") for i, b in enumerate(heart.heartbeats) if b.name]
        self._unique(flows, "two heartbeats use the same lan and port ({}); remove one")
        flow = next((i for i, beat in enumerate(heart.heartbeats) if beat.ident == "flow"), None)
        if flow is not None and self.config.rfs is None:
            self.warn(
                f"{path(flow)}.ident",
                'ident="flow" without <rfs> blocks the start in the WAIT state; expected another ident or an <rfs>',
            )

    def _pair(self, heart: Heart) -> None:
        """A heartbeat is a flow on a network shared by a pair of servers (13.3): the lans have to tell which pair."""
        if not heart.heartbeats or any(self.cluster.lan(beat.name) is None for beat in heart.heartbeats):
            return
        nodes = self.config.nodes(self.cluster)
        if len(nodes) != _PAIR:
            self.error(
                "heart.heartbeats[0].name",
                f"a mirror runs on two servers, the lans of its heartbeats share {len(nodes)} "
                f"({', '.join(nodes) or 'none'}); add a <lan> to cluster.xml that has the two servers of this module "
                "only (it may repeat addresses of another lan), and use its name",
            )

    def _unique(self, items: Iterable[tuple[str, str]], message: str) -> None:
        seen: set[str] = set()
        for value, path in items:
            if value in seen:
                self.error(path, message.format(value))
            seen.add(value)

    def _rfs(self, rfs: Rfs) -> None:
        if rfs.packetsize is not None and rfs.reipacketsize > rfs.packetsize:
            self.error(
                "rfs.reipacketsize", f"{rfs.reipacketsize} is more than packetsize; expected at most {rfs.packetsize}"
            )
        if rfs.ruzone_blocksize % rfs.reipacketsize:
            self.error(
                "rfs.ruzone_blocksize",
                f"{rfs.ruzone_blocksize} is not a multiple of reipacketsize; "
                f"expected a multiple of {rfs.reipacketsize}",
            )
        if not rfs.replicated and not rfs.scripts and not self.places.written("rfs.replicated[0]"):
            self.error("rfs", "there is no usable <replicated>; expected at least one directory")
        if self.places.written("rfs.flow.name"):
            self._lan(rfs.flow, "rfs.flow.name")
            beats = self.config.heart.heartbeats if self.config.heart else ()
            marked = next((beat for beat in beats if beat.ident == "flow"), None)
            if marked is not None and marked.name != rfs.flow:
                self.warn(
                    "rfs.flow.name",
                    f'the heartbeat with ident="flow" is on "{marked.name}"; expected the same lan as <flow>',
                )
        for index, replicated in enumerate(rfs.replicated):
            self._replicated(replicated, f"rfs.replicated[{index}]", rfs.suffix)
        self._overlaps(rfs)

    def _replicated(self, replicated: Replicated, path: str, suffix: str) -> None:
        directory = replicated.dir
        if not directory.startswith("/"):
            self.error(f"{path}.dir", f'"{directory}" is not an absolute path; expected a path from /')
        elif directory == "/":
            self.error(f"{path}.dir", "the root of the system cannot be replicated; expected a directory below it")
        elif posixpath.normpath(directory) != directory:
            self.error(f"{path}.dir", f"not a plain path; expected {posixpath.normpath(directory)}")
        elif len((posixpath.basename(directory) + suffix).encode()) > _PATH_PART_MAX:
            self.error(f"{path}.dir", "the name with its suffix is too long for a file name")
        elif "\0" in directory or "\n" in directory:
            self.error(f"{path}.dir", "the path holds a control character")
        for field in ("tocheck", "notreplicated_paths"):
            for index, relative in enumerate(getattr(replicated, field)):
                normal = posixpath.normpath(relative)
                if relative.startswith("/") or normal in (".", "..") or normal.startswith("../"):
                    message = f'"{relative}" is not below {directory}; expected a relative path'
                    self.error(f"{path}.{field}[{index}]", message)
        for index, expression in enumerate(replicated.notreplicated_regex):
            at = f"{path}.notreplicated_regex[{index}]"
            self._regex(expression, at, of_names=True)
            if expression.startswith("/"):
                self.warn(at, "paths are matched relative to the replicated directory and never begin with /")

    def _overlaps(self, rfs: Rfs) -> None:
        seen: list[str] = []
        for index, replicated in enumerate(rfs.replicated):
            if not replicated.dir.strip("/"):
                continue
            for other in seen:
                if overlap(replicated.dir, other, rfs.suffix, rfs.suffix):
                    self.error(
                        f"rfs.replicated[{index}].dir",
                        f"{replicated.dir} overlaps with the replicated directory {other}; "
                        "expected directories outside each other",
                    )
            seen.append(replicated.dir)

    def _vip(self, vip: Vip) -> None:
        mode = self.config.service.mode
        addresses: list[tuple[str, str]] = []
        for number, interface in enumerate(vip.interfaces):
            path = f"vip.interfaces[{number}]"
            if interface.kind == "real" and mode == "farm":
                self.error(path, "a farm uses <virtual_interface>; <real_interface> belongs to a mirror")
            for index, address in enumerate(interface.addresses):
                at = f"{path}.addresses[{index}]"
                self._virtual_addr(address, at)
                wanted = "alias" if mode == "farm" else "one_side_alias"
                if address.where != wanted and mode != "light":
                    self.error(f"{at}.where", f'"{address.where}" does not fit a {mode} module; expected "{wanted}"')
                parsed = ip_address(address.addr)
                addresses.append((str(parsed or address.addr.lower()), f"{at}.addr"))
        self._unique(addresses, "the virtual address {} is configured twice; keep one")

    def _virtual_addr(self, address: VirtualAddr, path: str) -> None:
        parsed = ip_address(address.addr)
        if parsed is not None and (parsed.is_loopback or parsed.is_multicast or parsed.is_unspecified):
            self.error(f"{path}.addr", f"{address.addr} cannot be a virtual address; expected a unicast address")
        for lan in self.cluster.lans:
            for node in lan.nodes:
                if parsed is not None and parsed in (ip_address(node.addr), ip_address(node.bind_address)):
                    self.error(
                        f"{path}.addr",
                        f'{address.addr} is the address of {node.name} on the lan "{lan.name}"; '
                        "expected an address of its own",
                    )
        if address.netmask is None:
            return
        if isinstance(parsed, ipaddress.IPv6Address):
            self.error(f"{path}.netmask", "a netmask is for IPv4 only; remove the attribute")
        elif not valid_netmask(address.netmask):
            self.error(f"{path}.netmask", f'"{address.netmask}" is not a netmask; expected one such as 255.255.255.0')

    def _balancing(self, vip: Vip) -> None:
        if vip.groups and self.config.service.mode != "farm":
            self.warn("vip.groups[0]", "load balancing is for farm modules; the groups are ignored")
        self._unique(
            [(group.name, f"vip.groups[{i}].name") for i, group in enumerate(vip.groups)],
            "the group name {!r} is used twice; give each its own",
        )
        configured = {str(ip_address(a.addr) or a.addr) for i in vip.interfaces for a in i.addresses}
        for number, group in enumerate(vip.groups):
            path = f"vip.groups[{number}]"
            for index, host in enumerate(group.hosts):
                if host.name not in self.cluster.node_names:
                    self.error(
                        f"{path}.hosts[{index}].name",
                        f'"{host.name}" is not a node of the cluster; '
                        f"expected one of {', '.join(self.cluster.node_names)}",
                    )
            self._unique(
                [(host.name, f"{path}.hosts[{i}].name") for i, host in enumerate(group.hosts)],
                "the host {!r} appears twice; keep one",
            )
            if group.hosts and not any(host.power for host in group.hosts):
                self.error(path, "every host has power 0; expected at least one above 0")
            if not group.rules:
                self.error(path, "there is no <rule>; expected at least one")
            for index, rule in enumerate(group.rules):
                at = f"{path}.rules[{index}]"
                if rule.port is not None and not 1 <= rule.port <= 65535:
                    self.error(f"{at}.port", f"{rule.port} is not a port; expected 1 to 65535, or *")
                if rule.filter == "on_ipid" and rule.proto != "udp":
                    self.error(f"{at}.filter", f'on_ipid does not fit proto="{rule.proto}"; expected proto="udp"')
                if rule.filter == "on_port" and rule.proto == "arp":
                    self.error(f"{at}.filter", 'on_port does not fit proto="arp"; expected "on_addr"')
                if rule.virtual_addr is not None:
                    wanted = str(ip_address(rule.virtual_addr) or rule.virtual_addr)
                    if wanted not in configured:
                        self.error(
                            f"{at}.virtual_addr",
                            f"{rule.virtual_addr} is not a <virtual_addr> of this module; expected one, or *",
                        )

    def _errd(self, errd: Errd) -> None:
        if self.config.user is None:
            self.error("errd", "it needs the user scripts; expected a <user/> section")
        self._unique(
            [(proc.name, f"errd.procs[{i}].name") for i, proc in enumerate(errd.procs)],
            "the name {!r} is used by two <proc>; give each its own (use nameregex for the command)",
        )
        for index, proc in enumerate(errd.procs):
            path = f"errd.procs[{index}]"
            for field in ("nameregex", "argregex"):
                expression = getattr(proc, field)
                if expression is not None:
                    self._regex(expression, f"{path}.{field}")
            if proc.service and (proc.nameregex or proc.argregex):
                self.error(path, 'service="yes" and an expression exclude each other; expected one of them')
            mode = self.config.service.mode
            if mode != "mirror" and proc.proc_class in ("prim", "second", "sec"):
                never = f'class="{proc.proc_class}" never comes in a {mode} module; expected class="both"'
                self.warn(f"{path}.proc_class", never)
            if proc.action not in ACTIONS and proc.proc_class in ("prim", "both", "pre", "second", "sec"):
                self.error(
                    f"{path}.proc_class",
                    f'the handler "{proc.action}" needs a class of its own; '
                    f"expected another name than {proc.proc_class}",
                )

    def _regex(self, expression: str, path: str, *, of_names: bool = False) -> None:
        """Compiled as it will be used: on names of files, which are bytes, or on commands, which are text."""
        try:
            Expression(expression, of_names=of_names)
        except BadExpression as error:
            self.error(path, f"not a regular expression: {error}; expected one as in man regex")

    def _checkers(self) -> None:
        check = self.config.check
        for kind in ("tcp", "ping", "intf", "ip", "custom", "module"):
            items = [(c.ident, f"check.{kind}[{i}].ident") for i, c in enumerate(getattr(check, kind))]
            self._unique(items, f"the ident {{!r}} is used by two <{kind}> checkers; give each its own")
        if check.splitbrain is not None and self.config.service.mode != "mirror":
            self.error("check.splitbrain", "the split-brain checker is for mirror modules only")
        if check.splitbrain is not None:
            self._witness(check.splitbrain)
        for index, custom in enumerate(check.custom):
            try:
                shlex.split(custom.arg)
            except ValueError as error:
                message = f"{custom.arg!r}: {error}; expected words as a shell reads them"
                self.error(f"check.custom[{index}].arg", message)
        for index, module in enumerate(check.module):
            if module.name == self.config.name and module.addr in ("127.0.0.1", "::1"):
                self.error(f"check.module[{index}].name", "a module cannot wait for itself; expected another module")

    def _witness(self, check: SplitbrainCheck) -> None:
        at, arg = "check.splitbrain.arg", check.arg
        own = {node.name for beat in self._heartbeats() for node in self._nodes_of(beat.name)}
        if check.exec == "http" and not _HTTP_URL.fullmatch(arg):
            self.error(at, f'"{arg}" is not an URL; expected one such as http://10.0.0.9:8080/alive')
        elif check.exec == "ping" and not _ADDRESS.fullmatch(arg):
            self.error(at, f'"{arg}" is not an address; expected an IPv4 or IPv6 address, or a host name')
        elif check.exec == "node" and arg not in self.cluster.node_names:
            known = ", ".join(self.cluster.node_names)
            self.error(at, f'"{arg}" is not a node of the cluster; expected a third server among {known}')
        elif check.exec == "node" and arg in own and len(own) <= _PAIR:
            self.error(at, f'"{arg}" runs this module itself; expected a third server')

    def _heartbeats(self) -> tuple[Heartbeat, ...]:
        return self.config.heart.heartbeats if self.config.heart is not None else ()

    def _nodes_of(self, name: str) -> tuple[LanNode, ...]:
        lan = self.cluster.lan(name)
        return lan.nodes if lan is not None else ()

    def _user_and_vhost(self) -> None:
        if self.config.user is not None:
            names = Counter(name for name, _ in self.config.user.vars)
            for index, (name, _) in enumerate(self.config.user.vars):
                if names[name] > 1:
                    self.error(f"user.vars[{index}].name", f"the variable {name} is set more than once; keep one")
                if name in RESERVED_VARIABLES:
                    self.error(f"user.vars[{index}].name", f"{name} is set by the product; expected another name")
        self._unique(
            [(host.envfile, f"vhost[{i}].envfile") for i, host in enumerate(self.config.vhost)],
            "the file {!r} is used twice; give each virtual host name its own",
        )
        for index, host in enumerate(self.config.vhost):
            normal = posixpath.normpath(host.envfile)
            if not host.envfile.startswith("/") and (normal == "." or normal.split("/")[0] == ".."):
                self.error(
                    f"vhost[{index}].envfile",
                    f'"{host.envfile}" is not below SAFEUSERBIN; expected a relative path there, or an absolute one',
                )

    def _syncat(self, rfs: Rfs) -> None:
        if rfs.syncat is None:
            return
        try:
            schedule.parse(rfs.syncat)
        except schedule.ScheduleError as error:
            self.error("rfs.syncat", str(error))

    def _failover(self) -> None:
        failover = self.config.failover
        if failover.handle_time_ms % failover.period_ms:
            self.error(
                "failover.handle_time_ms",
                f"{failover.handle_time_ms} ms is not a multiple of the period; "
                f"expected a multiple of {failover.period_ms}",
            )
        if not failover.extends and not failover.rules:
            self.warn("failover.extends", "the default rules are switched off and no rule takes their place")


RESERVED_VARIABLES = frozenset({"SAFE", "SAFEVAR", "SAFEBIN", "SAFEMODULE", "SAFEUSERBIN", "SAFEUSERVAR", "PATH"})


def valid_netmask(netmask: str) -> bool:
    """A contiguous dotted quad other than 0.0.0.0."""
    if netmask.count(".") != 3 or netmask == "0.0.0.0":
        return False
    try:
        return str(ipaddress.IPv4Network(f"0.0.0.0/{netmask}").netmask) == netmask
    except ValueError:
        return False


def overlap(one: str, other: str, suffix: str, other_suffix: str) -> bool:
    """Whether two replicated directories, or where their data is, are the same or inside each other."""
    mine = {one, one + suffix}
    theirs = {other, other + other_suffix}
    return any(a == b or _inside(a, b) or _inside(b, a) for a in mine for b in theirs)


def _inside(path: str, parent: str) -> bool:
    return path.startswith(parent.rstrip("/") + "/")


#: What the product does not do yet: a test of the tree, the place to show, and what to call it.
UNSUPPORTED: tuple[tuple[Callable[[ModuleConfig], bool], str, str], ...] = (
    (lambda c: c.rfs is not None and c.rfs.scripts, "rfs.scripts", "external replication by scripts"),
)


def unsupported(config: ModuleConfig, places: Places) -> list[Finding]:
    """What the file asks for and this release does not do. Each is an error: a checker that never runs or
    a rule that never fires would be found out on the day it is needed."""
    return [
        places.finding(path, f"{what} are not supported by this release yet; remove it to configure the module")
        for test, path, what in UNSUPPORTED
        if test(config)
    ]
