"""Nobody writes past the mount: the data is closed to users, no role is taken while somebody holds it, and nothing can
be written under the mount (R9, R11)."""

from __future__ import annotations

import contextlib
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner
from nfsbox_pair import DriverError, Node, Pair, assert_equal_soon

from cli.directory import directory_command
from installation.remove import open_directories
from lab.waiting import wait_until
from safekit.disk import placeholder
from safekit.model import directories
from safekit.model.codec import to_json
from safekit.model.types import ModuleConfig, Replicated, Rfs
from safekit.process import holders
from tests.t2_process.users import USER, as_user

MakeNode = Callable[..., Node]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[MakeNode]:
    for path in (tmp_path, *tmp_path.parents):
        if str(path).startswith("/tmp/"):
            path.chmod(0o755)  # other users act in it
    made: list[Node] = []

    def build(name: str = "A", **replicated: object) -> Node:
        node = Node(tmp_path / str(len(made)), name, {}, replicated)
        made.append(node)
        return node

    yield build
    for node in made:
        node.close()


@contextlib.contextmanager
def running(*command: str, **options: object) -> Iterator[subprocess.Popen[bytes]]:
    """A process that has said that it is ready, until the end."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, **options) as process:  # type: ignore[call-overload]
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        try:
            yield process
        finally:
            process.kill()


def python(text: str) -> tuple[str, ...]:
    return sys.executable, "-c", f"import ctypes, os, sys, time\n{text}\nprint('ready', flush=True)\ntime.sleep(60)"


# --- who holds it -------------------------------------------------------------------------------------------

HOLDING = {
    holders.OPEN: "f = open(r'{data}/file', 'a')",
    holders.WORKS: "os.chdir(r'{data}/sub')",
    holders.ROOTED: "os.chroot(r'{data}/sub')",
    holders.MAPS: (
        "f = open(r'{data}/file', 'r+b'); ctypes.CDLL(None).mmap(None, 4096, 3, 1, f.fileno(), 0); f.close()"
    ),
}


@pytest.mark.parametrize("how", HOLDING)
def test_no_role_while_a_process_holds_the_data(make: MakeNode, how: str) -> None:
    node = make()
    (node.backing / "sub").mkdir()
    (node.backing / "file").write_text("x")
    with running(*python(HOLDING[how].format(data=node.mount))) as process:
        with pytest.raises(DriverError) as caught:
            node("prepare")
        text = str(caught.value)
        assert caught.value.code == "held"
        assert f"process {process.pid}" in text and "python" in text and how in text
        assert str(node.backing) in text
        assert "kill" in text or "leave the directory" in text
        # As it was: a link, and no lock is left.
        assert node.mount.is_symlink() and (node.mount / "file").read_text() == "x"
    assert node("prepare")["journal"] == "none"
    node("primary")
    (node.mount / "file").write_text("y")
    node("release")


def test_who_only_comes_by_holds_up_nobody(make: MakeNode) -> None:
    """A search through all files, at boot."""
    node = make()
    (node.backing / "sub").mkdir()
    with running(*python(f"os.chdir(r'{node.mount}/sub')")) as process:
        threading.Timer(1.5, process.kill).start()
        node("prepare")


def test_a_secondary_is_held_up_as_well(tmp_path: Path) -> None:
    pair = Pair(tmp_path).up()
    try:
        (pair.a.mount / "db").write_text("1")
        pair.b("release")
        pair.a("alone")
        with running(*python(f"f = open(r'{pair.b.mount}/db', 'a')")), pytest.raises(DriverError) as caught:
            pair.b("prepare")
        assert caught.value.code == "held"
        pair.b("prepare")
        pair.resynchronise()
        (pair.a.mount / "end").write_text("the time of the directory travels with a change in it")
        assert_equal_soon(pair.a.backing, pair.b.backing)
    finally:
        pair.close()


def test_a_file_that_was_removed_holds_up_nobody(make: MakeNode) -> None:
    node = make()
    (node.backing / "file").write_text("x")
    with running(*python(f"f = open(r'{node.mount}/file', 'a'); os.unlink(r'{node.mount}/file')")):
        node("prepare")


def test_another_mount_namespace_is_seen_through(make: MakeNode, tmp_path: Path) -> None:
    """A container that has the directory under another name, with nothing open in it."""
    node = make()
    (tmp_path / "elsewhere").mkdir()
    shell = f"mount --bind {node.mount}/ {tmp_path}/elsewhere && echo ready && exec sleep 60"
    with running("unshare", "-m", "sh", "-c", shell) as process:
        with pytest.raises(DriverError) as caught:
            node("prepare")
        assert f"process {process.pid}" in str(caught.value) and holders.MOUNTS in str(caught.value)
    node("prepare")


def test_an_open_file_of_another_mount_namespace_is_seen_under_its_name_there(make: MakeNode, tmp_path: Path) -> None:
    node = make()
    (node.backing / "file").write_text("x")
    (tmp_path / "elsewhere").mkdir()
    shell = f"mount --bind {node.base} {tmp_path}/elsewhere && exec 7>>{tmp_path}/elsewhere/{node.backing.name}/file"
    with running("unshare", "-m", "sh", "-c", f"{shell} && echo ready && exec sleep 60") as process:
        with pytest.raises(DriverError) as caught:
            node("prepare")
        assert f"process {process.pid}" in str(caught.value) and "elsewhere" in str(caught.value)
    node("prepare")


def test_a_file_system_inside_is_refused_by_its_name(make: MakeNode) -> None:
    node = make()
    (node.backing / "sub").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", str(node.backing / "sub")], check=True)
    try:
        with pytest.raises(DriverError) as caught:
            node("prepare")
        assert f"umount {node.backing}/sub" in str(caught.value)
    finally:
        subprocess.run(["umount", str(node.backing / "sub")], check=True)
    node("prepare")


def test_a_file_system_of_its_own_holds_up_nobody(make: MakeNode) -> None:
    """It is mounted where the data is, and every service with a mount namespace of its own has a copy of that."""
    node = make()
    subprocess.run(["mount", "-t", "tmpfs", "none", str(node.backing)], check=True)
    try:
        with running("unshare", "-m", "sh", "-c", "echo ready && exec sleep 60"):
            node("prepare")
            node("primary")
            (node.mount / "file").write_text("x")
            node("release")
        subprocess.run(["mount", "-o", "remount", str(node.backing)], check=True)
    finally:
        subprocess.run(["umount", str(node.backing)], check=True)  # nothing of ours holds it


# --- users are kept out -------------------------------------------------------------------------------------


def test_users_reach_the_data_through_the_mount_alone(make: MakeNode) -> None:
    node = make()
    os.chown(node.backing, USER, USER)
    node.backing.chmod(0o750)
    (node.backing / "alice").mkdir()
    os.chown(node.backing / "alice", USER, USER)
    node("prepare")
    node("primary")
    seen = node.mount.stat()
    assert (seen.st_uid, seen.st_gid, stat.S_IMODE(seen.st_mode)) == (USER, USER, 0o750)
    assert as_user("touch", str(node.mount / "alice/through"))
    assert not as_user("ls", str(node.backing / "alice"))
    assert not as_user("mv", str(node.backing / "alice"), str(node.backing / "bob"))
    node.mount.chmod(0o2775)
    os.chown(node.mount, 3001, USER)
    assert not as_user("touch", str(node.backing / "alice/past"))
    node("release")
    # While it is stopped as well: what a service writes now would not be recorded.
    assert not as_user("touch", str(node.mount / "alice/stopped"))
    node.kill()
    node.start()
    node("prepare")
    seen = node.mount.stat()
    assert (seen.st_uid, stat.S_IMODE(seen.st_mode)) == (3001, 0o2775)
    node("release")
    assert directories.restore(str(node.mount), "_For_SafeKit_Replication", directories.mounts())
    seen = node.mount.lstat()
    assert (seen.st_uid, seen.st_gid, stat.S_IMODE(seen.st_mode)) == (3001, USER, 0o2775)


def test_mode_and_owner_of_the_directory_itself_are_replicated(tmp_path: Path) -> None:
    pair = Pair(tmp_path).up()
    try:
        pair.a.mount.chmod(0o1751)
        os.chown(pair.a.mount, 3001, 3002)
        os.setxattr(pair.a.mount, "user.note", b"1")

        def same() -> bool:
            found = pair.b.mount.stat()
            return (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (0o1751, 3001, 3002)

        wait_until(same)
        assert os.listxattr(pair.b.mount) == ["user.note"]
        assert {stat.S_IMODE(n.backing.stat().st_mode) & 0o777 for n in (pair.a, pair.b)} == {0o700}
        assert [n for n in os.listxattr(pair.a.mount) if "safekit" in n] == []
    finally:
        pair.close()


# --- under the mount ----------------------------------------------------------------------------------------


def test_nothing_is_written_under_the_mount(make: MakeNode) -> None:
    """A private mount namespace from before the start has the directory without the mount."""
    node = make()
    shell = f"mount --make-rprivate / && echo ready && read x && echo past > {node.mount}/file; echo status=$?"
    with running("unshare", "-m", "sh", "-c", shell, stdin=subprocess.PIPE) as private:
        node("prepare")
        node("primary")
        assert private.stdin is not None and private.stdout is not None
        private.stdin.write(b"\n")
        private.stdin.flush()
        assert private.stdout.readline() == b"status=2\n"
        node("release")
    assert node.mount.is_symlink() and list(node.mount.iterdir()) == []


def test_what_a_crash_leaves_cannot_be_written(make: MakeNode) -> None:
    node = make()
    (node.backing / "file").write_text("x")
    node("prepare")
    node.kill()
    subprocess.run(["umount", "-l", str(node.mount)], check=True)
    with pytest.raises(PermissionError):
        (node.mount / "new").write_text("lost")
    assert directories.state(str(node.mount), "_For_SafeKit_Replication", directories.mounts()) is (
        directories.State.INTERRUPTED
    )
    node.start()
    node("prepare")
    assert (node.mount / "file").read_text() == "x"
    node.kill()
    subprocess.run(["umount", "-l", str(node.mount)], check=True)
    # Configured again instead.
    directories.convert(str(node.mount), "_For_SafeKit_Replication", directories.mounts())
    assert (node.mount / "file").read_text() == "x"
    node.start()


def test_what_was_written_there_all_the_same_is_put_aside_and_named(make: MakeNode) -> None:
    node = make()
    (node.backing / "file").write_text("x")
    shell = (
        f"mount --make-rprivate / && echo ready && read x && chattr -i {node.mount}; chmod 755 {node.mount};"
        f" exec 7> {node.mount}/past && echo written && exec sleep 60"
    )
    with running("unshare", "-m", "sh", "-c", shell, stdin=subprocess.PIPE) as private:
        node("prepare")
        assert private.stdin is not None and private.stdout is not None
        private.stdin.write(b"\n")
        private.stdin.flush()
        assert private.stdout.readline() == b"written\n"
        node("release")
        assert f"process {private.pid}" in node.log()
    assert (node.mount / "file").read_text() == "x"
    aside = [path for path in node.base.iterdir() if ".beside-the-data." in path.name]
    assert [p.name for p in aside[0].iterdir()] == ["past"] and str(aside[0]) in node.log()


def test_a_place_holder_is_sealed_and_can_be_removed(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path / "place")
    os.mkdir(path)
    assert placeholder.seal(path) and placeholder.seal(path)
    with pytest.raises(PermissionError):
        os.mkdir(path + b"/x")
    placeholder.unseal(path)
    os.rmdir(path)


# --- options of the mount -----------------------------------------------------------------------------------


def test_what_is_forbidden_on_the_file_system_stays_forbidden(make: MakeNode) -> None:
    node = make()
    options = "nosuid,nodev,noexec,noatime"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", str(node.backing)], check=True)
    try:
        node("prepare")
        node("primary")
        kept = {m.split()[5] for m in Path("/proc/self/mountinfo").read_text().splitlines() if f" {node.mount} " in m}
        assert len(kept) == 1 and set(options.split(",")) <= set(kept.pop().split(","))
        (node.mount / "program").write_text("#!/bin/sh\n")
        (node.mount / "program").chmod(0o755)
        with pytest.raises(PermissionError):
            subprocess.run([str(node.mount / "program")])
        node("release")
    finally:
        subprocess.run(["umount", str(node.backing)], check=True)


# --- the command of the administrator -----------------------------------------------------------------------


def test_an_administrator_opens_the_data_of_a_stopped_module(
    make: MakeNode, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    node = make()
    os.chown(node.backing, USER, USER)
    node.backing.chmod(0o750)
    safe = tmp_path / "safe"
    monkeypatch.setenv("SAFE", str(safe))
    monkeypatch.setenv("SAFEVAR", str(tmp_path / "var"))
    (safe / "modules/AM/conf").mkdir(parents=True)
    (safe / "modules/AM/conf/userconfig.xml").write_text("<safe/>")
    (safe / "private/modules/AM/conf").mkdir(parents=True)
    config = ModuleConfig("AM", 1, rfs=Rfs((Replicated(str(node.mount)),)))
    (safe / "private/modules/AM/conf/active.json").write_text(to_json(config))

    def run(action: str) -> str:
        result = CliRunner().invoke(directory_command, ["-m", "AM", action], standalone_mode=False)
        return str(result.exception) if result.exception is not None else result.output

    assert "its users, until" in run("state")
    node("prepare")
    assert "in use by the module" in run("open")
    node("release")
    assert "root only" in run("state") and not as_user("ls", f"{node.mount}/")
    assert "its users, until" in run("open") and as_user("touch", f"{node.mount}/by-hand")
    assert "root only" in run("close") and not as_user("ls", f"{node.mount}/")
    run("open")
    node("prepare")
    assert not as_user("ls", f"{node.backing}/")
    node("release")
    # The product is taken away, the modules stay: nobody would open the data any more.
    uninstalled: Any = SimpleNamespace(is_this_system=True, safe=safe)
    assert open_directories(uninstalled) == [f"{node.mount} can be entered by its users again"]
    assert as_user("ls", f"{node.mount}/") and open_directories(uninstalled) == []
