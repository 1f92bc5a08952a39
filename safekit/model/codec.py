"""Configuration trees to JSON and back, with the standard library alone.

Processes read `active.json` and `cluster.json` through this module at start, so it must
import fast and must not trust the file: a value of the wrong type raises CodecError with
the path of the value (`rfs.replicated[0].dir`). Unknown keys are refused, missing keys
take the default of the dataclass, so that a newer release reads an older file.
"""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from typing import Any, TypeVar

T = TypeVar("T")


class CodecError(ValueError):
    """The JSON text does not describe the wanted tree."""


def to_data(value: Any) -> Any:
    """The tree as dicts, lists and scalars."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_data(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): to_data(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [to_data(item) for item in value]
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    raise CodecError(f"a {type(value).__name__} cannot be written as configuration")


def to_json(value: Any, *, indent: int | None = None) -> str:
    """JSON text of a dataclass tree, keys in the order of the fields."""
    import json  # requests on the bus need the rest of this module only, and their start must be short

    return json.dumps(to_data(value), indent=indent, ensure_ascii=False, allow_nan=False)


def from_json(kind: type[T], text: str | bytes, *, lenient: bool = False) -> T:
    """The tree of type `kind` that `text` describes; `lenient` passes over what a newer release added.

    Raises CodecError.
    """
    import json

    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CodecError(f"not valid JSON: {error}") from error
    return from_data(kind, data, lenient=lenient)


def from_data(kind: type[T], data: Any, *, lenient: bool = False) -> T:
    """The tree of type `kind` from dicts, lists and scalars. Raises CodecError."""
    return typing.cast(T, _decode(kind, data, "", lenient))


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _decode(kind: Any, data: Any, path: str, lenient: bool) -> Any:
    if kind is Any:
        return data
    if dataclasses.is_dataclass(kind):
        return _decode_dataclass(typing.cast(type, kind), data, path, lenient)
    origin = typing.get_origin(kind)
    if origin is typing.Literal:
        for choice in typing.get_args(kind):
            if data == choice and type(data) is type(choice):
                return choice
        raise _wrong(path, data, " or ".join(map(repr, typing.get_args(kind))))
    if origin is dict:
        if not isinstance(data, dict):
            raise _wrong(path, data, "an object")
        item_kind = typing.get_args(kind)[1]
        return {str(key): _decode(item_kind, item, f"{path}[{key!r}]", lenient) for key, item in data.items()}
    if origin is tuple:
        return _decode_tuple(typing.get_args(kind), data, path, lenient)
    if origin in (types.UnionType, typing.Union):
        if data is None:
            if type(None) in typing.get_args(kind):
                return None
            raise _wrong(path, data, str(kind))
        (inner,) = (arg for arg in typing.get_args(kind) if arg is not type(None))
        return _decode(inner, data, path, lenient)
    if kind is float and type(data) is int:
        return float(data)
    if type(data) is kind:
        return data
    raise _wrong(path, data, getattr(kind, "__name__", str(kind)))


def _decode_dataclass(kind: type, data: Any, path: str, lenient: bool) -> Any:
    if not isinstance(data, dict):
        raise _wrong(path, data, f"an object ({kind.__name__})")
    hints = _hints(kind)
    unknown = [key for key in data if key not in hints]
    if unknown and not lenient:
        raise CodecError(f"{path or kind.__name__}: unknown key {unknown[0]!r}")
    known = ((key, item) for key, item in data.items() if key in hints)
    values = {key: _decode(hints[key], item, f"{path}.{key}" if path else key, lenient) for key, item in known}
    try:
        return kind(**values)
    except TypeError as error:
        raise CodecError(f"{path or kind.__name__}: {error}") from error


def _decode_tuple(kinds: tuple[Any, ...], data: Any, path: str, lenient: bool) -> tuple[Any, ...]:
    if not isinstance(data, list):
        raise _wrong(path, data, "a list")
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        return tuple(_decode(kinds[0], item, f"{path}[{n}]", lenient) for n, item in enumerate(data))
    if len(kinds) != len(data):
        raise _wrong(path, data, f"a list of {len(kinds)}")
    pairs = enumerate(zip(kinds, data, strict=True))
    return tuple(_decode(kind, item, f"{path}[{n}]", lenient) for n, (kind, item) in pairs)


def _wrong(path: str, data: Any, expected: str) -> CodecError:
    shown = repr(data)
    if len(shown) > 80:
        shown = shown[:77] + "..."
    return CodecError(f"{path or 'document'}: {shown} where {expected} was expected")
