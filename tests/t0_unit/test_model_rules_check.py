"""What confcheck says about failover rules before they run."""

from __future__ import annotations

from pathlib import Path

import pytest

from safekit.model.cluster import load_cluster_xml
from safekit.model.findings import Finding, Places
from safekit.model.module import examine_module
from safekit.model.rules_check import advice
from safekit.model.types import Check, Heart, Heartbeat, ModuleConfig, Service, SplitbrainCheck

CLUSTER = """<cluster><lans>
  <lan name="default"><node name="n1" addr="10.1.0.1"/><node name="n2" addr="10.1.0.2"/></lan>
</lans></cluster>"""
TCP = '<check><tcp ident="web" when="prim"><to addr="127.0.0.1" port="80"/></tcp></check>'


@pytest.fixture
def findings(tmp_path: Path) -> object:
    (tmp_path / "cluster.xml").write_text(CLUSTER)
    cluster = load_cluster_xml(tmp_path / "cluster.xml")[0]

    def examine(inside: str, mode: str = "mirror") -> list[tuple[int, str, str]]:
        heart = '<heart><heartbeat name="default"/></heart>' if mode == "mirror" else ""
        path = tmp_path / "userconfig.xml"
        path.write_text(f'<safe>\n<service mode="{mode}">{heart}\n{inside}\n</service></safe>\n')
        found = examine_module(path, "AM", 1, cluster, environment={}, refuse_unsupported=False).findings
        return [(f.line, f.severity, f.message) for f in found if isinstance(f, Finding)]

    return examine


def failover(rules: str, attributes: str = "") -> str:
    return f"<failover {attributes}><![CDATA[\n{rules}\n]]></failover>"


def test_a_rule_that_cannot_be_read_is_told_with_line_and_column(findings) -> None:  # type: ignore[no-untyped-def]
    found = findings(failover("  one: if (tcp.web == down) then restart();\n\n  two: if (tcp.web = down) then stop();"))
    assert found == [
        (6, "error", "column 20: found '='; expected ')', '&&', '||', '==' or '!='"),
    ]


def test_a_right_configuration_has_no_findings(findings) -> None:  # type: ignore[no-untyped-def]
    assert findings(TCP + failover("web_failure: if (tcp.web == down) then stopstart();")) == []


@pytest.mark.parametrize(
    ("inside", "line", "words"),
    [
        (failover("a: if (custom.disk == down) then stop();"), 4, "nothing in this module sets custom.disk"),
        (failover("a: if (custom.? == down) then stop();"), 4, "nothing in this module sets custom.?"),
        (TCP + failover("a: if (tcp.web == up && tcp.web == down) then stop();"), 4, "can never fire"),
        (TCP + failover("a: if (tcp.web == up || tcp.web != up) then stop();"), 4, "always fires"),
        (TCP + failover("a: if (ping.x == up) then wait();", 'extends="no"'), 3, "no failover rule looks at tcp.web"),
        ('<check><custom ident="disk" when="prim" exec="x"/></check>', 3, "no failover rule looks at custom.disk"),
        (TCP.replace('"prim"', '"pre"'), 3, 'when="pre" and no rule answers tcp.web == down with wait()'),
    ],
)
def test_what_can_be_proved_wrong_is_a_warning(findings, inside: str, line: int, words: str) -> None:  # type: ignore[no-untyped-def]
    found = findings(inside)
    assert any(at == line and kind == "warning" and words in text for at, kind, text in found), found
    assert {kind for _, kind, _ in found} == {"warning"}


def test_what_a_light_module_does_not_have(findings) -> None:  # type: ignore[no-untyped-def]
    found = findings(TCP + failover("a: if (remote.tcp.web == down) then swap();"), "light")
    texts = " ".join(text for _, _, text in found)
    assert "exists in a mirror only" in texts and "swap() is for mirror modules only" in texts
    assert 'when="prim" never comes in a light module' in texts


def test_a_class_that_never_comes_and_arguments_that_are_no_words(findings) -> None:  # type: ignore[no-untyped-def]
    errd = '<user/><errd><proc name="appli" class="prim"/></errd>'
    assert findings(errd) == []
    assert findings(errd, "light") == [
        (3, "warning", 'class="prim" never comes in a light module; expected class="both"')
    ]
    custom = '<check><custom ident="c" when="both" exec="x" arg="it\'s"/></check>'
    (first, *_) = findings(custom + failover("c: if (custom.c == down) then wait();"))
    assert first[:2] == (3, "error") and "No closing quotation" in first[2]


def test_single_points_are_told_when_asked_for() -> None:
    one = ModuleConfig("AM", 1, Service("mirror"), Heart((Heartbeat("default", "default", 8888),)))
    assert len(advice(one, Places("f"))) == 2
    both = Heart((Heartbeat("default", "default", 8888), Heartbeat("b", "b", 8888)))
    safe = ModuleConfig("AM", 1, Service("mirror"), both, check=Check(splitbrain=SplitbrainCheck("w", "10.0.0.9")))
    assert advice(safe, Places("f")) == []
    assert advice(ModuleConfig("AM", 1, Service("light")), Places("f")) == []
