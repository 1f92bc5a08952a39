"""safekit errd and safekit kill: the process death detection of a running module (guide 13.9.4)."""

from __future__ import annotations

import os

import click

from cli.base import Failure, ask, command, identity_options, module_option, module_paths, session, tell, who
from cli.settings import change_setting
from safekit.bus.requests import errd as asked

_SETTINGS = {"suspend": "off", "resume": "on"}
_LEVELS = ("test", "terminate", "9", "15")
KILL_TIMEOUT = 10.0


def _errd(module: str | None) -> str:
    """Name of the module on the bus. Raises Failure when it has no <errd>."""
    paths = module_paths(module, configured=True)
    from safekit.configuration import active

    if active(paths.module).errd is None:
        raise Failure(
            f"module {paths.module} has no <errd> section: errd does not run",
            f"add <errd> to {paths.userconfig}, then safekit config -m {paths.module}",
        )
    return paths.module


@command(
    "errd",
    example="safekit errd disable myclass -m AM\nsafekit errd suspend -m AM\nsafekit errd list -m AM",
    modifies="by hand",
    reads=lambda parameters: parameters["verb"] == "list",
)
@click.argument("verb", type=click.Choice(["enable", "disable", "suspend", "resume", "list"]))
@click.argument("proc_class", metavar="[CLASS]", required=False)
@module_option
@identity_options
def errd_command(verb: str, proc_class: str | None, module: str | None, **_: object) -> int:
    """Control the detection of dead processes (<errd>).

    enable and disable: the processes of one class, around the start and stop of what is not started by
    start_prim, start_both, start_second or start_sec. suspend and resume: all processes of the module, to stop the
    application by hand; usersetting.errd shows it, and the next start of the module sets it back. list: what is
    watched, also in SAFEVAR/modules/AM/errdlist.
    """
    if (verb in ("enable", "disable")) != (proc_class is not None):
        expected = f"safekit errd {verb} CLASS" if proc_class is None else f"safekit errd {verb}"
        raise Failure(f"errd {verb}: {'a class is missing' if proc_class is None else 'it takes no class'}", expected)
    if verb in _SETTINGS:
        return change_setting(module, "errd", _SETTINGS[verb])
    name = _errd(module)
    if verb == "list":
        watched = ask(name, asked.ListWatched()).lines
        tell(module=name, watched=list(watched))
        for line in watched:
            click.echo(line)
        return 0
    assert proc_class is not None
    if not ask(name, (asked.Enable if verb == "enable" else asked.Disable)(proc_class)).procs:
        raise Failure(
            f"no <proc> of module {name} has class={proc_class!r}", f"safekit errd list -m {name} shows the classes"
        )
    return 0


@command(
    "kill",
    example='safekit kill -name=vi -argregex=".*myfile.*" -level=test\nsafekit kill -name=mybin -level=terminate',
    modifies="by hand",
    reads=lambda parameters: parameters["level"] == "test",
)
@click.option("--name", required=True, metavar="NAME", help="Command name of the processes.")
@click.option("--argregex", metavar="REGEX", help="What their arguments match, the command included.")
@click.option(
    "--level",
    required=True,
    type=click.Choice(_LEVELS),
    help="test: only list them; terminate: end them; 9, 15: send that signal.",
)
@module_option
@identity_options
def kill_command(name: str, argregex: str | None, level: str, module: str | None, **_: object) -> int:
    """End processes of the module by name. errd of the module must run.

    The module's processes are those that it started, those that one of its <proc> names, and what descends from them;
    others of that name are left alone, SafeKit's own always. With terminate a process that SIGTERM does not end is
    killed after two seconds.
    """
    target = _errd(module)
    order = asked.Kill(name, level, session().identity or who(), argregex or "", os.getpid())
    found = ask(target, order, KILL_TIMEOUT)
    for line in found.lines:
        click.echo(line)
    click.echo(f"{found.count} processes" + ("" if level == "test" else f", level {level}"))
    if not found.foreign:
        return 0
    left = f"{found.foreign} other processes of that name do not belong to module {target}: they are left alone"
    if not found.count:
        raise Failure(left, f"name them in a <proc> of the module's <errd> if they do; safekit errd list -m {target}")
    click.echo(left, err=True)
    return 0
