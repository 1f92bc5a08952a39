"""cluster.xml: what is accepted, every mistake with its line, this server's place, the key."""

from __future__ import annotations

from pathlib import Path

import pytest

from safekit.model import cluster as model
from safekit.model.cluster import ClusterError, load_cluster_xml, local_node
from safekit.model.findings import ConfigError
from safekit.model.types import ClusterConfig

TWO_LANS = """<cluster>
  <lans pulse="500">
    <!-- for clients and the console -->
    <lan name="default">
      <node name="node1" addr="192.168.1.67"/>
      <node name="node2" addr="192.168.1.68"/>
      <node name="node3" addr="192.168.1.69"/>
    </lan>
    <lan name="repli" console="off">
      <node name="node1" addr="10.0.0.1"/>
      <node name="node2" addr="10.0.0.2" laddr="fd00::2"/>
    </lan>
  </lans>
</cluster>
"""


def load(directory: Path, text: str) -> ClusterConfig:
    path = directory / "cluster.xml"
    path.write_text(text)
    return load_cluster_xml(path)[0]


def test_lans_and_nodes(tmp_path: Path) -> None:
    config = load(tmp_path, TWO_LANS)
    assert config.node_names == ("node1", "node2", "node3")
    assert (config.port, config.pulse_ms, config.mlost_count, config.slost_count) == (4800, 500, 5, 5)
    assert config.command_lan is not None and config.command_lan.name == "default"
    assert config.address("repli", "node2") == "10.0.0.2" and config.bind_address("repli", "node2") == "fd00::2"
    assert config.address("repli", "node3") is None and config.address("none", "node1") is None


def test_signature_follows_the_meaning(tmp_path: Path) -> None:
    first = load(tmp_path, TWO_LANS).signature
    assert len(first) == 64
    relaid = TWO_LANS.replace("<!-- for clients and the console -->", "").replace("  ", " ")
    assert load(tmp_path, relaid).signature == first
    assert load(tmp_path, TWO_LANS.replace('name="default"', 'framework="on" name="default"')).signature == first
    assert load(tmp_path, TWO_LANS.replace("192.168.1.69", "192.168.1.70")).signature != first


def lan(name: str = "default", attributes: str = "", nodes: str | None = None) -> str:
    if nodes is None:
        nodes = '<node name="n1" addr="10.0.0.1"/><node name="n2" addr="10.0.0.2"/>'
    return f'<lan name="{name}" {attributes}>{nodes}</lan>\n'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<cluster/>", [(1, "cluster", "there is no <lans>")]),
        ("<cluster>\n<lans/></cluster>", [(2, "lans", "there is no <lan>")]),
        ("<safe/>", [(1, "safe", "expected <cluster>")]),
        (
            f"<cluster><lans>\n{lan()}{lan()}</lans></cluster>",
            [(3, "lan name", 'the name "default" is used by two lans')],
        ),
        (
            "<cluster><lans>\n" + lan(nodes='<node name="n1" addr="10.0.0.1"/>') + "</lans></cluster>",
            [(2, "lan", "has 1 node; expected at least two")],
        ),
        (
            "<cluster><lans>\n" + lan(attributes='framework="off"') + "</lans></cluster>",
            [(1, "lans", 'no lan with framework="on" includes every node')],
        ),
        (
            "<cluster><lans>\n"
            + lan()
            + lan("b", nodes='<node name="n1" addr="10.0.1.1"/>\n<node name="n3" addr="10.0.1.3"/>')
            + "</lans></cluster>",
            [
                (1, "lans", "includes every node"),
                (2, "lan", "cannot reach n3"),
                (3, "lan", "cannot reach n2"),
            ],
        ),
        (
            "<cluster><lans>\n"
            + lan(attributes='command="on"')
            + lan("b", 'command="on"')
            + lan("c", 'command="on" framework="off"')
            + "</lans></cluster>",
            [
                (3, "lan command", "a second lan"),
                (4, "lan command", "a second lan"),
                (4, "lan command", 'expected framework="on"'),
            ],
        ),
        (
            "<cluster><lans>\n"
            + lan(
                nodes='<node name="n1" addr="h"/>\n<node name="n1" addr="10.0.0.2"/>\n<node name="n2" addr="H"/>\n'
                '<node name="n3" addr="10.0.0.3"\n laddr="name"/>'
            )
            + "</lans></cluster>",
            [
                (3, "node name", 'the node "n1" appears twice'),
                (4, "node addr", "H is also the address of n1"),
                (6, "node laddr", '"name" is not an IP address'),
            ],
        ),
        (
            '<cluster><lans port="0"\n slost_count="x">\n<lan><node name="a b" addr="1"/></lan></lans></cluster>',
            [
                (1, "lans port", "a port number from 1 to 65535"),
                (2, "lans slost_count", "a whole number of periods"),
                (3, "lan name", "the attribute 'name' is missing"),
                (3, "node name", '"a b" is not valid'),
            ],
        ),
    ],
)
def test_every_mistake_has_its_line(tmp_path: Path, text: str, expected: list[tuple[int, str, str]]) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    found = caught.value.findings
    assert [(f.line, f.element) for f in found] == [(line, element) for line, element, _ in expected]
    for finding, (_, _, part) in zip(found, expected, strict=True):
        assert part in finding.message


def test_this_server_is_found_by_its_addresses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SAFENODE", raising=False)
    monkeypatch.setenv("SAFEVAR", str(tmp_path))
    config = load(tmp_path, TWO_LANS)
    assert local_node(config, ["192.168.1.68"]) == "node2"
    assert local_node(config, ["172.16.0.1", "10.0.0.1"]) == "node1"
    assert local_node(config, ["fd00:0:0::2"]) == "node2", "the local address behind a NAT, in another spelling"
    with pytest.raises(ClusterError, match="several nodes"):
        local_node(config, ["192.168.1.67", "192.168.1.68"])
    with pytest.raises(ClusterError, match="nodename"):
        local_node(config, ["10.0.0.2"])  # the outer address of a node behind a NAT is not on it
    (tmp_path / "nodename").write_text("node3\n")
    assert local_node(config, ["172.16.0.1"]) == "node3"
    assert local_node(config, ["192.168.1.67"]) == "node1", "addresses speak before the file"
    monkeypatch.setenv("SAFENODE", "node2")
    assert local_node(config, []) == "node2"
    monkeypatch.setenv("SAFENODE", "other")
    with pytest.raises(ClusterError, match="SAFENODE=other"):
        local_node(config, ["192.168.1.67"])


def test_names_are_looked_up_only_when_no_address_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SAFENODE", raising=False)
    monkeypatch.setenv("SAFEVAR", str(tmp_path))
    asked: list[str] = []

    def fake(address: str) -> tuple[str, ...]:
        asked.append(address)
        return ("10.5.0.1",) if address == "host1" else ()

    monkeypatch.setattr(model, "resolve", fake)
    text = lan(nodes='<node name="n1" addr="host1"/><node name="n2" addr="10.5.0.2"/>')
    config = load(tmp_path, f"<cluster><lans>{text}</lans></cluster>")
    assert local_node(config, ["10.5.0.2"]) == "n2" and asked == []
    assert local_node(config, ["10.5.0.1"]) == "n1" and asked == ["host1"]


def test_application_writes_key_files_and_node_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAFEVAR", str(tmp_path / "var"))
    monkeypatch.setenv("SAFENODE", "node1")
    source = tmp_path / "new.xml"
    source.write_text(TWO_LANS)
    config, _ = model.apply_cluster(source)
    directory = tmp_path / "var" / "cluster"
    key = (directory / "cluster.key").read_text().strip()
    assert model.valid_key(key) and len(bytes.fromhex(key)) == 32
    assert (directory / "cluster.key").stat().st_mode & 0o777 == 0o640
    assert (directory / "cluster.xml").read_text() == TWO_LANS and model.load_cluster() == config
    assert (tmp_path / "var" / "nodename").read_text() == "node1\n"
    assert model.apply_cluster(source)[0].signature == config.signature
    assert (directory / "cluster.key").read_text().strip() != key, "a new key each time"
    model.apply_cluster(source, key=key)
    assert (directory / "cluster.key").read_text().strip() == key

    before = {p.name: p.read_bytes() for p in directory.iterdir()}
    source.write_text("<cluster/>")
    with pytest.raises(ConfigError):
        model.apply_cluster(source)
    source.write_text(TWO_LANS.replace("node1", "nodeX"))
    with pytest.raises(ClusterError):
        model.apply_cluster(source)
    assert before == {p.name: p.read_bytes() for p in directory.iterdir()}

    model.deconfigure_cluster()
    with pytest.raises(ClusterError, match="safekit cluster config"):
        model.load_cluster()
