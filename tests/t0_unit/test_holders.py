"""Where a mount namespace shows a directory, and what a holder is told to do. Pure parts of safekit.process.holders."""

from __future__ import annotations

import pytest

from safekit.process.holders import (
    LOOPS,
    MOUNTS,
    OPEN,
    SWAPS,
    WORKS,
    Holder,
    Mounted,
    Place,
    mapped,
    parse,
    place,
    told,
    unit,
    views,
)

HOST = rb"""22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 22 0:25 / /proc rw - proc proc rw
40 22 254:1 / /srv/my\040data rw - xfs /dev/vdb rw
41 22 254:0 /var/lib/a /mnt/bind rw - ext4 /dev/vda rw
42 40 0:50 / /srv/my\040data/sub rw - fuse nfsbox rw
"""


def test_a_place_is_the_file_system_and_the_path_in_it() -> None:
    mounts = parse(HOST)
    assert place(b"/var/lib/a/b", mounts) == Place(b"254:0", b"/var/lib/a/b")
    assert place(b"/srv/my data/x", mounts) == Place(b"254:1", b"/x")
    assert place(b"/srv/my data", mounts) == Place(b"254:1", b"/")
    assert place(b"/mnt/bind/b", mounts) == Place(b"254:0", b"/var/lib/a/b")
    assert place(b"/srv/my data/sub/f", mounts) == Place(b"0:50", b"/f")
    assert place(b"/x", ()) is None


def test_the_last_mount_on_a_point_hides_those_before() -> None:
    mounts = (Mounted(b"1:1", b"/", b"/"), Mounted(b"1:2", b"/", b"/d"), Mounted(b"1:3", b"/", b"/d"))
    assert place(b"/d/x", mounts) == Place(b"1:3", b"/x")


@pytest.mark.parametrize(
    ("mounts", "inside", "own"),
    [
        ((Mounted(b"8:1", b"/", b"/"),), {b"/data/rep"}, set()),
        ((Mounted(b"8:1", b"/data", b"/vol"),), {b"/vol/rep"}, set()),
        ((Mounted(b"8:1", b"/data/rep", b"/vol"),), set(), {b"/vol"}),
        ((Mounted(b"8:1", b"/data/rep/sub", b"/vol"),), set(), {b"/vol"}),
        ((Mounted(b"8:1", b"/data/replica", b"/vol"),), set(), set()),
        ((Mounted(b"8:2", b"/data/rep", b"/vol"),), set(), set()),
        ((Mounted(b"8:1", b"/", b"/a"), Mounted(b"8:1", b"/data/rep", b"/b")), {b"/a/data/rep"}, {b"/b"}),
    ],
)
def test_where_a_namespace_shows_a_place(mounts: tuple[Mounted, ...], inside: set[bytes], own: set[bytes]) -> None:
    assert views(Place(b"8:1", b"/data/rep"), mounts) == (inside, own)


def test_maps_name_files_with_blanks_and_nothing_else() -> None:
    text = (
        b"7f1-7f2 r--p 00000000 08:01 42 /srv/my data/file\n7f2-7f3 rw-p 00000000 00:00 0 [heap]\n"
        b"7f3-7f4 rw-s 00000000 08:01 43                 /srv/x (deleted)\n7f4-7f5 rw-p 00000000 00:00 0\n"
    )
    assert mapped(text) == {b"/srv/my data/file", b"/srv/x (deleted)"}


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("0::/system.slice/postgresql.service\n", "postgresql.service"),
        ("0::/system.slice/docker-0123456789ab.scope\n", "docker-0123456789ab.scope"),
        ("0::/system.slice/app.service/child\n", "app.service"),
        ("3:cpu:/\n1:name=systemd:/user.slice/user-0.slice/session-3.scope\n", "session-3.scope"),
        ("0::/\n", ""),
    ],
)
def test_the_unit_of_a_process(text: str, name: str) -> None:
    assert unit(text) == name


@pytest.mark.parametrize(
    ("holder", "remedy"),
    [
        (Holder(7, "postgres", "postgresql.service", OPEN, "/d/f"), "systemctl stop postgresql.service"),
        (Holder(7, "nginx", "docker-0123456789abcdef.scope", OPEN, "/d/f"), "docker stop 0123456789ab"),
        (Holder(7, "nginx", "libpod-0123456789abcdef.scope", OPEN, "/d/f"), "podman stop 0123456789ab"),
        (Holder(7, "bash", "session-3.scope", WORKS, "/d"), "leave the directory there (cd /) or kill 7"),
        (Holder(7, "vim", "", OPEN, "/d/f"), "kill 7"),
        (Holder(0, "loop3", "", LOOPS, "/d/image"), "losetup -d /dev/loop3"),
        (Holder(0, "swap", "", SWAPS, "/d/swap"), "swapoff /d/swap"),
        (Holder(0, "mount", "", MOUNTS, "/mnt/b"), "umount /mnt/b"),
    ],
)
def test_the_command_that_ends_a_holder(holder: Holder, remedy: str) -> None:
    assert holder.remedy == remedy


def test_a_message_names_some_and_counts_the_rest() -> None:
    found = [Holder(n, f"p{n}", "", OPEN, "/d/f") for n in range(1, 9)]
    who, remedy = told(found)
    assert "p5 (process 5) has open /d/f; and 3 more" in who and remedy.endswith("kill 5; and 3 more")
