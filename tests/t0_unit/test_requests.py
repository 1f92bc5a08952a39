"""Typed requests: what is declared, what goes over the wire, and what is refused before a handler sees it."""

from __future__ import annotations

import ast
import asyncio
import dataclasses
import importlib
import pkgutil
from dataclasses import dataclass
from typing import Any

import pytest

from safekit.bus import requests
from safekit.bus.asking import Ask, Document, Done, Service, answer_type, answered, name_of, request_fields
from safekit.bus.endpoint import BusError, Request
from safekit.bus.requests import errd, heart, splitbraincheck
from safekit.bus.requests.safeadmin import modules
from tests.sources import nodes, sources


def declared() -> list[type[Ask[Any]]]:
    """Every request of every process."""
    found: list[type[Ask[Any]]] = []
    for module in pkgutil.walk_packages(requests.__path__, "safekit.bus.requests."):
        for value in vars(importlib.import_module(module.name)).values():
            if isinstance(value, type) and issubclass(value, Ask) and value is not Ask:
                # a process may have several modules, so that who needs one class of many makes only that
                assert value.process == module.name.split(".")[3].partition("_")[0], value
                found.append(value)
    return found


def test_every_request_says_whom_it_asks_and_what_is_answered() -> None:
    known = declared()
    assert len(known) > 30
    words = [(kind.process, kind.op) for kind in known]
    assert len(set(words)) == len(words), "two requests of a process with one word"
    for kind in known:
        assert dataclasses.is_dataclass(kind) and kind.__doc__ and not kind.__doc__.startswith(kind.__name__ + "("), (
            kind
        )
        answer = answer_type(kind)
        assert answer == Document or dataclasses.is_dataclass(answer), kind


def test_state_makes_few_requests_that_it_does_not_send() -> None:
    """Each class that is made costs it half a millisecond; a monitor asks it again and again."""
    imported = {
        node.module
        for node in nodes(sources()["cli.state"].tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(requests.__name__)
    }
    made = {
        name: sum(dataclasses.is_dataclass(c) for c in vars(importlib.import_module(name)).values())
        for name in imported
    }
    assert made and all(count <= 8 for count in made.values()), made


def test_what_goes_over_the_wire() -> None:
    kill = errd.Kill("vi", "9", "root")
    assert request_fields(kill) == {"name": "vi", "level": "9", "who": "root", "argregex": "", "caller": 0}
    order = request_fields(modules.Control("am", "failover", "root", args=("off",)))
    assert (order["action"], order["nosync"], order["args"]) == ("failover", False, ["off"])
    assert name_of("am", heart.GetStatus()) == "am/heart"
    assert name_of("am", modules.GetState()) == "safeadmin"
    assert name_of("am", splitbraincheck.Isolated(), "witness") == "am/splitbraincheck.witness"


def test_an_answer_that_cannot_be_read_is_told() -> None:
    asked = errd.Kill("vi", "test", "root")
    reply = {"re": 7, "ok": True, "count": 1, "foreign": 0, "lines": ["1 vi"], "newer": "passed over"}
    assert answered(asked, reply) == errd.Killed(1, 0, ("1 vi",))
    with pytest.raises(BusError, match="errd answered 'kill' with what cannot be read: count"):
        answered(asked, {**reply, "count": "many"})
    assert answered(heart.GetStatus(), {"re": 7, "ok": True, "state": "PRIM"}) == {"state": "PRIM"}


@dataclass(frozen=True, slots=True)
class Divide(Ask[Done]):
    """For this test."""

    process = "test"
    op = "divide"
    by: int
    label: str = ""


@pytest.mark.parametrize(
    ("op", "fields", "code", "text"),
    [
        ("multiply", {}, "unknown_op", "test does not serve 'multiply'"),
        ("", {}, "unknown_op", "test does not serve ''"),
        ("divide", {}, "bad_request", "divide"),
        ("divide", {"by": "2"}, "bad_request", "by: '2' where int was expected"),
        ("divide", {"by": 2, "label": None}, "bad_request", "label: None where str was expected"),
        ("divide", {"by": 2, "label": ["x"]}, "bad_request", "label"),
        ("divide", {"by": 0}, "no", "not today"),
        ("divide", {"by": 2, "newer": 1, "_port": 7}, "", ""),
    ],
)
def test_what_does_not_fit_is_refused_in_one_place(op: str, fields: dict[str, Any], code: str, text: str) -> None:
    served = []

    async def divide(ask: Divide) -> None:
        if not ask.by:
            raise BusError("no", "not today")
        served.append(ask)

    service = Service("test", [(Divide, divide)])
    if not code:
        assert asyncio.run(service.handle(Request(op, "me", fields))) == {} and served == [Divide(2)]
        return
    with pytest.raises(BusError, match=text) as caught:
        asyncio.run(service.handle(Request(op, "me", fields)))
    assert caught.value.code == code and not served


def test_a_process_serves_its_own_requests_once() -> None:
    async def nothing(_: Any) -> None: ...

    with pytest.raises(TypeError, match="cannot serve"):
        Service("heart", [(Divide, nothing)])
    with pytest.raises(TypeError, match="cannot serve"):
        Service("test", [(Divide, nothing), (Divide, nothing)])
