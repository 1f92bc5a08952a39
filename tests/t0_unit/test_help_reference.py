"""`safekit help`: what it tells of userconfig.xml is what the schema and the compiler do, its examples are files that
confcheck takes, its manual page has every command, and words of other products are understood."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import click
import pytest
from lxml import etree

from cli.base import Failure
from cli.help import manual
from cli.main import COMMANDS, WORDS_OF_OTHERS, cli, run
from cli.reference import EXAMPLES, _walk, find, page
from safekit.disk.paths import private_conf
from safekit.model.findings import Finding
from safekit.model.module import Examined, examine_module
from safekit.model.schema import Shape, load
from safekit.model.types import ClusterConfig, Lan, LanNode

CLUSTER = ClusterConfig(
    tuple(
        Lan(name, nodes=(LanNode("node1", f"10.{number}.0.11"), LanNode("node2", f"10.{number}.0.12")))
        for number, name in enumerate(("default", "repli"))
    )
)
ELEMENTS: list[tuple[tuple[str, ...], Shape]] = list(_walk(load("userconfig").shape, ("safe",)))
FORMER = ("server", "node")
"""Syntax of releases before 7.2."""
NOT_SHOWN = {
    "iotimeout", "allocthreshold", "nfsbox_options", "nbremconn", "packetsize", "scripts", "syncat", "port", "addr",
    "extends", "name", "engine", "tcpreset",
}  # fmt: skip
"""Ignored here, not supported, or better left to their defaults: no example has them everywhere."""


def examined(path: Path) -> Examined:
    return examine_module(path, "am", 1, CLUSTER)


def test_every_element_and_attribute_says_what_it_is_for() -> None:
    for path, shape in ELEMENTS:
        assert shape.about.endswith((".", "();")), path
        for name in shape.attributes:
            assert shape.meanings[name], (path, name)


@pytest.mark.parametrize("kind", EXAMPLES)
def test_the_complete_examples_are_ones_that_confcheck_takes(kind: str) -> None:
    found = examined(private_conf() / "examples" / f"{kind}.xml")
    findings: tuple[Finding, ...] = tuple(found.findings)
    assert found.config is not None and not findings, findings
    assert found.config.service.mode == kind


def test_the_examples_have_every_element_and_attribute() -> None:
    seen: set[tuple[tuple[str, ...], str]] = set()
    for kind in EXAMPLES:
        tree = etree.parse(str(private_conf() / "examples" / f"{kind}.xml"))
        for element in tree.iter(etree.Element):
            path = tuple(re.sub(r"\[\d+\]", "", tree.getpath(element)).strip("/").split("/"))
            seen |= {(path, str(name)) for name in ("", *element.attrib)}
    named = {(path[-1], name) for path, name in seen}
    for path, shape in ELEMENTS:
        if path[-1] in FORMER:
            continue
        assert (path, "") in seen, path
        for name in shape.attributes:
            assert (path[-1], name) in named or name in NOT_SHOWN, (path, name)


def test_each_default_that_is_told_is_the_one_that_is_used(tmp_path: Path) -> None:
    """A file with the attribute set to its default is compiled to the same as one without it."""
    tried = 0
    for kind in EXAMPLES:
        source = private_conf() / "examples" / f"{kind}.xml"
        tree = etree.parse(str(source))
        for element in list(tree.iter(etree.Element)):
            path = tuple(re.sub(r"\[\d+\]", "", tree.getpath(element)).strip("/").split("/"))
            shape = dict(ELEMENTS)[path]
            for name, default in shape.defaults.items():
                if path[-1] == "rfs" and name in ("scripts", "nbremconn"):
                    continue  # whatever they are set to is told as a finding
                before = element.get(name)
                compiled = []
                for value in (default, None):
                    element.attrib.pop(name, None)
                    if value is not None:
                        element.set(name, value)
                    file = tmp_path / "userconfig.xml"
                    tree.write(str(file))
                    found = examined(file)
                    assert found.config is not None, (path, name, value, found.findings)
                    compiled.append(found.config)
                assert compiled[0] == compiled[1], (path, name, default)
                tried += 1
                element.attrib.pop(name, None)
                if before is not None:
                    element.set(name, before)
    assert tried > 60


def test_help_of_an_element_has_meaning_attributes_default_and_example(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["help", "userconfig", "tcp", "to"]) == 0
    text = capsys.readouterr().out
    assert "interval" in text and "default 10" in text and "must be given" in text
    assert '<to addr="%VIRTUAL_IP%" port="5432" interval="10" timeout="5"/>' in text
    for path, shape in ELEMENTS:
        lines = page(path, shape)
        assert all(len(line) <= 120 for line in lines), path
    assert run(["help", "userconfig"]) == 0 and "<splitbrain>" in capsys.readouterr().out
    with pytest.raises(Failure) as caught:
        find(["hartbeat"])
    assert "heartbeat" in caught.value.next_step


def test_help_of_commands_and_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["help"], ["help", "swap"], ["help", "cluster", "create"], ["--version"]):
        assert run(words) == 0, words
    shown = capsys.readouterr().out
    assert "Usage: safekit cluster create" in shown and re.search(r"^SafeKit \d+\.\d+", shown, re.MULTILINE)
    assert run(["help", "swap", "more"]) == 1


def test_words_of_other_products_are_told_how_they_are_said_here(capsys: pytest.CaptureFixture[str]) -> None:
    for word, said in WORDS_OF_OTHERS.items():
        assert word not in COMMANDS, word
        for own in re.findall(r"safekit (?:-[HE] \S+ ?)*([a-z]*)", said):
            assert not own or own in COMMANDS, (word, said)
    assert run(["status"]) == 1
    assert "Next step: here that is: safekit state" in capsys.readouterr().err


def test_the_manual_page_has_every_command() -> None:
    text = manual(click.Context(cli, info_name="safekit"))
    for word in COMMANDS:
        if COMMANDS[word][0] != "internal":
            assert f'.SS "safekit {word}'.replace("-", "\\-") in text, word
    assert not [line for line in text.splitlines() if line.startswith("'")]
    if shutil.which("groff"):
        done = subprocess.run(
            ["groff", "-man", "-ww", "-Tascii"], input=text, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0 and not done.stderr, done.stderr[:500]
