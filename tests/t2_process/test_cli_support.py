"""dump, snapshot and clean on real files and processes."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import zipfile
from pathlib import Path

import pytest

from safekit.disk.archive import pack
from safekit.disk.paths import ModulePaths
from safekit.log.module import ModuleLog
from tests.t2_process.cli_server import Server, make_module

SECRET = "5ec" * 21 + "f"


@pytest.fixture
def module(server: Server, monkeypatch: pytest.MonkeyPatch) -> ModulePaths:
    for name, value in server.env.items():
        monkeypatch.setenv(name, value)
    paths = make_module()
    (paths.conf_dir / "module.key").write_text(SECRET)
    (paths.active / "conf" / "module.key").write_text(SECRET)
    (server.var / "cluster" / "cluster.key").write_text(SECRET)
    ModuleLog("mirror", "heart", "n1").event("printe", text="hello")
    paths.resources.write_text("state.local ALONE 1.000 heart\n")
    last = server.safe / "modules" / "lastconfig"
    last.mkdir()
    for day in range(1, 6):
        pack(paths.root, last / f"mirror_2024-01-0{day}_10:00:00.safe")
        pack(paths.root, last / f"other_mirror_2024-01-0{day}_10:00:00.safe")
    return paths


def test_snapshot_has_the_last_three_of_both_and_no_key(server: Server, module: ModulePaths, tmp_path: Path) -> None:
    for _ in range(4):
        done = server.run("dump", "-m", "mirror")
        assert done.returncode == 0, done.stderr
    assert server.run("snapshot", "-m", "mirror", "x.zip").returncode == 1
    target = tmp_path / "snapshot.zip"
    done = server.run("snapshot", "-m", "mirror", str(target))
    assert done.returncode == 0, done.stderr
    base = server.var / "snapshot" / "modules" / "mirror"
    dumps = [path for path in base.iterdir() if path.name.startswith("dump_")]
    assert len(dumps) == 3
    assert {"processes.txt", "sockets.txt", "resources", "log", "state.txt", "commandlog"} <= set(os.listdir(dumps[0]))
    own = {"level.txt", "modules.txt", "boot.txt", "cluster_confinfo.txt", "cluster_state.txt"}
    assert own <= set(os.listdir(dumps[0])), "what support asks first"
    assert "hello" in (dumps[0] / "log" / "module.log").read_text()
    with zipfile.ZipFile(target) as archive:
        names = archive.namelist()
        configurations = sorted(name for name in names if name.endswith(".safe"))
        assert configurations == [f"mirror/config_2024-01-0{day}_10-00-00.safe" for day in (3, 4, 5)]
        for name in names:
            assert SECRET.encode() not in archive.read(name), name
        for name in configurations:
            (tmp_path / "c.safe").write_bytes(archive.read(name))
            with zipfile.ZipFile(tmp_path / "c.safe") as inner:
                assert inner.namelist() == ["conf/userconfig.xml"]


def test_clean_kills_the_main_processes_of_one_module(server: Server, module: ModulePaths, tmp_path: Path) -> None:
    program = tmp_path / "heart"
    shutil.copy("/bin/sleep", program)
    mine, other = (
        subprocess.Popen([program, "60"], env={**os.environ, **server.env, "SAFEMODULE": name})
        for name in ("mirror", "other")
    )
    try:
        refused = server.run("clean", "resource", "-m", "mirror")
        assert refused.returncode == 1 and "heart" in refused.stderr and module.resources.exists()
        # We are the parent of the process: it is gone only when we have collected it.
        threading.Thread(target=mine.wait, daemon=True).start()
        done = server.run("clean", "-m", "mirror")
        assert done.returncode == 0, done.stderr
        assert f"heart ({mine.pid})" in done.stdout and other.poll() is None
        assert mine.wait(5) == -9
    finally:
        for process in (mine, other):
            process.kill()
            process.wait()
    assert not module.resources.exists() and not module.log.exists()
    assert "safekit prim -m mirror" in done.stdout


def test_clean_log_leaves_the_rest(server: Server, module: ModulePaths) -> None:
    assert server.run("clean", "log", "-m", "mirror").returncode == 0
    assert not module.log.exists() and module.resources.exists()
    assert server.run("clean", "nonsense", "-m", "mirror").returncode != 0
