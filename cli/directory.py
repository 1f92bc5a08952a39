"""directory: whether users may enter the data of a stopped module."""

from __future__ import annotations

import os
import pwd
from typing import Final

import click

from cli.base import Failure, command, json_option, module_option, module_paths, show_json

ACTIONS: Final = ("state", "open", "close")


@command(
    "directory",
    example="safekit directory state -m mirror\nsafekit directory open -m mirror\nsafekit directory close -m mirror",
    modifies=True,
    admin=False,
)
@click.argument("action", type=click.Choice(ACTIONS))
@module_option
@json_option
def directory_command(action: str, module: str | None, as_json: bool) -> int:
    """Let the users of an application enter its data while the module is stopped: state, open, close.

    From the first start of a module on, its replicated directories are root's alone while it is stopped, so that no
    service that starts by itself writes what nobody replicates. `open` gives them mode, owner and access control list
    back, for work with the application by hand; the next start of the module closes them again, and refuses while
    somebody still has a file open. What is changed meanwhile is found by the next reintegration.
    """
    from safekit.configuration import active
    from safekit.model import directories
    from safekit.rfs.tree import Tree

    paths = module_paths(module, configured=True)
    rfs = active(paths.module).rfs
    if rfs is None or not rfs.replicated:
        raise Failure(f"module {paths.module} replicates no directory", "safekit module listid shows the modules")
    told = []
    for replicated in rfs.replicated:
        backing = rfs.backing(replicated)
        found = directories.state(replicated.dir, rfs.suffix, directories.mounts())
        tree = Tree(os.fsencode(backing))
        try:
            if action != "state":
                if found is directories.State.MOUNTED:
                    raise Failure(f"{replicated.dir} is in use by the module", f"safekit stop -m {paths.module}")
                if action == "open":
                    directories.open_to_users(backing)
                else:
                    tree.close_to_others()
            closed, shown = tree.is_closed(), tree.lstat(b"")
        except OSError as error:
            raise Failure(f"{backing}: {error.strerror}", "run it as root, with its file system mounted") from None
        finally:
            tree.close()
        told.append(
            {
                "directory": replicated.dir,
                "data": backing,
                "state": found.value,
                "closed": closed,
                "mode": f"{shown.st_mode & 0o7777:o}",
                "owner": _name(shown.st_uid),
            }
        )
    if as_json:
        return show_json(told)
    for one in told:
        users = "root only" if one["closed"] else "its users, until the next start of the module"
        click.echo(f"{one['directory']}: {one['state']}; entered by {users}; {one['owner']} {one['mode']}")
    return 0


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
