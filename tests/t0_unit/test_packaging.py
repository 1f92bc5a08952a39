"""What a purge of the package takes from the system; each program that it calls is one that only notes it."""

from __future__ import annotations

import subprocess
from pathlib import Path

from installation.source import this_checkout
from installation.system import ACCOUNT, WEB_ACCOUNT

PROGRAMS = ("rm", "getent", "userdel", "groupdel", "crontab")


def test_a_purge_takes_the_accounts_and_their_crontab(tmp_path: Path) -> None:
    notes, programs = tmp_path / "notes", tmp_path / "bin"
    programs.mkdir()
    for name in PROGRAMS:
        (programs / name).write_text(f'#!/bin/sh\necho "{name} $*" >>"{notes}"\n')
        (programs / name).chmod(0o755)
    script = this_checkout().path / "packaging/debian/postrm"
    done = subprocess.run(
        ["/bin/sh", str(script), "purge"], env={"PATH": str(programs)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    said = notes.read_text().splitlines()
    assert {f"userdel {ACCOUNT}", f"userdel {WEB_ACCOUNT}"} <= set(said)
    assert said.index(f"crontab -u {ACCOUNT} -r") < said.index(f"userdel {ACCOUNT}"), "cron knows it while he is there"
