"""The POSIX exerciser on a replicated directory: the same as on a plain one, and the same on both servers after it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest

from tests.t2_process.reintegre_primary import tree
from tests.t2_process.rfs_pair import Pair, equal, replicating

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
    with replicating(base, others=True, acl=True) as found:
        yield found


def exercise(directory: Path) -> dict[str, list[list[Any]]]:
    directory.mkdir()
    done = subprocess.run([sys.executable, str(EXERCISER), str(directory)], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    record: dict[str, list[list[Any]]] = json.loads(done.stdout)
    return record


@pytest.fixture(scope="module")
def mounted(pair: Pair) -> dict[str, list[list[Any]]]:
    """What the replicated directory answered."""
    return exercise(pair.n1.dir / "posix")


def test_same_results_as_a_plain_directory(mounted: dict[str, list[list[Any]]], tmp_path: Path) -> None:
    for path in (tmp_path, *tmp_path.parents):
        if str(path).startswith("/tmp/"):
            path.chmod(0o755)
    plain = exercise(tmp_path / "plain")
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


@pytest.mark.usefixtures("mounted")
def test_both_servers_are_equal_after_it(pair: Pair) -> None:
    equal(pair, 10)
    assert len(tree(pair.n2.backing)) > 100
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
