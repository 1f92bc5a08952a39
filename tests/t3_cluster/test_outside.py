"""Other people's systems at a running cluster: SNMP manager, Prometheus, load balancers' probes, and a client behind
HAProxy whose longest wait is told (guide 10.8, 13.5.3, 17)."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pair import Pair
from site_scripts import END, SERVER

from lab.archive import archive
from lab.cluster import Lab, Node
from lab.waiting import wait_until

CHECKOUT = Path(__file__).resolve().parents[2]
TOOLS = CHECKOUT / ".cache/tools/usr"
PREFIX = ".1.3.6.1.4.1.107.175.10"
MIRROR = """<safe><service mode="mirror"><heart pulse="200" timeout="2000">
<heartbeat name="default"/><heartbeat name="repli" ident="flow"/></heart>
<rfs><replicated dir="/replicated" mode="read_only"/></rfs><user/>
<check><ping ident="other"><to addr="{client}" interval="2"/></ping></check></service></safe>
"""
FARM = """<safe><service mode="farm"><farm><lan name="default"/></farm><user/></service></safe>
"""
BALANCER = """
defaults
  mode http
  timeout connect 300ms
  timeout client 5s
  timeout server 5s
  retries 3
  option redispatch 1
  default-server check port 9010 inter 300 fall 2 rise 2 on-marked-down shutdown-sessions
listen mirror
  bind 127.0.0.1:8001
  option httpchk GET /var/modules/db/ready.txt HTTP/1.0
  http-check expect status 200
  server node1 {one}:7001
  server node2 {two}:7001
listen farm
  bind 127.0.0.1:8002
  option httpchk GET /var/modules/web/ready.txt HTTP/1.0
  http-check expect status 200
  server node1 {one}:7002
  server node2 {two}:7002
"""
# One request every 20 ms: the times between answers, the longest of which is what a client waits.
CLIENT = """
import sys, time, urllib.request
port, seconds = int(sys.argv[1]), float(sys.argv[2])
last = time.monotonic(); longest = 0.0; end = last + seconds; failed = answered = 0
while time.monotonic() < end:
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/name", timeout=2).read()
        now = time.monotonic(); longest = max(longest, now - last); last = now; answered += 1
    except OSError:
        failed += 1
    time.sleep(0.02)
print(f"{longest:.3f} {failed} {answered}")
"""
SCRAPE = """
global: {{scrape_interval: 1s, scrape_timeout: 1s}}
scrape_configs:
  - job_name: safekit
    static_configs: [{{targets: ["{one}:9010", "{two}:9010"]}}]
"""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    made = Lab.up()
    try:
        for node in made:
            node.run(["mkdir", "-p", "/replicated"])
            for number, (name, config, kind, port) in enumerate(
                (("db", MIRROR, "prim", 7001), ("web", FARM, "both", 7002)), 1
            ):
                scripts = {f"start_{kind}": SERVER.format(port=port), f"stop_{kind}": END.format(port=port)}
                written = config.format(client=made.client.address())
                Pair.outside(node, "/root/module.safe").write_bytes(archive(written, scripts))
                node.safekit("module", "install", "-r", "-M", str(number), "-m", name, "/root/module.safe")
                node.safekit("config", "-m", name)
            node.write("/opt/safekit/web/conf/metrics.conf", "0.0.0.0/0\n")
        protect(made)
        yield made
    finally:
        made.down()


def protect(lab: Lab) -> None:
    one, two = lab
    one.safekit("prim", "-m", "db")
    one.safekit("waitstate", "-m", "db", "ALONE", timeout=60)
    two.safekit("second", "-m", "db")
    one.safekit("waitstate", "-m", "db", "PRIM", timeout=60)
    for node in lab:
        node.safekit("start", "-m", "web")
        node.safekit("waitstate", "-m", "web", "UP", timeout=60)


def state(node: Node, module: str) -> str:
    return str(node.safekit("state", "-lq", "-m", module, check=False).stdout.strip())


def snmp(node: Node, program: str, *words: str, community: str = "public") -> tuple[int, str]:
    done = node.run(
        ["env", "MIBS=", program, "-v2c", "-c", community, "-Oqn", "-t", "2", "-r", "1", *words], check=False
    )
    return done.returncode, (done.stdout + done.stderr).strip()


@pytest.mark.skipif(shutil.which("snmpget") is None, reason="net-snmp's tools are not here: bin/setup test")
def test_a_manager_asks_the_agent_of_a_server(lab: Lab) -> None:
    """SNM-001, 005, 006, 009, CLB-002, CLB-004, FWL-011, of an installed product."""
    one, _ = lab
    client, target = lab.client, f"{one.address()}:3600"
    assert one.safekit("boot", "snmpstatus").stdout == "off\n"
    assert one.safekit("safeagent", "check", check=False).returncode == 1
    assert snmp(client, "snmpget", target, f"{PREFIX}.1.1.2.1")[0] != 0, "off by default"
    one.safekit("safeagent", "start")
    assert "safeagent is running" in one.safekit("safeagent", "check").stdout
    assert ":3600" in one.run(["ss", "-lunp"]).stdout
    assert snmp(client, "snmpget", target, f"{PREFIX}.1.1.2.1") == (0, f"{PREFIX}.1.1.2.1 4")
    assert snmp(client, "snmpget", target, f"{PREFIX}.1.1.9.1") == (0, f"{PREFIX}.1.1.9.1 1"), "protected"
    listed = dict(re.findall(r"(\w+)\s+(\d+)", one.safekit("module", "listid").stdout))
    names = snmp(client, "snmpwalk", target, f"{PREFIX}.1.1.3")[1]
    assert listed, listed
    for name, number in (("db", "1"), ("web", "2")):
        assert f'{PREFIX}.1.1.3.{number} "{name}"' in names
    walked = snmp(client, "snmpbulkwalk", target, f"{PREFIX}.2.1.2.1")[1]
    shown = [
        line.split()[0]
        for line in one.safekit("state", "-v", "-m", "db").stdout.splitlines()
        if re.match(r"\s*\S+\.\S+ .* by ", line)
    ]
    assert len(shown) > 5 and all(f'"{name}"' in walked for name in shown), (shown, walked)
    code, said = snmp(client, "snmpset", target, f"{PREFIX}.1.1.4.2", "i", "2", community="private")
    assert code != 0 and "noAccess" in said, said
    assert state(one, "web") == "UP"
    assert snmp(one, "snmpset", "localhost:3600", f"{PREFIX}.1.1.4.2", "i", "2", community="private")[0] == 0

    def farm_state() -> str:
        return snmp(client, "snmpget", target, f"{PREFIX}.1.1.2.2")[1]

    wait_until(lambda: farm_state().endswith(" 0"), 30, farm_state)
    assert "stop -m web -u snmp@" in one.read("/var/safekit/commandlog")
    assert snmp(one, "snmpset", "localhost:3600", f"{PREFIX}.1.1.4.2", "i", "1", community="private")[0] == 0
    one.safekit("waitstate", "-m", "web", "UP", timeout=60)
    one.safekit("boot", "snmpon")
    assert one.safekit("boot", "snmpstatus").stdout == "on\n"
    one.safekit("boot", "snmpoff")
    one.safekit("safeagent", "stop")
    assert snmp(client, "snmpget", target, f"{PREFIX}.1.1.2.1")[0] != 0


def test_a_manager_is_told_of_each_start(lab: Lab) -> None:
    """SNM-003, SNM-010: net-snmp's snmptrapd gets what the log of a module says, while the module starts and stops."""
    program = TOOLS / "sbin/snmptrapd"
    if not program.exists():
        pytest.skip("snmptrapd is not here: bin/setup test")
    one, client = lab.node("node1"), lab.client
    client.run(["mkdir", "-p", "/root/trapd"])
    for path in (program, *(TOOLS / "lib").glob("*/libnetsnmptrapd.so*")):
        shutil.copy(path, Pair.outside(client, f"/root/trapd/{path.name}"))
    client.write("/root/snmptrapd.conf", "disableAuthorization yes\n")
    manager = client.popen(
        ["env", "LD_LIBRARY_PATH=/root/trapd", "/root/trapd/snmptrapd", "-f", "-n", "-C", "-c", "/root/snmptrapd.conf",
         "-Lf", "/root/traps", "-Oqn", "-m", "", "162"]
    )  # fmt: skip

    def told() -> str:
        return str(client.run("cat /root/traps 2>/dev/null", check=False).stdout)

    settings = one.read("/opt/safekit/snmp/conf/snmpd.conf")
    try:
        wait_until(lambda: "NET-SNMP" in told(), 20, "snmptrapd listens")
        one.write("/opt/safekit/snmp/conf/snmpd.conf", f"{settings}\ntrap2sink {client.address()} mgr\n")
        one.safekit("safeagent", "start")
        for number in (1, 2):
            one.safekit("stop", "-m", "web")
            one.safekit("waitstop", "-m", "web")
            one.safekit("start", "-m", "web")
            one.safekit("waitstate", "-m", "web", "UP", timeout=60)
            wait_until(lambda n=number: told().count("Local state UP green") == n, 20, told)  # type: ignore[misc]
        assert f"{PREFIX}.3" in told() and "Action start called by" in told()
    finally:
        manager.terminate()
        manager.wait()
        one.safekit("safeagent", "stop")
        one.write("/opt/safekit/snmp/conf/snmpd.conf", settings)


def test_probes_of_the_clouds(lab: Lab) -> None:
    """CLO-005, CLO-006: HTTP/1.0 and no Host, as some balancers ask; what they see is 200 or 404, at once."""
    one, two = lab
    for node, module, wanted in ((one, "db", 200), (two, "db", 404), (one, "web", 200), (two, "web", 200)):
        for line in (
            f"GET /var/modules/{module}/ready.txt HTTP/1.0\\r\\n\\r\\n",
            *(
                f"GET /var/modules/{module}/ready.txt HTTP/1.1\\r\\nHost: {host}\\r\\nConnection: close\\r\\n\\r\\n"
                for host in (f"{node.address()}:9010", "any.name")
            ),
        ):
            script = f"import socket; s = socket.create_connection(('{node.address()}', 9010), 3); "
            script += f"s.sendall(b'{line}'); print(s.makefile('rb').readline().decode())"
            said = lab.client.run(["python3", "-c", script]).stdout
            assert f" {wanted} " in said, (node.name, module, line, said)


def test_every_process_tells_its_figures(lab: Lab) -> None:
    """Lateness of each process, bytes of heartbeats, a checker's answers: of an installed product that runs."""
    one, _ = lab
    ask = ["curl", "-sf", f"http://{one.address()}:9010/metrics"]

    def page() -> dict[str, float]:
        lines = lab.client.run(ask, check=False).stdout.splitlines()
        pairs = (line.rpartition(" ") for line in lines if line and not line.startswith("#"))
        return {series: float(value) for series, _, value in pairs}

    def told(name: str, **labels: str) -> float | None:
        found = page()
        return found.get(f"safekit_{name}{{{','.join(f'{k}={json.dumps(v)}' for k, v in labels.items())}}}")

    checker = {"module": "db", "resource": "ping.other"}
    wait_until(lambda: (told("checker_probes_total", **checker) or 0) > 2, 40, lambda: str(page()), 1)
    assert told("checker_failures_total", **checker) == 0 and 0 < (told("checker_probe_seconds", **checker) or 0) < 1
    for process in ("heart", "nfsbox", "nfsadmin", "circlog", "pingcheck.other"):
        late, age = (told(name, module="db", process=process) for name in ("process_late_seconds", "stats_age_seconds"))
        assert late is not None and age is not None and age < 30, (process, late, age)
    for heartbeat in ("default", "flow"):
        sent, size = (
            told(f"heartbeat_{kind}_total", module="db", heartbeat=heartbeat) or 0 for kind in ("sent", "sent_bytes")
        )
        assert sent > 20 and 40 * sent < size < 1000 * sent, (heartbeat, sent, size)


def test_prometheus_sees_a_failover(lab: Lab) -> None:
    """Half a minute of scrapes, every second, across a power failure: no gap in the series of the server that stays."""
    binary = TOOLS / "bin/prometheus"
    if not binary.exists():
        pytest.skip("prometheus is not here: bin/setup test")
    one, two = lab
    client = lab.client
    client.run(["mkdir", "-p", "/root/prometheus"])
    shutil.copy(binary, Pair.outside(client, "/root/prometheus/prometheus"))
    client.write("/root/prometheus/prometheus.yml", SCRAPE.format(one=one.address(), two=two.address()))
    server = client.popen(
        ["/root/prometheus/prometheus", "--config.file=/root/prometheus/prometheus.yml",
         "--storage.tsdb.path=/root/prometheus/data", "--web.listen-address=127.0.0.1:9090"]
    )  # fmt: skip

    def query(text: str) -> list[tuple[dict[str, str], float]]:
        done = client.run(
            ["curl", "-s", "-G", "--data-urlencode", f"query={text}", "http://127.0.0.1:9090/api/v1/query"], check=False
        )
        found = json.loads(done.stdout or "{}").get("data", {}).get("result", [])
        return [(each["metric"], float(each["value"][1])) for each in found]

    def samples(instance: str) -> list[tuple[float, float]]:
        """(time, value) of `up` of the last minute."""
        text = f'up{{instance="{instance}"}}[60s]'
        words = ["curl", "-s", "-G", "--data-urlencode", f"query={text}", "http://127.0.0.1:9090/api/v1/query"]
        found = json.loads(client.run(words).stdout)["data"]["result"][0]["values"]
        return [(float(at), float(value)) for at, value in found]

    there = f"{two.address()}:9010"

    def seen(text: str, seconds: float) -> None:
        wait_until(lambda: query(text), seconds, lambda: f"{text}: {query('safekit_module_state == 1')}", 0.5)

    try:
        seen("count(up == 1) == 2", 30)
        seen(f'safekit_module_state{{module="db",state="PRIM",instance="{one.address()}:9010"}} == 1', 20)
        time.sleep(5)
        before = query('safekit_rfs_acknowledgement_seconds_count{module="db"}')
        off = time.time()
        one.poweroff()
        two.safekit("waitstate", "-m", "db", "ALONE", timeout=60)
        seen(f'safekit_module_state{{module="db",state="ALONE",instance="{there}"}} == 1', 20)
        seen('safekit_module_failovers_total{module="db"} == 1', 30)
        took = query('safekit_module_last_failover_seconds{module="db"}')
        assert before and 1.0 < max(v for _, v in took) < 20, took
        print(f"take-over as published: {max(v for _, v in took):.2f} s")
        # Each sample with its time, from the first one on: how many there are depends on when Prometheus began.
        wait_until(lambda: samples(there)[-1][0] - off > 12, 30, lambda: str(samples(there)), 0.5)
        seen_there = samples(there)
        assert all(value == 1 for _, value in seen_there), seen_there
        gaps = [later - sooner for (sooner, _), (later, _) in itertools.pairwise(seen_there)]
        slowest = query(f'max_over_time(scrape_duration_seconds{{instance="{there}"}}[60s])')[0][1]
        print(f"{len(seen_there)} scrapes, longest gap {max(gaps):.2f} s, slowest scrape {slowest * 1000:.0f} ms")
        assert max(gaps) < 4, gaps
        assert query(f'up{{instance="{one.address()}:9010"}} == 0')
    finally:
        server.terminate()
        server.wait()
        one.poweron()
        for name in ("db", "web"):
            one.safekit("start", "-m", name, check=False)
        one.safekit("waitstate", "-m", "db", "SECOND", timeout=90)


HOOK = """
import http.server, sys
class Hook(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        data = self.rfile.read(int(self.headers["Content-Length"]))
        open("/root/told", "ab").write(data + b"\\n")
        self.send_response(204); self.end_headers()
http.server.ThreadingHTTPServer(("", 8099), Hook).serve_forever()
"""


def test_one_message_for_an_event_of_two_servers(lab: Lab) -> None:
    """A swap and a power failure: both servers see a dozen changes, and somebody reads one message for each."""
    client = lab.client
    client.write("/root/hook.py", HOOK)
    hook = client.popen(["python3", "/root/hook.py"])
    prim, other = lab if state(lab.node("node1"), "db") == "PRIM" else reversed(list(lab))
    for node in lab:
        url = f"http://{client.address()}:8099/"
        node.write("/opt/safekit/conf/notify.conf", f"[webhook]\nurl = {url}\n[limits]\nsettle = 4\n")
        assert "webhook: delivered" in node.safekit("notify", "test").stdout
        node.safekit("notify", "on")
        assert json.loads(node.safekit("notify", "status", "--json").stdout)["channels"] == ["webhook"]

    def told() -> list[dict[str, str]]:
        lines = client.run("cat /root/told 2>/dev/null", check=False).stdout.splitlines()
        return [found for line in lines if "test" not in (found := json.loads(line)) and found["module"] == "db"]

    try:
        time.sleep(6)  # what it finds at its start is no event
        prim.safekit("swap", "-m", "db")
        wait_until(lambda: told(), 60, lambda: str(told()), 0.5)
        time.sleep(8)
        assert [found["subject"] for found in told()] == [
            f"[SafeKit] db runs on {other.name} now, {prim.name} is its secondary"
        ]
        other.poweroff()
        wait_until(lambda: len(told()) > 1, 60, lambda: str(told()), 0.5)
        time.sleep(8)
        assert len(told()) == 2, told()
        last = told()[1]
        assert last["subject"] == f"[SafeKit] db failed over from {other.name} to {prim.name}"
        assert "Because:" in last["text"] and "The application answers on" in last["text"], last["text"]
        print(last["text"])
    finally:
        for node in lab:
            if node.is_on:
                node.safekit("notify", "off", check=False)
        if not other.is_on:
            other.poweron()
        for name in ("db", "web"):
            other.safekit("start", "-m", name, check=False)
        prim.safekit("waitstate", "-m", "db", "PRIM", timeout=90)
        hook.kill()
        hook.wait()


@pytest.mark.parametrize("what", ["swap", "drain", "poweroff"])
def test_the_longest_wait_of_a_client_behind_a_balancer(lab: Lab, what: str) -> None:
    """CLO-005, CLO-006. Probes every 300 ms, two to switch. What a client waits is told, and bounded generously."""
    one, two = lab
    client = lab.client
    client.write("/root/balancer.cfg", BALANCER.format(one=one.address(), two=two.address()))
    client.write("/root/client.py", CLIENT)
    balancer = client.popen(["haproxy", "-db", "-f", "/root/balancer.cfg"])
    try:
        prim, other = (one, two) if state(one, "db") in ("PRIM", "ALONE") else (two, one)
        port = 8002 if what == "drain" else 8001
        ask = f"curl -s -m 2 -f http://127.0.0.1:{port}/name"
        wait_until(
            lambda: client.run(ask, check=False).returncode == 0, 30, lambda: client.run(ask, check=False).stderr
        )
        running = client.popen(["python3", "/root/client.py", str(port), "16"], stdout=-1)
        time.sleep(2)
        if what == "swap":
            prim.safekit("swap", "-m", "db")
        elif what == "drain":
            other.safekit("stop", "-m", "web")
        else:
            prim.poweroff()
        output, _ = running.communicate(timeout=60)
        longest, failed, answered = (float(word) for word in output.split())
        print(f"{what}: longest wait {longest:.2f} s, {failed:.0f} failed, {answered:.0f} answered")
        assert answered > 50 and longest < {"swap": 8, "drain": 3, "poweroff": 10}[what], output
    finally:
        balancer.kill()
        balancer.wait()
    if what == "drain":
        other.safekit("start", "-m", "web")
    if what == "poweroff":
        prim.poweron()
