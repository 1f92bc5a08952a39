"""Trees to JSON and back."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import types
import typing
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safekit.model import ports
from safekit.model.codec import CodecError, from_data, from_json, to_data, to_json
from safekit.model.types import ClusterConfig, Heart, Lan, ModuleConfig, Rfs

_TEXT = st.text(max_size=8)


def strategy(kind: Any) -> st.SearchStrategy[Any]:
    """Values of any type that a configuration tree may hold."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        return st.builds(typing.cast(Any, kind), **{f.name: strategy(hints[f.name]) for f in dataclasses.fields(kind)})
    if origin is typing.Literal:
        return st.sampled_from(arguments)
    if origin is tuple and arguments[-1] is Ellipsis:
        return st.lists(strategy(arguments[0]), max_size=2).map(tuple)
    if origin is tuple:
        return st.tuples(*map(strategy, arguments))
    if origin is types.UnionType:
        return st.one_of(*map(strategy, arguments))
    simple: dict[Any, st.SearchStrategy[Any]] = {
        str: _TEXT,
        int: st.integers(-(2**53), 2**53),
        float: st.floats(allow_nan=False, allow_infinity=False),
        bool: st.booleans(),
        type(None): st.none(),
    }
    return simple[kind]


@settings(max_examples=40, deadline=None)
@given(strategy(ModuleConfig))
def test_module_round_trip(config: ModuleConfig) -> None:
    assert from_json(ModuleConfig, to_json(config)) == config
    assert to_data(from_json(ModuleConfig, to_json(config, indent=1))) == to_data(config)


@settings(max_examples=20, deadline=None)
@given(strategy(ClusterConfig))
def test_cluster_round_trip(config: ClusterConfig) -> None:
    assert from_json(ClusterConfig, to_json(config)) == config


@settings(max_examples=60, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | _TEXT,
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["name", "id", "service", "rfs", "heart", "x"]), inner, max_size=4)
        ),
        max_leaves=12,
    )
)
def test_foreign_data_is_a_tree_or_a_codec_error(data: Any) -> None:
    try:
        config = from_data(ModuleConfig, data)
    except CodecError:
        return
    assert isinstance(config, ModuleConfig)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[]", "an object"),
        ('{"name": "a"}', "id"),
        ('{"name": "a", "id": 1, "colour": 2}', "unknown key 'colour'"),
        ('{"name": "a", "id": true}', "id: True where int"),
        ('{"name": "a", "id": 1, "service": {"mode": "shared"}}', "service.mode: 'shared'"),
        ('{"name": "a", "id": 1, "rfs": {"replicated": [{"dir": 3}]}}', "rfs.replicated[0].dir: 3"),
        ('{"name": "a", "id": 1, "user": {"vars": [["A"]]}}', "user.vars[0]: ['A'] where a list of 2"),
    ],
)
def test_errors_name_the_place(text: str, part: str) -> None:
    with pytest.raises(CodecError) as caught:
        from_json(ModuleConfig, text)
    assert part in str(caught.value)


def test_missing_keys_take_defaults() -> None:
    config = from_json(ModuleConfig, '{"name": "a", "id": 1, "rfs": {}}')
    assert config.rfs == Rfs() and config.heart is None and config.service.maxloop == 3


def test_values_cannot_be_changed() -> None:
    for value in (ModuleConfig("a", 1), ClusterConfig(), Heart()):
        field = dataclasses.fields(value)[0].name
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(value, field, None)


def test_reading_a_configuration_needs_no_third_party_import() -> None:
    code = (
        "import sys; from safekit.model.codec import from_json; from safekit.model.types import ModuleConfig; "
        'from_json(ModuleConfig, \'{"name": "a", "id": 1}\'); '
        "print([m for m in ('lxml', 'asyncio', 'msgpack', 'click', 'cryptography') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout.strip() == "[]"


def test_documented_ports() -> None:
    assert [ports.heart_port(n) for n in (1, 2, 7)] == [8888, 8889, 8894]
    assert [ports.rfs_port(n) for n in (1, 2, 7)] == [5600, 5604, 5624]
    assert [ports.farm_port(n) for n in (1, 2, 7)] == [4803, 4806, 4821]
    for number in (0, ports.MAX_MODULE_ID + 1):
        with pytest.raises(ValueError, match="outside"):
            ports.heart_port(number)
    assert ports.farm_port(ports.MAX_MODULE_ID) + 2 < ports.rfs_port(1)


def test_default_ports_and_counts_of_the_cluster() -> None:
    cluster = ClusterConfig(lans=(Lan("default"),))
    assert (cluster.port, cluster.pulse_ms, cluster.mlost_count, cluster.slost_count) == (4800, 1000, 5, 5)
    assert cluster.command_lan == cluster.lans[0]


def test_what_a_newer_release_added_is_passed_over_where_that_is_asked_for() -> None:
    import json

    from safeadmin.facts import ModuleFacts, NodeFacts

    facts = NodeFacts("s", "d", False, (ModuleFacts("m", 1, "mirror", "", "", False),))
    data = json.loads(to_json(facts))
    data["new"], data["modules"][0]["newer"] = 1, {"a": []}
    assert from_json(NodeFacts, json.dumps(data), lenient=True) == facts
    with pytest.raises(CodecError, match="unknown key"):
        from_json(NodeFacts, json.dumps(data))
    del data["modules"][0]["id"]
    with pytest.raises(CodecError):
        from_json(NodeFacts, json.dumps(data), lenient=True)
