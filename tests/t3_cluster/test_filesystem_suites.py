"""Test suites of others on a replicated directory, where they are installed: as on a plain directory, and both servers
equal afterwards. `bin/test --posix` runs them, and our own exerciser with them.

stress-ng (its stressors of file systems, each of which verifies what it did), fsx and fsstress (of xfstests or LTP),
pjdfstest (PJDFSTEST tells the directory of its sources, where it is built). They are programs of others that are run.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.t2_process.rfs_pair import Pair, equal, replicating

pytestmark = pytest.mark.slow

#: Seconds that each stressor works.
EACH = 2
STRESSORS = (
    *("access", "chdir", "chmod", "chown", "copy-file", "dentry", "dir", "dirdeep", "fallocate", "fcntl", "file-ioctl"),
    *("filename", "flock", "fpunch", "getdent", "hdd", "iomix", "link", "lockf", "lockofd", "metamix", "mknod", "open"),
    *("rename", "seek", "symlink", "sync-file", "touch", "unlink", "utime", "xattr", "revio", "fsize"),
)
SEEDS = (1, 2, 3)

#: (test of pjdfstest, number) that may fail although they pass on a plain directory, and why.
ACCEPTED: dict[tuple[str, int], str] = {}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with replicating(tmp_path_factory.mktemp("suites"), others=True, acl=True) as found:
        yield found


def program(name: str) -> str:
    """Skips without it."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def run(words: Sequence[str], directory: Path, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    directory.mkdir(exist_ok=True)
    directory.chmod(0o777)
    return subprocess.run(words, cwd=directory, capture_output=True, text=True, timeout=timeout, check=False)


@pytest.mark.parametrize("stressor", STRESSORS)
def test_stress_ng(pair: Pair, tmp_path: Path, stressor: str) -> None:
    words = (program("stress-ng"), f"--{stressor}", "1", "--timeout", str(EACH), "--verify", "--temp-path", ".")
    plain = run(words, tmp_path / "plain")
    if plain.returncode:
        pytest.skip(f"on a plain directory: status {plain.returncode}, {plain.stderr[-300:]}")
    done = run(words, pair.n1.dir / f"stress-{stressor}")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    equal(pair)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("mapped", [True, False])
def test_fsx(pair: Pair, seed: int, mapped: bool) -> None:
    """It checks each read against what it has written, by calls and by memory."""
    words = (program("fsx"), "-N", "5000", "-S", str(seed), *(() if mapped else ("-R", "-W")), f"file{seed}{mapped}")
    done = run(words, pair.n1.dir / "fsx")
    assert done.returncode == 0, done.stdout[-3000:]
    equal(pair)


@pytest.mark.parametrize("seed", SEEDS)
def test_fsstress(pair: Pair, seed: int) -> None:
    """It checks nothing itself: afterwards both servers have the same."""
    words = (program("fsstress"), "-d", ".", "-n", "1000", "-p", "4", "-s", str(seed))
    done = run(words, pair.n1.dir / f"fsstress{seed}")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    equal(pair)


def test_pjdfstest(pair: Pair, tmp_path: Path) -> None:
    sources = os.environ.get("PJDFSTEST", "")
    if not sources:
        pytest.skip("PJDFSTEST does not tell where the built sources of pjdfstest are")
    words = (program("prove"), "-r", "--failures", f"{sources}/tests")
    plain, done = run(words, tmp_path / "plain", 1800), run(words, pair.n1.dir / "pjdfstest", 1800)
    assert ran(done.stdout) == ran(plain.stdout) > 0, done.stdout[-2000:] + done.stderr[-2000:]
    differing = failures(done.stdout) - failures(plain.stdout) - set(ACCEPTED)
    assert not differing, sorted(differing)
    equal(pair)


def ran(told: str) -> int:
    """How many tests `prove` has run; 0 when it does not say so: it may have found none, or have been ended."""
    found = re.search(r"^Files=\d+, Tests=(\d+),", told, re.MULTILINE)
    return int(found[1]) if found else 0


def failures(told: str) -> set[tuple[str, int]]:
    """(test, number) of what `prove` tells to have failed."""
    found: set[tuple[str, int]] = set()
    test = ""
    for line in told.splitlines():
        if named := re.match(r".*/tests/(\S+)\s+\(Wstat", line):
            test = named[1]
        elif numbers := re.match(r"\s+Failed tests?:\s+(.*)", line):
            for first, last in re.findall(r"(\d+)(?:-(\d+))?", numbers[1]):
                found |= {(test, number) for number in range(int(first), int(last or first) + 1)}
    return found


def test_what_prove_tells_is_read() -> None:
    told = (
        "/x/tests/rename/00.t (Wstat: 0 Tests: 99 Failed: 4)\n  Failed tests:  3, 7-9\n/x/tests/link/00.t (Wstat: 0)\n"
    )
    assert ran(told) == 0 and ran(told + "Files=2, Tests=104,  1 wallclock secs\n") == 104
    assert failures(told + "  Failed test:  2\n") == {
        *(("rename/00.t", number) for number in (3, 7, 8, 9)),
        ("link/00.t", 2),
    }
