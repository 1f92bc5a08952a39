"""safekit uninstall (guide 2.4.3, 2.5)."""

from __future__ import annotations

import os
from pathlib import Path

import click

from cli.base import Failure, command


@command("uninstall", example="safekit uninstall\nsafekit uninstall -all", admin=False)
@click.option("--all", "everything", is_flag=True, help="Delete modules, states, keys and the account too.")
@click.option("-y", "yes", is_flag=True, help="With --all: do not ask.")
def uninstall_command(everything: bool, yes: bool) -> int:
    """Take the product away from this server. As root; all modules must be stopped.

    Modules are saved in SAFE/Application_Modules/backup, and modules, states, keys and licence stay for a new
    version, but for -all. A .deb is removed, or with -all purged, by dpkg.
    """
    from installation.firewall import forget_firewall
    from installation.remove import PACKAGE_LIST, check_removal, uninstall
    from installation.target import InstallError, Target

    target = Target()
    packaged = Path(PACKAGE_LIST).exists()
    try:
        if packaged:
            # What this command answers for the package is what its own scripts check again.
            os.environ["DPKG_MAINTSCRIPT_PACKAGE"] = "safekit"
        check_removal(target)
        if everything and not yes:
            click.confirm(f"Delete {target.safe} and {target.safevar} with all modules, states and keys?", abort=True)
        if packaged:
            del os.environ["DPKG_MAINTSCRIPT_PACKAGE"]
            os.execvp("dpkg", ["dpkg", "--purge" if everything else "--remove", "safekit"])
        for line in [*forget_firewall(target), *uninstall(target, everything=everything)]:
            click.echo(line)
    except InstallError as error:
        raise Failure(str(error), error.next_step) from None
    except OSError as error:
        raise Failure(f"{error.filename or ''}: {error.strerror or error}", "run it again as root") from None
    return 0
