"""What can be read of a module and of this server beyond state and log; nothing here changes anything."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from aiohttp import web
from lxml import etree

from safekit.bus.asking import Ask, Document
from safekit.bus.endpoint import BusError, Endpoint
from safekit.bus.requests import nfsadmin_status, vipd
from safekit.configuration import ConfigureError, active_stamp, current_signature, module_id
from safekit.disk.archive import ArchiveError, unpack
from safekit.disk.paths import ModulePaths, cluster_dir, node_name, safe, valid_module_name
from safekit.log import commands as command_log
from safekit.log.timeline import utc
from safekit.model import schema
from safekit.model.cluster import ClusterError, load_cluster, load_cluster_xml
from safekit.model.findings import ConfigError, Finding
from safekit.model.lastconfig import DamagedCopy, copies_of
from safekit.model.module import examine_module
from safekit.model.types import ClusterConfig
from safekit.view.decisions import Decision, history, last
from safekit.view.story import sentence
from safewebserver.api import PREFIX, ApiError, json_of, need, number_of, reply
from safewebserver.forms import form_of
from safewebserver.modules import paths_of
from safewebserver.permissions import Role

MAX_LINES = 10_000
MAX_TAIL = 4 << 20
KINDS = ("generic", "demo", "other", "backup")
SCHEMAS = ("userconfig", "cluster")
VIEWS = "webconsole/monitor"

Row = dict[str, Any]


class Readings:
    """The handlers."""

    def __init__(self, bus: Endpoint | None) -> None:
        self._bus = bus

    def routes(self) -> list[web.RouteDef]:
        """Their routes."""
        module = PREFIX + "/modules/{module}"
        return [
            web.get(f"{PREFIX}/who", self.who),
            web.get(f"{PREFIX}/cluster", self.cluster),
            web.get(f"{PREFIX}/templates", self.templates),
            web.get(f"{PREFIX}/views", self.views),
            web.get(f"{PREFIX}/commands", self.commands),
            web.get(PREFIX + "/schema/{name}", self.schema),
            web.post(f"{PREFIX}/check", self.check),
            web.get(module + "/why", self.why),
            web.get(module + "/userlog", self.userlog),
            web.get(module + "/configuration", self.configuration),
            web.get(module + "/configurations", self.configurations),
            web.get(module + "/configurations/{number}", self.former),
            web.get(module + "/replication", self.replication),
            web.get(module + "/farm", self.farm),
        ]

    async def who(self, request: web.Request) -> web.StreamResponse:
        """The name of this server, for an administrator who types its address. No password: it is no secret."""
        return reply(request, {"node": node_name()})

    async def cluster(self, request: web.Request) -> web.StreamResponse:
        """cluster.xml as it is, and as data."""
        need(request, Role.MONITOR)
        xml = await asyncio.to_thread(_text, cluster_dir() / "cluster.xml")
        lans: list[Row] = []
        with contextlib.suppress(ClusterError):
            lans = [_lan(lan) for lan in load_cluster().lans]
        return reply(request, {"node": node_name(), "xml": xml, "lans": lans})

    async def templates(self, request: web.Request) -> web.StreamResponse:
        """The .safe files of SAFE/Application_Modules by kind (guide 3.4.1)."""
        need(request, Role.MONITOR)
        base = safe() / "Application_Modules"
        found = {kind: sorted(path.stem for path in (base / kind).glob("*.safe")) for kind in KINDS}
        return reply(request, {"node": node_name(), "kinds": found})

    async def views(self, request: web.Request) -> web.StreamResponse:
        """The administrators' own lists of modules (guide 14.6.2)."""
        need(request, Role.MONITOR)
        return reply(request, {"node": node_name(), "views": await asyncio.to_thread(_views)})

    async def commands(self, request: web.Request) -> web.StreamResponse:
        """The commands log: of a module with the global ones, or of all (guide 10.10)."""
        need(request, Role.MONITOR)
        module = request.query.get("module")
        if module is not None and not valid_module_name(module):
            raise ApiError(400, "malformed", "this is not the name of a module")
        count = int(number_of(request.query.get("lines"), 300, 1, MAX_LINES, "lines"))
        return reply(request, {"node": node_name(), "entries": await asyncio.to_thread(_commands, module, count)})

    async def schema(self, request: web.Request) -> web.StreamResponse:
        """Elements, attributes and their meaning, for an editor."""
        need(request, Role.MONITOR)
        name = request.match_info["name"]
        if name not in SCHEMAS:
            raise ApiError(404, "no_schema", f"the schemas are {', '.join(SCHEMAS)}")
        loaded = schema.load(name)
        return reply(request, {"name": name, "root": loaded.root, "element": _shape(loaded.shape)})

    async def check(self, request: web.Request) -> web.StreamResponse:
        """What is wrong with a userconfig.xml or cluster.xml that is not saved yet."""
        need(request, Role.ADMIN)
        data = await json_of(request)
        kind, text, module = data.get("kind"), data.get("text"), data.get("module", "")
        if kind not in SCHEMAS or not isinstance(text, str) or not isinstance(module, str):
            raise ApiError(400, "malformed", "expected kind (userconfig or cluster), text and module")
        if module and not valid_module_name(module):
            raise ApiError(400, "malformed", "this is not the name of a module")
        try:
            content = text.encode()
        except UnicodeEncodeError:
            raise ApiError(400, "malformed", "the text has half a character") from None
        found = await asyncio.to_thread(_check, kind, content, module)
        return reply(request, {"findings": [_finding(each) for each in found]})

    async def why(self, request: web.Request) -> web.StreamResponse:
        """The last decisions, as `safekit why` explains them."""
        need(request, Role.MONITOR)
        paths = paths_of(request.match_info["module"])
        count = int(number_of(request.query.get("lines"), 30, 1, 1000, "lines"))
        found = await asyncio.to_thread(lambda: last(history(paths.why), count))
        return reply(request, {"node": node_name(), "decisions": [_decision(each) for each in found]})

    async def userlog(self, request: web.Request) -> web.StreamResponse:
        """The end of the application log."""
        need(request, Role.MONITOR)
        paths = paths_of(request.match_info["module"])
        count = int(number_of(request.query.get("lines"), 300, 1, MAX_LINES, "lines"))
        return reply(request, {"node": node_name(), "lines": await asyncio.to_thread(_tail, paths.userlog, count)})

    async def configuration(self, request: web.Request) -> web.StreamResponse:
        """The active configuration and the one that can be edited; whether they differ."""
        need(request, Role.CONTROL)
        paths = paths_of(request.match_info["module"])
        return reply(request, {"node": node_name(), **await asyncio.to_thread(_configuration, paths)})

    async def configurations(self, request: web.Request) -> web.StreamResponse:
        """The last configurations that were applied, the latest first."""
        need(request, Role.MONITOR)
        paths = paths_of(request.match_info["module"])
        try:
            copies = await asyncio.to_thread(copies_of, paths.module)
        except DamagedCopy as damaged:
            raise ApiError(409, "damaged", str(damaged), damaged.next_step) from None
        rows = [
            {"number": number, "name": copy.path.name, "applied": copy.applied, "signature": copy.signature}
            for number, copy in enumerate(copies, 1)
        ]
        return reply(request, {"node": node_name(), "configurations": rows})

    async def former(self, request: web.Request) -> web.StreamResponse:
        """userconfig.xml of one of them, to compare."""
        need(request, Role.CONTROL)
        paths = paths_of(request.match_info["module"])
        number = int(number_of(request.match_info["number"], 1, 1, 1000, "number"))
        try:
            copies = await asyncio.to_thread(copies_of, paths.module)
        except DamagedCopy as damaged:
            raise ApiError(409, "damaged", str(damaged), damaged.next_step) from None
        if number > len(copies):
            raise ApiError(404, "no_configuration", f"module {paths.module} has {len(copies)} kept configurations")
        copy = copies[number - 1]
        text = await asyncio.to_thread(_of_archive, copy.path, paths.module)
        return reply(request, {"node": node_name(), "name": copy.path.name, "userconfig": text})

    async def replication(self, request: web.Request) -> web.StreamResponse:
        """What nfsadmin says of the replicated directories."""
        need(request, Role.MONITOR)
        return reply(request, await self._ask(paths_of(request.match_info["module"]), nfsadmin_status.GetStatus()))

    async def farm(self, request: web.Request) -> web.StreamResponse:
        """What vipd says of the sharing of the load."""
        need(request, Role.MONITOR)
        return reply(request, await self._ask(paths_of(request.match_info["module"]), vipd.GetStatus()))

    async def _ask(self, paths: ModulePaths, ask: Ask[Document]) -> Row:
        answer: Row = {}
        live = False
        if self._bus is not None:
            with contextlib.suppress(BusError):
                answer = await self._bus.ask(paths.module, ask, timeout=2.0)
                live = True
        return {"node": node_name(), "live": live, "status": answer}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, NotADirectoryError):
        return ""


def _lan(lan: Any) -> Row:
    return {
        "name": lan.name,
        "console": bool(lan.console),
        "framework": bool(lan.framework),
        "command": bool(lan.command),
        "nodes": [{"name": node.name, "addr": node.addr, "laddr": node.laddr or ""} for node in lan.nodes],
    }


def _commands(module: str | None, count: int) -> list[Row]:
    rows: deque[Row] = deque(maxlen=count)
    for entry in command_log.read():
        words = entry.arguments.split()
        about = next((words[i + 1] for i in range(len(words) - 1) if words[i] in ("-m", "-E")), "")
        if module is not None and about not in ("", module):
            continue
        at = utc(entry.date)
        rows.append(
            {"at": at or 0.0, "pid": entry.pid, "code": entry.code, "module": about, "arguments": entry.arguments}
        )
    return list(rows)


def _tail(path: Path, count: int) -> list[str]:
    try:
        with open(path, "rb") as handle:
            handle.seek(max(0, path.stat().st_size - MAX_TAIL))
            data = handle.read(MAX_TAIL)
    except (FileNotFoundError, NotADirectoryError):
        return []
    return data.decode("utf-8", "replace").splitlines()[-count:]


def _decision(decision: Decision) -> Row:
    inputs = []
    for name, given in sorted(decision.inputs.items()):
        value, setter, since = given, "", 0.0
        if isinstance(given, dict):
            value, setter = given.get("value"), str(given.get("setter") or "")
            since = float(given.get("since") or 0.0)
        inputs.append({"name": str(name), "value": str(value), "setter": setter, "since": since})
    return {
        "time": decision.time,
        "node": decision.node,
        "rule": decision.rule,
        "action": decision.action,
        "text": decision.text,
        "sentence": sentence(decision),
        "inputs": inputs,
    }


def _shape(shape: schema.Shape) -> Row:
    return {
        "attributes": shape.attributes,
        "required": list(shape.required),
        "children": {name: _shape(child) for name, child in shape.children.items()},
    }


def _finding(found: Finding) -> Row:
    return {"line": found.line, "element": found.element, "text": found.message, "severity": found.severity}


def _check(kind: str, content: bytes, module: str) -> list[Finding]:
    with tempfile.TemporaryDirectory(prefix="check-") as directory:
        path = Path(directory) / f"{kind}.xml"
        path.write_bytes(content)
        try:
            if kind == "cluster":
                return list(load_cluster_xml(path)[1])
            try:
                cluster = load_cluster()
            except ClusterError:
                cluster = ClusterConfig()
            number = 1
            with contextlib.suppress(ConfigureError):
                number = module_id(module) if module else 1
            return list(examine_module(path, module or "module", number, cluster).findings)
        except ConfigError as error:
            return list(error.findings)


def _configuration(paths: ModulePaths) -> Row:
    active, current = ("", 0.0), ("", 0.0)
    with contextlib.suppress(ConfigureError):
        stamp = active_stamp(paths.module)
        active = (stamp.signature, stamp.date)
    with contextlib.suppress(ConfigureError):
        stamp = current_signature(paths.module)
        current = (stamp.signature, stamp.date)
    return {
        "active": {
            "signature": active[0],
            "date": active[1],
            "userconfig": _text(paths.active / "conf/userconfig.xml"),
        },
        "current": {"signature": current[0], "date": current[1], "userconfig": _text(paths.userconfig)},
        "modified": active[0] != current[0],
        "key": (paths.conf_dir / "module.key").exists(),
        "form": form_of(paths.root / "web" / "index.html"),
    }


def _of_archive(path: Path, module: str) -> str:
    with tempfile.TemporaryDirectory() as work:
        try:
            unpack(path, Path(work) / module)
        except ArchiveError as error:
            raise ApiError(409, "damaged", str(error), f"remove it: rm {path}") from None
        return _text(Path(work) / module / "conf" / "userconfig.xml")


def _views() -> list[Row]:
    found: list[Row] = []
    directory = safe() / "Application_Modules" / VIEWS
    for path in sorted(directory.glob("*.xml")):
        if path.stem == "default":  # the one to copy
            continue
        parser = etree.XMLParser(no_network=True, resolve_entities=False, remove_comments=True)
        try:
            root = etree.fromstring(path.read_bytes()[: 1 << 20], parser)
        except (etree.XMLSyntaxError, OSError, ValueError) as error:
            found.append({"name": path.stem, "modules": [], "problem": f"{path.name}: {error}"})
            continue
        found.append({"name": path.stem, "modules": list(_modules(root.iter("module"))), "problem": ""})
    return found


def _modules(elements: Iterable[Any]) -> Iterable[Row]:
    for element in elements:
        nodes = [{"name": str(node.get("name", "")), "uri": str(node.get("uri", ""))} for node in element.iter("node")]
        yield {"name": str(element.get("name", "")), "nodes": nodes}
