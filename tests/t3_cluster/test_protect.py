"""`safekit protect` on two servers that systemd boots, with applications as their distribution packages them: one
command each, then the power of their server fails."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import machines
import pytest
from machines import CHECKOUT, Machine, Network

from lab.waiting import wait_until

pytestmark = pytest.mark.skipif(bool(machines.why_not()), reason=machines.why_not())

ADDRESSES = ("10.77.3.1", "10.77.3.2")
CLIENT = "10.77.3.200"
VIPS = {"postgresql": "10.77.3.11", "redis-server": "10.77.3.12", "nginx": "10.77.3.13", "shop": "10.77.3.14",
        "mariadb": "10.77.3.15"}  # fmt: skip
PACKAGES = ("redis-server", "nginx-light", "mariadb-server")
DEBS = CHECKOUT / ".cache/debs-of-applications"
# A web application as people write them: one file of Python, its data in SQLite, run by systemd.
SHOP = """import http.server, os, sqlite3
os.makedirs("/srv/shop", exist_ok=True)
orders = sqlite3.connect("/srv/shop/orders.db")
orders.execute("pragma synchronous=full")
orders.execute("create table if not exists orders(item text)")
class Shop(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        item = self.rfile.read(int(self.headers["Content-Length"])).decode()
        orders.execute("insert into orders values (?)", (item,))
        orders.commit()
        self.answer("ordered")
    def do_GET(self):
        self.answer("\\n".join(item for (item,) in orders.execute("select item from orders order by rowid")))
    def answer(self, text):
        self.send_response(200); self.end_headers(); self.wfile.write(text.encode())
http.server.HTTPServer(("0.0.0.0", 8099), Shop).serve_forever()
"""
SHOP_UNIT = """[Unit]
Description=Shop
[Service]
ExecStart=/usr/bin/env python3 /opt/shop/shop.py
Restart=on-failure
[Install]
WantedBy=multi-user.target
"""
SITE = """server { listen 80; root /srv/www; }
"""
ASK = """import sys, urllib.request
data = sys.argv[2].encode() if len(sys.argv) > 2 else None
print(urllib.request.urlopen(sys.argv[1], data, timeout=5).read().decode())
"""
REDIS = """import socket, sys
client = socket.create_connection((sys.argv[1], 6379), 5)
words = sys.argv[2:]
client.sendall(b"*%d\\r\\n" % len(words) + b"".join(b"$%d\\r\\n%s\\r\\n" % (len(w), w.encode()) for w in words))
print(client.recv(65536).decode())
"""


def debs() -> list[Path]:
    """The packages that this host does not have, with what they need. The test is skipped without the mirror."""
    if not list(DEBS.glob("*.deb")):
        DEBS.mkdir(parents=True, exist_ok=True)
        words = ["apt-get", "install", "-y", "--download-only", "--no-install-recommends", "-qq"]
        options = ["-o", f"Dir::Cache::archives={DEBS}", "-o", "Debug::NoLocking=1"]
        done = subprocess.run([*words, *options, *PACKAGES], capture_output=True, text=True, check=False, timeout=300)
        if done.returncode:
            pytest.skip(f"the packages cannot be had: {done.stderr[-300:]}")
    return sorted(DEBS.glob("*.deb"))


class Pair:
    """The servers, and a client on their network."""

    def __init__(self, place: Path) -> None:
        self.network = Network(CLIENT, *ADDRESSES)
        self.one, self.two = (
            Machine(place / f"m{number}", f"server{number}", self.network.holders[number]) for number in (1, 2)
        )

    def client(self, *words: str, check: bool = True) -> str:
        enter = ["nsenter", "-t", str(self.network.holders[0].pid), "-n", "--"]
        done = subprocess.run([*enter, *words], capture_output=True, text=True, check=False, timeout=30)
        assert not check or done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        said: str = done.stdout
        return said.strip()

    def python(self, code: str, *words: str, check: bool = True) -> str:
        return self.client("python3", "-c", code, *words, check=check)

    def sql(self, text: str, check: bool = True) -> str:
        where = ("-h", VIPS["postgresql"], "-U", "postgres", "-At", "-c", text)
        return self.client("env", "PGCONNECT_TIMEOUT=5", "psql", *where, check=check)

    def poweroff_one(self) -> None:
        """A network name space outlives its server: the addresses go with the power too."""
        enter = ["nsenter", "-t", str(self.one.holder.pid), "-n", "ip"]
        self.one.poweroff()
        subprocess.run([*enter, "addr", "flush", "dev", "default0"], check=True, capture_output=True)
        subprocess.run([*enter, "addr", "add", f"{ADDRESSES[0]}/24", "dev", "default0"], check=True)

    def close(self) -> None:
        for server in (self.one, self.two):
            server.poweroff()
        self.network.close()


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Two servers with the product, a cluster and the applications, which run on the first one and start at boot."""
    files = debs()
    pair = Pair(tmp_path_factory.mktemp("p"))
    try:
        for server in (pair.one, pair.two):
            server.boot()
            _applications(server, files)
            server.run(f"cd {CHECKOUT} && bin/safekitinstall -q --no-firewall", timeout=300)
        pair.two.safekit("webserver", "start")
        code = json.loads(pair.two.safekit("cluster", "join", "--json").stdout)["code"]
        nodes = [f"server{number}={address}" for number, address in enumerate(ADDRESSES, 1)]
        made = pair.one.safekit("cluster", "create", *nodes, "--code", code).stdout
        assert "server2: configured" in made and "all of them hear each other" in made
        again = pair.one.safekit("cluster", "create", *nodes).stdout
        assert "server2: in the cluster already" in again
        yield pair
    finally:
        pair.close()


def _applications(server: Machine, files: list[Path]) -> None:
    place = server.outside("/var/debs")
    place.mkdir()
    for file in files:
        shutil.copyfile(file, place / file.name)
    server.run(
        "DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends /var/debs/*.deb", timeout=300
    )
    server.write("/etc/nginx/sites-enabled/default", SITE)
    server.write("/srv/www/index.html", f"from {server.name}\n")
    server.write("/opt/shop/shop.py", SHOP)
    server.write("/etc/systemd/system/shop.service", SHOP_UNIT)
    server.run("sed -i 's/^bind .*/bind 0.0.0.0/; s/^protected-mode .*/protected-mode no/' /etc/redis/redis.conf")
    server.run("sed -i 's/^bind-address.*/bind-address = 0.0.0.0/' /etc/mysql/mariadb.conf.d/50-server.cnf")
    server.run("pg_lsclusters -h | grep -q . || pg_createcluster 15 main")
    settings = server.run("ls -d /etc/postgresql/15/*").stdout.split()[0]
    server.run(f"echo \"listen_addresses = '*'\" >>{settings}/postgresql.conf")
    server.run(f"echo 'host all all 10.77.3.0/24 trust' >>{settings}/pg_hba.conf")
    server.run("systemctl daemon-reload")
    for unit in VIPS:
        server.run(f"systemctl enable {unit} && systemctl restart {unit}", timeout=120)


def protect(
    server: Machine, service: str, data: str, *more: str, check: bool = True
) -> subprocess.CompletedProcess[str]:
    words = ["protect", "--service", service, "--data", data, "--address", VIPS[service], "--with", "server2"]
    return server.safekit(*words, "--timeout", "4", *more, check=check, timeout=180)


def protected(server: Machine, module: str) -> bool:
    told = json.loads(server.safekit("state", "--json", "-m", module).stdout)
    return bool(told["modules"][0]["verdict"]["kind"] == "protected")


def wait_state(server: Machine, module: str, wanted: str) -> None:
    wait_until(lambda: server.state(module) == wanted, 60, lambda: f"{module} {wanted}: {server.state(module)}")


def enabled(server: Machine, unit: str) -> str:
    return server.run(["systemctl", "is-enabled", unit], check=False).stdout.strip()


def test_a_dry_run_shows_the_plan_and_the_files_and_changes_nothing(pair: Pair) -> None:
    done = protect(pair.one, "postgresql", "/var/lib/postgresql", "--dry-run")
    assert "postgresql@15-main.service" in done.stdout, "the unit that runs, not the one that gathers"
    assert '<replicated dir="/var/lib/postgresql" mode="read_only"/>' in done.stdout
    assert "clients     10.77.3.11" in done.stdout and "TCP 10.77.3.11:5432" in done.stdout
    assert "/var/lib/postgresql.before-postgresql" in done.stdout
    assert "Nothing was changed" in done.stdout
    assert pair.one.safekit("module", "list").stdout == ""
    assert enabled(pair.one, "postgresql") == "enabled"


def test_what_speaks_against_it_is_told_with_the_next_step(pair: Pair) -> None:
    pair.two.run("systemctl disable --now shop && mv /opt/shop/shop.py /opt/shop/away.py")
    pair.two.run("systemd-run --unit=squatter python3 -m http.server 8099")
    done = protect(pair.one, "shop", "/srv/shop", "--yes", check=False)
    pair.two.run("systemctl stop squatter; mv /opt/shop/away.py /opt/shop/shop.py")
    assert done.returncode == 1
    assert "/opt/shop/shop.py, which shop.service needs, is not on server2" in done.stderr
    assert "Next step (on server2): copy it there" in done.stderr
    assert "squatter.service has TCP port 8099 on server2" in done.stderr
    assert "Nothing was changed." in done.stderr
    assert pair.one.run(["systemctl", "is-active", "shop"]).stdout == "active\n"
    taken = pair.one.safekit(
        "protect", "--service", "shop", "--data", "/srv/shop", "--address", CLIENT, "--json", check=False
    )
    told = json.loads(taken.stdout)
    assert (taken.returncode, told["result"], told["changed"]) == (1, "refused", False)
    assert [each["code"] for each in told["obstacles"]] == ["taken"], told["obstacles"]


def test_a_service_that_does_not_come_up_under_the_module_runs_again_as_before(pair: Pair) -> None:
    pair.one.run("mkdir -p /etc/systemd/system/shop.service.d; systemctl daemon-reload")
    # It works where it is, and refuses to start once its directory is a mount: as one with a rule of its own would.
    pair.one.write(
        "/etc/systemd/system/shop.service.d/own.conf",
        "[Service]\nExecStartPre=/bin/sh -c '! mountpoint -q /srv/shop'\n",
    )
    pair.one.run("systemctl daemon-reload && systemctl restart shop")
    pair.python(ASK, f"http://{ADDRESSES[0]}:8099/", "before")
    done = protect(pair.one, "shop", "/srv/shop", "--yes", check=False)
    pair.one.run("rm -r /etc/systemd/system/shop.service.d && systemctl daemon-reload")
    assert done.returncode == 1, done.stdout
    assert "shop.service did not start" in done.stderr and "runs on server1 as before" in done.stderr, done.stderr
    assert pair.python(ASK, f"http://{ADDRESSES[0]}:8099/") == "before"
    assert enabled(pair.one, "shop") == "enabled"
    for server in (pair.one, pair.two):
        assert "shop" not in server.safekit("module", "list").stdout
        assert "before-shop" not in server.run("ls /srv").stdout and "Replication" not in server.run("ls /srv").stdout


APPLICATIONS = {
    "postgresql": "/var/lib/postgresql",
    "redis-server": "/var/lib/redis",
    "nginx": "/srv/www",
    "shop": "/srv/shop",
    "mariadb": "/var/lib/mysql",
}


@pytest.mark.parametrize("service", APPLICATIONS)
def test_one_command_protects_a_service(pair: Pair, service: str) -> None:
    began = time.monotonic()
    done = protect(pair.one, service, APPLICATIONS[service], "--yes", check=False)
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"
    assert f"{service} is protected: the application runs here, its secondary is ready" in done.stdout
    print(f"{service}: {time.monotonic() - began:.1f} s")
    assert (pair.one.state(service), pair.two.state(service)) == ("PRIM", "SECOND")
    for server in (pair.one, pair.two):
        assert enabled(server, service) == "disabled"
        assert server.safekit("boot", "status", "-m", service).stdout.split() == [service, "on"]
        assert server.safekit("confcheck", "-m", service).returncode == 0
    again = protect(pair.one, service, APPLICATIONS[service], "--yes")
    assert "is protected already" in again.stdout


def test_the_power_of_their_server_fails_and_nothing_acknowledged_is_missing(pair: Pair) -> None:
    pair.sql("create table ledger(n int)")
    for number in range(20):
        pair.sql(f"insert into ledger values ({number})")
        pair.python(ASK, f"http://{VIPS['shop']}:8099/", f"order {number}")
    pair.python(REDIS, VIPS["redis-server"], "SET", "key", "value")
    assert "OK" in pair.python(REDIS, VIPS["redis-server"], "SAVE")
    pair.one.run("echo 'the page' >/srv/www/index.html")
    pair.one.run("mariadb -e 'create database shop; create table shop.t(n int); insert into shop.t values (42)'")
    pair.poweroff_one()
    for module in APPLICATIONS:
        wait_state(pair.two, module, "ALONE")
    wait_until(lambda: pair.python(ASK, f"http://{VIPS['nginx']}/", check=False) == "the page", 30, "the page")
    wait_until(
        lambda: pair.python(ASK, f"http://{VIPS['shop']}:8099/", check=False).split("\n")[-1] == "order 19",
        30,
        "orders",
    )
    # Each recovers first, as after every loss of power.
    wait_until(lambda: pair.sql("select 1", check=False) == "1", 60, "PostgreSQL")
    wait_until(lambda: "PONG" in pair.python(REDIS, VIPS["redis-server"], "PING", check=False), 60, "Redis")
    wait_until(lambda: pair.two.run("mariadb -Ne 'select 1'", check=False).stdout == "1\n", 60, "MariaDB")
    assert pair.sql("select count(*), max(n) from ledger") == "20|19"
    assert "value" in pair.python(REDIS, VIPS["redis-server"], "GET", "key")
    assert pair.two.run("mariadb -Ne 'select n from shop.t'").stdout == "42\n"
    assert (pair.two.run("cat /srv/www.before-nginx/index.html")).stdout == "from server2\n", "set aside, not lost"
    pair.one.boot()
    for module in APPLICATIONS:
        wait_state(pair.one, module, "SECOND")
        wait_until(partial(protected, pair.two, module), 60, f"{module} is protected")
