"""The command `safekitinstall`."""

from __future__ import annotations

import errno
import os
import shutil
import sys
from pathlib import Path

import click

from installation.agent import install_agent, install_kairosdb, install_notify
from installation.environment import install_command, prepare_environment, prepare_licenses
from installation.firewall import firewall_setting, forget_firewall, setup_firewall
from installation.native import build_libraries
from installation.product import install_files, prepare_files, remove_leftovers
from installation.remove import check_removal, refuse_other_installer, refuse_running_modules, uninstall
from installation.source import Source, this_checkout
from installation.system import install_service, install_settings, make_account, prepare_safevar
from installation.target import SAFE, SAFEVAR, InstallError, Target, make_durable, replace_tree, write_file
from installation.web import OPEN_WARNING, USER, authority_line, install_web
from safekit.process import standard

MINIMUM_FREE = 150 * 1024 * 1024
MINIMUM_FREE_VAR = 40 * 1024 * 1024
FIREWALL_VARIABLE = "SAFEKIT_FIREWALL"
TOOLS = (
    ("nft", "nftables", "balances the load of farm modules"),
    ("ip", "iproute2", "module scripts use"),
)


def check_target(target: Target) -> None:
    """Raises InstallError before anything is changed when the installation cannot succeed."""
    if os.geteuid() != 0:
        raise InstallError("safekitinstall must be run as root", "sudo bin/safekitinstall")
    if not target.root.is_dir():
        raise InstallError(
            f"--root {target.root}: no such directory",
            "give the root directory of a system",
        )
    if not target.at("/etc/passwd").exists():
        raise InstallError(
            f"{target.root} has no etc/passwd, so no user can be created",
            "give the root directory of a system",
        )
    place = target.at("/opt")
    free = shutil.disk_usage(place if place.exists() else target.root).free
    if free < MINIMUM_FREE:
        raise InstallError(
            f"{free >> 20} MB are free for {SAFE}; {MINIMUM_FREE >> 20} MB are needed", "free some space"
        )
    refuse_other_installer(target)
    refuse_running_modules(target, "an upgrade")


def check_system(target: Target) -> list[str]:
    """Warnings about the system that is installed on (guide 2.1.2, 2.1.6)."""
    found = []
    place = target.at("/var")
    free = shutil.disk_usage(place if place.exists() else target.root).free
    if free < MINIMUM_FREE_VAR:
        found.append(
            f"Warning: {free >> 20} MB are free for {SAFEVAR}; 20 MB and 20 MB to 3 GB for each module are needed"
        )
    if target.at("/usr/sbin/logwatch").exists():
        found.append(
            "Warning: logwatch is installed; it restarts services every night: remove it with file replication"
        )
    found += [
        f"Warning: {tool} is missing, which {purpose}: install the package {package}"
        for tool, package, purpose in TOOLS
        if not any(target.at(f"{folder}/{tool}").exists() for folder in ("/usr/sbin", "/usr/bin", "/sbin", "/bin"))
    ]
    return found


def prepare(source: Source, target: Target, *, upgrade: bool) -> tuple[Path, Path, list[str]]:
    """All that takes space and time, beside the version that is there: until the first rename nothing of that one is
    changed. The new environment, the licences, and the names of the templates. Raises InstallError."""
    remove_leftovers(target)
    try:
        environment = prepare_environment(source, target)
        licenses = prepare_licenses(environment, target)
        templates = prepare_files(source, target)
        if target.is_this_system:
            make_durable(target.safe)
    except (OSError, shutil.Error, InstallError) as error:
        remove_leftovers(target)
        kept = "; the version that was installed is untouched" if upgrade else ""
        if isinstance(error, InstallError):
            raise InstallError(f"{error}{kept}", error.next_step) from error
        raise InstallError(
            f"the new version could not be written to {target.safe}: {error}{kept}",
            "free some space" if no_space(error) else "see the cause, then run it again",
        ) from error
    return environment, licenses, templates


def no_space(error: Exception) -> bool:
    """Whether the disk is full; copies of trees tell it in their text only."""
    return getattr(error, "errno", None) == errno.ENOSPC or os.strerror(errno.ENOSPC) in str(error)


def install(
    source: Source, target: Target, *, open_web: bool = False, quiet: bool = False, firewall: bool | None = None
) -> list[str]:
    """Install or upgrade; modules, states and keys that are there stay. Returns what was done, one line each.

    `open_web`: the web service asks nobody for a password (the guide's default). `quiet`: a password that was
    made is left in a file for root, as nobody reads the lines. `firewall`: whether the local firewall follows the
    configurations by itself; None leaves that as it is.
    """
    check_target(target)
    upgrade = (target.safe / "safekit").exists()
    gid = make_account(target)
    target.safe.mkdir(parents=True, exist_ok=True)
    target.safe.chmod(0o755)
    environment, licenses, templates = prepare(source, target, upgrade=upgrade)
    replace_tree(environment, target.environment)
    install_command(source, target)
    replace_tree(licenses, target.safe / "licenses")
    install_files(source, target, gid)
    built = build_libraries(source, target)
    made_key = prepare_safevar(target, gid, os.urandom(32))
    install_settings(target)
    web = install_web(target, gid, opened=open_web)
    agent_saved = install_agent(target, gid)
    install_notify(target, gid)
    install_kairosdb(source, target)
    service = install_service(target)
    firewall_line = setup_firewall(target, gid, firewall)
    lines = [
        f"SafeKit {source.version} is {'upgraded' if upgrade else 'installed'}: "
        f"SAFE={target.safe}, SAFEVAR={target.safevar}",
        f"user and group safekit (group {gid}): root and members of the group may run the commands",
        f"module templates in {SAFE}/Application_Modules: {', '.join(templates) or 'none'}",
        f"key of the local bus: {SAFEVAR}/bus.key {'made' if made_key else 'kept'}",
        built,
        service,
        firewall_line,
        *filter(None, [authority_line(target)]),
        *check_system(target),
    ]
    if web.saved:
        lines.append(
            f"{SAFE}/web/conf/httpd.conf was changed here: it stays, with a copy in {web.saved}; what is delivered now "
            "is in httpd.conf.default"
        )
    if agent_saved:
        lines.append(f"{SAFE}/snmp/conf/snmpd.conf was changed here: it stays, with a copy in {agent_saved}")
    if web.opened:
        lines.append(OPEN_WARNING)
    if web.password is not None:
        lines.append(f"user {USER} of the web service has the password {web.password}   (shown this once: note it)")
        if quiet:
            write_file(target.safevar / "admin-password", f"{web.password}\n", mode=0o600)
    return lines


def asked_firewall(target: Target, *, quiet: bool) -> bool | None:
    """The answer of the environment, else of the person at the terminal, at a first installation only."""
    answer = os.environ.get(FIREWALL_VARIABLE)
    if answer is not None:
        return answer.lower() in ("1", "on", "yes", "y")
    if quiet or not sys.stdin.isatty() or firewall_setting(target).exists():
        return None
    return click.confirm("Configure the local firewall automatically?", default=False)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("-q", "quiet", is_flag=True, envvar="SAFEKIT_QUIET", help="Silent: ask nothing, print errors only.")
@click.option(
    "--root",
    type=click.Path(path_type=Path),
    default=Path("/"),
    show_default=True,
    help="Root of the system to install into.",
)
@click.option("--uninstall", "removing", is_flag=True, help="Take the product away; modules are saved and states kept.")
@click.option(
    "--all",
    "everything",
    is_flag=True,
    help="With --uninstall: remove modules, states, keys, account too.",
)
@click.option(
    "--open",
    "open_web",
    is_flag=True,
    envvar="SAFEKIT_OPEN",
    help="No passwords in the web service, whoever reaches it commands.",
)
@click.option(
    "--firewall/--no-firewall",
    default=None,
    help="Open and close the ports of SafeKit in the local firewall, now and with each configuration; asked when "
    "neither is given.",
)
def main(quiet: bool, root: Path, removing: bool, everything: bool, open_web: bool, firewall: bool | None) -> None:
    """Install SafeKit on this server: SAFE=/opt/safekit, SAFEVAR=/var/safekit, safeadmin and safewebserver.

    Running it again upgrades or repairs; modules, states and keys are kept. The first installation makes the
    user admin of the web service, with the password in the variable SAFEKIT_PASSWORD or a new one that is
    shown once (with -q: left in /var/safekit/admin-password).
    """
    target = Target(root.resolve())
    upgrade = (target.safe / "safekit").exists()
    try:
        if everything and not removing:
            raise InstallError("--all is only for --uninstall", "safekitinstall --uninstall --all")
        if removing and everything and not quiet:
            click.confirm(f"Delete {target.safe} and {target.safevar} with all modules, states and keys?", abort=True)
        if removing:
            check_removal(target)
            lines = [*forget_firewall(target), *uninstall(target, everything=everything)]
        else:
            if firewall is None:
                firewall = asked_firewall(target, quiet=quiet)
            lines = install(this_checkout(), target, open_web=open_web, quiet=quiet, firewall=firewall)
    except (InstallError, OSError) as error:
        click.echo(f"Error: {error}", err=True)
        if isinstance(error, InstallError):
            click.echo(f"Next step: {error.next_step}", err=True)
        sys.exit(1)
    if quiet:
        return
    for line in lines:
        click.echo(line)
    if removing:
        return
    if upgrade:
        click.echo(
            "Next step: safekit start -m AM for each module without boot on; when it is in the state it should be in "
            "(safekit state), the next server"
        )
    else:
        click.echo(
            "Next step: install SafeKit on every server, then describe the servers: "
            f"{SAFE}/safekit cluster config cluster.xml\n"
            f"(the commands are in the PATH of new shells; in this one: export PATH=$PATH:{SAFE})"
        )


if __name__ == "__main__":
    standard.run(lambda: main(prog_name="safekitinstall"))
