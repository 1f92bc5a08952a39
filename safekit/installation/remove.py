"""Uninstallation (guide 2.4, 2.5)."""

from __future__ import annotations

import shutil
import subprocess

from safekit.installation.product import pack_module
from safekit.installation.system import ACCOUNT, SAFEINI, remove_service, remove_settings
from safekit.installation.target import SAFE, InstallError, Target


def running_modules(target: Target) -> list[str]:
    """Modules whose marker says that they run; after a power failure the marker stays although nothing runs."""
    return sorted(marker.parent.name for marker in target.safevar.glob("modules/*/running"))


def refuse_running_modules(target: Target, what: str) -> None:
    """Raises InstallError when a module runs on this system."""
    running = running_modules(target)
    if target.is_this_system and running:
        raise InstallError(
            f"{what} needs all modules stopped; running: {', '.join(running)}",
            f"{SAFE}/safekit shutdown (in a mirror, the secondary's server first)",
        )


def uninstall(target: Target, *, everything: bool) -> list[str]:
    """Take the product away; modules are saved as .safe files, and stay with all states unless `everything`.

    Returns what was done, one line each. Raises InstallError.
    """
    if not target.safe.exists():
        raise InstallError(f"there is no {target.safe}", "nothing needs to be uninstalled")
    refuse_running_modules(target, "uninstalling")
    done = []
    remove_service(target)
    remove_settings(target)
    done.append("the service safeadmin, PATH and completion settings are removed")
    if everything:
        shutil.rmtree(target.safe)
        if target.safevar.exists():
            shutil.rmtree(target.safevar)
        target.at(SAFEINI).unlink(missing_ok=True)
        prefix = [] if target.is_this_system else ["--prefix", str(target.root)]
        for tool in ("userdel", "groupdel"):  # userdel removes the group too where it is the user's own
            subprocess.run([tool, *prefix, ACCOUNT], capture_output=True, check=False)
        done.append(f"{target.safe}, {target.safevar}, {SAFEINI} and the user and group {ACCOUNT} are removed")
        return done
    modules = target.safe / "modules"
    for directory in sorted(modules.iterdir()) if modules.is_dir() else ():
        if (directory / "conf" / "userconfig.xml").is_file():
            pack_module(directory, target.safe / "Application_Modules" / "backup" / f"{directory.name}.safe")
            done.append(f"module {directory.name} is saved in {SAFE}/Application_Modules/backup/{directory.name}.safe")
    for name in ("private/env", "private/conf", "private/bin"):
        shutil.rmtree(target.safe / name, ignore_errors=True)
    for kind in ("generic", "demo", "other"):
        shutil.rmtree(target.safe / "Application_Modules" / kind, ignore_errors=True)
    (target.safe / "safekit").unlink(missing_ok=True)
    done.append(f"the product is removed; modules, licence, keys and states stay in {target.safe} and {target.safevar}")
    return done
