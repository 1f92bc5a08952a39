"""/metrics of the web service, read by Prometheus' own tool; rules and dashboard that are made of its names."""

from __future__ import annotations

import datetime
import json
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from safekit.disk.files import write_atomic
from safekit.disk.paths import ModulePaths
from safekit.disk.stats import forget, publish
from safewebserver.exposition import Kind
from safewebserver.metrics import FAMILIES
from tests.t2_process.web_server import CHECKOUT, WebServer

PROMTOOL = shutil.which("promtool") or str(CHECKOUT / ".cache/tools/usr/bin/promtool")
DELIVERED = CHECKOUT / "private/conf/monitoring"
needs_promtool = pytest.mark.skipif(not os.access(PROMTOOL, os.X_OK), reason="promtool is not here: bin/setup test")
OPEN = {"Accept": "application/openmetrics-text;version=1.0.0,text/plain;q=0.5"}
FULL = {
    "state.local": "PRIM", "state.color": "green", "state.remote": "SECOND", "state.remotecolor": "green",
    "state.loop": "2", "rfs.uptodate": "up", "tcp.db": "down", "intf.10.0.0.0": "up", "rfs_bandwidth.replication": "12",
    "custom.x": "anything", 'odd."quoted\\': "up",
}  # fmt: skip


@pytest.fixture
def web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WebServer]:
    made = WebServer(tmp_path)
    for name, value in made.env.items():
        monkeypatch.setenv(name, value)
    made.module("db", FULL)
    made.module("gone", {"state.local": "PRIM", "state.color": "green", "tcp.x": "up"}, boot="another")
    configure("db", {"id": 3, "service": {"mode": "mirror", "maxloop": 3}})
    beats = {"flow": {"received": 70, "lost": 3, "jitter": 0.002, "age": 0.4, "refused": 1, "sent_bytes": 900}}
    publish(ModulePaths("db"), "heart", {"late": 0.01, "heartbeats": beats, "role_changes": 5, "failovers": 1})
    latency = {"bounds": [0.001, 0.01], "counts": [5, 4, 1], "sum": 0.5}
    sent = {"operations": 10, "sent_bytes": 4096, "behind": 2}
    publish(ModulePaths("db"), "nfsbox", {"late": 0, "latency": latency, **sent})
    checker = {"resource": "tcp.db", "seconds": 0.25, "probes": 9, "failures": 2}
    publish(ModulePaths("db"), "tcpcheck.db", {"late": 0.7, "checker": checker})
    publish(ModulePaths("db"), "vipd", {"late": 0.2, "packets": {"web tcp/80": 12}, "farm_datagrams": {"sent": 5}})
    made.start()
    yield made
    made.stop()


def configure(module: str, active: dict[str, object]) -> None:
    path = ModulePaths(module).active_json
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(active))


def samples(text: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            series, _, value = line.rpartition(" ")
            assert series not in found, f"{series} is told twice: Prometheus refuses the page"
            found[series] = float(value)
    return found


def scrape(web: WebServer, *, user: str = "viewer", **headers: str) -> str:
    answer = web.ask("GET", "/metrics", user=user, headers=headers)
    assert answer.status == 200, answer.data
    return answer.data.decode()


@needs_promtool
def test_prometheus_tool_finds_nothing_to_say(web: WebServer) -> None:
    done = subprocess.run([PROMTOOL, "check", "metrics"], input=scrape(web), capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_what_is_told(web: WebServer) -> None:
    found = samples(scrape(web))
    assert found['safekit_module_state{module="db",state="PRIM"}'] == 1
    assert [found[f'safekit_module_state{{module="db",state="{s}"}}'] for s in ("STOP", "ALONE", "SECOND")] == [0, 0, 0]
    assert found['safekit_module_remote_state{module="db",state="SECOND"}'] == 1
    assert (
        found['safekit_module_verdict{module="db",verdict="protected"}']
        + found['safekit_module_verdict{module="db",verdict="degraded"}']
        == 1
    )
    assert found['safekit_resource_state{module="db",resource="tcp.db",state="down"}'] == 1
    assert found['safekit_rfs_replication_bytes_per_second{module="db"}'] == 12 * 1024
    assert found['safekit_module_automatic_actions{module="db"}'] == 2
    assert found['safekit_module_automatic_actions_limit{module="db"}'] == 3
    assert found['safekit_heartbeat_lost_total{module="db",heartbeat="flow"}'] == 3
    assert found['safekit_rfs_acknowledgement_seconds_bucket{module="db",le="0.01"}'] == 9
    assert found['safekit_rfs_acknowledgement_seconds_bucket{module="db",le="+Inf"}'] == 10
    assert found['safekit_rfs_acknowledgement_seconds_count{module="db"}'] == 10
    assert found['safekit_heartbeat_sent_bytes_total{module="db",heartbeat="flow"}'] == 900
    assert found['safekit_checker_probe_seconds{module="db",resource="tcp.db"}'] == 0.25
    assert found['safekit_checker_probes_total{module="db",resource="tcp.db"}'] == 9
    assert found['safekit_checker_failures_total{module="db",resource="tcp.db"}'] == 2
    assert found['safekit_farm_packets_total{module="db",rule="web tcp/80"}'] == 12
    assert found['safekit_farm_datagrams_total{module="db",kind="sent"}'] == 5
    late = {p: found[f'safekit_process_late_seconds{{module="db",process="{p}"}}'] for p in ("tcpcheck.db", "vipd")}
    assert late == {"tcpcheck.db": 0.7, "vipd": 0.2}
    assert found['safekit_module_info{module="db",id="3",mode="mirror"}'] == 1
    assert found['safekit_key_created_timestamp_seconds{key="cluster"}'] > 1e9


def test_a_process_that_has_ended_is_not_late_for_ever(web: WebServer) -> None:
    write_atomic(web.var / "modules/db/stats/vipd.json", json.dumps({"at": time.time() - 3600, "late": 9}).encode())
    found = samples(scrape(web))
    assert found['safekit_process_late_seconds{module="db",process="vipd"}'] == 0
    assert found['safekit_stats_age_seconds{module="db",process="vipd"}'] >= 3600


def test_figures_of_a_former_configuration_are_forgotten(web: WebServer) -> None:
    """At the start of heart: those of processes that live stay, whoever wrote them."""
    paths = ModulePaths("db")
    os.utime(paths.var / "stats/vipd.json", (time.time() - 120,) * 2)
    forget(paths, 60)
    assert [path.stem for path in sorted((paths.var / "stats").iterdir())] == ["heart", "nfsbox", "tcpcheck.db"]


def certificate(days: int, made_days_ago: int = 1) -> tuple[bytes, bytes]:
    """PEM of a certificate that ends in so many days, and of its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "node")])
    now = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - datetime.timedelta(made_days_ago))
    made = builder.not_valid_after(now + datetime.timedelta(days)).sign(key, hashes.SHA256())
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return made.public_bytes(Encoding.PEM), private


def test_the_ages_of_certificates(web: WebServer) -> None:
    """Whatever the files are called: a chain ends with its first end, a key is none, one that is replaced is read."""
    place = web.safe / "web/conf/ssl"
    (place / "ca").mkdir(parents=True, exist_ok=True)
    short, key = certificate(10, 5)
    (place / "server.pem").write_bytes(key + short + certificate(300)[0])
    (place / "server.key").write_bytes(key)
    (place / "notes.crt").write_text("none")
    (place / "ca/root.crt").write_bytes(certificate(3650)[0])
    now = time.time()
    found = {name: value for name, value in samples(scrape(web)).items() if name.startswith("safekit_certificate")}
    days = {
        re.sub(r"safekit_certificate_|_timestamp_seconds", "", n): round((v - now) / 86400) for n, v in found.items()
    }
    assert days == {
        'created{file="ca/root.crt"}': -1, 'created{file="server.pem"}': -5,
        'expiry{file="ca/root.crt"}': 3650, 'expiry{file="server.pem"}': 10,
    }  # fmt: skip
    write_atomic(place / "server.pem", certificate(90)[0])
    assert (
        round((samples(scrape(web))['safekit_certificate_expiry_timestamp_seconds{file="server.pem"}'] - now) / 86400)
        == 90
    )


def test_series_of_a_stopped_module_stay(web: WebServer) -> None:
    """What vanishes cannot be alerted on: every state of every module, always."""
    before = samples(scrape(web))
    assert before['safekit_module_state{module="gone",state="STOP"}'] == 1, "a file of another boot tells the past"
    assert before['safekit_resource_state{module="gone",resource="tcp.x",state="unknown"}'] == 1
    (web.var / "modules/db/running").unlink()
    after = samples(scrape(web))
    assert set(before) == set(after), set(before) ^ set(after)
    assert (
        after['safekit_module_state{module="db",state="STOP"}'] == 1
        and after['safekit_module_running{module="db"}'] == 0
    )


def test_open_metrics_when_it_is_asked_for(web: WebServer) -> None:
    answer = web.ask("GET", "/metrics", user="viewer", headers=OPEN)
    text = answer.data.decode()
    assert answer.headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")
    assert text.endswith("# EOF\n") and "# TYPE safekit_heartbeat_lost counter" in text
    assert "# TYPE safekit_heartbeat_lost_total counter" in scrape(web)
    openmetrics = pytest.importorskip("prometheus_client.openmetrics.parser")
    families = {family.name: family for family in openmetrics.text_string_to_metric_families(text)}
    assert families["safekit_heartbeat_lost"].type == "counter" and len(families) == len(FAMILIES)


def test_who_may_read(web: WebServer) -> None:
    assert web.ask("GET", "/metrics").status == 401
    assert web.ask("GET", "/metrics", user="nobody").status in (401, 403)
    assert web.ask("GET", "/metrics", user="viewer").status == 200
    named = web.safe / "web/conf/metrics.conf"
    named.write_text("# Prometheus\n10.0.0.0/8\nnonsense\n")
    assert web.ask("GET", "/metrics").status == 401
    named.write_text("127.0.0.0/8  # this server\n")
    assert web.ask("GET", "/metrics").status == 200
    assert web.ask("GET", "/api/v1/modules").status == 401, "only this page"
    named.unlink()
    assert web.ask("GET", "/metrics").status == 401


def test_a_scrape_wakes_nobody(web: WebServer) -> None:
    """Nothing is asked on the bus: where safeadmin would be, no datagram arrives but the service's own registration."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as admin:
        admin.bind(("127.0.0.1", int(web.env["SAFEMAPPER"])))
        admin.settimeout(0.2)
        for _ in range(5):
            scrape(web)
        seen = 0
        while True:
            try:
                assert b"map_register" in admin.recv(65536)
                seen += 1
            except TimeoutError:
                break
        assert seen <= 4


def test_damaged_files_take_nobody_else_off_the_page(web: WebServer) -> None:
    for name in ("heart", "nfsbox", "other"):
        write_atomic(web.var / f"modules/db/stats/{name}.json", b'{"at": "x", "late": [], "latency": {}}')
    (web.var / "modules/db/stats/odd.json").write_bytes(b"[" * 100000)
    configure("db", {"id": "x", "service": []})
    found = samples(scrape(web))
    assert 'safekit_module_state{module="gone",state="STOP"}' in found
    assert web.ask("GET", "/api/v1/modules", user="viewer").status in (200, 500)


@needs_promtool
def test_the_rules_are_right_and_their_tests_pass() -> None:
    for words in (["check", "rules", "safekit.rules.yml"], ["test", "rules", "safekit.rules.test.yml"]):
        done = subprocess.run([PROMTOOL, *words], cwd=DELIVERED, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr


def told_names() -> set[str]:
    names = {family.name + ("_total" if family.kind is Kind.COUNTER else "") for family in FAMILIES}
    return names | {f"{f.name}_{s}" for f in FAMILIES if f.kind is Kind.HISTOGRAM for s in ("bucket", "sum", "count")}


def test_rules_dashboard_and_page_name_only_what_exists() -> None:
    """The dashboard is not loaded into Grafana here: its queries are checked by their names."""
    dashboard = json.loads((DELIVERED / "grafana-dashboard.json").read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    assert len(queries) > 15 and len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    texts = [*queries, (DELIVERED / "safekit.rules.yml").read_text(), (CHECKOUT / "docs/monitoring.md").read_text()]
    texts.append(json.dumps(dashboard["templating"]))
    for text in texts:
        for name in re.findall(r"\bsafekit_[a-z_]*[a-z]\b(?!\.)", text):
            assert name in told_names() or name.startswith("safekit_module_db"), name


def test_every_metric_is_documented() -> None:
    page = (CHECKOUT / "docs/monitoring.md").read_text()
    for name in (family.name + ("_total" if family.kind is Kind.COUNTER else "") for family in FAMILIES):
        assert f"`{name}`" in page, name


@needs_promtool
@pytest.mark.parametrize("file", ["safekit.rules.yml"])
def test_a_rule_with_a_wrong_name_would_be_seen(file: str, tmp_path: Path) -> None:
    """The check of the names can fail."""
    text = (DELIVERED / file).read_text().replace("safekit_module_boot", "safekit_module_boots")
    names = set(re.findall(r"\bsafekit_[a-z_]*[a-z]\b", text))
    assert "safekit_module_boots" in names - told_names()
