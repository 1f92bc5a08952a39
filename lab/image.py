"""The image: one cached installation of the product, what every node's file system starts with.

Its key is a hash of all that is installed, so a changed line of code makes a new image and an unchanged tree uses the
old one. It is made by the installer itself, in a mount namespace of its own.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

from installation.environment import interpreter
from installation.main import install
from installation.source import Source, this_checkout
from installation.system import install_settings, make_account, prepare_safevar
from installation.target import SAFE, SAFEVAR, Target, make_directory
from installation.web import install_web
from lab import kernel, rootfs
from lab.errors import LabError
from lab.state import live_labs
from safekit import syscalls

IMAGES = ".images"
_KEPT = 3
_ACCOUNTS = ("/etc/passwd", "/etc/group", "/etc/shadow", "/etc/gshadow")


def key(source: Source | None) -> str:
    """Changes with the product, its packages, this module, and the accounts of this host (the image has copies)."""
    digest = hashlib.sha256(str(interpreter()).encode())
    if source is not None:
        digest.update(source.fingerprint().encode())
        for wheel in sorted(source.path.glob(".cache/wheels/*.whl")):
            digest.update(wheel.name.encode())
    else:
        digest.update(Path(SAFE, "private/version").read_bytes())
    for path in (*_ACCOUNTS, __file__):
        if Path(path).exists():
            digest.update(Path(path).read_bytes())
    return digest.hexdigest()[:16]


def source_of_product() -> Source | None:
    """The checkout that this code belongs to; None in an installed product, which is then copied itself."""
    try:
        return this_checkout()
    except FileNotFoundError:
        return None


def place(labs: Path) -> Path:
    """Where the image for the present code is, or will be."""
    return labs / IMAGES / key(source_of_product())


def provide(place: Path, labs: Path) -> str:
    """Path of the image for the present code; makes it when needed. The caller holds the labs' lock.

    Raises LabError with what the installer said.
    """
    if place.is_dir():
        place.touch()
        return str(place)
    building = rootfs.empty(labs / IMAGES / f".{place.name}", 0o755)
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", sys.executable, "-m", "lab.image", str(building), str(labs)],
        cwd=Path(__file__).resolve().parents[1],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    if done.returncode != 0:
        shutil.rmtree(building, ignore_errors=True)
        raise LabError(
            f"the product could not be installed into an image: {(done.stderr or done.stdout).strip()[-1500:]}",
            "see the message; in a checkout, bin/setup fetches what is missing",
        )
    shutil.rmtree(building / "work", ignore_errors=True)
    building.rename(place)
    prune(labs)
    return str(place)


def prune(labs: Path) -> list[str]:
    """Remove images beyond the newest few that no living lab uses. Returns their names."""
    used = {state.image for state in live_labs()}
    images = [entry for entry in (labs / IMAGES).glob("*") if entry.is_dir() and not entry.name.startswith(".")]
    images.sort(key=lambda entry: entry.stat().st_mtime, reverse=True)
    stale = [entry for entry in images[_KEPT:] if str(entry) not in used]
    for entry in stale:
        shutil.rmtree(entry)
    return [entry.name for entry in stale]


def build(building: Path, labs: Path) -> None:
    """Install into overlays whose changes are the image. Runs in its own mount namespace."""
    root = building / "root"
    root.mkdir()
    rootfs.mount_overlays(root, building, rootfs.host_mounts(labs))
    kernel.mount("tmpfs", root / "run", "tmpfs", 0, "mode=0755")
    target = Target(root)
    # This host may itself be a server: its modules and states are not those of a node.
    for path in (f"{SAFE}/modules", f"{SAFE}/private/modules", f"{SAFE}/private/env", SAFEVAR, "/etc/safeini.xml"):
        place = target.at(path)
        if place.is_dir():
            if path.endswith("env") and source_of_product() is None:
                continue
            shutil.rmtree(place)
        else:
            place.unlink(missing_ok=True)
    source = source_of_product()
    if source is not None:
        install(source, target, quiet=True)
    else:
        _fresh_state(target)
    syscalls.detach(root / "run")
    for mounted in reversed(rootfs.host_mounts(labs)):
        syscalls.detach(root / mounted.lstrip("/"))


def _fresh_state(target: Target) -> None:
    """The installed product is there already; give it empty state with a key of its own."""
    gid = make_account(target)
    make_directory(target.safe / "modules", mode=0o2770, gid=gid)
    make_directory(target.safe / "private/modules", mode=0o2770, gid=gid)
    prepare_safevar(target, gid, os.urandom(32))
    install_settings(target)
    install_web(target, gid, opened=False)


if __name__ == "__main__":
    build(Path(sys.argv[1]), Path(sys.argv[2]))
