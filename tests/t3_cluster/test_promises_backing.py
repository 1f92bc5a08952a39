"""Nobody writes past replication, and nobody leads root out of the data, on either server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from labs import lab_of_the_file
from pair import BACKING, DIRECTORY, WITNESS, Pair, userconfig

from lab.cluster import Lab, Node
from lab.waiting import wait_until

HOLD = (
    "import os, time\n"
    "f = os.open('{directory}/db.wal', os.O_CREAT | os.O_WRONLY | os.O_APPEND)\n"
    "print('ready', flush=True)\n"
    "for i in range(600):\n"
    "    os.write(f, b'commit %d\\n' % i); os.fsync(f); time.sleep(.1)\n"
)
ALICE = 2001


lab = lab_of_the_file(disks=True, binds=[WITNESS])


@pytest.fixture(scope="module")
def installed(lab: Lab) -> Pair:
    pair = Pair(lab)
    pair.install(userconfig(rfs='locktimeout="4" sendtimeout="4"'))
    pair.first_start(pair.one)
    for node in pair.nodes:
        node.run(f"useradd -m -u {ALICE} alice")
    pair.one.run(f"mkdir {DIRECTORY}/alice && chown alice: {DIRECTORY}/alice")
    return pair


@contextmanager
def service(node: Node) -> Iterator[str]:
    """A database that was started before the module: its pid in the node."""
    node.write("/var/tmp/hold.py", HOLD.format(directory=DIRECTORY))
    node.run("setsid python3 /var/tmp/hold.py > /run/hold.out 2>&1 < /dev/null & echo $! > /run/hold.pid")
    wait_until(lambda: "ready" in node.run("cat /run/hold.out", check=False).stdout, 10, "the service does not start")
    pid = node.run("cat /run/hold.pid").stdout.strip()
    try:
        yield pid
    finally:
        node.run(f"kill -9 {pid}", check=False)


def stop(pair: Pair, node: Node) -> None:
    node.safekit("stop", "-m", pair.module)
    pair.wait(node, "STOP red")


def refused(pair: Pair, node: Node, pid: str) -> None:
    """`start` says who holds the data and what ends him; one that asks nobody stops again and says so in the log."""
    said = node.safekit("start", "-m", pair.module, check=False)
    assert said.returncode == 1 and f"process {pid}" in said.stderr and f"kill {pid}" in said.stderr
    mark = pair.mark()
    node.safekit("start", "-m", pair.module, "-i", "test")
    wait_until(lambda: any(line.code == "rfs_unusable" for line in pair.log(node, mark)), 30, pair.tail)
    text = " ".join(line.english for line in pair.log(node, mark))
    assert f"process {pid}" in text and BACKING in text and f"kill {pid}" in text
    pair.wait(node, "STOP red")
    assert node.run(f"readlink {DIRECTORY}").stdout.strip() in (BACKING, BACKING.rpartition("/")[2])


def test_a_service_that_has_the_files_before_the_module_holds_up_the_primary(pair: Pair) -> None:
    prim, second = pair.one, pair.two
    pair.expect("rfs_unusable")
    stop(pair, second)
    stop(pair, prim)
    with service(prim) as pid:
        refused(pair, prim, pid)
    prim.safekit("start", "-m", pair.module)
    pair.wait(prim, "ALONE green")
    second.safekit("start", "-m", pair.module)
    pair.wait_protected(prim)
    pair.verify(prim)


def test_and_the_secondary(pair: Pair) -> None:
    prim, second = pair.one, pair.two
    pair.expect("rfs_unusable")
    stop(pair, second)
    pair.wait(prim, "ALONE green")
    with service(second) as pid:
        refused(pair, second, pid)
    second.safekit("start", "-m", pair.module)
    pair.wait_protected(prim)
    pair.verify(prim)


def test_a_user_leads_nobody_out_of_the_data(pair: Pair) -> None:
    """Behind the mount of the secondary he is kept out; root does what he would have done: nothing follows a link."""
    prim, second = pair.one, pair.two
    prim.run(f"su alice -s /bin/bash -c 'mkdir {DIRECTORY}/alice/s; date > {DIRECTORY}/alice/s/before'")
    swap = f"cd {BACKING}/alice && mv s s.real && ln -s /etc s"
    for node in pair.nodes:
        assert node.run(f"su alice -s /bin/bash -c '{swap}'", check=False).returncode != 0
        assert node.run(f"su alice -s /bin/bash -c 'ls {BACKING}'", check=False).returncode != 0
    second.run(swap)
    pair.expect("action_rule", "transition_rule", "not_uptodate", "reintegration_failed")
    # What root does there is against the guide; it must not go unseen all the same.
    evil = f"echo evil > {DIRECTORY}/alice/s/evil.test; mkdir {DIRECTORY}/alice/s/dir.test"
    prim.run(f"su alice -s /bin/bash -c '{evil}'")
    pair.wait_protected(prim, timeout=90)
    assert second.run("ls -d /etc/evil.test /etc/dir.test", check=False).stdout == ""
    pair.verify(prim)
    assert second.run(f"stat -c %F {DIRECTORY}/alice/s").stdout.strip() == "directory"


def test_who_deletes_behind_the_mount_cannot_keep_the_pair_apart(pair: Pair) -> None:
    prim, second = pair.one, pair.two
    prim.run(f"su alice -s /bin/bash -c 'mkdir -p {DIRECTORY}/alice/w'")
    delete = (
        "import os, time; end = time.time() + 10\nwhile time.time() < end:\n for i in range(5):\n"
        f"  try: os.unlink('{BACKING}/alice/w/%d' % i)\n  except OSError: pass\n time.sleep(.02)"
    )
    write = (
        f"import os, time; end = time.time() + 10\nwhile time.time() < end:\n for i in range(5):\n"
        f"  p = '{DIRECTORY}/alice/w/%d' % i\n"
        "  open(p, 'w').close(); os.chmod(p, 0o600); os.truncate(p, 5); os.unlink(p)"
    )
    for node, text in ((second, delete), (prim, write)):
        node.write("/var/tmp/loop.py", text)
    mark = pair.mark()
    deleting = second.popen("exec su alice -s /bin/bash -c 'python3 /var/tmp/loop.py'")
    prim.run("su alice -s /bin/bash -c 'python3 /var/tmp/loop.py'", timeout=60)
    assert deleting.wait(30) == 0
    assert [line.english for line in pair.log(second, mark) if "state" in line.english] == []
    pair.wait_protected(prim)
    pair.verify(prim)


def test_the_data_stays_closed_over_a_power_failure_and_opens_when_it_is_a_plain_directory_again(pair: Pair) -> None:
    prim, second = pair.one, pair.two
    prim.run(f"chown alice: {DIRECTORY}; chmod 2750 {DIRECTORY}")
    pair.expect(
        "previous_halt", "not_uptodate", "advice_prim", "failover_no_heartbeat", "action_rule", "transition_rule"
    )
    second.poweroff()
    pair.wait(prim, "ALONE green")
    second.poweron()
    assert second.run(f"su alice -s /bin/bash -c 'ls {BACKING}/'", check=False).returncode != 0
    assert second.run(f"touch {DIRECTORY}/before-the-module", check=False).returncode != 0
    second.safekit("start", "-m", pair.module)
    pair.wait_protected(prim)
    stop(pair, second)
    second.safekit("deconfig", "-m", pair.module)
    assert second.run(f"stat -c '%F %U %a' {DIRECTORY}").stdout.strip() == "directory alice 2750"
    assert second.run(f"getfattr -d -m - {DIRECTORY} 2>/dev/null", check=False).stdout == ""
    second.safekit("config", "-m", pair.module)
    second.safekit("start", "-m", pair.module)
    pair.wait_protected(prim, timeout=90)
    pair.verify(prim)
