"""The Debian package of this checkout, built once for all tests that install it."""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import subprocess
from pathlib import Path

from installation.source import Source

CHECKOUT = Path(__file__).resolve().parents[2]
_KEPT = 2


def package() -> Path:
    """Path of the package; it is built when something of the checkout has changed. Raises CalledProcessError."""
    digest = hashlib.sha256(Source(CHECKOUT).fingerprint().encode())
    for path in (CHECKOUT / "bin/builddeb", *sorted((CHECKOUT / "packaging").rglob("*")), *CHECKOUT.glob("docs/*.md")):
        if path.is_file():
            digest.update(path.read_bytes())
    cache = CHECKOUT / ".cache/deb"
    place = cache / digest.hexdigest()[:16]
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not place.is_dir():
            building = cache / ".building"
            shutil.rmtree(building, ignore_errors=True)
            subprocess.run(
                [CHECKOUT / "bin/builddeb", "--output", building], check=True, capture_output=True, timeout=300
            )
            building.rename(place)
        place.touch()
        known = sorted((entry for entry in cache.iterdir() if entry.is_dir()), key=lambda entry: entry.stat().st_mtime)
        for stale in known[:-_KEPT]:
            shutil.rmtree(stale)
    (found,) = place.glob("safekit_*.deb")
    return found


def installer(first: Path, place: Path) -> Path:
    """The file that brings a package and safekitinstall, in the directory `place`."""
    words = [CHECKOUT / "bin/buildbin", "--package", first, "--output", place]
    done = subprocess.run(words, check=True, capture_output=True, text=True, timeout=120)
    return Path(done.stdout.strip())


def successor(first: Path, place: Path) -> Path:
    """A package of the same content and a higher version, in the directory `place`."""
    tree, made = place / "tree", place / "second.deb"
    subprocess.run(["dpkg-deb", "-R", first, tree], check=True)
    control = tree / "DEBIAN/control"
    control.write_text(control.read_text().replace("-1~", "-2~", 1))
    subprocess.run(["dpkg-deb", "--root-owner-group", "-Znone", "-b", tree, made], check=True, capture_output=True)
    shutil.rmtree(tree)
    return made
