"""What another user of a server can read, change and command: nothing (guide 2.1.6, 10.4)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest

from lab.cluster import Lab, Node
from lab.waiting import wait_until
from tests.conftest import unique_lab_name

SECRET = re.compile(r"\.key(\.\w+)?$|\.keys$|/(user|group)\.conf$|/ssl/.|admin-password|supervisord\.conf$|\.sock$")

ATTEMPTS = """
import json, os, socket, sys, time
paths, datagrams = json.load(sys.stdin)
found = {"read": [], "ports": [], "written": [], "connected": [], "answers": 0, "killed": []}
for path in paths:
    for mode, flags in (("read", os.O_RDONLY), ("written", os.O_WRONLY)):
        try:
            os.close(os.open(path, flags | os.O_NONBLOCK))
            found[mode].append(path)
        except OSError:
            pass
    if os.path.isdir(path) and os.access(path, os.W_OK):
        found["written"].append(path)
    if path.endswith(".sock"):
        try:
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect(path)
            found["connected"].append(path)
        except OSError:
            pass
ports = [int(line.split()[1].split(":")[1], 16) for line in open("/proc/net/udp").readlines()[1:]]
found["ports"] = ports
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    sock.settimeout(0.3)
    for port in sorted(set(ports)):
        for datagram in datagrams:
            try:
                sock.sendto(bytes.fromhex(datagram), ("127.0.0.1", port))
                sock.recv(65536)
                found["answers"] += 1
            except OSError:
                pass
for entry in filter(str.isdigit, os.listdir("/proc")):
    try:
        os.kill(int(entry), 0)
    except PermissionError:
        continue
    except ProcessLookupError:
        continue
    if int(entry) != os.getpid() and os.stat(f"/proc/{entry}").st_uid == 0:
        found["killed"].append(entry)
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    """A server in the middle of its life: keys, a running module, logs, dumps; and a user who is nobody."""
    lab = Lab.up(unique_lab_name(), lans=("default",))
    try:
        node = lab.node("node1")
        node.run("useradd stranger && useradd -G safekit member")
        node.safekit("module", "install", "-m", "app", "/opt/safekit/Application_Modules/generic/light.safe")
        node.safekit("module", "genkey", "-m", "app")
        node.safekit("config", "-m", "app")
        node.safekit("start", "-m", "app")
        node.safekit("waitstate", "-m", "app", "UP")
        node.safekit("dump", "-m", "app", timeout=120)
        node.safekit("snapshot", "-m", "app", "/root/snapshot.zip", timeout=120)
        node.safekit("cluster", "export", "/root/cluster.zip")
        node.safekit("module", "package", "-m", "app", "/root/app.safe")
        yield node
    finally:
        lab.down()


def files(node: Node) -> dict[str, tuple[str, int, str]]:
    """path -> kind, mode, owner and group, of all that the product made."""
    places = "/opt/safekit /var/safekit /etc/safeini.xml /etc/systemd/system/safe*.service /usr/local/bin/safekit"
    found = {}
    for line in node.run(f"find {places} -printf '%y %m %u:%g %p\\n'").stdout.splitlines():
        kind, mode, owner, path = line.split(" ", 3)
        found[path] = (kind, int(mode, 8), owner)
    return found


def test_nobody_else_may_write_and_nothing_lends_its_rights(node: Node) -> None:
    for path, (kind, mode, owner) in files(node).items():
        if kind == "l":
            continue
        assert owner in ("root:root", "root:safekit"), (path, owner)
        assert not mode & 0o002, (path, oct(mode))
        assert kind == "d" or not mode & 0o6000, (path, oct(mode))


def test_secrets_are_for_root_and_the_group(node: Node) -> None:
    """A key is closed itself, wherever it is copied to, and not only by its directory."""
    found = files(node)
    secrets = {path: mode for path, (kind, mode, _) in found.items() if SECRET.search(path) and kind != "d"}
    names = {path.rsplit("/", 1)[1] for path in secrets}
    assert {"bus.key", "cluster.key", "user.conf", "supervisord.conf"} <= names, names
    assert any("/modules/app/" in path and path.endswith(".key") for path in secrets), "the module's key"
    wrong = {path: oct(mode) for path, mode in secrets.items() if mode & 0o007}
    assert not wrong
    assert found["/var/safekit"][1] & 0o007 == 0 and found["/opt/safekit/modules"][1] & 0o007 == 0
    for name in ("snapshot.zip", "cluster.zip", "app.safe"):
        mode = int(node.run(["stat", "-c", "%a", f"/root/{name}"]).stdout, 8)
        assert not mode & 0o007, (name, oct(mode))


def test_keys_are_in_no_command_line(node: Node) -> None:
    lines = node.run("cat /proc/[0-9]*/cmdline | tr '\\0' ' '").stdout
    for path in files(node):
        if path.endswith(".key"):
            assert node.read(path).strip() not in lines


def test_a_stranger_can_neither_read_nor_command(node: Node) -> None:
    """Really tried, as another user: every file, every socket, every UDP port of this server."""
    paths = [path for path, (kind, _, _) in files(node).items() if kind != "l"]
    stop = b"\x83\xa2id\x07\xa2op\xa4stop\xa4from\xa3cli"
    forged = [stop, bytes(16) + stop, b"SK" + bytes(60)]
    done = node.run(
        ["runuser", "-u", "stranger", "--", "/usr/bin/python3", "-c", ATTEMPTS], cwd="/",
        input=json.dumps([paths, [datagram.hex() for datagram in forged]]), timeout=120,
    )  # fmt: skip
    found = json.loads(done.stdout)
    assert not found["written"] and not found["connected"] and not found["answers"] and not found["killed"], found
    assert {6259, 4800} <= set(found["ports"]) and found["read"], "the attempts were made"
    read = [path for path in found["read"] if path.startswith("/var/safekit") or SECRET.search(path)]
    assert not read
    for words in (["stop", "-m", "app"], ["state"], ["module", "genkey", "-m", "app"], ["cluster", "confinfo"]):
        command = ["runuser", "-u", "stranger", "--", "/opt/safekit/safekit", *words]
        refused = node.run(command, check=False, cwd="/")
        assert refused.returncode != 0 and "group safekit" in refused.stderr, (words, refused)
    assert node.safekit("state", "-lq", "-m", "app", check=False).stdout.strip() == "UP"


def test_a_member_of_the_group_commands(node: Node) -> None:
    done = node.run(["runuser", "-u", "member", "--", "/opt/safekit/safekit", "stop", "-m", "app"], cwd="/")
    assert done.returncode == 0
    wait_until(
        lambda: node.safekit("state", "-lq", "-m", "app", check=False).stdout.strip() == "STOP", 30, "the module stops"
    )
