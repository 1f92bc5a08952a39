"""What every command shares: errors, the module option, waiting for safeadmin, the commands log.

Imported by every command, so it imports only click and what costs next to nothing.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import click

from cli.argv import two_dashes

if TYPE_CHECKING:
    from safekit.bus.asking import Answer, Ask
    from safekit.disk.paths import ModulePaths

GROUP = "safekit"
GENERIC_JSON = "_json"
ADMIN_TRIES = 10
ADMIN_INTERVAL = 0.3
F = TypeVar("F", bound=Callable[..., Any])


class Failure(Exception):
    """A command that cannot do its work: the cause, the next step, the exit code (1 unless said)."""

    def __init__(self, text: str, next_step: str = "", code: int = 1) -> None:
        super().__init__(text)
        self.text = text
        self.next_step = next_step
        self.code = code
        self.refusal = ""
        """Code of the refusal on the bus, where that is the cause."""
        self.told: dict[str, Any] = {}
        """What the command had told and written before, for a program (see cli.answers)."""

    def show(self) -> None:
        """Print to standard error; where that is full or gone, the exit code has to tell."""
        with contextlib.suppress(OSError):
            click.echo(f"Error: {self.text}", err=True)
            if self.next_step:
                click.echo(f"Next step: {self.next_step}", err=True)


@dataclass
class Session:
    """One run of the command: its arguments, and the options that may stand before the word."""

    argv: tuple[str, ...] = ()
    module: str | None = None
    user: str | None = None
    identity: str | None = None
    admin_state: dict[str, Any] | None = None
    told: dict[str, Any] = field(default_factory=dict)
    """What the command tells a program beside its lines (see `tell`)."""


def session() -> Session:
    """The session of the running command."""
    found = click.get_current_context().find_object(Session)
    return found if found is not None else Session()


def tell(**facts: Any) -> None:
    """Facts for a program that asks with --json; people read the lines."""
    session().told.update(facts)


def os_user() -> str:
    """Name of the user that runs the command (B1: `root` on Linux for the administrator)."""
    import pwd

    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return f"uid{os.geteuid()}"


def who() -> str:
    """Identity written in the logs: option -u (passed by the console), else the user."""
    return session().user or os_user()


def check_access() -> None:
    """Only root and the members of group safekit may command (guide 2.1.6). Raises Failure."""
    if os.geteuid() == 0:
        return
    import grp

    try:
        wanted = grp.getgrnam(GROUP).gr_gid
    except KeyError:
        wanted = -1
    if wanted in (os.getegid(), *os.getgroups()):
        return
    raise Failure(
        f"user {os_user()} may not run safekit commands: only root and the members of group {GROUP} may",
        f"run it as root, or have root run: usermod -aG {GROUP} {os_user()}  (then log in again)",
    )


def require_admin() -> dict[str, Any]:
    """The answer of safeadmin to `state`, asked once per command; waits up to 3 s for safeadmin.

    Raises Failure with the guide's words when the daemon does not run (guide 4.1).
    """
    current = session()
    if current.admin_state is not None:
        return current.admin_state
    from safekit.bus.asking import ask_sync
    from safekit.bus.message import BusError
    from safekit.bus.requests.safeadmin.modules import GetState

    announced = False
    for _ in range(ADMIN_TRIES):
        started = time.monotonic()
        try:
            current.admin_state = ask_sync("", GetState(), ADMIN_INTERVAL)
            break
        except BusError as error:
            if error.code == "permission":
                raise Failure(error.text, f"have root run: usermod -aG {GROUP} {os_user()}") from None
            if error.code not in ("timeout", "no_key"):
                raise Failure(
                    f"safeadmin did not tell its state: {error.text}", "look at: journalctl -u safeadmin"
                ) from None
        if not announced:
            click.echo("Waiting for safeadmin ", nl=False, err=True)
            announced = True
        click.echo(".", nl=False, err=True)
        time.sleep(max(0.0, started + ADMIN_INTERVAL - time.monotonic()))
    if announced:
        click.echo("", err=True)
    if current.admin_state is not None:
        for name, value in current.admin_state.get("cluster", {}).items():
            current.admin_state["modules"].get(name, {})["cluster"] = value
    if current.admin_state is None:
        raise Failure(
            "safeadmin administrator daemon not running",
            "start it with: service safeadmin start   (its messages: journalctl -u safeadmin)",
        )
    return current.admin_state


LOOK = "safekit state -v shows what runs; safekit log shows what happened"


def ask(
    module: str, request: Ask[Answer], timeout: float = 5.0, next_step: str = LOOK, *, instance: str = ""
) -> Answer:
    """Ask a process of a module, or safeadmin. Raises Failure with the refusal of the process that was asked, and
    `next_step` where that names none."""
    from safekit.bus.asking import ask_sync
    from safekit.bus.message import BusError, BusTimeout, UnknownTarget

    try:
        return ask_sync(module, request, timeout, instance)
    except (BusTimeout, UnknownTarget) as error:
        raise Failure(error.text, LOOK) from None
    except BusError as error:
        text, _, step = error.text.partition("; ")
        failure = Failure(text, step or next_step)
        failure.refusal = error.code
        raise failure from None


def installed_modules() -> list[str]:
    """Names of the modules under SAFE/modules, sorted."""
    from safekit.disk.paths import safe, valid_module_name

    try:
        entries = sorted(os.scandir(safe() / "modules"), key=lambda entry: entry.name)
    except FileNotFoundError:
        return []
    return [e.name for e in entries if e.is_dir() and valid_module_name(e.name) and e.name != "lastconfig"]


def module_paths(name: str | None, *, installed: bool = True, configured: bool = False) -> ModulePaths:
    """Paths of the module that a command is about: option -m, else SAFEMODULE.

    Raises Failure when it is missing, badly named, not installed or (when asked) not configured.
    """
    from safekit.disk.paths import ModulePaths

    chosen = name or session().module or os.environ.get("SAFEMODULE")
    known = installed_modules()
    if not chosen:
        listed = ", ".join(known) if known else "none"
        raise Failure("which module? the name is missing", f"add -m AM, or set SAFEMODULE (installed: {listed})")
    try:
        paths = ModulePaths(chosen)
    except ValueError as error:
        raise Failure(str(error), "safekit module list shows the names") from None
    if installed and chosen not in known:
        listed = ", ".join(known) if known else "none"
        raise Failure(
            f"module {chosen} is not installed on this server",
            f"safekit module install -m {chosen} SAFE/Application_Modules/generic/mirror.safe (installed: {listed})",
        )
    if configured and not paths.active_json.exists():
        raise Failure(f"module {chosen} is not configured", f"safekit config -m {chosen}")
    return paths


FILE = click.Path(readable=False)
"""The name of a file, which a shell completes; the command itself says what is wrong with it."""


def complete_modules(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Shell completion of a module name."""
    return [name for name in installed_modules() if name.startswith(incomplete)]


class SafekitCommand(click.Command):
    """A command with an example in its help, long options with one or two dashes, and its place in the
    commands log when it changes the system (guide 10.10): `reads` tells of its parameters whether they only read.
    Without a --json of its own it gets the one of cli.answers, unless `json` is False."""

    def __init__(
        self,
        *args: Any,
        example: str = "",
        modifies: bool | Literal["by hand"] = False,
        reads: Callable[[dict[str, Any]], bool] | None = None,
        admin: bool = True,
        json: bool = True,
        **kw: Any,
    ) -> None:
        super().__init__(*args, **kw)
        self.answers = json and not any("--json" in parameter.opts for parameter in self.params)
        if self.answers:
            self.params.append(click.Option([GENERIC_JSON, "--json"], is_flag=True, help="JSON, for programs."))
        self.example = example
        self.modifies = modifies
        self.reads = reads
        self.admin = admin

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        longs = {o for p in self.params for o in (*p.opts, *p.secondary_opts) if o.startswith("--")} | {"--help"}
        return super().parse_args(ctx, [two_dashes(word, longs) for word in args])

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if self.example:
            with formatter.section("Example" if "\n" not in self.example else "Examples"):
                formatter.write_text("\b\n" + self.example)

    def invoke(self, ctx: click.Context) -> int:
        if not (self.answers and ctx.params.pop(GENERIC_JSON)):
            return self._invoke(ctx)
        from cli.answers import captured, of_success

        failure: Failure | None = None
        with captured() as said:
            try:
                code = self._invoke(ctx)
            except Failure as error:
                failure = error
        if failure is not None:
            failure.told = {**session().told, **said.data()}
            raise failure
        show_json(of_success(code, session().told, said))
        return code

    def _invoke(self, ctx: click.Context) -> int:
        current = session()
        for name, kept in (("user", "user"), ("identity", "identity")):
            if ctx.params.get(name):
                setattr(current, kept, ctx.params[name])
        if self.admin:
            require_admin()
        # What a handler does every few seconds is in the module log when it changes something.
        unnoted = self.modifies == "by hand" and current.identity
        if not self.modifies or unnoted or (self.reads is not None and self.reads(ctx.params)):
            return int(super().invoke(ctx) or 0)
        from safekit.log.commands import finished, started

        entry = started(*current.argv)
        code = 1
        try:
            code = int(super().invoke(ctx) or 0)
        except Failure as failure:
            code = failure.code
            raise
        finally:
            finished(entry, code)
        return code


class SafekitGroup(click.Group):
    """Commands behind a word: a mistyped one names its neighbour, and the help ends with an example."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        known = self.list_commands(ctx)
        if args and args[0] not in known and not ctx.resilient_parsing and not args[0].startswith("-"):
            import difflib

            path = ctx.command_path
            if known_elsewhere := self.hint(args[0]):
                raise Failure(f"{path} has no command {args[0]!r}", known_elsewhere)
            near = difflib.get_close_matches(args[0], known, n=1)
            hint = f"did you mean: {path} {near[0]}" if near else f"{path} --help lists the commands"
            raise Failure(f"{path} has no command {args[0]!r}", hint)
        return super().resolve_command(ctx, args)

    def hint(self, word: str) -> str:
        """How a word that is none of ours is said here; "" when nobody knows."""
        return ""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        path, last = ctx.command_path, self.list_commands(ctx)[-1]
        with formatter.section("Example"):
            formatter.write_text(f"\b\n{path} {last} --help      each command has its own help, with an example")


def command(
    name: str, *, example: str, modifies: bool | Literal["by hand"] = False, **kw: Any
) -> Callable[[Callable[..., Any]], SafekitCommand]:
    """Declare a command; see SafekitCommand."""

    def wrap(function: Callable[..., Any]) -> SafekitCommand:
        made = click.command(name, cls=SafekitCommand, example=example, modifies=modifies, **kw)(function)
        assert isinstance(made, SafekitCommand)
        return made

    return wrap


def module_option(function: F) -> F:
    """Option -m AM."""
    return click.option(
        "-m",
        "module",
        metavar="AM",
        shell_complete=complete_modules,
        help="Name of the module; SAFEMODULE when it is not given.",
    )(function)


def identity_options(function: F) -> F:
    """Options -u (who asks) and -i (an automatic action, counted by maxloop)."""
    function = click.option("-u", "user", metavar="WHO", help="Identity to write in the logs.")(function)
    return click.option(
        "-i", "identity", metavar="ID", help="Name of the handler that asks: the action then counts for maxloop."
    )(function)


def json_option(function: F) -> F:
    """Option --json."""
    return click.option("--json", "as_json", is_flag=True, help="JSON, for programs.")(function)


def show_json(data: Any) -> int:
    """Print what a program reads; the exit code."""
    import json

    click.echo(json.dumps(data, indent=2))
    return 0


def on_terminal() -> bool:
    """True when a person watches standard output."""
    return sys.stdout.isatty()


def colored() -> bool:
    """True when colours are for a person, who did not refuse them (https://no-color.org)."""
    return on_terminal() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def wrapped(line: str, indent: str = "") -> str:
    """A line at the width of the terminal, further lines beginning with `indent`; as it is when nobody watches."""
    if not on_terminal():
        return line
    import shutil
    import textwrap

    width = max(shutil.get_terminal_size().columns, 40)
    begin = line[: len(line) - len(line.lstrip())]
    kept = textwrap.wrap(
        line.strip(), width, initial_indent=begin, subsequent_indent=begin + indent, break_on_hyphens=False
    )
    return "\n".join(kept)


STATE_COLORS = {"green": "green", "red": "red", "magenta": "magenta", "grey": "bright_black"}


def paint(text: str, color: str) -> str:
    """Text in the colour of a state; plain when nobody watches."""
    return click.style(text, fg=STATE_COLORS[color]) if color in STATE_COLORS and colored() else text
