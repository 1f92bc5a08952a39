"""safekit help: of a command, of the elements of userconfig.xml; and the manual page of all commands."""

from __future__ import annotations

import re
from collections.abc import Iterator

import click

from cli.base import Failure, SafekitCommand, Session, command


def complete_topic(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Shell completion: the commands, and the elements of userconfig.xml."""
    given = ctx.params.get("topic") or ()
    root = ctx.find_root().command
    words = [*root.list_commands(ctx), "userconfig"] if isinstance(root, click.Group) and not given else []
    if tuple(given[:1]) == ("userconfig",):
        from cli.reference import names

        words = names()
    return [word for word in words if word.startswith(incomplete)]


@command(
    "help",
    example="safekit help swap\nsafekit help cluster create\nsafekit help userconfig tcp\n"
    "safekit help --man > /usr/local/share/man/man1/safekit.1",
    admin=False,
)
@click.option("--man", "man", is_flag=True, help="The manual page safekit(1), made of the help of all commands.")
@click.argument("topic", metavar="[COMMAND | userconfig [ELEMENT...]]", nargs=-1, shell_complete=complete_topic)
@click.pass_context
def help_command(ctx: click.Context, topic: tuple[str, ...], man: bool) -> int:
    """Show the help of a command, or of an element of userconfig.xml: meaning, attributes, defaults and an example.

    Without words it lists the commands; `safekit help userconfig` lists the elements.
    """
    root = ctx.find_root()
    if man:
        click.echo(manual(root), nl=False)
        return 0
    if topic[:1] == ("userconfig",):
        return _userconfig(topic[1:])
    found, context = root.command, root
    for word in topic:
        if not isinstance(found, click.Group):
            raise Failure(f"{context.command_path} has no commands of its own", f"{context.command_path} --help")
        _, child, _ = found.resolve_command(context, [word])
        assert child is not None
        found, context = child, click.Context(child, info_name=word, parent=context, obj=Session())
    click.echo(found.get_help(context))
    return 0


def _userconfig(words: tuple[str, ...]) -> int:
    from cli.reference import find, page, tree

    if not words:
        click.echo("Elements of userconfig.xml; more of each: safekit help userconfig ELEMENT\n")
        click.echo("\n".join(tree()))
        click.echo("\nComplete files with comments: SAFE/private/conf/examples (mirror.xml, farm.xml, light.xml)")
        return 0
    click.echo("\n\n".join("\n".join(page(path, shape)) for path, shape in find(words)))
    return 0


# --- the manual page


def manual(root: click.Context) -> str:
    """safekit(1) in the language of man(7)."""
    from cli.main import SECTIONS, commands_of
    from safekit import __version__

    lines = [
        f'.TH SAFEKIT 1 "" "SafeKit {__version__}" "SafeKit"',
        ".SH NAME",
        "safekit \\- high availability for applications on servers without shared disk",
        ".SH SYNOPSIS",
        ".B safekit",
        "[OPTIONS] COMMAND [ARGUMENTS]",
        ".SH DESCRIPTION",
        *_text(root.command.help or ""),
        ".SH OPTIONS",
        *_options(root.command, root),
    ]
    for section, title in SECTIONS:
        names = commands_of(section)
        if names:
            lines.append(f'.SH "{title.upper()}"')
        for name in names:
            lines += _command(root, name)
    lines += [
        ".SH FILES", "/opt/safekit (SAFE), /var/safekit (SAFEVAR), /etc/safeini.xml",
        ".SH SEE ALSO", "The guide of SafeKit 7.4, and the documents in /usr/share/doc/safekit.",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _command(root: click.Context, name: str) -> Iterator[str]:
    assert isinstance(root.command, click.Group)
    found = root.command.get_command(root, name)
    assert found is not None
    context = click.Context(found, info_name=name, parent=root)
    yield from _one(found, context)
    if isinstance(found, click.Group):
        for word, child in found.commands.items():
            yield from _one(child, click.Context(child, info_name=word, parent=context))


def _one(found: click.Command, context: click.Context) -> Iterator[str]:
    usage = " ".join([context.command_path, *found.collect_usage_pieces(context)])
    yield f'.SS "{_escaped(usage)}"'
    yield from _text(found.help or "")
    yield from _options(found, context)
    if isinstance(found, SafekitCommand) and found.example:
        yield from (".PP", "Example:", ".nf", ".RS")
        yield from (_escaped(line) for line in found.example.splitlines())
        yield from (".RE", ".fi")


def _options(found: click.Command, context: click.Context) -> Iterator[str]:
    for parameter in found.get_params(context):
        record = parameter.get_help_record(context) if isinstance(parameter, click.Option) else None
        if record is not None:
            yield from (".TP", f".B {_escaped(record[0])}", _escaped(record[1]))


def _text(text: str) -> Iterator[str]:
    for number, paragraph in enumerate(re.split(r"\n\s*\n", text.strip())):
        if number:
            yield ".PP"
        yield _escaped(" ".join(paragraph.replace("\b", "").split()))


def _escaped(text: str) -> str:
    """Signs that man takes for its own."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-").replace('"', "\\(dq")
    return f"\\&{escaped}" if escaped.startswith((".", "'")) else escaped
