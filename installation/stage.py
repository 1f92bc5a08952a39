"""Collects in one directory what a package of the product brings: `python -m installation.stage DIR`.

The directory is a source as a checkout is one, but complete: wheels of all third-party packages, and libraries
that are built already, so that installing from it needs no network and no compiler.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from installation.native import build_into
from installation.source import Source, this_checkout
from installation.target import InstallError


def select_wheels(source: Source, directory: Path) -> None:
    """The wheels that the product needs of those collected. Raises InstallError when one is missing."""
    directory.mkdir(parents=True)
    command = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", "--no-index"]
    command += ["--find-links", str(source.wheels), "--dest", str(directory), *source.requirements]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise InstallError(f"wheels are missing: {done.stderr.strip()[-500:]}", f"run {source.path}/bin/setup")


def stage(source: Source, place: Path) -> None:
    """Fill the directory `place`. Raises InstallError, OSError."""
    place.mkdir(parents=True)
    shutil.copy2(source.path / "setup.cfg", place)
    trees = [*source.tree_files("private"), *source.tree_files("Application_Modules")]
    for relative in [*source.package_files(), *trees]:
        copy = place / relative
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source.path / relative, copy)
        executable = bool((source.path / relative).stat().st_mode & 0o100)
        copy.chmod(0o755 if executable else 0o644)
    select_wheels(source, place / "wheels")
    build_into(source, place / "private" / "lib")


if __name__ == "__main__":
    try:
        stage(this_checkout(), Path(sys.argv[1]))
    except InstallError as error:
        sys.exit(f"Error: {error}\nNext step: {error.next_step}")
