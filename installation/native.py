"""The small libraries in C that are built on the server where they run (private/src)."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from installation.source import Source
from installation.target import InstallError, Target

LIBRARIES = {"vhost.c": "libsafekitvhost.so"}
COMPILERS = ("cc", "gcc", "clang")
COMPILE_SECONDS = 60


def build_libraries(source: Source, target: Target) -> str:
    """Put the libraries into SAFE/private/lib; one line of what was done.

    A package brings them. Without a compiler the product works, but for what needs the library: the configuration
    says so there. Raises InstallError when a compiler fails.
    """
    directory = target.safe / "private" / "lib"
    if source.packaged:
        directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        for library in LIBRARIES.values():
            new = directory / f".{library}.new"
            shutil.copyfile(source.path / "private" / "lib" / library, new)
            os.replace(new, directory / library)
        return f"installed {', '.join(LIBRARIES.values())}"
    if _compiler() is None:
        return "no C compiler: <vhost> cannot be used until gcc is installed and safekitinstall is run again"
    build_into(source, directory)
    return f"built {', '.join(LIBRARIES.values())}"


def build_into(source: Source, directory: Path) -> None:
    """Build what private/src holds. Raises InstallError."""
    compiler = _compiler()
    if compiler is None:
        raise InstallError("there is no C compiler", "install gcc and libc6-dev")
    directory.mkdir(mode=0o755, parents=True, exist_ok=True)
    for name, library in LIBRARIES.items():
        _build(compiler, source.path / "private" / "src" / name, directory / library)


def _compiler() -> str | None:
    return next((found for name in COMPILERS if (found := shutil.which(name))), None)


def _build(compiler: str, code: Path, library: Path) -> None:
    new = library.with_name(f".{library.name}.new")
    command = [compiler, "-shared", "-fPIC", "-O2", "-Wall", "-o", str(new), str(code)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMPILE_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InstallError(f"{compiler} cannot be run: {error}", "repair the C compiler") from error
    if done.returncode:
        raise InstallError(
            f"{code} cannot be compiled: {done.stderr.strip()[-500:]}", "install libc6-dev, then run it again"
        )
    new.chmod(0o644)
    # programs that have the old one loaded keep it
    os.replace(new, library)
