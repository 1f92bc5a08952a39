"""The words of `safekit cluster create` and the cluster.xml that they become."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli.base import Failure
from cli.clustercreate import cluster_xml, parse_nodes
from safekit.model.cluster import load_cluster_xml


def test_each_address_of_a_server_is_a_network(tmp_path: Path) -> None:
    nodes = parse_nodes(["node1=10.0.0.1,10.1.0.1", "node2=10.0.0.2,10.1.0.2"])
    path = tmp_path / "cluster.xml"
    path.write_text(cluster_xml(nodes, ("default", "repli")))
    config, findings = load_cluster_xml(path)
    assert not findings
    assert config.node_names == ("node1", "node2")
    assert [(lan.name, [node.addr for node in lan.nodes]) for lan in config.lans] == [
        ("default", ["10.0.0.1", "10.0.0.2"]), ("repli", ["10.1.0.1", "10.1.0.2"]),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "cause"),
    [
        (["node1=10.0.0.1"], "at least two servers"),
        (["node1", "node2=10.0.0.2"], "is not NODE=ADDRESS"),
        (["node1=10.0.0.1,", "node2=10.0.0.2"], "is not NODE=ADDRESS"),
        (["node1=10.0.0.1", "node1=10.0.0.2"], "named twice"),
        (["node1=10.0.0.1,10.1.0.1", "node2=10.0.0.2"], "an address on each network"),
    ],
)
def test_a_line_that_makes_no_sense_is_told_with_one_that_does(words: list[str], cause: str) -> None:
    with pytest.raises(Failure, match=cause) as caught:
        parse_nodes(words)
    assert caught.value.next_step.startswith("safekit cluster create ")
