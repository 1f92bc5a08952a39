"""The plan of `safekit protect`: facts of two servers in, a module and what speaks against it out."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from cli.protect.facts import Account, Directory, Listening, Needed, Server, Setting, Unit
from cli.protect.files import files_of
from cli.protect.plan import Plan, Wish, make
from safekit.model.codec import from_json, to_json
from safekit.model.module import examine_module
from safekit.model.types import ClusterConfig, Lan, LanNode


def lan(name: str, network: int, *names: str) -> Lan:
    nodes = tuple(LanNode(node, f"10.0.{network}.{number}") for number, node in enumerate(names, 1))
    return Lan(name, nodes=nodes)


CLUSTER = ClusterConfig((lan("default", 0, "node1", "node2"), lan("repli", 1, "node1", "node2")))
UNIT = Unit(
    "postgresql.service", found=True, active=True, enabled="enabled", kind="oneshot", user="postgres",
    package="postgresql-common", version="248", parts=("postgresql@15-main.service",), main_pid=77,
    needs=(Needed("/lib/systemd/system/postgresql.service", "package"),),
)  # fmt: skip
DATA = "/var/lib/postgresql"
HERE = Server(
    "node1", "7.4", 1000.0, root=True, systemd=True, unit=UNIT,
    directories=(Directory(DATA, "PLAIN", "", 0o755, 105, 107, 40_000_000, 900, uids=(105,), gids=(107,), free=10**9),),
    accounts=(Account("user", "postgres", 105), Account("group", "postgres", 107)),
    listening=(Listening("0.0.0.0", 5432, "postgresql@15-main.service"),),
    networks=("10.0.0.0/24", "10.0.1.0/24"),
    settings=(Setting("/etc/postgresql/15/main/pg_hba.conf", "aa"),),
)  # fmt: skip
THERE = replace(HERE, node="node2")
WISH = Wish("postgresql", (DATA,), "10.0.0.50", "node2", witness="10.0.0.254")


def plan(wish: Wish = WISH, here: Server = HERE, there: Server = THERE, ahead: float = 0.0) -> Plan:
    return make(wish, CLUSTER, here, there, ahead)


def codes(found: Plan) -> list[str]:
    return [each.code for each in found.obstacles]


def unit_of(server: Server, **values: object) -> Server:
    return replace(server, unit=replace(server.unit, **values))  # type: ignore[arg-type]


def data_of(server: Server, **values: object) -> Server:
    return replace(server, directories=(replace(server.directories[0], **values),))  # type: ignore[arg-type]


def test_nothing_speaks_against_two_servers_that_are_alike() -> None:
    found = plan()
    assert not found.obstacles, found.obstacles
    assert found.units == ("postgresql@15-main.service",), "the unit that runs"
    assert found.disabled == ("postgresql.service", "postgresql@15-main.service")
    assert (found.lans, found.flow) == (("default", "repli"), "repli"), "replication keeps off the clients' network"
    assert found.checked == Listening("10.0.0.50", 5432), "asked where a client asks"


@pytest.mark.parametrize(
    ("code", "here", "there"),
    [
        ("root", HERE, replace(THERE, root=False)),
        ("systemd", HERE, replace(THERE, systemd=False)),
        ("fuse", HERE, replace(THERE, fuse=False)),
        ("module", HERE, replace(THERE, modules=("postgresql",))),
        ("taken", HERE, replace(THERE, taken=True)),
        ("network", HERE, replace(THERE, networks=("10.9.0.0/24",))),
        ("unit", HERE, replace(THERE, unit=Unit("postgresql.service"))),
        ("inactive", unit_of(HERE, active=False), THERE),
        ("oneshot", unit_of(HERE, parts=(), main_pid=0), THERE),
        ("socket", unit_of(HERE, sockets=("postgresql.socket",)), THERE),
        ("units", HERE, unit_of(THERE, parts=(*UNIT.parts, "postgresql@16-test.service"))),
        ("version", HERE, unit_of(THERE, version="249")),
        ("package", HERE, unit_of(THERE, package="postgresql")),
        ("program", unit_of(HERE, needs=(Needed("/opt/a", "1"),)), unit_of(THERE, needs=(Needed("/opt/a", ""),))),
        ("program", unit_of(HERE, needs=(Needed("/opt/a", "1"),)), unit_of(THERE, needs=(Needed("/opt/a", "2"),))),
        ("release", HERE, replace(THERE, release="7.5")),
        ("port", HERE, replace(THERE, listening=(Listening("0.0.0.0", 5432, "another"),))),
        ("directory", data_of(HERE, problem="it is a mount point", state="MOUNT_POINT"), THERE),
        ("directory", HERE, data_of(THERE, module="other")),
        ("mounts", data_of(HERE, mounts=(f"{DATA}/wal",)), THERE),
        ("space", HERE, data_of(THERE, free=41_000_000)),
        ("ids", HERE, replace(THERE, accounts=(Account("user", "postgres", 110), Account("group", "postgres", 107)))),
        ("ids", HERE, replace(THERE, accounts=(Account("group", "postgres", 107),))),
        ("ids", HERE, replace(THERE, accounts=(Account("user", "redis", 105), Account("group", "postgres", 107)))),
    ],
)  # fmt: skip
def test_what_speaks_against_it_has_a_next_step(code: str, here: Server, there: Server) -> None:
    found = plan(here=here, there=there)
    assert set(codes(found)) == {code}, found.obstacles
    for each in found.obstacles:
        assert each.text and each.next_step
        waived = plan(replace(WISH, despite=frozenset({code})), here, there)
        assert (code in codes(waived)) is not each.waivable
        assert bool(waived.waived) is each.waivable


def test_clocks_and_addresses() -> None:
    assert codes(plan(ahead=-45.0)) == ["clock"] and codes(plan(ahead=20.0)) == []
    for address in ("10.0.0.2", "127.0.0.1", "nowhere", "224.0.0.1"):
        assert codes(plan(replace(WISH, address=address)))[0] == "address", address
    assert codes(plan(replace(WISH, address="10.5.0.1"))) == ["network", "network"]


@pytest.mark.parametrize("path", ["/", "/etc", "/var/lib", "/usr/share/app", "/var/safekit/modules", "/opt/safekit"])
def test_what_the_server_lives_in_is_no_data(path: str) -> None:
    assert codes(plan(replace(WISH, directories=(path,)))) == ["directory"]


def test_a_network_of_three_servers_is_no_network_of_a_mirror() -> None:
    three = ClusterConfig((lan("default", 0, "node1", "node2", "node3"),))
    assert codes(make(WISH, three, HERE, THERE)) == ["lan"]
    with_pair = ClusterConfig((*three.lans, lan("pair", 1, "node1", "node2")))
    found = make(WISH, with_pair, HERE, THERE)
    assert not found.obstacles and found.lans == ("pair",)
    assert codes(make(replace(WISH, other="node9"), three, HERE, replace(THERE, node="node9"))) == ["lan"]


def test_what_a_person_should_know() -> None:
    there = replace(
        data_of(THERE, entries=5), settings=(Setting("/etc/postgresql/15/main/pg_hba.conf", "bb"),)
    )  # fmt: skip
    here = replace(HERE, listening=(Listening("127.0.0.1", 5432, "postgresql@15-main.service"),))
    one = ClusterConfig((CLUSTER.lans[0],))
    found = make(replace(WISH, witness=""), one, here, there)
    notes = "\n".join(found.notes)
    assert "is kept beside it, as /var/lib/postgresql.before-postgresql" in notes
    assert "no client reaches it through 10.0.0.50" in notes
    assert "one heartbeat" in notes and "no witness" in notes
    assert "pg_hba.conf" in notes
    assert found.checked == Listening("127.0.0.1", 5432), "the virtual address would never answer"
    assert not found.obstacles
    assert "no virtual address" in "\n".join(plan(replace(WISH, address="")).notes)


def test_the_names_of_services_become_names_of_modules() -> None:
    for service, name in (("redis-server.service", "redis-server"), ("app@a\\x2db", "app-a-x2db"), ("a.b", "a-b")):
        assert Wish(service, ()).name == name
    assert Wish("x", (), module="mine").name == "mine"


@pytest.mark.parametrize(
    "wish", [WISH, replace(WISH, address="", witness="", port=0, directories=('/srv/a "b" & <c>',))]
)
def test_the_module_is_one_that_confcheck_takes(wish: Wish, tmp_path: Path) -> None:
    directory = replace(HERE.directories[0], path=wish.directories[0])
    here = replace(HERE, directories=(directory,), listening=HERE.listening if wish.address else ())
    found = plan(wish, here, replace(THERE, directories=(directory,)))
    assert not found.obstacles
    files = files_of(found)
    path = tmp_path / "userconfig.xml"
    path.write_text(files["conf/userconfig.xml"])
    examined = examine_module(path, found.module, 1, CLUSTER)
    assert examined.config is not None and not examined.findings, examined.findings
    config = examined.config
    assert config.rfs is not None and [each.dir for each in config.rfs.replicated] == list(wish.directories)
    assert config.heart is not None and [beat.ident for beat in config.heart.heartbeats] == ["default", "flow"]
    assert config.errd is not None and config.errd.procs[0].service
    assert [check.port for check in config.check.tcp] == ([5432] if wish.address else [])
    for name, text in files.items():
        if name.startswith("bin/"):
            script = tmp_path / "script"
            script.write_text(text)
            subprocess.run(["sh", "-n", script], check=True)


def test_facts_and_plans_travel_as_json() -> None:
    assert from_json(Server, to_json(HERE)) == HERE
    assert json.loads(to_json(plan()))["module"] == "postgresql"
