"""The product's own Python environment, SAFE/private/env.

Third-party packages are unpacked once into a cache in the checkout, from the wheels that `bin/setup` collected,
and copied from there: no network, and an upgrade that changes only our code takes a second. Our own packages are
copied beside them. Names such as `heart` thereby never reach the site-packages of anybody else.
"""

from __future__ import annotations

import compileall
import errno
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from email.parser import HeaderParser
from importlib.util import find_spec
from pathlib import Path

from installation.source import Source
from installation.target import SAFE, InstallError, Target, write_file

ENVIRONMENT = f"{SAFE}/private/env"
DISTRIBUTION_WHEELS = "/usr/share/python-wheels"
CACHE_OF_PACKAGE = f"{SAFE}/private/cache"
# Programs of third-party packages that the product starts; what else they bring stays out of the way.
SPEAK_TLS = frozenset(
    """
    safekit safelab safewebserver safetls safenotify safekairosdbd modulecheck splitbraincheck
    safecaserv startcaserv stopcaserv initssl makeusercert getipandnames checkcert
    """.split()  # noqa: SIM905 - a table to read
)
PRODUCT_LIST = "product-packages"
KEPT_PROGRAMS = ("supervisord", "supervisorctl")


def interpreter() -> Path:
    """The Python under the product's environment: the distribution's, of the version that runs this code, so
    that members of group safekit can execute it wherever this checkout lies."""
    system = Path(f"/usr/bin/python{sys.version_info[0]}.{sys.version_info[1]}")
    if system.exists():
        return system
    return Path(os.path.realpath(getattr(sys, "_base_executable", sys.executable)))


def site_packages(environment: Path) -> Path:
    return environment / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"


def packages_name(source: Source) -> str:
    """Changes with the interpreter and with every third-party package."""
    names = sorted(entry.name for entry in source.wheels.glob("*.whl"))
    recipe = "\n".join([sys.version, sys.platform, *source.requirements, *names])
    return f"packages-{hashlib.sha256(recipe.encode()).hexdigest()[:16]}"


def cached_packages(source: Source) -> Path:
    """Directory with the third-party packages unpacked; made when it is not there yet.

    Raises InstallError when a wheel is missing and cannot be fetched.
    """
    cache = (Path(CACHE_OF_PACKAGE) if source.packaged else source.path / ".cache") / packages_name(source)
    if cache.is_dir():
        return cache
    cache.parent.mkdir(parents=True, exist_ok=True)
    building = cache.with_name(f"{cache.name}.{os.getpid()}")
    shutil.rmtree(building, ignore_errors=True)
    command = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    command += ["--no-warn-script-location"]
    command += ["--find-links", str(source.wheels), "--target", str(building), *source.requirements]
    done = _pip([*command, "--no-index"])
    if done.returncode != 0 and not source.packaged:
        shutil.rmtree(building, ignore_errors=True)
        done = _pip(command)
    if done.returncode != 0:
        shutil.rmtree(building, ignore_errors=True)
        raise InstallError(
            f"Python packages are missing in {source.wheels} and cannot be fetched: {done.stderr.strip()[-500:]}",
            "install the .deb that was built for this release of the distribution"
            if source.packaged
            else f"run {source.path}/bin/setup once with access to a Python package index",
        )
    try:
        building.rename(cache)
    except OSError:  # another installation was faster; its directory has the same content
        shutil.rmtree(building, ignore_errors=True)
        if not cache.is_dir():
            raise
    for stale in cache.parent.glob("packages-*"):
        if stale != cache and "." not in stale.name:
            shutil.rmtree(stale, ignore_errors=True)
    return cache


def _pip(command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run pip: the interpreter's own, else the copy that the distribution has for new environments."""
    spare = sorted(Path(DISTRIBUTION_WHEELS).glob("pip-*.whl"))
    # not an option: pip 22.0 of Ubuntu 22.04 does not know it, and ignores variables that it does not know
    environment = {**os.environ, "PIP_ROOT_USER_ACTION": "ignore"}
    if spare and find_spec("pip") is None:
        environment["PYTHONPATH"] = str(spare[-1])
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def prepare_environment(source: Source, target: Target) -> Path:
    """The whole environment of this version beside the present one, which is not touched; `replace_tree` puts it
    into place. Third-party packages that stay the same are linked from there. Raises InstallError, OSError."""
    environment = target.environment
    new = environment.with_name(".env.new")
    shutil.rmtree(new, ignore_errors=True)
    wanted = f"{packages_name(source)} {interpreter()}\n"
    stamp = environment / "packages"
    if stamp.is_file() and stamp.read_text() == wanted:
        _link_packages(source, environment, new)
    else:
        _copy_packages(source, new)
        (new / "packages").write_text(wanted)
    _copy_product(source, new)
    for name, (module, function) in source.scripts.items():
        write_file(new / "bin" / name, script(module, function, tls=name in SPEAK_TLS), mode=0o755)
    return new


def _copy_packages(source: Source, new: Path) -> None:
    """Python and the third-party packages."""
    packages = cached_packages(source)
    python = interpreter()
    site = site_packages(new)
    site.parent.mkdir(parents=True)
    shutil.copytree(packages, site, symlinks=True, ignore=shutil.ignore_patterns("bin"))
    programs = new / "bin"
    programs.mkdir()
    for name in ("python", "python3", python.name):
        (programs / name).symlink_to(python)
    version = ".".join(str(part) for part in sys.version_info[:3])
    (new / "pyvenv.cfg").write_text(
        f"home = {python.parent}\ninclude-system-site-packages = false\nversion = {version}\nexecutable = {python}\n"
    )
    for name in KEPT_PROGRAMS:
        lines = (packages / "bin" / name).read_text().splitlines(keepends=True)
        write_file(programs / name, f"#!{ENVIRONMENT}/bin/python -I\n" + "".join(lines[1:]), mode=0o755)
    if source.packaged:
        shutil.rmtree(packages.parent)


def _link_packages(source: Source, environment: Path, new: Path) -> None:
    """Links to all files of the environment but our own, which change."""
    site = site_packages(environment)
    ours = {site: {PRODUCT_LIST, *_listed(site), *source.packages}, environment / "bin": {*source.scripts}}

    def leave_out(folder: str, names: list[str]) -> set[str]:
        return ours.get(Path(folder), set()) & set(names)

    shutil.copytree(environment, new, symlinks=True, ignore=leave_out, copy_function=_link)


def _link(path: str, copy: str) -> None:
    try:
        os.link(path, copy)
    except OSError as error:  # a file system without links, or one that counts no more of them
        if error.errno not in (errno.EPERM, errno.EMLINK, errno.EXDEV, errno.EOPNOTSUPP):
            raise
        shutil.copy2(path, copy)


def _listed(site: Path) -> set[str]:
    """Our own packages, as the version that was installed there noted them."""
    listing = site / PRODUCT_LIST
    return set(listing.read_text().split()) if listing.is_file() else set()


def _copy_product(source: Source, new: Path) -> None:
    """Our own packages."""
    site = site_packages(new)
    for relative in source.package_files():
        copy = site / relative
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source.path / relative, copy)
    for package in source.packages:
        prepended = f"{ENVIRONMENT}/{site.name}"
        compileall.compile_dir(site / package, quiet=2, stripdir=str(site), prependdir=prepended, workers=0)
    (site / PRODUCT_LIST).write_text("\n".join(source.packages) + "\n")


def prepare_licenses(environment: Path, target: Target) -> Path:
    """What becomes SAFE/licenses: those of the third-party packages, each in a directory of its own (guide 18)."""
    new = target.safe / ".licenses.new"
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(mode=0o755)
    summary = []
    for record in sorted(site_packages(environment).glob("*.dist-info")):
        fields = HeaderParser().parsestr((record / "METADATA").read_text(encoding="utf-8", errors="replace"))
        name = f"{fields['Name']}-{fields['Version']}"
        stated = fields["License-Expression"] or (fields["License"] or "").partition("\n")[0]
        classifiers = [c.rpartition(" :: ")[2] for c in fields.get_all("Classifier", []) if c.startswith("License ::")]
        summary.append(
            f"{name}: {stated or ', '.join(classifiers) or 'see its files'}  {fields['Home-page'] or ''}".rstrip()
        )
        for text in sorted(record.rglob("*")):
            if text.is_file() and re.match(r"(?i)(licen[cs]e|copying|copyright|notice|authors)", text.name):
                (new / name).mkdir(exist_ok=True)
                shutil.copyfile(text, new / name / text.name)
    summary += _console_licenses(site_packages(environment) / "safewebserver" / "console" / "vendor", new)
    (new / "SUMMARY").write_text("\n".join(summary) + "\n")
    return new


def _console_licenses(vendor: Path, new: Path) -> list[str]:
    """Those of the libraries that are packed into the web console; nothing where it was left out."""
    try:
        packages = json.loads((vendor / "LICENSES.json").read_text(encoding="utf-8"))["packages"]
    except FileNotFoundError:
        return []
    lines = []
    for each in packages:
        name = f"{each['name'].replace('/', '-').removeprefix('@')}-{each['version']}"
        (new / name).mkdir(exist_ok=True)
        (new / name / "LICENSE").write_text(each["text"], encoding="utf-8")
        lines.append(f"{name}: {each['license']}  (web console)")
    return lines


def script(module: str, function: str, *, tls: bool = True) -> str:
    """Starts one process or command. The kernel names a process after the script's file, and `-I` keeps the
    caller's PYTHON* variables and directory out of daemons that run as root.

    Without `tls` the event loop does not load the TLS library, 2 MB in each of a dozen processes.
    """
    lines = [f"#!{ENVIRONMENT}/bin/python -I", "import sys", ""]
    lines += [] if tls else ['sys.modules["ssl"] = None  # type: ignore[assignment]', ""]
    lines += [f"from {module} import {function}", "", f"sys.exit({function}())", ""]
    return "\n".join(lines)


def install_command(source: Source, target: Target) -> None:
    """The command SAFE/safekit."""
    write_file(target.safe / "safekit", script(*source.scripts["safekit"]), mode=0o755)
