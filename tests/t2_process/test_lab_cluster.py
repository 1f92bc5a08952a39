"""The lab itself: that its faults are real, and that nothing of it remains."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lab import kernel
from lab.cluster import CommandFailed, Lab, Node, collect_garbage
from lab.errors import LabError
from lab.state import lab_directory, lab_names, load
from lab.waiting import wait_until
from safekit.process.table import lives
from tests.conftest import unique_lab_name

CHECKOUT = Path(__file__).resolve().parents[2]
MakeLab = Callable[..., Lab]


@pytest.fixture(scope="module")
def shared() -> Iterator[Lab]:
    """One lab for the tests that leave it as they found it."""
    lab = Lab.up(unique_lab_name(), bare=True)
    yield lab
    lab.down()


def pings(source: Node, address: str) -> bool:
    return source.run(["ping", "-n", "-c", "1", "-W", "1", address], check=False).returncode == 0


def host_network() -> str:
    """Interfaces, addresses, routes and rules of this host, and its named namespaces."""
    commands = (
        ["ip", "-o", "link"],
        ["ip", "-o", "addr"],
        ["ip", "route", "show", "table", "all"],
        ["nft", "list", "ruleset"],
    )
    said = [subprocess.run(command, capture_output=True, text=True, check=True).stdout for command in commands]
    # Counters of life times change by themselves.
    lines = [line for text in said for line in text.splitlines() if "valid_lft" not in line]
    return "\n".join([*lines, *sorted(os.listdir("/run/netns") if os.path.isdir("/run/netns") else [])])


def namespaces_of(lab: Lab) -> set[str]:
    """Identities of the namespaces that the lab has and this process has not."""
    state = lab.state
    found = set()
    for pid in (state.keeper.pid, *(process.pid for process in state.machines.values())):
        for entry in os.listdir(f"/proc/{pid}/ns"):
            identity = os.readlink(f"/proc/{pid}/ns/{entry}")
            if identity != os.readlink(f"/proc/self/ns/{entry}"):
                found.add(identity)
    return found


def host_mounts() -> list[str]:
    """Mounts of this host, without those that other tests make meanwhile (directories of their own, named networks)."""
    lines = Path("/proc/self/mounts").read_text().splitlines()
    return [line for line in lines if not line.split()[1].startswith((f"{tempfile.gettempdir()}/", "/run/netns"))]


def users_of(namespaces: set[str]) -> list[str]:
    """Processes in one of the namespaces."""
    users = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            for entry in os.listdir(f"/proc/{pid}/ns"):
                if os.readlink(f"/proc/{pid}/ns/{entry}") in namespaces:
                    users.append(f"{pid} {Path(f'/proc/{pid}/comm').read_text().strip()} {entry}")
        except OSError:  # it ended meanwhile
            continue
    return users


def test_up_and_down_leave_nothing(make_lab: MakeLab) -> None:
    network, mounts = host_network(), host_mounts()
    lab = make_lab(bare=True)
    namespaces = namespaces_of(lab)
    assert len(namespaces) >= 1 + 3 * 5, "a node has network, mount, PID, UTS and IPC namespaces of its own"
    lab.nodes["node1"].popen(["sleep", "1000"], stdout=subprocess.DEVNULL)
    assert host_network() == network, "a lab that is up must not show in the host's network"
    assert host_mounts() == mounts
    directory = lab_directory(lab.name)
    lab.down()
    assert not directory.exists()
    assert wait_until(lambda: not users_of(namespaces), 10, "no process in the lab's namespaces")
    assert host_network() == network
    assert host_mounts() == mounts
    Lab.up(lab.name, bare=True)  # the name is free again; the fixture removes this one


def test_death_of_the_keeper_takes_the_lab_along(make_lab: MakeLab) -> None:
    lab = make_lab(bare=True)
    namespaces = namespaces_of(lab)
    node = lab.nodes["node1"]
    node.popen(["sleep", "1000"], stdout=subprocess.DEVNULL)
    os.kill(lab.state.keeper.pid, signal.SIGKILL)
    assert wait_until(lambda: not users_of(namespaces), 20, "the kernel kills every process of the lab")
    with pytest.raises(LabError, match="is gone"):
        _ = lab.state
    with pytest.raises(LabError, match=r"its keeper .* is gone"):
        Lab.attach(lab.name)
    assert f"lab {lab.name}" in collect_garbage()
    assert lab.name not in lab_names()
    Lab.up(lab.name, bare=True)  # for the fixture to remove


def test_death_of_the_command_that_makes_a_lab_leaves_nothing() -> None:
    name = unique_lab_name()
    command = subprocess.Popen(
        [sys.executable, "-m", "lab.main", "up", "--name", name, "--nodes", "6"],
        cwd=CHECKOUT,
        stdout=subprocess.DEVNULL,
    )
    try:
        wait_until(lambda: (state := load(lab_directory(name))) and state.machines, 60, "the first node boots")
        state = load(lab_directory(name))
        assert state is not None and not state.complete
    finally:
        command.kill()
        command.wait()
    assert wait_until(lambda: not state.keeper.alive, 30, "the keeper removes a lab that nobody completes")
    assert wait_until(lambda: not lab_directory(name).exists(), 10, "the directory is removed")
    assert not any(process.alive for process in state.machines.values())


def test_nodes_reach_each_other_over_both_protocols(shared: Lab) -> None:
    one, two = shared.nodes.values()
    assert pings(one, two.address()) and pings(one, two.address6()) and pings(one, two.address("repli"))
    assert pings(shared.client, one.address()) and not pings(shared.client, one.address("repli"))
    assert one.run("hostname").stdout == "node1\n"
    assert "node2" in two.run(["getent", "hosts", "node2"]).stdout


def test_files_of_a_node_are_its_own(shared: Lab) -> None:
    one, two = shared.nodes.values()
    mark = f"/etc/safelab-test-{os.getpid()}"
    one.write(mark, "one\n", mode=0o600)
    assert one.read(mark) == "one\n" and one.run(["stat", "-c", "%a", mark]).stdout == "600\n"
    with pytest.raises(FileNotFoundError):
        two.read(mark)
    assert not Path(mark).exists()
    assert one.run(["ls", "/opt/safekit/safekit"]).returncode == 0
    assert one.run(["stat", "-f", "-c", "%T", "/data"]).stdout != one.run(["stat", "-f", "-c", "%T", "/etc"]).stdout


def test_run_tells_failures_and_ends_hanging_commands(shared: Lab) -> None:
    one = shared.nodes["node1"]
    with pytest.raises(CommandFailed, match="a reason") as caught:
        one.run("echo a reason >&2; exit 7")
    assert caught.value.returncode == 7
    with pytest.raises(subprocess.TimeoutExpired):
        one.run(["sleep", "1000"], timeout=0.5)
    assert not one.pids("sleep"), "a command that was given up does not go on"
    process = one.popen(["sleep", "1000"])
    wait_until(lambda: one.pids("sleep"), 5, "the command runs")
    process.kill()
    process.wait()
    wait_until(lambda: not one.pids("sleep"), 5, "the command dies with the handle")


def test_cut_and_join(shared: Lab) -> None:
    one, two = shared.nodes.values()
    two.cut("default")
    assert one.run(["cat", "/sys/class/net/eth0/carrier"]).stdout == "1\n"
    assert two.run(["cat", "/sys/class/net/eth0/carrier"]).stdout == "0\n", "an unplugged cable has no carrier"
    assert not pings(one, two.address()) and pings(one, two.address("repli"))
    two.cut()
    assert not pings(one, two.address("repli"))
    two.join()
    wait_until(lambda: pings(one, two.address()) and pings(one, two.address("repli")), 5, "both lans work")


def test_block_is_one_way(shared: Lab) -> None:
    one, two = shared.nodes.values()

    def heard(sender: Node, receiver: Node) -> bool:
        """Whether a datagram arrives; nothing has to come back for it."""
        mac = receiver.run(["cat", "/sys/class/net/eth0/address"]).stdout.strip()
        sender.run(["ip", "neigh", "replace", receiver.address(), "lladdr", mac, "dev", "eth0", "nud", "permanent"])
        code = (
            "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(('', 9)); s.settimeout(1.5); "
            "print('ready', flush=True)\ntry: print(s.recv(9).decode())\nexcept TimeoutError: print('silence')"
        )
        with receiver.popen(["python3", "-c", code], stdout=subprocess.PIPE, text=True) as listener:
            assert listener.stdout is not None and listener.stdout.readline() == "ready\n"
            sender.run(["bash", "-c", f"echo -n heard > /dev/udp/{receiver.address()}/9"])
            word = listener.stdout.readline().strip()
        sender.run(["ip", "neigh", "del", receiver.address(), "dev", "eth0"])
        return word == "heard"

    shared.block(one, two, "default")
    assert not heard(one, two) and heard(two, one)
    assert pings(one, two.address("repli")), "the other lan is not concerned"
    shared.unblock(one, two, "default")
    assert heard(one, two)


def test_delay_loss_and_limit(shared: Lab) -> None:
    one, two = shared.nodes.values()
    client = shared.client

    def round_trip() -> float:
        done = client.run(["ping", "-n", "-q", "-c", "4", "-i", "0.2", "-W", "2", two.address()])
        return float(done.stdout.rpartition(" = ")[2].split("/")[0])

    assert round_trip() < 20
    shared.delay(two, 40, "default")
    assert 80 <= round_trip() < 200
    two.run("head -c 3000000 /dev/urandom > /tmp/data")
    with two.popen(["python3", "-m", "http.server", "-d", "/tmp", "8099"], stderr=subprocess.DEVNULL):
        try:
            fetch = (
                f"curl -s --retry 20 --retry-connrefused --retry-delay 1 http://{two.address()}:8099/data | sha256sum"
            )
            wanted = two.run("sha256sum < /tmp/data").stdout
            assert client.run(fetch).stdout == wanted, "large segments and their checksums survive the relay"
            shared.delay(two, 0, "default")
            assert round_trip() < 20
            shared.limit(two, "8mbit", "default")
            begin = time.monotonic()
            assert client.run(fetch).stdout == wanted
            assert time.monotonic() - begin > 1.5, "3 MB take 3 s at 8 Mbit/s"
            shared.limit(two, None, "default")
        finally:
            two.kill("python3")
    shared.loss(one, 100, "default")
    assert not pings(client, one.address())
    shared.loss(one, 30, "default")
    done = client.run(["ping", "-n", "-q", "-c", "200", "-i", "0.005", "-W", "1", one.address()], check=False)
    received = int(done.stdout.split(" received")[0].split()[-1])
    assert 40 < received < 160, "half of the round trips survive a loss of 30 % each way"
    shared.loss(one, 0, "default")
    assert pings(client, one.address())


def test_freeze_and_thaw(shared: Lab) -> None:
    one, two = shared.nodes.values()
    sleeper = two.popen(["sleep", "1000"])
    pid = wait_until(lambda: two.pids("sleep"), 5, "the command runs")[0]

    def stopped(number: int) -> bool:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] == "T"

    two.freeze("sleep")
    assert wait_until(lambda: stopped(pid), 5, "stopped") and not stopped(two.process.pid)
    two.thaw("sleep")
    wait_until(lambda: not stopped(pid), 5, "goes on")
    two.freeze()
    assert all(wait_until(lambda number=number: stopped(number), 5, "stopped") for number in two.processes())
    two.thaw()
    wait_until(lambda: not any(stopped(number) for number in two.processes()), 5, "all go on")
    with pytest.raises(LabError, match="no process called 'nosuch'"):
        two.freeze("nosuch")
    sleeper.kill()
    sleeper.wait()
    assert pings(one, two.address())


def test_poweroff_is_sudden_and_poweron_keeps_files(make_lab: MakeLab) -> None:
    lab = make_lab(bare=True)
    one, two = lab.nodes.values()
    for node in (one, two):
        node.write("/etc/kept", node.name)
        node.write("/data/kept", node.name)
        node.write("/tmp/lost", node.name)
    trap = one.popen(["sh", "-c", "trap 'touch /data/orderly' TERM EXIT; sleep 1000"])
    wait_until(lambda: one.pids("sleep"), 5, "the trap is set")
    first = one.process
    one.poweroff()
    trap.wait(10)
    assert not first.alive and not one.is_on and not pings(two, one.address())
    with pytest.raises(LabError, match="is off"):
        one.run(["true"])
    with pytest.raises(LabError, match="off already"):
        one.poweroff()
    one.poweron()
    assert one.read("/etc/kept") == "node1" and one.read("/data/kept") == "node1"
    for gone in ("/tmp/lost", "/data/orderly"):
        with pytest.raises(FileNotFoundError):
            one.read(gone)
    wait_until(lambda: pings(two, one.address()), 5, "the network works again")
    two.cut("repli")
    lab.poweroff(one, two)
    assert not one.is_on and not two.is_on
    two.poweron()
    assert two.run(["cat", "/sys/class/net/eth1/carrier"]).stdout == "0\n", "a cut cable stays cut over a power-off"


def test_a_disk_keeps_what_was_synced_and_the_product_only(make_lab: MakeLab) -> None:
    lab = make_lab(bare=True, nodes=1, disks=True, binds=["/beside"])
    node = lab.node("node1")
    for folder in ("/data", "/etc"):
        node.run(f"echo synced > {folder}/synced && sync {folder}/synced {folder}")
    node.run("echo lost > /data/unsynced; echo lost > /etc/unsynced")  # last: a sync may take along what came before
    node.write("/beside/kept", "kept")
    images = {str(path) for path in lab_directory(lab.name).glob("nodes/*/disk.img")}
    assert len(images) == 1, "the client has no power switch and needs no disk"
    node.poweroff()
    node.poweron()
    for folder in ("/data", "/etc"):
        assert node.read(f"{folder}/synced") == "synced\n"
        with pytest.raises(FileNotFoundError):
            node.read(f"{folder}/unsynced")
    assert node.read("/beside/kept") == "kept"
    assert "SafeKit" in node.safekit("level").stdout
    node.write("/data/orderly", "an orderly shutdown syncs")
    node.shutdown()
    node.poweron()
    assert node.read("/data/orderly")
    lab.down()
    held = {path.read_text().strip() for path in Path("/sys/block").glob("loop*/loop/backing_file")}
    assert not any(image in text for image in images for text in held)
    Lab.up(lab.name, bare=True)  # for the fixture to remove


def test_services_of_a_node(make_lab: MakeLab) -> None:
    lab = make_lab(bare=True, nodes=1)
    node = lab.nodes["node1"]
    program = "/usr/local/bin/beacon"
    node.write(
        program,
        "#!/bin/sh\ntrap 'echo stopped >> /data/beacon; exit 0' TERM\necho up >> /data/beacon\n"
        "while :; do sleep 0.1; done\n",
        mode=0o755,
    )
    unit = f"[Service]\nExecStart={program}\nRestart=on-failure\nRestartSec=100ms\nTimeoutStopSec=10\n"
    node.write("/etc/systemd/system/safebeacon.service", unit)
    node.run(["systemctl", "enable", "safebeacon"])
    node.run(["service", "safebeacon", "start"])
    assert node.run(["systemctl", "is-active", "safebeacon"]).stdout == "active\n"
    first = wait_until(lambda: node.pids("beacon"), 5, "the service runs")
    node.kill("beacon")
    wait_until(lambda: (now := node.pids("beacon")) and now != first, 5, "a killed service is started again")
    node.run(["systemctl", "stop", "safebeacon"])
    assert node.run(["systemctl", "is-active", "safebeacon"], check=False).stdout == "inactive\n"
    assert node.run(["systemctl", "status", "nosuch"], check=False).returncode == 5
    node.run(["systemctl", "start", "safebeacon"])
    wait_until(lambda: node.read("/data/beacon").count("up") == 3, 5, "started for the third time")
    node.shutdown(timeout=30)
    node.poweron()
    wait_until(lambda: node.read("/data/beacon").count("up") == 4, 5, "started at boot")
    assert node.read("/data/beacon").count("stopped") == 2, "an orderly shutdown stops services"


def test_two_labs_side_by_side(shared: Lab, make_lab: MakeLab) -> None:
    other = make_lab(bare=True, nodes=1, lans=("default",))
    mine, theirs = shared.nodes["node1"], other.nodes["node1"]
    assert mine.address() == theirs.address(), "addresses live in namespaces only"
    theirs.write("/data/whose", "theirs")
    with pytest.raises(FileNotFoundError):
        mine.read("/data/whose")
    theirs.cut()
    assert pings(shared.client, mine.address()) and not pings(other.client, theirs.address())
    with pytest.raises(LabError, match=r"several labs|no lab"):
        os.environ.pop("SAFELAB_NAME", None)
        Lab.attach()
    with pytest.raises(LabError, match="is up already"):
        Lab.up(other.name, bare=True)


@pytest.mark.parametrize(
    ("arguments", "cause"),
    [
        (["run", "node9", "--", "true"], "has no node 'node9'"),
        (["cut", "client", "--lan", "repli"], "the client is not on lan repli"),
        (["cut", "node1", "--lan", "nosuch"], "has no lan 'nosuch'"),
        (["poweroff", "node9"], "has no node 'node9'"),
        (["limit", "node1", "fast"], "tc"),
        (["up", "--nodes", "99"], "99 nodes"),
        (["up", "--name", "No Name"], "is not a name"),
        (["status", "--json", "--name", "nosuch"], "no lab 'nosuch'"),
    ],
)
def test_errors_name_cause_and_next_step(shared: Lab, arguments: list[str], cause: str) -> None:
    command = [sys.executable, "-m", "lab.main", *arguments]
    environment = {**os.environ, "SAFELAB_NAME": shared.name}
    done = subprocess.run(command, cwd=CHECKOUT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert cause in done.stderr and "Next step: " in done.stderr and "Traceback" not in done.stderr


def test_run_passes_the_exit_status_on(shared: Lab) -> None:
    command = [
        sys.executable,
        "-m",
        "lab.main",
        "run",
        "--name",
        shared.name,
        "client",
        "--",
        "sh",
        "-c",
        "echo out; exit 42",
    ]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (42, "out\n")


def test_identity_of_a_process_survives_the_reuse_of_its_pid() -> None:
    process = subprocess.Popen(["sleep", "1000"])
    start = kernel.start_time(process.pid)
    assert start is not None and lives(process.pid, start)
    assert not lives(process.pid, start + 1)
    process.kill()
    process.wait()
    assert not lives(process.pid, start)


def check_with(*words: str) -> subprocess.CompletedProcess[str]:
    command = [*words, sys.executable, "-m", "lab.main", "check"]
    return subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False, timeout=60)


def test_a_machine_that_can_hold_a_lab_says_so_and_is_left_as_it_was() -> None:
    before = host_network(), Path("/proc/self/mounts").read_text()
    done = check_with()
    assert (done.returncode, done.stderr) == (0, "") and "A lab can be made" in done.stdout
    assert (host_network(), Path("/proc/self/mounts").read_text()) == before


def test_a_kernel_that_refuses_what_a_lab_is_made_of_is_named() -> None:
    """As in a container without privileges: root, all tools, and no right to mount."""
    done = check_with("setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin")
    assert done.returncode == 1
    assert "refuses what a lab is made of" in done.stderr and "unshare" in done.stderr and "Next step: " in done.stderr
