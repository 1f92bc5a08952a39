"""The files of SAFE beside its Python environment: configuration, special commands, module templates."""

from __future__ import annotations

import os
import shutil
import zipfile
from pathlib import Path

from safekit.installation.source import MODULE_KINDS, Source
from safekit.installation.target import Target, make_directory, replace_tree


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


def install_templates(source: Source, target: Target) -> list[str]:
    """Pack the module templates into SAFE/Application_Modules; `backup` keeps what it holds. Names packed."""
    base = target.safe / "Application_Modules"
    for kind in MODULE_KINDS:
        (base / kind).mkdir(parents=True, exist_ok=True)
        if kind != "backup":
            for old in (base / kind).glob("*.safe"):
                old.unlink()
    names = []
    for kind, name, directory in source.module_templates():
        pack_module(directory, base / kind / f"{name}.safe")
        names.append(f"{kind}/{name}.safe")
    return names


def install_files(source: Source, target: Target, gid: int) -> list[str]:
    """Everything of SAFE but the Python environment. Returns the names of the templates."""
    private = target.safe / "private"
    private.mkdir(parents=True, exist_ok=True)
    for folder in ("conf", "bin"):
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
        replace_tree(new, private / folder)
    make_directory(target.safe / "conf", mode=0o2750, gid=gid)
    # Group safekit administers modules: what it edits and configures must be writable to it.
    make_directory(target.safe / "modules", mode=0o2770, gid=gid)
    make_directory(private / "modules", mode=0o2770, gid=gid)
    templates = install_templates(source, target)
    make_directory(target.safe / "Application_Modules" / "backup", mode=0o2770, gid=gid)
    (private / "version").write_text(f"{source.version}\n")
    return templates
