"""The files of SAFE beside its Python environment: configuration, special commands, module templates."""

from __future__ import annotations

import os
import shutil
import zipfile
from pathlib import Path

from installation.source import MODULE_KINDS, Source
from installation.target import Target, make_directory, replace_tree, write_file

PRIVATE_FOLDERS = ("conf", "bin", "cloud")
MONITOR = "webconsole/monitor"
"""Lists of modules for the console, made by administrators (guide 14.6.2); ours is the one to copy."""
PACKED_KINDS = tuple(kind for kind in MODULE_KINDS if kind != "backup")


def pack_module(directory: Path, archive: Path) -> None:
    """Write the module in `directory` as a `.safe` file. Equal content gives an equal file."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    temporary = archive.with_name(f".{archive.name}.new")
    with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as bundle:
        for folder, folders, names in os.walk(directory):
            folders[:] = sorted(name for name in folders if name != "__pycache__")
            for name in sorted(names):
                path = Path(folder) / name
                entry = zipfile.ZipInfo(str(path.relative_to(directory)), (2020, 1, 1, 0, 0, 0))
                entry.external_attr = (path.stat().st_mode & 0xFFFF) << 16
                entry.compress_type = zipfile.ZIP_DEFLATED
                bundle.writestr(entry, path.read_bytes())
    temporary.rename(archive)


def prepare_templates(source: Source, target: Target) -> list[str]:
    """Pack the module templates beside SAFE/Application_Modules. Names packed."""
    base = target.safe / "Application_Modules"
    names = []
    for kind in PACKED_KINDS:
        shutil.rmtree(base / f".{kind}.new", ignore_errors=True)
        (base / f".{kind}.new").mkdir(parents=True)
    for kind, name, directory in source.module_templates():
        if kind in PACKED_KINDS:
            pack_module(directory, base / f".{kind}.new" / f"{name}.safe")
            names.append(f"{kind}/{name}.safe")
    return names


def prepare_files(source: Source, target: Target) -> list[str]:
    """Everything of SAFE but the Python environment, beside what is there. Returns the names of the templates."""
    private = target.safe / "private"
    private.mkdir(parents=True, exist_ok=True)
    for folder in PRIVATE_FOLDERS:
        new = private / f".{folder}.new"
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir()
        if (source.path / "private" / folder).is_dir():
            shutil.copytree(
                source.path / "private" / folder, new, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True
            )
        if folder == "bin":
            for command in new.iterdir():
                command.chmod(0o755)
    return prepare_templates(source, target)


def install_files(source: Source, target: Target, gid: int) -> None:
    """Put what was prepared into place; `backup` keeps what it holds."""
    private, base = target.safe / "private", target.safe / "Application_Modules"
    for folder in PRIVATE_FOLDERS:
        replace_tree(private / f".{folder}.new", private / folder)
    for kind in PACKED_KINDS:
        replace_tree(base / f".{kind}.new", base / kind)
    make_directory(target.safe / "conf", mode=0o2750, gid=gid)
    # Group safekit administers modules: what it edits and configures must be writable to it.
    make_directory(target.safe / "modules", mode=0o2770, gid=gid)
    make_directory(private / "modules", mode=0o2770, gid=gid)
    make_directory(base / "backup", mode=0o2770, gid=gid)
    for name in ("webconsole", MONITOR):
        make_directory(base / name, mode=0o2770, gid=gid)
    write_file(
        base / MONITOR / "default.xml", (source.path / "Application_Modules" / MONITOR / "default.xml").read_text()
    )
    write_file(private / "version", f"{source.version}\n")


def remove_leftovers(target: Target) -> None:
    """What an installation prepared or put aside that did not come to its end."""
    for folder in (target.safe, target.safe / "private", target.safe / "Application_Modules"):
        for pattern in (".*.new", ".*.old"):
            for left in folder.glob(pattern):
                if left.is_dir() and not left.is_symlink():
                    shutil.rmtree(left)
                else:
                    left.unlink()
