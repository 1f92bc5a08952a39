"""Virtual host names: the library that is built, and the environment file that config makes."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from installation.native import build_libraries
from installation.source import this_checkout
from installation.target import Target
from safekit.disk.paths import ModulePaths
from safekit.disk.resources import ResourceWriter
from safekit.model.types import ModuleConfig, VirtualHostname
from safekit.process import vhost

SHOW = """#!/bin/sh
. "{file}"
uname -n
hostname
{python} -c 'import os, socket; print(socket.gethostname(), os.uname().nodename)'
"""


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModulePaths:
    root = tmp_path / "root"
    monkeypatch.setenv("SAFE", str(root / "opt/safekit"))
    monkeypatch.setenv("SAFEVAR", str(root / "var/safekit"))
    assert "built" in build_libraries(this_checkout(), Target(root))
    paths = ModulePaths("AM")
    paths.var.mkdir(parents=True)
    return paths


def names(paths: ModulePaths, script: str, when: str, state: str, tmp_path: Path) -> set[str]:
    """Every host name that a script sees."""
    host = VirtualHostname("virtualname", "env/vhostenv", when)  # type: ignore[arg-type]
    vhost.generate(ModuleConfig("AM", 1, vhost=(host,)), paths, tmp_path)
    ResourceWriter(paths.resources).set("state.local", state, "test")
    path = tmp_path / script
    path.write_text(SHOW.format(file=tmp_path / "env/vhostenv", python="python3"))
    path.chmod(0o755)
    done = subprocess.run([str(path), "a", "b"], capture_output=True, text=True, timeout=20, check=True)
    return set(done.stdout.split())


REAL = {os.uname().nodename}


@pytest.mark.parametrize(
    ("script", "when", "state", "virtual"),
    [
        ("start_prim", "prim", "ALONE", True),
        ("stop_prim", "prim", "SECOND", True),
        ("start_second", "prim", "SECOND", False),
        ("start_second", "second", "SECOND", True),
        ("start_prim", "second", "ALONE", False),
        ("start_both", "both", "UP", True),
        ("start_both", "prim", "SECOND", False),
        ("start_both", "prim", "PRIM", True),
        ("by_hand", "both", "STOP", False),
    ],
)
def test_who_sees_the_virtual_name(
    paths: ModulePaths, tmp_path: Path, script: str, when: str, state: str, virtual: bool
) -> None:
    assert names(paths, script, when, state, tmp_path) == ({"virtualname"} if virtual else REAL)


def test_a_file_outside_the_module_is_made_and_removed_with_its_configuration(
    paths: ModulePaths, tmp_path: Path
) -> None:
    ours, foreign = tmp_path / "ours", tmp_path / "foreign"
    foreign.write_text("#!/bin/sh\n")
    config = ModuleConfig("AM", 1, vhost=(VirtualHostname("v", str(ours)),))
    vhost.generate_absolute(config, paths)
    assert ours.read_text().startswith(vhost.HEADER)
    other = ModuleConfig("AM", 1, vhost=(VirtualHostname("v", str(foreign)),))
    vhost.remove_absolute([config, other], [])
    assert not ours.exists() and foreign.exists(), "what config did not make is not removed"


def test_a_name_longer_than_the_kernel_allows_is_cut(paths: ModulePaths) -> None:
    environment = {**os.environ, "LD_PRELOAD": str(vhost.library()), "SAFEKIT_VHOSTNAME": "x" * 300}
    done = subprocess.run(["uname", "-n"], env=environment, capture_output=True, text=True, timeout=10, check=True)
    assert done.stdout == "x" * 64 + "\n"
