"""safekit state (guide 9.5): a line per module, every resource with -v, and a verdict on each module."""

from __future__ import annotations

import time

import click

from cli.base import Failure, command, module_option, module_paths, paint, require_admin, session, wrapped
from safekit.disk.expiry import due as certificates_due
from safekit.disk.resources import Resource
from safekit.spelling import from_word
from safekit.view.module import ModuleView, Progress, as_data, progress_of, read_module
from safekit.view.words import duration, moment, progress_line

# Exit codes of `state -lq` (guide 9.5).
CODES = {"STOP": 0, "WAIT": 1, "ALONE": 2, "UP": 2, "PRIM": 3, "SECOND": 4}
UNKNOWN_CODE = 5
_HEADER = ("MODULE", "ID", "MODE", "STATE", "REMOTE", "SINCE")


def progress(view: ModuleView) -> Progress | None:
    """The reintegration that this server takes part in, None when there is none (or nobody can tell)."""
    reintegrating = view.state == "SECOND" and view.transient
    serving = view.state in ("ALONE", "PRIM") and view.remote_state == "SECOND" and view.remote_color == "magenta"
    if not (reintegrating or serving):
        return None
    from safekit.bus.asking import ask_sync
    from safekit.bus.message import BusError
    from safekit.bus.requests.nfsadmin_status import GetStatus

    try:
        return progress_of(ask_sync(view.module, GetStatus(), 0.5))
    except BusError:
        return None


def _row(view: ModuleView, now: float) -> tuple[tuple[str, str], ...]:
    state = f"{view.state} {view.color}"
    if view.resources.get("rfs.degraded") and view.resources["rfs.degraded"].value == "up" and view.running:
        state += " degraded"
    remote = f"{view.remote_state} {view.remote_color}".strip() if view.running else ""
    since = f"{moment(view.since, now)} ({duration(now - view.since)})" if view.since else ""
    return (
        (view.module, ""),
        (str(view.id or "-"), ""),
        (view.mode or "-", ""),
        (state, view.color),
        (remote or "-", view.remote_color),
        (since or "-", ""),
    )


def table(views: list[ModuleView], now: float) -> list[str]:
    """The lines of the table, header first."""
    rows = [tuple((title, "") for title in _HEADER), *(_row(view, now) for view in views)]
    widths = [max(len(row[column][0]) for row in rows) for column in range(len(_HEADER))]
    return [
        "  ".join(
            paint(text.ljust(width) if index < len(widths) - 1 else text, color)
            for index, ((text, color), width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


_VERDICT_COLOR = {"protected": "green", "degraded": "magenta", "data at risk": "red", "stopped": "grey"}


def verdict_line(view: ModuleView, now: float) -> str:
    """One sentence on a module."""
    verdict = view.verdict
    text = verdict.text(moment(verdict.since, now))
    kind = verdict.kind.value
    return f"{view.module} is {paint(kind, _VERDICT_COLOR[kind])}{text[len(kind) :]}"


# Exit codes of monitoring plugins (Nagios, Icinga, Checkmk, Zabbix external checks).
OK, WARNING, CRITICAL, UNKNOWN = range(4)
_CHECK = {"protected": OK, "degraded": WARNING, "data at risk": CRITICAL, "stopped": CRITICAL}
_CHECK_WORDS = ("OK", "WARNING", "CRITICAL", "UNKNOWN")


def check_line(views: list[ModuleView], certificates: list[str]) -> tuple[str, int]:
    """One line for a monitoring system, the worst module first, with the code of each as performance data; and the
    exit code."""
    found = sorted(((_CHECK[v.verdict.kind.value], v) for v in views), key=lambda each: (-each[0], each[1].module))
    code = max((each for each, _ in found), default=UNKNOWN)
    told = [f"{view.module} {view.verdict.kind.value}: {view.verdict.reason}" for _, view in found]
    if certificates:
        code, told = max(code, WARNING), [*told, *certificates]
    text = "; ".join(told) or "no module is configured"
    text = text.replace("|", "/").replace("\n", " ")
    data = " ".join(f"'{view.module}'={each};0;1;0;2" for each, view in sorted(found, key=lambda e: e[1].module))
    return f"SAFEKIT {_CHECK_WORDS[code]} - {text}" + (f" | {data}" if data else ""), code


def show_unknown(failure: Failure) -> int:
    """What a monitoring system is told when the state cannot be known; the exit code."""
    step = f" ({failure.next_step})" if failure.next_step else ""
    click.echo(f"SAFEKIT UNKNOWN - {failure.text}{step}".replace("|", "/"))
    return UNKNOWN


def _views(module: str | None) -> list[ModuleView]:
    known = require_admin().get("modules", {})
    chosen = module or session().module
    if chosen is None:
        return [read_module(name, known[name]) for name in sorted(known) if known[name].get("configured", True)]
    paths = module_paths(chosen)
    if not known.get(paths.module, {}).get("configured", paths.module in known):
        raise Failure(f"module {paths.module} is not configured", f"safekit config -m {paths.module}")
    return [read_module(paths.module, known[paths.module])]


def _shown(resource: Resource) -> str:
    trouble = resource.name.removeprefix("remote.").startswith("trouble.")
    return from_word(resource.value) if trouble else resource.value


def _resource_lines(view: ModuleView, now: float) -> list[str]:
    """Every resource; those of the other server begin with remote."""
    rows = [
        (r.name, _shown(r), f"{moment(r.since, now)}", r.setter)
        for r in sorted(view.resources.values(), key=lambda r: (r.name.startswith("remote."), r.name))
        if not r.name.startswith("state.")
    ]
    if not rows:
        return ["  no resource: the module has never run"]
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    color = {"up": "green", "down": "red"}
    return [
        "  "
        + "  ".join(
            (
                name.ljust(widths[0]),
                paint(value.ljust(widths[1]), color.get(value, "")),
                since.ljust(widths[2]),
                f"by {setter}",
            )
        )
        for name, value, since, setter in rows
    ]


def _state_script(view: ModuleView) -> int:
    from cli.scripts import run_module_script

    return run_module_script(view.module, "state", view.state)


@command(
    "state",
    example="safekit state\nsafekit state -v -m mirror\nsafekit state --json\nsafekit state --check -m mirror\n"
    "safekit state -lq -m mirror; echo $?",
)
@module_option
@click.option("-v", "verbose", is_flag=True, help="Every resource, and the output of the module's state script.")
@click.option("-lq", "status_only", is_flag=True, help="Print the state word only; the exit code tells it too.")
@click.option("--check", is_flag=True, help="One line and the exit codes of a monitoring plugin.")
@click.option("--json", "as_json", is_flag=True, help="JSON, for programs.")
def state_command(module: str | None, verbose: bool, status_only: bool, check: bool, as_json: bool) -> int:
    """Show the state of all modules, or of one, and say whether each one is protected.

    Exit codes with -lq: STOP 0, WAIT 1, ALONE 2, UP 2, PRIM 3, SECOND 4, an error 5. With --check: protected 0,
    degraded 1, data at risk or stopped 2, not known 3; of several modules the worst.
    """
    if status_only:
        paths = module_paths(module)
        view = read_module(paths.module, require_admin().get("modules", {}).get(paths.module, {}))
        click.echo(view.state)
        return CODES.get(view.state, UNKNOWN_CODE)
    views, now = _views(module), time.time()
    if check:
        line, code = check_line(views, certificates_due(now))
        click.echo(line)
        return code
    if as_json:
        import json

        node = require_admin().get("node", "")
        data = [as_data(view, progress(view), resources=verbose) for view in views]
        click.echo(json.dumps({"node": node, "modules": data, "certificates": certificates_due(now)}, indent=2))
        return 0
    if not views:
        waiting = sorted(require_admin().get("modules", {}))
        click.echo("No module is configured." + (f" Installed: {', '.join(waiting)}." if waiting else ""))
        first = "module install -m AM SAFE/Application_Modules/generic/mirror.safe"
        from safekit.disk.paths import cluster_dir

        if not (cluster_dir() / "cluster.xml").exists():
            first = "cluster config FILE.xml   (the file names the servers and their networks)"
        click.echo(f"Next step: safekit {f'config -m {waiting[0]}' if waiting else first}")
        return 0
    for line in table(views, now):
        click.echo(line)
    for view in views:
        running = progress(view)
        if running is not None:
            click.echo(f"{view.module}: {progress_line(running)}")
        if verbose:
            click.echo(f"{view.module}: resources")
            for line in _resource_lines(view, now):
                click.echo(line)
            _state_script(view)
    for view in views:
        click.echo(wrapped(verdict_line(view, now), "  "))
    for line in certificates_due(now):
        click.echo(wrapped(f"{paint('Warning', 'magenta')}: {line}", "  "))
    return 0
