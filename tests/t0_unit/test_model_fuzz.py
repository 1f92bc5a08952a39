"""Damaged and hostile files: a configuration, findings or ConfigError, and nothing else."""

from __future__ import annotations

import random
import re
import time
from pathlib import Path

import pytest

from safekit.model.cluster import load_cluster_xml
from safekit.model.findings import ConfigError
from safekit.model.module import examine_module
from safekit.model.types import ClusterConfig, Lan, LanNode, ModuleConfig
from safekit.model.xmlload import parse

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = ClusterConfig((Lan("default", nodes=(LanNode("n1", "10.0.0.1"), LanNode("n2", "10.0.0.2"))),))
CLUSTER_XML = """<cluster><lans port="4800"><lan name="a" console="off"><node name="n1" addr="10.0.0.1"/>
<node name="n2" addr="10.0.0.2" laddr="1.2.3.4"/></lan></lans></cluster>"""
FRAGMENTS = [
    "%A%",
    "<",
    "/>",
    '"',
    "&amp;",
    "&#0;",
    "&#x10FFFF;",
    "é",
    "\x00",
    "<x/>",
    "<![CDATA[",
    "]]>",
    "<!--",
    "-->",
]
FRAGMENTS += [
    "9" * 20,
    "-1",
    "on",
    "<heart/>",
    "<rfs>",
    ' xmlns="u"',
    ' a:b="c"',
    "<a:b/>",
    "<?pi x?>",
    "",
    " ",
    'name="',
]
TAGS = [
    "heart",
    "rfs",
    "to",
    "vip",
    "group",
    "replicated",
    "zzz",
    "interface",
    "service",
    "macro",
    "check",
    "virtual_addr",
]


def damaged(rng: random.Random, text: str) -> str:
    """The text after up to four accidents."""
    for _ in range(rng.randint(1, 4)):
        begin = rng.randrange(len(text) + 1)
        end = min(len(text), begin + rng.randint(0, 40))
        accident = rng.randrange(5)
        values = list(re.finditer(r'"[^"]*"', text))
        tags = list(re.finditer(r"<[a-z_]+", text))
        if accident == 0:
            text = text[:begin] + rng.choice(FRAGMENTS) + text[begin:]
        elif accident == 1:
            text = text[:begin] + text[end:]
        elif accident == 2:
            text = text[:end] + text[begin:end] + text[end:]
        elif accident == 3 and values:
            value = rng.choice(values)
            text = text[: value.start()] + f'"{rng.choice(FRAGMENTS)}"' + text[value.end() :]
        elif tags:
            tag = rng.choice(tags)
            text = text[: tag.start()] + "<" + rng.choice(TAGS) + text[tag.end() :]
    return text


@pytest.mark.parametrize("seed", range(4))
def test_damaged_files_never_surprise(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    sources = [path.read_text() for path in sorted((ROOT / "Application_Modules").glob("*/*/conf/userconfig.xml"))]
    golden = Path(__file__).with_name("test_model_userconfig.golden").read_text()
    sources += [case.partition("\n")[2].partition("\n--\n")[0] for case in golden.split("\n== ")[1:]]
    path = tmp_path / "file.xml"
    compiled = refused = 0
    for _ in range(250):
        path.write_text(damaged(rng, rng.choice(sources)))
        try:
            examined = examine_module(path, "AM", 1, CLUSTER, environment={})
        except ConfigError as error:
            assert error.findings and all(finding.message for finding in error.findings)
            refused += 1
        else:
            assert isinstance(examined.config, ModuleConfig) or examined.findings
            compiled += examined.config is not None
        path.write_text(damaged(rng, CLUSTER_XML))
        try:
            config, _ = load_cluster_xml(path)
        except ConfigError as error:
            assert error.findings
        else:
            assert len(config.node_names) >= 2
    assert compiled and refused


@pytest.mark.parametrize("encoding", ["utf-7", "shift_jis", "rot13", "idna", "hex", "nope", "cp037"])
def test_encodings_that_cannot_be_used_are_named(encoding: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(f'<?xml version="1.0" encoding="{encoding}"?><safe a="+AGE-"/>'.encode(), "userconfig.xml")
    (finding,) = caught.value.findings
    assert finding.line == 1 and "ncoding" in finding.message, finding


def test_an_element_with_very_many_attributes_is_refused_at_once() -> None:
    begun = time.process_time()
    with pytest.raises(ConfigError, match="<safe> has more than 100 attributes"):
        parse(b"<safe " + b" ".join(b'a%d=""' % number for number in range(60_000)) + b"/>", "userconfig.xml")
    assert time.process_time() - begun < 5, "the place of each was counted from the beginning: a minute"
