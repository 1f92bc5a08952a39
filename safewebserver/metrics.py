"""`/metrics` for Prometheus (docs/monitoring.md). The names are frozen: dashboards and alert rules are made of them.

It is drawn from the files that the modules publish, so a scrape wakes no process of theirs; and it is drawn by the web
service, so that a series does not end where it matters, when a module stops. No label has values without a bound.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import math
import stat
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiohttp import web

from safekit import __version__
from safekit.configuration import list_modules
from safekit.disk.files import of_another_boot
from safekit.disk.paths import ModulePaths, cluster_dir, node_name, safe
from safekit.disk.resources import Resource, load
from safekit.disk.stats import published
from safekit.view.module import view_of
from safekit.view.verdict import Kind as Judged
from safekit.wire.keys import MODULE_KEY
from safewebserver.api import need
from safewebserver.exposition import OPEN_METRICS, PLAIN, Family, Kind, Page, one_of, wants_open_metrics
from safewebserver.modules import runs
from safewebserver.permissions import Role

PATH = "/metrics"
MAX_RESOURCES = 300
"""Of one module."""
LATE_SECONDS = 60.0
"""Figures about lateness that are older are of a process that has ended: an alert about it would never end."""
MAX_CERTIFICATES = 50
MAX_CERTIFICATE_FILE = 256 << 10
STATES = ("STOP", "WAIT", "ALONE", "UP", "PRIM", "SECOND")
REMOTE_STATES = (*STATES, "UNKNOWN")
COLORS = ("red", "magenta", "green", "grey")
VERDICTS = {kind: kind.value.replace(" ", "_") for kind in Judged}
RESOURCE_STATES = ("unknown", "init", "up", "down")

_families: list[Family] = []


def _family(kind: Kind, name: str, text: str, *labels: str) -> Family:
    made = Family(name, kind, text, labels)
    _families.append(made)
    return made


def _gauge(name: str, text: str, *labels: str) -> Family:
    return _family(Kind.GAUGE, name, text, *labels)


def _counter(name: str, text: str, *labels: str) -> Family:
    return _family(Kind.COUNTER, name, text, *labels)


BUILD = _gauge("safekit_build_info", "Always 1; the version of SafeKit and the server's name.", "version", "node")
KEY_MADE = _gauge("safekit_key_created_timestamp_seconds", "When a key was made (Unix time).", "key")
CERTIFICATE_MADE = _gauge(
    "safekit_certificate_created_timestamp_seconds", "When a certificate of the web service began (Unix time).", "file"
)
CERTIFICATE_ENDS = _gauge(
    "safekit_certificate_expiry_timestamp_seconds",
    "When a certificate of the web service ends (Unix time), of several in a file the first one.", "file",
)  # fmt: skip
INFO = _gauge("safekit_module_info", "Always 1; id and mode of the module.", "module", "id", "mode")
RUNNING = _gauge("safekit_module_running", "1 while the module runs on this server.", "module")
BOOT = _gauge("safekit_module_boot", "1 when the module starts with the server.", "module")
STATE = _gauge("safekit_module_state", "1 for the state of the module here, 0 for the others.", "module", "state")
COLOR = _gauge("safekit_module_color", "1 for the colour of the state, 0 for the others.", "module", "color")
REMOTE = _gauge(
    "safekit_module_remote_state", "1 for the state of the other server of a mirror as heard here.", "module", "state"
)
VERDICT = _gauge("safekit_module_verdict", "1 for the verdict on the module, 0 for the others.", "module", "verdict")
SINCE = _gauge(
    "safekit_module_state_since_timestamp_seconds", "When state or colour changed last (Unix time), 0: not known.",
    "module",
)  # fmt: skip
LOOP = _gauge("safekit_module_automatic_actions", "Automatic restarts counted by maxloop.", "module")
LOOP_LIMIT = _gauge("safekit_module_automatic_actions_limit", "maxloop: the module stops at so many.", "module")
RESOURCE = _gauge(
    "safekit_resource_state", "1 for the state of a resource, 0 for the others.", "module", "resource", "state"
)
ROLE_CHANGES = _counter("safekit_module_role_changes", "Changes of the state since heart started.", "module")
FAILOVERS = _counter("safekit_module_failovers", "Take-overs by this server since heart started.", "module")
FAILOVER_TIME = _gauge(
    "safekit_module_last_failover_seconds", "From the last sign of the other server to ALONE green, the last time.",
    "module",
)  # fmt: skip
FAILOVER_AT = _gauge("safekit_module_last_failover_timestamp_seconds", "When that was (Unix time).", "module")
BEAT_AGE = _gauge(
    "safekit_heartbeat_age_seconds", "Since the last heartbeat of the other server, when it was published.",
    "module", "heartbeat",
)  # fmt: skip
BEAT_JITTER = _gauge("safekit_heartbeat_jitter_seconds", "Mean deviation from the pulse.", "module", "heartbeat")
BEAT_RECEIVED = _counter("safekit_heartbeat_received", "Heartbeats heard.", "module", "heartbeat")
BEAT_LOST = _counter("safekit_heartbeat_lost", "Heartbeats that did not come when due.", "module", "heartbeat")
BEAT_REFUSED = _counter("safekit_heartbeat_refused", "Datagrams that were no heartbeat of ours.", "module", "heartbeat")
BEAT_SENT = _counter("safekit_heartbeat_sent", "Heartbeats sent.", "module", "heartbeat")
BEAT_SENT_BYTES = _counter("safekit_heartbeat_sent_bytes", "Bytes of heartbeats sent.", "module", "heartbeat")
BEAT_BYTES = _counter("safekit_heartbeat_received_bytes", "Bytes of heartbeats heard.", "module", "heartbeat")
CHECK_SECONDS = _gauge(
    "safekit_checker_probe_seconds", "How long the last probe of a checker took; its answer is the resource's state.",
    "module", "resource",
)  # fmt: skip
CHECK_PROBES = _counter("safekit_checker_probes", "Probes of a checker since it started.", "module", "resource")
CHECK_FAILURES = _counter("safekit_checker_failures", "Probes of them that said down.", "module", "resource")
REPLICATION_RATE = _gauge(
    "safekit_rfs_replication_bytes_per_second", "Replication to the secondary, over 3 seconds.", "module"
)
REINTEGRATION_RATE = _gauge(
    "safekit_rfs_reintegration_bytes_per_second", "Reintegration of the secondary, over 3 seconds.", "module"
)
OPERATIONS = _counter("safekit_rfs_operations", "Changes sent to the secondary.", "module")
SENT = _counter("safekit_rfs_sent_bytes", "Bytes sent to the secondary.", "module")
LATENCY = _family(
    Kind.HISTOGRAM, "safekit_rfs_acknowledgement_seconds", "From a change to its acknowledgement by the secondary.",
    "module",
)  # fmt: skip
BEHIND = _gauge("safekit_rfs_files_behind", "Files recorded as changed while the secondary was away.", "module")
HELD = _gauge("safekit_rfs_writes_held", "Changes that wait for the fate of a lost secondary.", "module")
REI_BYTES = _gauge("safekit_rfs_reintegration_bytes", "Bytes compared and copied so far.", "module")
REI_TOTAL = _gauge("safekit_rfs_reintegration_total_bytes", "Bytes that the reintegration has to look at.", "module")
SHARE = _gauge(
    "safekit_farm_share_ratio", "Part of the load of a group that goes to a server.", "module", "group", "node"
)
PACKETS = _counter(
    "safekit_farm_packets", "Packets to the virtual addresses that a rule has judged, of all servers' clients where "
    "each sees all packets.", "module", "rule",
)  # fmt: skip
FARM_DATAGRAMS = _counter(
    "safekit_farm_datagrams", "Datagrams between the servers of a farm: sent, accepted, refused.", "module", "kind"
)
LATE = _gauge(
    "safekit_process_late_seconds", "How late a process woke at most within the last minute.", "module", "process"
)
STATS_AGE = _gauge(
    "safekit_stats_age_seconds", "Age of the figures that a process publishes about every 10 s.", "module", "process"
)
DURATION = _gauge("safekit_scrape_seconds", "What it took to draw this page.")
FAMILIES = tuple(_families)


def draw(now: float) -> Page:
    """The page of this server. Reads files only."""
    page = Page(FAMILIES)
    page.add(BUILD, 1, __version__, node_name())
    _keys(page)
    for name in list_modules():
        # What one module has on disk must not take the others off the page.
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            _module(page, ModulePaths(name), now)
    return page


def _keys(page: Page) -> None:
    places = {"cluster": cluster_dir() / "cluster.key"}
    places |= {f"module {name}": ModulePaths(name).active / "conf" / MODULE_KEY for name in list_modules()}
    for key, path in places.items():
        with contextlib.suppress(OSError):
            page.add(KEY_MADE, path.stat().st_mtime, key)
    place = safe() / "web" / "conf" / "ssl"
    for path in sorted(place.rglob("*"))[:MAX_CERTIFICATES]:
        life = _certificate_life(path)
        if life is not None:
            page.add(CERTIFICATE_MADE, life[0], str(path.relative_to(place)))
            page.add(CERTIFICATE_ENDS, life[1], str(path.relative_to(place)))


_certificates: dict[Path, tuple[tuple[int, int], tuple[float, float] | None]] = {}


def _certificate_life(path: Path) -> tuple[float, float] | None:
    """Since when the first certificate of a file is valid, and when the first of all of them ends; None for a file with
    none. Read once for each version of the file."""
    try:
        status = path.stat()
        stamp = (status.st_mtime_ns, status.st_ino)
        if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_CERTIFICATE_FILE:
            return None
        if path not in _certificates or _certificates[path][0] != stamp:
            from cryptography import x509

            found: tuple[float, float] | None = None
            with contextlib.suppress(ValueError):
                held = x509.load_pem_x509_certificates(path.read_bytes())
                ends = min(each.not_valid_after_utc.timestamp() for each in held)
                found = (held[0].not_valid_before_utc.timestamp(), ends)
            _certificates[path] = (stamp, found)
        return _certificates[path][1]
    except OSError:
        return None


def _module(page: Page, paths: ModulePaths, now: float) -> None:
    name, running = paths.module, runs(paths)
    active: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError):
        active = json.loads(paths.active_json.read_bytes())
    mode = str(active.get("service", {}).get("mode", ""))
    resources = load(paths.resources)
    past = of_another_boot(paths.marker)
    known = {"running": running, "heart": running, "mode": mode, "id": active.get("id", 0), "past": past}
    view = view_of(name, known, resources)
    page.add(INFO, 1, name, str(view.id), mode)
    page.add(RUNNING, running, name)
    page.add(BOOT, _text(paths.boot_file) == "on", name)
    one_of(page, STATE, STATES, view.state, name)
    one_of(page, COLOR, COLORS, view.color, name)
    if mode == "mirror":
        one_of(page, REMOTE, REMOTE_STATES, view.remote_state, name)
    one_of(page, VERDICT, VERDICTS.values(), VERDICTS[view.verdict.kind], name)
    page.add(SINCE, view.since, name)
    page.add(LOOP, _float(resources, "state.loop"), name)
    page.add(LOOP_LIMIT, float(active.get("service", {}).get("maxloop", 0)), name)
    shown = [r for r in resources.values() if r.value in RESOURCE_STATES and not r.name.startswith("remote.")]
    for resource in shown[:MAX_RESOURCES]:
        one_of(page, RESOURCE, RESOURCE_STATES, resource.value if running else "unknown", name, resource.name)
    for family, key in ((REPLICATION_RATE, "replication"), (REINTEGRATION_RATE, "reintegration")):
        if f"rfs_bandwidth.{key}" in resources:
            page.add(family, _float(resources, f"rfs_bandwidth.{key}") * 1024 * running, name)
    _farm(page, paths, running)
    for process, values in published(paths):
        _stats(page, name, process, values, now)


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


def _float(resources: Mapping[str, Resource], name: str) -> float:
    with contextlib.suppress(ValueError, KeyError):
        value = float(resources[name].value)
        return value if math.isfinite(value) else 0.0
    return 0.0


def _farm(page: Page, paths: ModulePaths, running: bool) -> None:
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, IndexError):
        view = json.loads((paths.var / "farm.json").read_text())["view"]
        for group in view["groups"]:
            for number, node in enumerate(view["nodes"]):
                share = float(group["bits"][number]) / 256 if running else 0.0
                page.add(SHARE, share, paths.module, str(group["name"]), str(node))


_FIGURES = {
    "role_changes": ROLE_CHANGES, "failovers": FAILOVERS, "last_failover_seconds": FAILOVER_TIME,
    "last_failover_at": FAILOVER_AT, "operations": OPERATIONS, "sent_bytes": SENT, "behind": BEHIND, "held": HELD,
    "reintegration_bytes": REI_BYTES, "reintegration_total": REI_TOTAL,
}  # fmt: skip
_BEATS = {
    "age": BEAT_AGE, "jitter": BEAT_JITTER, "received": BEAT_RECEIVED, "lost": BEAT_LOST, "refused": BEAT_REFUSED,
    "sent": BEAT_SENT, "sent_bytes": BEAT_SENT_BYTES, "received_bytes": BEAT_BYTES,
}  # fmt: skip
_CHECKS = {"seconds": CHECK_SECONDS, "probes": CHECK_PROBES, "failures": CHECK_FAILURES}


def _stats(page: Page, module: str, process: str, values: Mapping[str, Any], now: float) -> None:
    age = max(0.0, now - float(values["at"]))
    page.add(STATS_AGE, age, module, process)
    page.add(LATE, float(values.get("late", 0.0)) if age <= LATE_SECONDS else 0.0, module, process)
    for key, family in _FIGURES.items():
        if key in values:
            page.add(family, float(values[key]), module)
    for ident, beats in values.get("heartbeats", {}).items():
        for key, family in _BEATS.items():
            if beats.get(key) is not None:
                page.add(family, float(beats[key]), module, str(ident))
    for key, family in _CHECKS.items():
        if "checker" in values:
            page.add(family, float(values["checker"][key]), module, str(values["checker"]["resource"]))
    for family, key in ((PACKETS, "packets"), (FARM_DATAGRAMS, "farm_datagrams")):
        for label, number in values.get(key, {}).items():
            page.add(family, float(number), module, str(label))
    if "latency" in values:
        told = values["latency"]
        counts = [int(count) for count in told["counts"]]
        page.add_histogram(LATENCY, [float(b) for b in told["bounds"]], counts, float(told["sum"]), module)


# Who may read it


@dataclass
class Allowed:
    """SAFE/web/conf/metrics.conf: addresses and networks, one a line, that read `/metrics` without a password. Without
    the file a user of the role Monitor is needed, as for everything else. Read again when it changes."""

    _stamp: tuple[int, int] | None = None
    _networks: tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...] = ()

    def covers(self, remote: str | None) -> bool:
        """Whether that address is named."""
        path = safe() / "web" / "conf" / "metrics.conf"
        try:
            status = path.stat()
            stamp = (status.st_mtime_ns, status.st_ino)
            if stamp != self._stamp:
                self._networks = tuple(_networks(path.read_text(errors="replace")))
                self._stamp = stamp
        except OSError:
            self._stamp, self._networks = None, ()
        if not self._networks or remote is None:
            return False
        address = ipaddress.ip_address(remote.partition("%")[0])
        mapped = getattr(address, "ipv4_mapped", None)
        return any((mapped or address) in network for network in self._networks)


def _networks(text: str) -> Iterator[ipaddress.IPv4Network | ipaddress.IPv6Network]:
    for line in text.splitlines():
        word = line.partition("#")[0].strip()
        with contextlib.suppress(ValueError):  # a line that is none lets nobody in
            if word:
                yield ipaddress.ip_network(word, strict=False)


allowed = Allowed()


async def metrics(request: web.Request) -> web.StreamResponse:
    """GET /metrics."""
    if "caller" in request:
        need(request, Role.MONITOR)
    began = time.perf_counter()
    page = draw(time.time())
    page.add(DURATION, time.perf_counter() - began)
    asked = wants_open_metrics(request.headers.get("Accept", ""))
    body = page.text(open_metrics=asked).encode()
    return web.Response(
        body=body, headers={"Content-Type": OPEN_METRICS if asked else PLAIN, "Cache-Control": "no-store"}
    )
