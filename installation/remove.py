"""Uninstallation (guide 2.4, 2.5)."""

from __future__ import annotations

import os
import shutil
import subprocess

from installation.product import pack_module, remove_leftovers
from installation.system import ACCOUNT, SAFEINI, remove_service, remove_settings
from installation.target import SAFE, InstallError, Target
from safekit.disk.files import boot_identity
from safekit.process import crontab
from safekit.process.confined import USER as WEB_ACCOUNT

PACKAGE_LIST = "/var/lib/dpkg/info/safekit.list"


def running_modules(target: Target) -> list[str]:
    """Modules that run on this system: a marker names the boot that it was made in, so that what a power failure
    left behind holds up nothing."""
    if not target.is_this_system:
        return []
    boot = boot_identity()
    markers = target.safevar.glob("modules/*/running")
    return sorted(marker.parent.name for marker in markers if marker.read_text(errors="replace").strip() == boot)


def refuse_running_modules(target: Target, what: str) -> None:
    """Raises InstallError when a module runs on this system."""
    running = running_modules(target)
    if running:
        raise InstallError(
            f"{what} needs all modules stopped; running: {', '.join(running)}",
            f"{SAFE}/safekit shutdown (in a mirror, the secondary's server first)",
        )


def refuse_other_installer(target: Target) -> None:
    """Raises InstallError where a .deb is installed and we are not its own script: dpkg keeps account of the files."""
    if target.at(PACKAGE_LIST).exists() and not os.environ.get("DPKG_MAINTSCRIPT_PACKAGE"):
        raise InstallError("the product is installed as the package safekit", "use apt or dpkg")


def check_removal(target: Target) -> None:
    """Raises InstallError before anything is changed when the product cannot be taken away."""
    if os.geteuid() != 0:
        raise InstallError("uninstalling must be run as root", f"sudo {SAFE}/safekit uninstall")
    if not target.safe.exists():
        raise InstallError(f"there is no {target.safe}", "nothing needs to be uninstalled")
    refuse_other_installer(target)
    refuse_running_modules(target, "uninstalling")


def deconfigure_modules(target: Target) -> list[str]:
    """Replicated directories become plain ones again before the record of them goes; one line each."""
    if not target.is_this_system:
        return []
    from safekit.configuration import ConfigureError, deconfig
    from safekit.model.findings import ConfigError

    done = []
    for active in sorted(target.safe.glob("private/modules/*/conf/active.json")):
        name = active.parents[1].name
        if name.startswith("."):
            continue  # the numbered configurations behind the active one
        try:
            warnings = deconfig(name)
        except (ConfigureError, ConfigError) as error:
            done.append(f"Warning: module {name} could not be deconfigured: {error}")
            continue
        done += [f"module {name} is deconfigured", *(f"Warning: {warning}" for warning in warnings)]
    return done


def open_directories(target: Target) -> list[str]:
    """Modules stay, but nothing serves their directories any more: the data is its users' again; one line each."""
    if not target.is_this_system:
        return []
    from safekit.configuration import ConfigureError, active
    from safekit.model import directories
    from safekit.model.findings import ConfigError

    done = []
    for record in sorted(target.safe.glob("private/modules/*/conf/active.json")):
        name = record.parents[1].name
        if name.startswith("."):
            continue
        try:
            rfs = active(name).rfs
            for replicated in rfs.replicated if rfs is not None else ():
                if rfs is not None and directories.open_to_users(rfs.backing(replicated)):
                    done.append(f"{replicated.dir} can be entered by its users again")
        except (ConfigureError, ConfigError, OSError) as error:
            done.append(f"Warning: the data of module {name} stays root's: {error}; give it mode and owner by hand")
    return done


def uninstall(target: Target, *, everything: bool) -> list[str]:
    """Take the product away; modules are saved as .safe files, and stay with all states unless `everything`.

    Returns what was done, one line each. Raises InstallError.
    """
    check_removal(target)
    done = []
    remove_service(target)
    remove_settings(target)
    done.append("the service safeadmin, PATH and completion settings are removed")
    if everything:
        done += deconfigure_modules(target)
        shutil.rmtree(target.safe)
        if target.safevar.exists():
            shutil.rmtree(target.safevar)
        target.at(SAFEINI).unlink(missing_ok=True)
        prefix = [] if target.is_this_system else ["--prefix", str(target.root)]
        if target.is_this_system:
            crontab.remove(ACCOUNT)
        for account in (ACCOUNT, WEB_ACCOUNT):
            for tool in ("userdel", "groupdel"):  # userdel removes the group too where it is the user's own
                subprocess.run([tool, *prefix, account], capture_output=True, check=False)
        accounts = f"the users and groups {ACCOUNT} and {WEB_ACCOUNT}"
        done.append(f"{target.safe}, {target.safevar}, {SAFEINI} and {accounts} are removed")
        return done
    done += open_directories(target)
    modules = target.safe / "modules"
    for directory in sorted(modules.iterdir()) if modules.is_dir() else ():
        if (directory / "conf" / "userconfig.xml").is_file():
            pack_module(directory, target.safe / "Application_Modules" / "backup" / f"{directory.name}.safe")
            done.append(f"module {directory.name} is saved in {SAFE}/Application_Modules/backup/{directory.name}.safe")
    for name in (
        "private/env",
        "private/conf",
        "private/bin",
        "private/lib",
        "private/cloud",
        "licenses",
        "web/bin",
        "web/htdocs",
        "snmp/mib",
        "KairosDB",
    ):
        shutil.rmtree(target.safe / name, ignore_errors=True)
    for kind in ("generic", "demo", "other"):
        shutil.rmtree(target.safe / "Application_Modules" / kind, ignore_errors=True)
    remove_leftovers(target)
    for name in ("safekit", "private/version"):
        (target.safe / name).unlink(missing_ok=True)
    done.append(f"the product is removed; modules, licence, keys and states stay in {target.safe} and {target.safevar}")
    return done
