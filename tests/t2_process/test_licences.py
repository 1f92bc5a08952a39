"""LIC-006: SAFE/licenses, made from the environment, names every package that the product brings; LIC-002, LIC-003."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.metadata import requires
from pathlib import Path

from installation.environment import prepare_licenses
from installation.requirements import requirements
from installation.target import Target

CHECKOUT = Path(__file__).resolve().parents[2]


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", name)[0]).lower()  # type: ignore[index]


def needed() -> set[str]:
    """The packages of setup.cfg and what they need, without extras and what other Pythons need."""
    waiting, found = [plain(item) for item in requirements(CHECKOUT / "setup.cfg")], set[str]()
    while waiting:
        name = waiting.pop()
        if name in found or (name == "pyasyncore" and sys.version_info < (3, 12)):
            continue
        found.add(name)
        waiting += [plain(item) for item in requires(name) or () if ";" not in item]
    return found


def test_every_package_has_its_licence(tmp_path: Path) -> None:
    target = Target(tmp_path)
    target.safe.mkdir(parents=True)
    made = prepare_licenses(CHECKOUT / ".venv", target)
    lines = (made / "SUMMARY").read_text().splitlines()
    told = {plain(re.sub(r"-[\d.]+[\w.]*$", "", line.partition(":")[0])): line for line in lines}
    assert len(needed()) > 15
    for name in sorted(needed()):
        assert name in told, f"{name} is not in SUMMARY"
        stated = told[name].partition(": ")[2]
        texts = [place for place in made.glob("*/*") if plain(place.parent.name).startswith(name)]
        assert texts or not stated.startswith("see its files"), f"{name}: neither a text nor a statement of its licence"
    assert "pysnmp" in told and (any(made.glob("pysnmp-*/*")) or "BSD" in told["pysnmp"])


def test_the_forms_of_the_line_and_what_is_said_of_it(tmp_path: Path) -> None:
    """Prepared files, one line each (LIC-002); level says that nothing ends (LIC-003)."""
    (tmp_path / "conf").mkdir()
    env = {**os.environ, "SAFE": str(tmp_path), "SAFEVAR": str(tmp_path / "var")}
    host = os.uname().nodename
    for text, expected in (
        (None, "Demo (No license)"),
        ("id: 1\nhost: another\n", "Invalid Host"),
        ("rubbish", "Invalid Product"),
        ("id: 1\nexpires: 2999-12-31\n", "1 Expiration 2999-12-31"),
        ("id: 1\nexpires: 2001-01-01\n", "Expired license"),
        (f"id: 1\nhost: {host}\n", f"1 for {host}"),
    ):
        if text is not None:
            (tmp_path / "conf/license.txt").write_text(text)
        script = (
            "import sys; from cli import base\n"
            "base.require_admin = lambda: {}\n"
            "from cli.main import run; sys.exit(run(['level']))"
        )
        done = subprocess.run([sys.executable, "-c", script], cwd=CHECKOUT, env=env, capture_output=True, text=True)
        assert f"License : {expected}" in done.stdout.splitlines(), done.stdout + done.stderr
        assert "is free software (GPL-3.0-or-later): nothing here ends" in done.stdout
