"""The command `safekit` (guide chapter 9): finds the command that is meant and imports only that one."""

from __future__ import annotations

import importlib
import os
import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

import click

from cli.argv import Line, split
from cli.base import Failure, SafekitGroup, Session, check_access, complete_modules, module_option, show_json
from safekit import __version__
from safekit.process import standard

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

# word -> (section of the guide, module that has it, one line of help)
COMMANDS: dict[str, tuple[str, str, str]] = {
    "webserver": ("9.2", "boot", "Start or stop the web service."),
    "safeagent": ("9.2", "boot", "Start or stop the SNMP agent."),
    "notify": ("9.2", "notify", "Tell people what happens, by mail or webhook."),
    "boot": ("9.2", "boot", "Choose what starts when the server boots."),
    "shutdown": ("9.2", "boot", "Stop all running modules."),
    "cluster": ("9.3", "cluster", "Configure the cluster: servers, networks, key."),
    "start": ("9.4", "control", "Start a module."),
    "waitstart": ("9.4", "wait", "Wait for the end of a start."),
    "stop": ("9.4", "control", "Stop a module."),
    "waitstop": ("9.4", "wait", "Wait for the end of a stop."),
    "waitstate": ("9.4", "wait", "Wait for a stable state."),
    "restart": ("9.4", "control", "Stop and start the application only."),
    "swap": ("9.4", "control", "Exchange primary and secondary."),
    "stopstart": ("9.4", "control", "Stop, then start a module."),
    "stopwait": ("9.4", "control", "Go to WAIT, as the rule action wait()."),
    "prim": ("9.4", "control", "Start as primary."),
    "primforce": ("9.4", "control", "Start as primary on data that may be inconsistent."),
    "second": ("9.4", "control", "Start as secondary."),
    "forcestop": ("9.4", "control", "Stop a module even if something hangs."),
    "errd": ("9.4", "errd", "Control the detection of dead processes."),
    "kill": ("13.9", "errd", "End processes by name."),
    "checker": ("9.4", "settings", "Switch all checkers of a module on or off."),
    "failover": ("9.4", "settings", "Switch the automatic failover on or off."),
    "directory": ("9.4", "directory", "Let users enter the data of a stopped module."),
    "set": ("13.18", "settings", "Set the state of a resource."),
    "level": ("9.5", "level", "Show host, OS, version and licence."),
    "state": ("9.5", "state", "Show the state of the modules, and a verdict."),
    "why": ("9.5", "why", "Explain the last decisions of a module."),
    "farm": ("9.5", "farm", "Show how a farm module shares its load; who takes a client."),
    "simulate": ("9.5", "simulate", "Tell what a module would do if something failed."),
    "log": ("9.5", "logs", "Show the last messages of a module."),
    "userlog": ("9.5", "logs", "Show the end of what the application and its scripts wrote."),
    "scripts": ("9.5", "scripts", "Try a script of a module by hand."),
    "logview": ("9.5", "logs", "Follow the messages of a module."),
    "logsave": ("9.5", "logs", "Save the messages of a module in a file."),
    "timeline": ("9.5", "timeline", "Show what happened on all servers, in one order."),
    "rfsdiff": ("9.5", "rfsdiff", "Estimate what a secondary that starts would copy."),
    "quarantine": ("9.5", "quarantine", "Show what was given up after a split brain."),
    "printi": ("9.5", "logs", "Write an I(nformation) message in the log."),
    "printe": ("9.5", "logs", "Write an E(vent) message in the log."),
    "protect": ("9.6", "protect.command", "Make a mirror of a service that runs on this server."),
    "config": ("9.6", "configure", "Apply the configuration of a module."),
    "deconfig": ("9.6", "configure", "Undo the configuration of a module."),
    "confcheck": ("9.6", "configure", "Check a configuration without applying it."),
    "diff": ("9.6", "diff", "Show in what a module differs between the servers."),
    "confinfo": ("9.6", "configure", "Compare active and current configuration."),
    "module": ("9.6", "module", "Install, list, pack and remove modules."),
    "dump": ("9.7", "support", "Keep logs, processes and network as they are now."),
    "snapshot": ("9.7", "support", "Pack dumps and configurations in a zip."),
    "clean": ("9.7", "support", "Delete damaged logs or resources, kill processes."),
    "incloop": ("14.5", "loops", "Count one automatic action."),
    "checkloop": ("14.5", "loops", "Tell whether maxloop is reached."),
    "resetloop": ("14.5", "loops", "Set the maxloop counter to 0."),
    "uninstall": ("2.5", "uninstall", "Take the product away from this server."),
    "update": ("internal", "control", "Evaluate the failover rules again."),
    "help": ("", "help", "Show the help of a command, or of an element of userconfig.xml."),
    "completion": ("", "completion", "Print the completion script of a shell."),
}
SECTIONS = (
    ("9.2", "Boot and shutdown"),
    ("9.3", "Cluster"),
    ("9.4", "Control of modules"),
    ("9.5", "Monitoring of modules"),
    ("9.6", "Configuration of modules"),
    ("13.9", "Processes of applications"),
    ("9.7", "Support"),
    ("13.18", "Resources"),
    ("14.5", "For user scripts (also: safekit -r COMMAND)"),
    ("2.5", "Installation"),
    ("", "Other"),
)
SEVERAL_ERRORS = 5  # `state -lq` uses 0 to 4 for states


WORDS_OF_OTHERS: dict[str, str] = {
    "status": "safekit state",
    "info": "safekit state -v",
    "show": "safekit state -v",
    "ps": "safekit state -v",
    "list": "safekit module list, or safekit state",
    "health": "safekit state --check",
    "drain": "safekit swap -m AM (a mirror moves to the other server), safekit stop -m AM (a farm server leaves)",
    "switchover": "safekit swap -m AM",
    "relocate": "safekit swap -m AM",
    "migrate": "safekit swap -m AM",
    "move": "safekit swap -m AM",
    "promote": "safekit prim -m AM on a stopped server, safekit swap -m AM on a secondary",
    "demote": "safekit swap -m AM",
    "takeover": "safekit swap -m AM; when the other server is lost it happens by itself",
    "failback": "safekit swap -m AM",
    "standby": "safekit stop -m AM on the server that is to rest",
    "unstandby": "safekit start -m AM",
    "enable": "safekit boot -m AM on",
    "disable": "safekit boot -m AM off",
    "reload": "safekit config -m AM",
    "apply": "safekit config -m AM",
    "validate": "safekit confcheck -m AM",
    "verify": "safekit confcheck -m AM",
    "init": "safekit cluster create NODE=ADDRESS NODE=ADDRESS",
    "join": "safekit cluster join",
    "create": "safekit cluster create NODE=ADDRESS NODE=ADDRESS, then safekit protect",
    "setup": "safekit protect",
    "deploy": "safekit -H SERVERS -E AM",
    "push": "safekit -H SERVERS -E AM",
    "sync": "safekit -H SERVERS -E AM (a module to other servers; its files are replicated by themselves)",
    "resync": "safekit second fullsync -m AM on the stopped secondary",
    "fence": "safekit forcestop -m AM",
    "kill-module": "safekit forcestop -m AM",
    "cleanup": "safekit resetloop -m AM, safekit clean -m AM",
    "logs": "safekit log -m AM",
    "tail": "safekit logview -m AM",
    "history": "safekit why -m AM, safekit timeline",
    "explain": "safekit why -m AM",
    "events": "safekit log -m AM, safekit timeline",
    "version": "safekit --version, safekit level",
    "about": "safekit level",
    "nodes": "safekit cluster confinfo",
    "node": "safekit cluster confinfo",
    "backup": "safekit module package -m AM FILE.safe (the module; not the data)",
    "report": "safekit snapshot -m AM FILE.zip",
    "man": "safekit help, safekit help userconfig",
}
"""What people type who know another product, and how it is said here."""


def commands_of(section: str) -> list[str]:
    """The commands of a section of the guide."""
    return [word for word, (place, _, _) in COMMANDS.items() if place == section]


class LazyGroup(SafekitGroup):
    """A group whose commands are imported when they are used, listed by section of the guide."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def hint(self, word: str) -> str:
        return f"here that is: {WORDS_OF_OTHERS[word]}" if word in WORDS_OF_OTHERS else ""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"cli.{COMMANDS[cmd_name][1]}")
        found = getattr(module, f"{cmd_name}_command")
        assert isinstance(found, click.Command)
        return found

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem

        if incomplete.startswith("-"):
            return click.Command.shell_complete(self, ctx, incomplete)
        shown = {place for place, _ in SECTIONS}
        return [
            CompletionItem(word, help=text)
            for word, (place, _, text) in COMMANDS.items()
            if place in shown and word.startswith(incomplete)
        ]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for section, title in SECTIONS:
            rows = [(word, text) for word, (place, _, text) in COMMANDS.items() if place == section]
            if rows:
                with formatter.section(f"{title} (guide {section})" if section else title):
                    formatter.write_dl(rows)


def complete_servers(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Shell completion of a list of servers: the names of the cluster, and all of them."""
    import json

    from safekit.disk.paths import cluster_dir

    try:
        lans = json.loads((cluster_dir() / "cluster.json").read_bytes())["lans"]
        names = sorted({str(node["name"]) for lan in lans for node in lan["nodes"]})
    except (OSError, ValueError, KeyError, TypeError):
        return []  # no cluster yet: there is nothing to propose
    before, comma, last = incomplete.rpartition(",")
    return [before + comma + name for name in ("*", *names) if name.startswith(last)]


def complete_special(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Shell completion of a special command."""
    from cli.special import known

    return [name for name in known() if name.startswith(incomplete)]


@click.group(
    cls=LazyGroup,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option(
    "-H",
    "_servers",
    metavar="LIST",
    expose_value=False,
    shell_complete=complete_servers,
    help='Run the command on these servers: names, URLs, or "*" for all. Before everything else.',
)
@click.option(
    "--insecure",
    "_insecure",
    is_flag=True,
    expose_value=False,
    help="With -H: passwords and keys may go in clear, to whoever answers.",
)
@click.option(
    "-E",
    "_deploy",
    metavar="AM",
    expose_value=False,
    shell_complete=complete_modules,
    help="Give module AM of this server to the servers of -H.",
)
@click.option(
    "-G",
    "_global",
    is_flag=True,
    expose_value=False,
    help="Give the cluster configuration of this server to the servers of -H.",
)
@click.option(
    "-r",
    "_special",
    metavar="COMMAND",
    expose_value=False,
    shell_complete=complete_special,
    help="Run a special command of SAFEBIN, with its arguments, in the SafeKit environment.",
)
@module_option
@click.option("-u", "user", metavar="WHO", help="Identity to write in the logs.")
@click.option("-i", "identity", metavar="ID", help="Name of the handler that asks.")
@click.option("-p", "show_paths", is_flag=True, help="Show SAFE, SAFEVAR and SAFEBIN, then exit.")
@click.version_option(__version__, "--version", message="SafeKit %(version)s", help="Show the version, then exit.")
@click.pass_context
def cli(ctx: click.Context, module: str | None, user: str | None, identity: str | None, show_paths: bool) -> int:
    """Control and monitor the SafeKit modules of this server.

    -m, -u and -i stand before or after the word: `safekit -m mirror state` is `safekit state -m mirror`. Exit code:
    0 done, 1 an error; other codes are told by the help of the command.
    """
    current = ctx.find_object(Session)
    assert current is not None
    current.module, current.user, current.identity = module, user, identity
    if show_paths:
        from safekit.disk import paths

        for name, value in (("SAFE", paths.safe()), ("SAFEVAR", paths.safevar()), ("SAFEBIN", paths.safebin())):
            click.echo(f"{name}={value}")
        ctx.exit(0)
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())
    return 0


def run(argv: Sequence[str]) -> int:
    """Run one command line and return its exit code. Errors are printed, with the next step."""
    line = split(argv)
    try:
        if line.distributed is not None:
            from cli.distributed import run_distributed

            return run_distributed(line.words)
        if line.special is not None:
            check_access()
            from cli.special import run_special

            return run_special(line.special, line.module)
        only_shows = {"-h", "--help", "--version", "completion"} & set(line.words) or line.words[:1] == ("help",)
        if not only_shows and "_SAFEKIT_COMPLETE" not in os.environ:
            check_access()
        session = Session(argv=line.words)
        return int(
            cli.main(list(line.words), prog_name="safekit", standalone_mode=False, obj=session) or 0  # click returns
        )  # what the command returned, or the code given to exit()
    except Failure as failure:
        return _failed(line, failure)
    except click.UsageError as error:
        if answers_in_json(line):
            path = error.ctx.command_path if error.ctx is not None else "safekit"
            return _failed(line, Failure(error.format_message(), f"{path} --help"))
        error.show()
        if isinstance(error, click.NoSuchOption) and error.option_name in ("-H", "-E", "-G", "--insecure"):
            click.echo('Next step: these options stand first: safekit -H "*" state', err=True)
        return _code(line, 1)
    except click.ClickException as error:
        error.show()
        return _code(line, 1)
    except (click.Abort, KeyboardInterrupt):
        click.echo("", err=True)
        return 130
    except SystemExit:
        # `safekit log | head`: nobody reads any more, which is not an error of ours. click takes it for one.
        if not standard.reader_has_gone():
            raise
        standard.discard_output()
        return 0
    except BrokenPipeError:
        standard.discard_output()
        return 0
    except PermissionError as error:
        return _failed(
            line, Failure(f"{error.filename}: permission denied", "run it as root or as a member of group safekit")
        )
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _failed(
            line, Failure(f"{where}{error.strerror or error}", "correct the cause, then run the command again")
        )


def _failed(line: Line, failure: Failure) -> int:
    """Tell what could not be done to whoever reads it: a person, a program, a monitoring system; the exit code."""
    if _checks(line.words):
        from cli.state import show_unknown

        return show_unknown(failure)
    if answers_in_json(line):
        from cli.answers import of_failure

        try:
            show_json(of_failure(failure.code, failure.text, failure.next_step, failure.told))
        except OSError:
            # standard output is full or gone: the exit code, and standard error, have to tell
            failure.show()
    else:
        failure.show()
    return _code(line, failure.code)


def answers_in_json(line: Line) -> bool:
    """Whether a program reads the answer; special commands, and simulate, have options of their own."""
    if line.special is not None or "--json" not in " ".join(line.words).replace("-json", "--json"):
        return False
    from cli.answers import wanted

    return wanted(line.words)


def _checks(words: Sequence[str]) -> bool:
    """`state --check`, whose exit codes are those of a monitoring plugin."""
    return "state" in words and ("--check" in words or "-check" in words)


def _code(line: Line, code: int) -> int:
    return SEVERAL_ERRORS if _several(line.words) else 3 if _checks(line.words) else code


def _several(words: Sequence[str]) -> bool:
    return "-lq" in words or "--lq" in words


def _interrupted(number: int, frame: object) -> NoReturn:
    """As Python's own handler, which an event loop would replace: a Ctrl-C that comes when its task has just ended was
    lost there."""
    raise KeyboardInterrupt


def main() -> NoReturn:
    """Entry point of the script `safekit`."""
    # What root and the members of group safekit make belongs to both of them, and to nobody else.
    os.umask(0o007)
    standard.prepare()
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupted)
    words = sys.argv[1:]
    standard.leave(run(words), SEVERAL_ERRORS if _several(words) else 1)


if __name__ == "__main__":
    main()
