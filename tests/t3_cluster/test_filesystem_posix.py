"""The POSIX exerciser on a replicated directory: the same as on a plain one, and the same on both servers after it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest

from safekit.model.types import Replicated, Rfs
from tests.t2_process.reintegre_primary import tree
from tests.t2_process.rfs_pair import Pair

EXERCISER = Path(__file__).parent.parent / "posix" / "exerciser.py"

#: (case, label) -> why the replicated directory may differ.
ACCEPTED = {
    (
        "unlinking",
        "directory of an open, unlinked file",
    ): "an unlinked open file keeps a hidden name until it is closed, as on NFS",
    (
        "access_control_lists",
        "inherited",
    ): "the umask is applied before a default ACL is inherited: the FUSE library cannot ask the kernel not to",
}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    base = tmp_path_factory.mktemp("posix")
    for path in (base, *base.parents):
        if path.stat().st_mode & 0o005 != 0o005 and str(path).startswith("/tmp/"):
            path.chmod(0o755)  # other users act in it
    with Pair(base, Rfs((Replicated("/replicated"),), acl=True)) as found:
        (found.n1.base).chmod(0o755)
        found.start_primary(found.n1)
        found.start_secondary(found.n2)
        yield found


def exercise(directory: Path) -> dict[str, list[list[Any]]]:
    directory.mkdir()
    done = subprocess.run([sys.executable, str(EXERCISER), str(directory)], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    record: dict[str, list[list[Any]]] = json.loads(done.stdout)
    return record


def test_same_results_as_a_plain_directory(pair: Pair, tmp_path: Path) -> None:
    for path in (tmp_path, *tmp_path.parents):
        if str(path).startswith("/tmp/"):
            path.chmod(0o755)
    plain = exercise(tmp_path / "plain")
    mounted = exercise(pair.n1.dir / "posix")
    assert sum(len(lines) for lines in plain.values()) > 250
    assert not [case for case, lines in plain.items() if any(line[0] == "broken" for line in lines)]
    nothing = ["", None]
    different = {
        (case, one[0] or two[0]): (one[1], two[1])
        for case in plain
        for one, two in zip_longest(plain[case], mounted[case], fillvalue=nothing)
        if one != two
    }
    unexpected = {key: values for key, values in different.items() if key not in ACCEPTED}
    assert not unexpected


def test_both_servers_are_equal_after_it(pair: Pair) -> None:
    deadline = time.monotonic() + 10
    while (one := tree(pair.n1.backing)) != (two := tree(pair.n2.backing)):
        assert time.monotonic() < deadline, {
            name: (one.get(name), two.get(name)) for name in one.keys() | two.keys() if one.get(name) != two.get(name)
        }
        time.sleep(0.1)
    assert len(one) > 100
    assert not {"replication_lost", "secondary_lost"} & {*pair.n1.kinds(), *pair.n2.kinds()}


def test_the_secondary_can_be_read_and_not_written(pair: Pair) -> None:
    (pair.n1.dir / "visible").write_bytes(b"here")
    assert (pair.n2.dir / "visible").read_bytes() == b"here"
    for refused in (
        lambda: (pair.n2.dir / "visible").write_bytes(b"x"),
        lambda: (pair.n2.dir / "visible").unlink(),
        lambda: (pair.n2.dir / "new").mkdir(),
    ):
        with pytest.raises(OSError, match="Read-only file system"):
            refused()
