"""What a new user does with mirrors: three of them with one shared backup server (guide 1.5.2), the steps of the
README, and mistakes: each is told with its cause, exit status 1, and nothing is changed."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from pair import Pair

from lab.archive import archive
from lab.cluster import Lab, Node
from lab.waiting import wait_until
from tests.conftest import unique_lab_name

CHECKOUT = Path(__file__).resolve().parents[2]
SAFE = "/opt/safekit"
TIMEOUT = 'pulse="200" timeout="1500"'


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Three servers and their common backup, node4: a lan for each pair, all on the same network."""
    lab = Lab.up(unique_lab_name(), nodes=4, lans=("default",))
    lans = _lan(lab, "default", tuple(lab.nodes), "on")
    lans += "".join(_lan(lab, f"pair{i}", (f"node{i}", "node4"), "off") for i in (1, 2, 3))
    first = lab.node("node1")
    first.write("/root/cluster.xml", f"<cluster><lans>{lans}</lans></cluster>")
    first.safekit("cluster", "config", "/root/cluster.xml")
    first.safekit("cluster", "export", "/root/cluster.zip")
    data = Pair.outside(first, "/root/cluster.zip").read_bytes()
    for node in list(lab)[1:]:
        Pair.outside(node, "/root/cluster.zip").write_bytes(data)
        node.safekit("cluster", "config", "/root/cluster.zip")
    yield lab
    lab.down()


def _lan(lab: Lab, name: str, members: tuple[str, ...], console: str) -> str:
    nodes = "".join(f'<node name="{m}" addr="{lab.nodes[m].address()}"/>' for m in members)
    return f'<lan name="{name}" console="{console}">{nodes}</lan>'


def _config(beats: str, directories: str = "", more: str = "", service: str = "") -> str:
    rfs = f"<rfs>{directories}</rfs>" if directories else ""
    return f"""<!DOCTYPE safe>
<safe>
 <service mode="mirror" {service}>
  <heart {TIMEOUT}>{beats}</heart>
  {rfs}
  {more}
  <user nicestoptimeout="5" forcestoptimeout="5"/>
 </service>
</safe>
"""


def _install(node: Node, module: str, number: int, config: str) -> None:
    Pair.outside(node, f"/root/{module}.safe").write_bytes(archive(config, {}))
    node.safekit("module", "install", "-m", module, "-M", str(number), f"/root/{module}.safe")


def _state(node: Node, module: str) -> str:
    told = json.loads(node.safekit("state", "--json", "-m", module).stdout)["modules"][0]
    return f"{told['state']} {told['color']}"


def _reach(node: Node, module: str, state: str) -> None:
    wait_until(lambda: _state(node, module) == state, 30, lambda: f"{module} {state} on {node.name}")


def test_three_primaries_share_one_backup(lab: Lab) -> None:
    backup = lab.node("node4")
    primaries = {f"m{i}": lab.node(f"node{i}") for i in (1, 2, 3)}
    for number, (module, node) in enumerate(primaries.items(), 1):
        config = _config(
            f'<heartbeat name="pair{number}" ident="flow"/>',
            f'<replicated dir="/srv/{module}"/>',
            service=f'defaultprim="{node.name}"',
        )
        for server in (node, backup):
            server.run(["mkdir", "-p", f"/srv/{module}"])
            _install(server, module, number, config)
            server.safekit("config", "-m", module)
        node.safekit("prim", "-m", module)
    for module, node in primaries.items():
        _reach(node, module, "ALONE green")
        backup.safekit("second", "-m", module)
    for module, node in primaries.items():
        _reach(node, module, "PRIM green")
        node.run(f"echo {module} > /srv/{module}/record && sync /srv/{module}/record")
    lab.node("node1").poweroff()
    _reach(backup, "m1", "ALONE green")
    assert backup.read("/srv/m1/record") == "m1\n"
    assert [_state(backup, m) for m in ("m2", "m3")] == ["SECOND green", "SECOND green"]
    verdicts = backup.safekit("state").stdout.splitlines()[-3:]
    assert [line.split(":")[0] for line in verdicts] == ["m1 is degraded", "m2 is protected", "m3 is protected"]
    # Back on its server, the application is given back (1.5.2).
    lab.node("node1").poweron()
    lab.node("node1").safekit("start", "-m", "m1")
    _reach(lab.node("node1"), "m1", "PRIM green")
    _reach(backup, "m1", "SECOND green")


def _files(node: Node) -> str:
    """Every file and link that a configuration may change: neither locks nor logs."""
    where = f"/srv {SAFE}/private/modules /var/safekit/modules/bad"
    left_out = "-type d -o -name .lock -o -name '*.lock' -o -path '*/log/*'"
    return node.run(f"find {where} \\( {left_out} \\) -o -printf '%p %y %s %l\\n' | sort").stdout


BEAT = '<heartbeat name="pair1" ident="flow"/>'
MISTAKES = {
    "malformed": ("<safe><service>", ["userconfig.xml:1: not well-formed XML"]),
    "unknown lan": (
        _config('<heartbeat name="nolan"/>'),
        ['userconfig.xml:4: <heartbeat name>: "nolan" is not a lan of the cluster; expected one of default, pair1'],
    ),
    "a lan of four servers": (
        _config('<heartbeat name="default"/>'),
        ["a mirror runs on two servers, the lans of its heartbeats share 4 (node1, node2, node3, node4); add a <lan>"],
    ),
    "a lan of two other servers": (
        _config('<heartbeat name="pair2"/>'),
        ['this server (node1) is not on the lan "pair2"'],
    ),
    "missing directory": (
        _config(BEAT, '<replicated dir="/srv/none"/>'),
        ["/srv/none does not exist on this node; create it (mkdir -p /srv/none)"],
    ),
    "overlapping directories": (
        _config(BEAT, '<replicated dir="/srv/plain"/><replicated dir="/srv/plain/inside"/>'),
        ["/srv/plain/inside overlaps with the replicated directory /srv/plain"],
    ),
    "mount point": (
        _config(BEAT, '<replicated dir="/srv/mounted"/>'),
        [
            "Device or resource busy: /srv/mounted is a mount point; run umount /srv/mounted",
            "change /srv/mounted to /srv/mounted_For_SafeKit_Replication in /etc/fstab",
        ],
    ),
    "virtual mac of a farm": (
        _config(
            BEAT,
            more="""<vip><interface_list><interface>
  <virtual_interface type="vmac_invisible"><virtual_addr addr="10.88.1.60" where="alias"/></virtual_interface>
  </interface></interface_list></vip>""",
        ),
        ["<virtual_addr where>"],
    ),
    "two mistakes": (
        _config('<heartbeat name="nolan"/>', '<replicated dir="/srv/none"/>'),
        ['"nolan" is not a lan', "/srv/none does not exist"],
    ),
}


@pytest.fixture(scope="module")
def user(lab: Lab) -> Node:
    """A server with a module `bad` that is installed, and directories to make mistakes with."""
    node = lab.node("node1")
    _install(node, "bad", 9, _config(BEAT))
    node.run("mkdir -p /srv/plain/inside /srv/mounted && mount -t tmpfs none /srv/mounted")
    return node


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_userconfig(user: Node, mistake: str) -> None:
    config, told = MISTAKES[mistake]
    user.write(f"{SAFE}/modules/bad/conf/userconfig.xml", config)
    before = _files(user)
    done = user.safekit("config", "-m", "bad", check=False)
    assert done.returncode == 1, done.stdout
    for text in told:
        assert text in done.stderr
    assert "Error: the configuration of module bad is not correct; nothing was changed\nNext step: " in done.stderr
    assert _files(user) == before


def test_a_full_disk(user: Node) -> None:
    user.write(f"{SAFE}/modules/bad/conf/userconfig.xml", _config(BEAT, '<replicated dir="/srv/plain"/>'))
    private = f"{SAFE}/private/modules"
    user.run(f"cp -a {private} /root/kept && mount -t tmpfs -o size=400k none {private}")
    user.run(f"cp -a /root/kept/. {private}")
    try:
        user.run(f"dd if=/dev/zero of={private}/filler bs=4k status=none; true")
        before = _files(user)
        done = user.safekit("config", "-m", "bad", check=False)
        assert done.returncode == 1
        assert "No space left on device" in done.stderr and "Next step: " in done.stderr
        assert _files(user) == before
    finally:
        user.run(["umount", private])


def test_starts_that_cannot_work(user: Node) -> None:
    user.write(f"{SAFE}/modules/bad/conf/userconfig.xml", _config(BEAT, '<replicated dir="/srv/plain"/>'))
    user.safekit("config", "-m", "bad")
    for command, text in (
        (
            f"exec python3 -c 'import socket, time; s = socket.socket(type=socket.SOCK_DGRAM); "
            f's.bind(("{user.address()}", 8896)); open("/run/taken", "w"); time.sleep(100)\'',
            f"UDP port 8896 of {user.address()} (heartbeat flow) is used by another program",
        ),
        (
            'exec python3 -c \'import socket, time; s = socket.create_server(("", 5632)); '
            'open("/run/taken", "w"); time.sleep(100)\'',
            f"TCP port 5632 of {user.address()} (file replication) is used by another program",
        ),
    ):
        taker = user.popen(["/bin/sh", "-c", command])
        try:
            wait_until(lambda: user.run("test -e /run/taken", check=False).returncode == 0, 20, "the port is taken")
            done = user.safekit("start", "-m", "bad", check=False)
            assert (done.returncode, text in done.stderr) == (1, True), done.stderr
        finally:
            taker.kill()
            taker.wait()
            user.run(["rm", "-f", "/run/taken"])
        assert _state(user, "bad") == "STOP red"
    user.run("touch /run/nothing && mount --bind /run/nothing /dev/fuse")
    try:
        done = user.safekit("start", "-m", "bad", check=False)
        assert done.returncode == 1
        assert "Error: /dev/fuse is missing: file replication needs the kernel's FUSE" in done.stderr
        assert "Next step: modprobe fuse" in done.stderr
    finally:
        user.run(["umount", "/dev/fuse"])
    user.safekit("prim", "-m", "bad")
    _reach(user, "bad", "ALONE green")
    done = user.safekit("start", "-m", "bad")
    assert done.stdout.startswith("the module is already started (ALONE)"), "what is so already is no error"
    for words in (("deconfig",), ("module", "uninstall")):
        before = _files(user)
        refused = user.safekit(*words, "-m", "bad", check=False)
        assert refused.returncode == 1 and "safekit stop -m bad" in refused.stderr, refused.stderr
        assert _files(user) == before
    user.safekit("stop", "-m", "bad")
    user.safekit("waitstop", "-m", "bad")


def test_the_first_module_of_the_readme() -> None:
    """Every line of "Five minutes to a first module of your own", as it is pasted."""
    text = (CHECKOUT / "README.md").read_text()
    section = text.split("## Five minutes to a first module of your own\n")[1].split("\n## ")[0]
    blocks = [block.strip("\n") for block in re.findall(r"```\n(.*?)```", section, re.DOTALL)]
    name = unique_lab_name()
    said = ""
    try:
        for block in blocks:
            if "cluster join" in block:
                break  # what follows is for real servers
            for where, lines in _places(block):
                said += _paste(name, where, lines)
    finally:
        subprocess.run([CHECKOUT / "bin/safelab", "down", "--name", name], check=False, capture_output=True)
    assert "hello is protected: the application runs here, its secondary is ready" in said
    assert "the other server is not heard any more" in said, "why the second server took over"
    assert re.search(r"node1\n.*\nnode2\n", said), "start_prim ran on node1, then on node2"


def _places(block: str) -> Iterator[tuple[str, str]]:
    """(host or node1; lines) of a block: what is not safelab is typed in the shell on node1."""
    if "bin/safelab" in block:
        yield "host", "\n".join(line for line in block.splitlines() if not re.search(r"-- bash\b", line))
    else:
        yield "node1", block


def _paste(name: str, where: str, lines: str) -> str:
    if where == "host":
        script = lines.replace("sudo ", "").replace("--name try", f"--name {name}")
        commands = [["/bin/sh", "-e", "-c", script]]
    else:
        commands = [["bin/safelab", "run", "--name", name, where, "--", "/bin/bash", "-e", "-c", lines]]
    said = ""
    for command in commands:
        done = subprocess.run(
            command, cwd=CHECKOUT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=180
        )
        assert done.returncode == 0, f"{command}: {done.stdout}"
        said += done.stdout
    return said
