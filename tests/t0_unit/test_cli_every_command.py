"""Every command and subcommand, by itself: help, examples, JSON, completion, errors. And every command line of the
documentation and of chapter 9 of the guide is one that the parser takes."""

from __future__ import annotations

import ast
import json
import re
import shlex
import stat
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.shell_completion import ShellComplete

from cli import argv
from cli.base import Failure, SafekitCommand, Session
from cli.distributed import parse_order
from cli.main import COMMANDS, SECTIONS, cli, run

CHECKOUT = Path(__file__).resolve().parents[2]
SOURCES = sorted((CHECKOUT / "cli").rglob("*.py"))


def walk(command: click.Command, words: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    if isinstance(command, click.Group):
        for word, child in command.commands.items():
            yield from walk(child, (*words, word))
    else:
        yield words, command


def all_commands() -> Iterator[tuple[tuple[str, ...], click.Command]]:
    for word in COMMANDS:
        found = cli.get_command(click.Context(cli), word)
        assert found is not None
        yield from walk(found, (word,))


EVERY = dict(all_commands())
each = pytest.mark.parametrize("words", EVERY, ids=" ".join)


@pytest.fixture(autouse=True)
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installation with one module and one special command."""
    for name in ("SAFE", "SAFEVAR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.delenv("SAFEMODULE", raising=False)
    (tmp_path / "SAFE" / "modules" / "mirror").mkdir(parents=True)
    special = tmp_path / "SAFE" / "private" / "bin" / "processtree"
    special.parent.mkdir(parents=True)
    special.write_text("#!/bin/sh\n")
    special.chmod(special.stat().st_mode | stat.S_IXUSR)
    cluster = tmp_path / "SAFEVAR" / "cluster"
    cluster.mkdir(parents=True)
    (cluster / "cluster.json").write_text(json.dumps({"lans": [{"nodes": [{"name": "node1"}, {"name": "node2"}]}]}))
    return tmp_path


def parse(line: str) -> None:
    """Read a command line as `safekit` does, without doing it. Raises Failure, click.UsageError."""
    words = shlex.split(line)
    assert words[0] == "safekit", line
    split = argv.split(words[1:])
    if split.special is not None:
        assert split.special, line
        return
    if split.distributed is not None:
        order = parse_order(split.words)
        if order.words:
            parse(shlex.join(("safekit", *order.words)))
        return
    context = cli.make_context("safekit", list(split.words), obj=Session(argv=split.words))
    command: click.Command = cli
    rest = _left(context)
    while isinstance(command, click.Group):
        if not rest:
            return  # safekit -p
        _, found, rest = command.resolve_command(context, rest)
        assert found is not None
        command = found
        context = command.make_context(command.name, rest, parent=context)
        rest = _left(context)


def _left(context: click.Context) -> list[str]:
    """What a group leaves for its commands."""
    return [*getattr(context, "_protected_args", ()), *context.args]


# ---------------------------------------------------------------------------- help


@each
def test_help_has_a_sentence_and_an_example_that_parses(words: tuple[str, ...]) -> None:
    command = EVERY[words]
    assert isinstance(command, SafekitCommand)
    text = command.get_help(click.Context(command, info_name=" ".join(("safekit", *words))))
    assert command.help and command.help.strip().endswith((".", ")")), "a first sentence"
    assert "Example" in text
    lines = command.example.splitlines()
    assert any(line.startswith(" ".join(("safekit", *words))) for line in lines)
    for line in lines:
        for part in re.split(r"\|\||&&|;|>", line):
            if part.strip().startswith("safekit"):
                parse(part.strip())


@each
def test_every_option_says_what_it_is_for(words: tuple[str, ...]) -> None:
    for parameter in EVERY[words].params:
        if isinstance(parameter, click.Option) and not parameter.hidden:
            assert parameter.help, parameter.opts


def test_the_overview_lists_every_command_once() -> None:
    text = cli.get_help(click.Context(cli, info_name="safekit"))
    shown = {place for place, _ in SECTIONS}
    for word, (place, _, sentence) in COMMANDS.items():
        assert (re.search(rf"^  {word}\s+{re.escape(sentence)}", text, re.MULTILINE) is not None) == (place in shown)
    assert [word for word, (place, _, _) in COMMANDS.items() if place not in shown] == ["update"], (
        "internal (guide 9.4)"
    )
    for option in ("-H", "-E", "-G", "-r", "-p", "-m"):
        assert f"  {option}" in text


@pytest.mark.parametrize("words", [(), ("module",), ("cluster",)], ids=" ".join)
def test_a_group_has_an_example_and_knows_its_words(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*words, "--help"]) == 0
    assert f"Example:\n  {' '.join(('safekit', *words))} " in capsys.readouterr().out
    for mistyped, near in (("stat", "state"), ("lst", "list")):
        code = run([*words, mistyped])
        said = capsys.readouterr().err
        assert code == 1 and f"has no command '{mistyped}'" in said and "Next step: " in said
        if (words, near) in ((("module",), "list"), (("cluster",), "state"), ((), "state")):
            assert f"did you mean: {' '.join(('safekit', *words))} {near}" in said


# ------------------------------------------------------------------ what programs read

NO_JSON: dict[tuple[str, ...], str] = {
    ("logview",): "it goes on for ever: safekit log --json",
    ("completion",): "a script for a shell",
    ("simulate",): "has its own --json",
    ("printi",): "its words are a message",
    ("printe",): "its words are a message",
}


@each
def test_every_command_has_json(words: tuple[str, ...]) -> None:
    """Its own, or the common one (cli.answers)."""
    command = EVERY[words]
    assert isinstance(command, SafekitCommand)
    has = any("--json" in parameter.opts for parameter in command.params)
    assert has == (words not in NO_JSON)


# ---------------------------------------------------------------------------- errors


@each
def test_a_wrong_option_is_an_error_with_code_1(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    if words == ("simulate",):
        pytest.skip("the options are those of another program")
    assert run([*words, "--nonsense"]) == 1
    said = capsys.readouterr()
    assert "No such option" in said.err and "--nonsense" in said.err and "--help" in said.err and not said.out


def calls(name: str) -> Iterator[tuple[str, ast.Call]]:
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name:
                yield f"{path.name}:{node.lineno}", node


def test_every_error_names_the_next_step() -> None:
    found = list(calls("Failure"))
    assert len(found) > 60
    for place, call in found:
        steps = [*call.args[1:2], *(keyword.value for keyword in call.keywords if keyword.arg == "next_step")]
        assert steps, place
        assert not (isinstance(steps[0], ast.Constant) and not steps[0].value), place


def test_options_of_distribution_stand_first(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["state", "-H", "*"]) == 1
    assert 'Next step: these options stand first: safekit -H "*" state' in capsys.readouterr().err


# ---------------------------------------------------------------------------- colour


def test_colour_is_only_chosen_where_somebody_watches() -> None:
    """Every function that styles text asks `colored` first."""
    styling = 0
    for path in SOURCES:
        for function in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(function, ast.FunctionDef):
                continue
            text = ast.unparse(function)
            if "click.style(" in text or "secho(" in text:
                styling += 1
                assert "colored()" in text, f"{path.name}: {function.name}"
    assert styling >= 3


# ---------------------------------------------------------------------------- completion


def complete(words: list[str], incomplete: str) -> dict[str, str]:
    found = ShellComplete(cli, {"obj": Session()}, "safekit", "_SAFEKIT_COMPLETE").get_completions(words, incomplete)
    return {item.value: item.type for item in found}


def test_words_complete() -> None:
    assert set(COMMANDS) - {"update"} == set(complete([], ""))
    assert {"-H", "-m", "-r"} <= set(complete([], "-"))
    for group in ("cluster", "module"):
        assert {words[1] for words in EVERY if words[0] == group} == set(complete([group], ""))
    assert set(complete(["-H"], "")) == {"*", "node1", "node2"}
    assert set(complete(["-H"], "node1,n")) == {"node1,node1", "node1,node2"}
    assert set(complete(["-H", "*"], "wait")) == {"waitstart", "waitstop", "waitstate"}
    assert set(complete(["-E"], "")) == {"mirror"}
    assert set(complete(["-r"], "proc")) == {"processtree"}
    assert complete(["cluster", "config"], "l") == {"lock": "plain"}
    assert complete(["cluster", "config"], "/tmp") == {"/tmp": "file"}


@each
def test_options_choices_and_files_complete(words: tuple[str, ...]) -> None:
    command = EVERY[words]
    options = {o for p in command.params if isinstance(p, click.Option) for o in p.opts if not p.hidden}
    offered = complete([*words], "-")
    assert options <= set(offered)
    if "-m" in options:
        assert set(complete([*words, "-m"], "mi")) == {"mirror"}
    arguments = [parameter for parameter in command.params if isinstance(parameter, click.Argument)]
    first = arguments[0] if arguments else None
    if first is not None and isinstance(first.type, click.Choice):
        assert set(first.type.choices) == set(complete([*words], ""))
    elif first is not None and first.name in ("file", "archive", "words") and words != ("simulate",):
        assert complete([*words], "/tm")["/tm"] == "file"


# --------------------------------------------------------- the guide and our documentation

GUIDE = """
safekit -H http://192.168.0.2:9010,http://192.168.0.3:9010 module list
safekit –H "*" module list
safekit –H "[http],*" module list
safekit –H "[https:9500],server1,server2" module list
safekit -E farm
safekit -H http://192.168.1.1:9010,http://192.168.1.2:9010 –E mirror
safekit –H "[http],*" -G
safekit -G
safekit webserver start
safekit webserver stop
safekit webserver restart
safekit safeagent check
safekit boot webon
safekit boot weboff
safekit boot webstatus
safekit boot snmpon
safekit boot snmpoff
safekit boot snmpstatus
safekit boot –m AM on
safekit boot –m AM off
safekit boot –m AM status
safekit boot status
safekit shutdown
safekit cluster config /tmp/newcluster.xml
safekit cluster config
safekit cluster config /tmp/newcluster.zip lock
safekit cluster config unlock
safekit cluster confcheck /tmp/newcluster.xml
safekit cluster confinfo
safekit cluster deconfig
safekit cluster state
safekit cluster genkey
safekit cluster delkey
safekit start –m AM
safekit waitstart –m AM
safekit stop –m AM
safekit waitstop –m AM
safekit waitstate –m AM UP
safekit restart –m AM
safekit swap nosync –m AM
safekit swap –m AM
safekit stopstart –m AM
safekit prim –m AM
safekit primforce –m AM
safekit second fullsync –m AM
safekit second –m AM
safekit forcestop –m AM
safekit errd suspend –m AM
safekit errd resume –m AM
safekit checker off –m AM
safekit checker on –m AM
safekit failover off –m AM
safekit failover on –m AM
safekit level –m AM
safekit state
safekit state –m AM –v
safekit state –m AM –lq
safekit log –m AM -s 10 -A -l fr
safekit log –m AM -I
safekit logview –m AM -A -l en
safekit logview –m AM –s 300 -I
safekit logsave –m AM -l fr -A /tmp/f.txt
safekit printi –m AM "message"
safekit printe –m AM "message"
safekit config –m AM
safekit module genkey –m AM
safekit module delkey –m AM
safekit confinfo –m AM
safekit confcheck –m AM
safekit module install –m AM -r SAFE/Application_Modules/AM.safe
safekit module install -M 1 -r /tmp/cgicu9RbJ7 -m mirror
safekit module package –m AM /tmp/newAM.safe
safekit module uninstall –m AM
safekit module list
safekit module listid
safekit module getports –m AM
safekit module getports –i 7
safekit snapshot –m AM /tmp/snapshot_xx.zip
safekit dump –m AM
safekit –r "specialcommand"
safekit –r processtree list all "mirror"
safekit clean -m AM
safekit clean log –m AM
safekit clean resource –m AM
safekit clean process –m AM
safekit clean all –m AM
safekit -p
safekit stopwait -m AM -i "identity"
safekit set -m AM -r custom.id -v down -i customscript
safekit incloop -m AM –i handler
safekit resetloop -m AM –i handler
safekit checkloop -m AM
safekit kill -name="vi" -argregex=".*myfile.*" -level="test"
safekit webserver start sync
safekit prim -u web@192.168.1.8 -m mirror
safekit uninstall
safekit uninstall -all
""".strip().splitlines()


@pytest.mark.parametrize("line", GUIDE)
def test_every_form_of_the_guide_is_accepted(line: str) -> None:
    parse(line)


PLACEHOLDERS = re.compile(r"COMMAND|ARGS|SERVERS|\.\.\.|…")
WORDS = re.compile(r"(?<![\w/-])safekit (?:-|(?:" + "|".join(COMMANDS) + r")\b)[^`\n|;)#>&]*")


def documented() -> Iterator[tuple[str, str]]:
    for path in (CHECKOUT / "README.md", *sorted((CHECKOUT / "docs").glob("*.md"))):
        text = path.read_text(encoding="utf-8")
        blocks = re.findall(r"```\w*\n(.*?)```|^((?: {4}.*\n)+)|`(safekit [^`]+)`", text, re.DOTALL | re.MULTILINE)
        for groups in blocks:
            for line in "".join(groups).splitlines():
                for found in WORDS.findall(re.sub(r"\s+#.*|\s{3,}.*", "", line.strip())):
                    yield path.name, found.strip().rstrip(".,:")


@pytest.mark.parametrize(("page", "line"), sorted(set(documented())))
def test_every_command_line_of_the_documentation_parses(page: str, line: str) -> None:
    if PLACEHOLDERS.search(line):
        line = PLACEHOLDERS.sub("state", line)
    line = re.sub(r"\[(-[^\]]*)\]", r"\1", line.replace(" NO", " 1"))  # [--json] may be given
    try:
        parse(line)
    except click.exceptions.Exit as shown:
        assert shown.exit_code == 0
    except click.MissingParameter as error:
        # Prose names a command without what it needs: `safekit module install -r -M ID`.
        assert f"`{line}" in (CHECKOUT / "docs" / page).read_text() if page != "README.md" else "", error


def test_the_documentation_is_read() -> None:
    found = list(documented())
    assert len(found) > 80 and len({page for page, _ in found}) >= 6


def test_failures_of_the_parser_are_seen() -> None:
    """The checks above can fail."""
    for line in ("safekit stat", "safekit state --jsn", "safekit waitstate -m AM HAPPY", "safekit boot webof"):
        with pytest.raises((click.UsageError, Failure)):
            parse(line)
