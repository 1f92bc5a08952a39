"""bin/setup: nothing of the network once all is there, and a cause with a next step when something is missing."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

SETUP = Path(__file__).resolve().parents[2] / "bin/setup"


def setup(*before: str, profile: str = "product", path: str = "") -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, "PATH": f"{path}:{os.environ['PATH']}" if path else os.environ["PATH"]}
    return subprocess.run(
        [*before, SETUP, profile], capture_output=True, text=True, check=False, timeout=300, env=variables
    )


def refused(done: subprocess.CompletedProcess[str], cause: str, step: str) -> None:
    assert done.returncode == 1, (done.stdout, done.stderr)
    error, next_step = (line for line in done.stderr.splitlines() if line.startswith(("Error: ", "Next step: ")))
    assert cause in error and step in next_step, done.stderr


def test_what_is_set_up_needs_no_network() -> None:
    done = setup("unshare", "--net", profile="test")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_who_is_not_root_is_told() -> None:
    refused(setup("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"), "must be run as root", "sudo ")


def test_an_unknown_profile() -> None:
    refused(setup(profile="everything"), "unknown profile 'everything'", "unit, product, lab, demo, test")


def test_a_kernel_without_fuse() -> None:
    script = 'mount -t tmpfs tmpfs /dev && mknod -m 666 /dev/null c 1 3 && exec "$0" "$1"'
    done = setup("unshare", "--mount", "--propagation", "private", "sh", "-c", script)
    refused(done, "/dev/fuse is missing", "modprobe fuse")


def test_a_missing_package_without_a_mirror(tmp_path: Path) -> None:
    """Its installation is tried; nothing else is attempted after it."""
    asked = tmp_path / "asked"
    for name, text in (
        ("dpkg-query", '#!/bin/sh\nPATH=${PATH#*:}\ndpkg-query "$@" | grep -v nftables\n'),
        ("apt-get", f"#!/bin/sh\necho \"$@\" >>{asked}\necho 'E: Unable to fetch some archives' >&2\nexit 100\n"),
    ):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    done = setup(path=str(tmp_path))
    refused(done, "apt-get could not install: nftables", "access to its package mirror")
    assert "E: Unable to fetch some archives" in done.stderr
    assert [line.split()[-1] for line in asked.read_text().splitlines()] == ["update", "nftables"]


def test_a_system_that_is_not_debian(tmp_path: Path) -> None:
    """Only what the script itself calls is in the PATH."""
    for name in ("bash", "dirname", "id", "uname", "env"):
        (tmp_path / name).symlink_to(f"/usr/bin/{name}")
    done = setup("/usr/bin/env", f"PATH={tmp_path}")
    refused(done, "this system has no apt-get", "Debian 12/13 or Ubuntu 22.04/24.04")
