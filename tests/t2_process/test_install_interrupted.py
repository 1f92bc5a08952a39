"""An upgrade that does not come to its end: the power goes off at any of its steps, or the disk is full. There is
always a whole version, the old one or the new one, and running the installer again repairs what is between."""

from __future__ import annotations

import ctypes
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from installation.source import this_checkout

CHECKOUT = Path(__file__).resolve().parents[2]
SITE = f"opt/safekit/private/env/lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"

# Runs the installer, and ends like a power failure at the change number N of the file system (0: counts them).
INSTALLER = """
import os, sys

limit, count, names = int(sys.argv.pop(1)), 0, []
MARKED = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.symlink", "os.link", "os.chmod", "os.chown"}

def watch(event, arguments):
    global count
    if event not in MARKED and not (event == "open" and isinstance(arguments[2], int) and arguments[2] & 3):
        return
    count += 1
    names.append(f"{event} {arguments[0]}")
    if count == limit:
        os.write(2, names[-1].encode())
        os._exit(77)

import installation.main as installer
installer.MINIMUM_FREE = int(os.environ.get("MINIMUM_FREE", installer.MINIMUM_FREE))
from installation import target
exchange = target._exchange

def watched_exchange(one, other):
    watch("os.rename", (f"exchange {other}",))
    return exchange(one, other)

target._exchange = watched_exchange
sys.addaudithook(watch)
try:
    installer.main(prog_name="safekitinstall")
finally:
    if not limit:
        print("\\n".join(names))
"""


def run(source: Path, root: Path, limit: int, **environment: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-c", INSTALLER, str(limit), "-q", "--root", str(root)]
    variables = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **environment}
    return subprocess.run(words, cwd=source, capture_output=True, text=True, check=False, env=variables, timeout=120)


def version_of(root: Path) -> str:
    """Which version is there, whole; asserts that it is one, and that its interpreter runs it."""
    site = root / SITE
    marks = {path.read_text() for path in (site / "safekit/which.py", site / "heart/which.py")}
    assert len(marks) == 1, "half of each"
    code = (
        f"import sys; sys.path.insert(0, {str(site)!r}); import lxml.etree, msgpack, supervisor; "
        "import cli.main, heart.main, safeadmin.main, nfsbox.main, safewebserver.main"
    )
    python = root / "opt/safekit/private/env/bin/python"
    done = subprocess.run([python, "-B", "-I", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (root / "opt/safekit/safekit").stat().st_mode & 0o111
    for name in ("private/conf/userconfig.xsd", "private/bin/firewallcfg", "licenses/SUMMARY",
                 "Application_Modules/generic/mirror.safe", "private/env/bin/supervisord"):  # fmt: skip
        assert (root / "opt/safekit" / name).stat().st_size, name
    assert (root / "opt/safekit/modules/app/conf/userconfig.xml").read_text() == "<safe/>"
    return marks.pop()


def content(root: Path) -> dict[str, bytes]:
    """All files but compiled code and backups of accounts."""
    return {
        str(path.relative_to(root)): os.fsencode(path.readlink()) if path.is_symlink() else path.read_bytes()
        for path in root.rglob("*")
        if (path.is_symlink() or path.is_file()) and "__pycache__" not in path.parts and not path.name.endswith("-")
    }


def make_source(place: Path, which: str) -> Path:
    """A checkout of a version of its own."""
    place.mkdir()
    for name in (*this_checkout().packages, "private", "Application_Modules"):
        shutil.copytree(CHECKOUT / name, place / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(CHECKOUT / "setup.cfg", place)
    (place / ".cache").symlink_to(CHECKOUT / ".cache")
    for package in ("safekit", "heart"):
        (place / package / "which.py").write_text(which)
    return place


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    place = tmp_path_factory.mktemp("v")
    return make_source(place / "old", "OLD = 1\n"), make_source(place / "new", "NEW = 1\n")


@pytest.fixture(scope="module")
def installed(sources: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of a system with the old version and a module."""
    root = tmp_path_factory.mktemp("r")
    (root / "etc").mkdir()
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\n")
    for name in ("shadow", "gshadow"):
        (root / "etc" / name).write_text("")
    done = run(sources[0], root, 1 << 30)
    assert done.returncode == 0, done.stderr
    module = root / "opt/safekit/modules/app/conf"
    module.mkdir(parents=True)
    (module / "userconfig.xml").write_text("<safe/>")
    return root


def copy_of(root: Path, place: Path) -> Path:
    """Files are links: an installer that changes one in place would change it in all."""
    subprocess.run(["cp", "-al", root, place], check=True)
    return place


@pytest.mark.parametrize("cases", [3, pytest.param(60, marks=pytest.mark.slow)])
def test_a_power_failure_at_any_step(sources: tuple[Path, Path], installed: Path, tmp_path: Path, cases: int) -> None:
    """Around the step that changes versions, at the last one, and at others; with --campaign at all renames."""
    whole = copy_of(installed, tmp_path / "whole")
    done = run(sources[1], whole, 0)
    assert done.returncode == 0, done.stderr
    assert version_of(whole) == "NEW = 1\n"
    steps = done.stdout.splitlines()
    wanted, before = content(whole), content(installed)
    switches = [number for number, step in enumerate(steps, 1) if step.startswith("os.rename exchange")]
    assert len(switches) == 8, [steps[number - 1] for number in switches]
    chosen = {switches[0], switches[0] + 1, switches[-1] + 1, len(steps)}
    if cases > 3:
        chosen |= {number for number, step in enumerate(steps, 1) if step.startswith("os.rename")}
    chosen |= set(random.Random(cases).sample(range(1, len(steps)), cases))
    seen = set()
    for number in sorted(chosen):
        root = copy_of(installed, tmp_path / "root")
        cut = run(sources[1], root, number)
        assert cut.returncode == 77, (number, cut.stderr)
        version = version_of(root)
        assert (version == "NEW = 1\n") == (number > switches[0]), (number, cut.stderr)
        seen.add(version)
        again = run(sources[1], root, 1 << 30)
        assert again.returncode == 0, again.stderr
        assert content(root) == wanted, f"after step {number}: {cut.stderr}"
        shutil.rmtree(root)
    assert len(seen) == 2
    assert content(installed) == before, "no file was changed in place"


@pytest.fixture
def small_disk(installed: Path, tmp_path: Path) -> Iterator[Path]:
    """A file system with the old version and hardly any space beside it."""
    place = tmp_path / "disk"
    place.mkdir()
    size = sum(path.lstat().st_size + 4096 for path in installed.rglob("*")) + (4 << 20)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", place], check=True)
    try:
        subprocess.run(["cp", "-a", f"{installed}/.", place], check=True)
        yield place
    finally:
        ctypes.CDLL(None).umount2(os.fsencode(place), 2)


def test_a_full_disk_leaves_the_old_version(sources: tuple[Path, Path], small_disk: Path) -> None:
    before = content(small_disk)
    done = run(sources[1], small_disk, 1 << 30)
    assert done.returncode == 1 and "are needed" in done.stderr and "free some space" in done.stderr
    assert content(small_disk) == before
    # As if the space had been there at the beginning: another interpreter needs all packages anew.
    (small_disk / "opt/safekit/private/env/packages").write_text("of another interpreter\n")
    with (small_disk / "fill").open("wb") as fill:
        free = shutil.disk_usage(small_disk).free
        fill.write(bytes(max(free - (6 << 20), 0)))
    before = content(small_disk)
    done = run(sources[1], small_disk, 1 << 30, MINIMUM_FREE="0")
    assert done.returncode == 1, done.stdout
    assert "No space left" in done.stderr and "the version that was installed is untouched" in done.stderr, done.stderr
    assert "Next step: free some space" in done.stderr and "Traceback" not in done.stderr
    assert content(small_disk) == before and version_of(small_disk) == "OLD = 1\n"
