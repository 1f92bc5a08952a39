"""The templates for Azure and GCP against the providers' own descriptions of their resources, as far as a registry has
them: the models of Microsoft's management libraries (made from Azure's specifications, one API version each), and the
types of the Terraform provider google. bin/setup fetches both into .cache/schemas; nothing of them is imported or run.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

Path_ = tuple[str, ...]


@dataclass(frozen=True)
class Field:
    """What may stand at one place of an object. `type` as its source writes it; `values` of an enumeration."""

    type: str
    required: bool = False
    readonly: bool = False
    values: frozenset[str] = frozenset()
    minimum: float = float("-inf")
    maximum: float = float("inf")


@dataclass(frozen=True)
class Shape:
    """A class of objects: places, which in Azure's models may be several names deep."""

    fields: Mapping[Path_, Field] = field(default_factory=dict)


# Azure


_AZURE_CLASSES = {
    "Microsoft.Network/networkSecurityGroups": "NetworkSecurityGroup",
    "Microsoft.Network/virtualNetworks": "VirtualNetwork",
    "Microsoft.Network/publicIPAddresses": "PublicIPAddress",
    "Microsoft.Network/loadBalancers": "LoadBalancer",
    "Microsoft.Network/networkInterfaces": "NetworkInterface",
    "Microsoft.Compute/virtualMachines": "VirtualMachine",
}
_OF_THE_TEMPLATE = {"type", "apiVersion", "name", "dependsOn", "copy", "condition", "comments"}
"""Keys of a resource that the language of templates has, whatever the resource is."""


@cache
def azure_shapes(models: Path) -> Mapping[str, Shape]:
    """Classes of the file of models, by name."""
    enums: dict[str, frozenset[str]] = {}
    for path in models.parent.glob("*enums.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef):
                enums[node.name] = frozenset(
                    str(s.value.value)
                    for s in node.body
                    if isinstance(s, ast.Assign) and isinstance(s.value, ast.Constant)
                )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # escapes in texts that are not ours
        nodes = [node for node in ast.parse(models.read_text()).body if isinstance(node, ast.ClassDef)]
    return {node.name: _azure_shape(node, enums) for node in nodes}


def _azure_shape(node: ast.ClassDef, enums: Mapping[str, frozenset[str]]) -> Shape:
    tables: dict[str, Any] = {"_attribute_map": {}, "_validation": {}}
    kinds: dict[str, str] = {}
    for part in node.body:
        if isinstance(part, ast.Assign) and isinstance(part.targets[0], ast.Name) and part.targets[0].id in tables:
            tables[part.targets[0].id] = ast.literal_eval(part.value)
        elif isinstance(part, ast.FunctionDef) and part.name == "__init__":
            arguments = (a for a in part.args.kwonlyargs if a.annotation)
            kinds = {a.arg: ast.unparse(a.annotation) for a in arguments if a.annotation}
    fields = {}
    for name, told in tables["_attribute_map"].items():
        rule = tables["_validation"].get(name, {})
        named = re.search(r"_models\.(\w+)", kinds.get(name, ""))
        fields[tuple(re.split(r"(?<!\\)\.", told["key"]))] = Field(
            told["type"],
            rule.get("required", False),
            rule.get("readonly", False),
            enums.get(named[1], frozenset()) if named else frozenset(),
            rule.get("minimum", float("-inf")),
            rule.get("maximum", float("inf")),
        )
    return Shape(fields)


def azure_problems(template: Mapping[str, Any], schemas: Path) -> Iterator[str]:
    """What Azure's descriptions say against the resources of a template."""
    for resource in template["resources"]:
        kind, version = resource["type"], resource["apiVersion"]
        models = schemas / f"{kind.partition('/')[0]}-{version}" / "models.py"
        if kind not in _AZURE_CLASSES or not models.exists():
            yield f"{kind}: no description of its version {version}"
            continue
        shapes = azure_shapes(models)
        own = {key: value for key, value in resource.items() if key not in _OF_THE_TEMPLATE}
        yield from _azure_object(own, shapes[_AZURE_CLASSES[kind]], shapes, kind)


def _is_expression(value: Any) -> bool:
    return isinstance(value, str) and value.startswith("[") and not value.startswith("[[")


def _azure_object(value: Any, shape: Shape, shapes: Mapping[str, Shape], where: str) -> Iterator[str]:
    if not isinstance(value, dict):
        yield f"{where}: {value!r} is no object"
        return
    seen: set[Path_] = set()
    places: list[tuple[Path_, Any]] = [((key,), inner) for key, inner in value.items()]
    while places:
        path, inner = places.pop()
        place = f"{where}.{'.'.join(path)}"
        if path in shape.fields:
            seen.add(path)
            yield from _azure_field(inner, shape.fields[path], shapes, place)
        elif isinstance(inner, dict) and any(known[: len(path)] == path for known in shape.fields):
            places += [((*path, key), deeper) for key, deeper in inner.items()]
        else:
            yield f"{place}: there is nothing of that name"
    for path, known in shape.fields.items():
        if known.required and not known.readonly and path not in seen:
            yield f"{where}.{'.'.join(path)}: is missing"


def _azure_field(value: Any, known: Field, shapes: Mapping[str, Shape], where: str) -> Iterator[str]:
    if known.readonly and not where.endswith(".name"):
        yield f"{where}: is told by Azure and cannot be set"
    if _is_expression(value):
        return
    kind = known.type
    if kind.startswith("["):
        if not isinstance(value, list):
            yield f"{where}: {value!r} is no list"
            return
        for number, inner in enumerate(value):
            item = Field(kind[1:-1], values=known.values)
            yield from _azure_field(inner, item, shapes, f"{where}[{number}]")
    elif kind in shapes:
        yield from _azure_object(value, shapes[kind], shapes, where)
    elif kind in ("str", "int", "bool"):
        if type(value) is not {"str": str, "int": int, "bool": bool}[kind]:
            yield f"{where}: {value!r} is no {kind}"
        elif known.values and value not in known.values:
            yield f"{where}: {value!r} is none of {', '.join(sorted(known.values))}"
        elif kind == "int" and not known.minimum <= value <= known.maximum:
            yield f"{where}: {value} is out of range"
    else:
        yield f"{where}: the type {kind} is not known to this check"


# GCP, by the Terraform provider


_META = {"depends_on", "count", "for_each", "provider", "lifecycle", "provisioner", "connection"}
_INTERFACE = re.compile(r"^export interface (\w+)[^{]*\{\n(.*?)^\}", re.MULTILINE | re.DOTALL)
_MEMBER = re.compile(r"^\s+readonly (\w+)(\??): (.+);$", re.MULTILINE)
_ATTRIBUTE = re.compile(r"^    get (\w+)\(\)", re.MULTILINE)


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)


@cache
def google_shapes(file: Path) -> Mapping[str, Shape]:
    """Interfaces of the description of one resource, by name."""
    found = {}
    for name, body in _INTERFACE.findall(file.read_text()):
        members = _MEMBER.findall(re.sub(r"/\*.*?\*/", "", body, flags=re.DOTALL))
        found[name] = Shape({(member,): Field(kind, not optional) for member, optional, kind in members})
    return found


def _google_file(kind: str, schemas: Path) -> Path:
    return schemas / "google" / kind.removeprefix("google_").replace("_", "-") / "index.d.ts"


def google_problems(configuration: Mapping[str, Any], schemas: Path) -> Iterator[str]:
    """What the provider's types say against the resources of a configuration, and against what is read of them."""
    for kind, made in configuration["resource"].items():
        file = _google_file(kind, schemas)
        if not file.exists():
            yield f"{kind}: no description of it"
            continue
        shapes = google_shapes(file)
        top = shapes[
            f"{_camel(kind.removeprefix('google_'))[:1].upper()}{_camel(kind.removeprefix('google_'))[1:]}Config"
        ]
        for name, resource in made.items():
            own = {key: value for key, value in resource.items() if key not in _META}
            yield from _google_object(own, top, shapes, f"{kind}.{name}")
    for kind, attribute in re.findall(r"\$\{(google_\w+)\.\w+\.(\w+)", str(configuration)):
        file = _google_file(kind, schemas)
        if file.exists() and _camel(attribute) not in _ATTRIBUTE.findall(file.read_text()):
            yield f"{kind}: it tells no {attribute}"


def _google_object(value: Any, shape: Shape, shapes: Mapping[str, Shape], where: str) -> Iterator[str]:
    if not isinstance(value, dict):
        yield f"{where}: {value!r} is no block"
        return
    for key, inner in value.items():
        known = shape.fields.get((_camel(key),))
        if known is None:
            yield f"{where}.{key}: there is nothing of that name"
        else:
            yield from _google_field(inner, known.type.removesuffix(" | cdktf.IResolvable"), shapes, f"{where}.{key}")
    given = {_camel(key) for key in value}
    for (name,), known in shape.fields.items():
        if known.required and name not in given:
            yield f"{where}.{name}: is missing"


def _google_field(value: Any, kind: str, shapes: Mapping[str, Shape], where: str) -> Iterator[str]:
    if kind.endswith("[]"):
        # a block that may be repeated may stand alone (Terraform, JSON configuration syntax)
        items = value if isinstance(value, list) else [value]
        if not isinstance(value, list) and kind[:-2] not in shapes:
            yield f"{where}: {value!r} is no list"
        for number, inner in enumerate(items):
            yield from _google_field(inner, kind[:-2], shapes, f"{where}[{number}]")
    elif kind in shapes:
        yield from _google_object(value, shapes[kind], shapes, where)
    elif isinstance(value, str) and "${" in value:
        return
    elif kind in ("string", "number", "boolean"):
        wanted = {"string": str, "number": (int, float), "boolean": bool}[kind]
        if not isinstance(value, wanted) or (kind == "number" and isinstance(value, bool)):
            yield f"{where}: {value!r} is no {kind}"
    else:
        yield f"{where}: the type {kind} is not known to this check"
