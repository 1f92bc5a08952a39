"""Module templates of the guide (3.4.1, 14.3, 15) as they are delivered: each is installed and configured, and the one
for MariaDB and MySQL runs a database through a swap, the death of its process and the loss of its server."""

from __future__ import annotations

import shutil

import pytest
from labs import lab_of_the_file
from pair import Pair

from lab.cluster import Lab, Node
from lab.waiting import wait_until

TEMPLATES = "/opt/safekit/Application_Modules"
DELIVERED = {
    "generic": {"mirror", "farm", "light"},
    "demo": {"apache_farm", "follower", "leader", "mysql", "postgresql", "softerrd", "vhost"},
}
MACROS = {"MYSQL_DIR": "/srv/my", "PULSE": "150", "TIMEOUT": "2000"}


lab = lab_of_the_file()


def test_each_template_is_installed_and_configured(lab: Lab) -> None:
    """(3.4.1; what a template's values are is asserted in t0, what it does in the tests of its subject.)"""
    node = lab.node("node1")
    for kind, names in DELIVERED.items():
        assert set(node.run(f"cd {TEMPLATES}/{kind} && ls").stdout.replace(".safe", "").split()) == names
    for kind in ("other", "backup"):
        assert node.run(["ls", f"{TEMPLATES}/{kind}"]).stdout == ""
    for number, name in enumerate(sorted(DELIVERED["generic"] | DELIVERED["demo"]), 21):
        kind = "generic" if name in DELIVERED["generic"] else "demo"
        node.safekit("module", "install", "-M", str(number), "-m", name, f"{TEMPLATES}/{kind}/{name}.safe")
        path = f"/opt/safekit/modules/{name}/conf/userconfig.xml"
        text = node.read(path).replace("192.168.4.", "10.88.1.").replace("192.168.1.", "10.88.1.")
        node.write(path, text)
        for directory in ("/srv/mysql", "/srv/postgresql", "/shared", "/test1replicated", "/test2replicated"):
            node.run(["mkdir", "-p", directory])
        checked = node.safekit("confcheck", "-m", name)
        assert checked.returncode == 0 and "Error" not in checked.stdout + checked.stderr
        node.safekit("config", "-m", name)
        node.safekit("module", "uninstall", "-m", name)


class Database(Pair):
    """The template under the name db on both nodes."""

    def __init__(self, lab: Lab) -> None:
        super().__init__(lab, "db", MACROS["MYSQL_DIR"])
        for node in self.nodes:
            node.run("id mysql 2>/dev/null || useradd -r mysql; mkdir -p /srv/my")
            node.safekit("module", "install", "-M", "1", "-m", "db", f"{TEMPLATES}/demo/mysql.safe")
            path = "/opt/safekit/modules/db/conf/userconfig.xml"
            text = node.read(path)
            for name, value in {**MACROS, "VIRTUAL_IP": lab.vip}.items():
                before, _, after = text.partition(f'<macro name="{name}" value="')
                text = f'{before}<macro name="{name}" value="{value}"{after[after.index(chr(34)) + 1 :]}'
            node.write(path, text)
            node.safekit("config", "-m", "db")

    def sql(self, node: Node, statement: str) -> str:
        return node.run(
            ["mariadb", "--no-defaults", "-S", "/run/mysqld/mysqld.sock", "-BN", "-e", statement]
        ).stdout.strip()

    def server(self, node: Node) -> list[int]:
        return node.pids("mariadbd") or node.pids("mysqld")


@pytest.mark.skipif(shutil.which("mariadbd") is None, reason="MariaDB is missing (mariadb-server-core)")
def test_the_database_template(lab: Lab) -> None:
    database = Database(lab)
    one, two = database.nodes
    database.first_start(one)
    database.sql(one, "CREATE DATABASE app; CREATE TABLE app.t (n INT PRIMARY KEY); INSERT INTO app.t VALUES (1)")
    # clients come to the virtual address: they are asked who they are
    refused = lab.client.run(["mariadb", "--no-defaults", "-h", lab.vip, "-u", "nobody", "-e", "SELECT 1"], check=False)
    assert "is not allowed to connect" in refused.stderr or "Access denied" in refused.stderr, refused.stderr
    one.safekit("swap", "-m", "db")
    database.wait_protected(two)
    assert not database.server(one), "one server at a time"
    assert database.sql(two, "SELECT COUNT(*) FROM app.t") == "1"
    database.sql(two, "INSERT INTO app.t VALUES (2)")
    (pid,) = database.server(two)
    mark = database.mark()
    two.kill("mariadbd")
    database.wait_log(two, mark, ["event atleast on proc database", "Action restart called by errd"])
    wait_until(lambda: database.server(two) not in ([], [pid]), 30, "the database runs again")
    database.wait_protected(two)
    assert database.sql(two, "SELECT COUNT(*) FROM app.t") == "2"
    database.sql(two, "INSERT INTO app.t VALUES (3)")
    two.poweroff()
    database.wait(one, "ALONE green", 60)
    assert database.sql(one, "SELECT COUNT(*) FROM app.t; CHECK TABLE app.t EXTENDED").split() == [
        "3", "app.t", "check", "status", "OK",
    ]  # fmt: skip
    one.safekit("stop", "-m", "db")
    database.wait(one, "STOP red")
    assert not database.server(one)
    lines = one.read("/srv/my/data/mysql.log").splitlines()
    assert any("Shutdown complete" in line for line in lines[-3:]), "stopped in good order"
