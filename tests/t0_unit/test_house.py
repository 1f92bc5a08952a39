"""The laws of the house (docs/architecture.md), checked on the sources: who may import whom, and what stays pure."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from tests.sources import CHECKOUT, FOLDERS, Source, nodes, sources

SHARED = "safekit"

EXCEPTIONS = {
    ("safewebserver.forks", "cli"): "commands that only read run in forks of a process that has imported them",
    ("cli.uninstall", "installation"): "the command is the door to the uninstaller, which a package calls too",
    ("lab.image", "installation"): "a node of a lab is installed as a server is",
    ("lab.init", "installation"): "the interpreter of a node's tools is the one that the installer chooses",
    ("lab.demo.watch", "installation"): "the demonstration's client runs with the interpreter of the product",
}
"""Imports of a module from a folder beside its own. docs/architecture.md names them; every other one is refused."""

IMPURE = frozenset(
    """
    os time socket asyncio threading select selectors subprocess signal multiprocessing concurrent fcntl ctypes
    pathlib shutil tempfile random secrets pyroute2
    """.split()  # noqa: SIM905 - a table to read
)
CORES = ("heart.core", "vipd.farm.core", "safekit.wire.membership", "safekit.rfs.generations")
"""Besides every module that says of itself, in its docstring, that it is pure."""

LABEL = re.compile(r"\b[MRF]\d{1,2}\b")


@dataclass(frozen=True)
class Import:
    """Module `importer` imports `imported`, a module of ours or the name of another package."""

    importer: str
    imported: str
    line: int


@cache
def imports() -> tuple[Import, ...]:
    """Every import, wherever it stands: in a function, for type checkers only, by a name put together at run time."""
    return tuple(each for source in sources().values() for each in _imports_of(source))


def _imports_of(source: Source) -> Iterator[Import]:
    for node in nodes(source.tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(source.name, alias.name, node.lineno)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = source.package.split(".")[: source.package.count(".") + 2 - node.level]
                base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                full = f"{base}.{alias.name}"
                yield Import(source.name, full if full in sources() else base, node.lineno)
        elif isinstance(node, ast.Call) and _called(node).endswith(("import_module", "__import__")):
            name = node.args[0]
            first = name.values[0] if isinstance(name, ast.JoinedStr) else name
            assert isinstance(first, ast.Constant), f"{source.path}:{node.lineno}: nobody can tell what this imports"
            yield Import(source.name, str(first.value).rstrip("."), node.lineno)


def _called(call: ast.Call) -> str:
    """The name, or the last one of a dotted name, of what is called."""
    match call.func:
        case ast.Name(name) | ast.Attribute(_, name):
            return name
    return ""


def folder_of(module: str) -> str:
    return module.partition(".")[0]


def told(each: Import) -> str:
    return f"{sources()[each.importer].path.relative_to(CHECKOUT)}:{each.line} imports {each.imported}"


# Who imports whom


def test_a_folder_imports_what_all_share_and_nothing_beside_it() -> None:
    used, refused = set(), []
    for each in imports():
        here, there = folder_of(each.importer), folder_of(each.imported)
        if here == there or there == SHARED or there not in FOLDERS:
            continue
        if (each.importer, there) in EXCEPTIONS:
            used.add((each.importer, there))
        else:
            refused.append(told(each))
    assert not refused, "what two processes agree on belongs in safekit/:\n" + "\n".join(refused)
    assert used == set(EXCEPTIONS), "an exception that nobody needs any more"


def test_what_all_share_imports_none_of_the_folders_above_it() -> None:
    above = set(FOLDERS) - {SHARED}
    found = [told(e) for e in imports() if folder_of(e.importer) == SHARED and folder_of(e.imported) in above]
    assert not found, "\n".join(found)


def test_the_exceptions_are_written_down() -> None:
    page = (CHECKOUT / "docs/architecture.md").read_text(encoding="utf-8")
    for importer, folder in EXCEPTIONS:
        path = sources()[importer].path.relative_to(CHECKOUT)
        assert f"`{path}`" in page and f"`{folder}/`" in page, path


def test_no_import_runs_in_a_circle() -> None:
    """Imports within functions and for type checkers count too: parts that know each other are one part."""
    known: dict[str, set[str]] = defaultdict(set)
    for each in imports():
        for name in _with_packages(each.imported):
            if name in sources() and name != each.importer:
                known[each.importer].add(name)
    for circle in circles(known):
        raise AssertionError(" -> ".join([*circle, circle[0]]))


def _with_packages(module: str) -> Iterator[str]:
    """A module, and the packages whose `__init__` is run to import it (unless that is the importer's own)."""
    parts = module.split(".")
    for count in range(1, len(parts) + 1):
        yield ".".join(parts[:count])


def circles(graph: dict[str, set[str]]) -> Iterator[list[str]]:
    """One path round each circle that a search in depth meets."""
    done: set[str] = set()

    def search(node: str, way: list[str]) -> Iterator[list[str]]:
        if node in way:
            yield way[way.index(node) :]
        elif node not in done:
            for following in sorted(graph.get(node, ())):
                yield from search(following, [*way, node])
            done.add(node)

    for start in sorted(graph):
        yield from search(start, [])


def test_the_search_finds_a_circle() -> None:
    assert list(circles({"a": {"b"}, "b": {"c", "d"}, "c": {"b"}, "d": set()})) == [["b", "c"]]
    assert list(circles({"a": {"b", "c"}, "b": {"c"}, "c": set()})) == []


# What stays pure


def pure_modules() -> list[str]:
    return [
        name
        for name, source in sources().items()
        if any(name == core or name.startswith(f"{core}.") for core in CORES)
        or re.search(r"\bPure[.:]", ast.get_docstring(source.tree) or "")
    ]


def reached(start: str) -> dict[str, str]:
    """Every module that importing `start` loads -> who imports it; annotations alone load nothing."""
    found = {start: ""}
    waiting = [start]
    while waiting:
        importer = waiting.pop()
        for each in _loaded_by(importer):
            if each not in found:
                found[each] = importer
                if each in sources():
                    waiting.append(each)
    return found


@cache
def _loaded_by(importer: str) -> frozenset[str]:
    source = sources()[importer]
    lines = _lines_for_type_checkers(source.tree)
    return frozenset(each.imported for each in _imports_of(source) if each.line not in lines)


def _lines_for_type_checkers(tree: ast.Module) -> set[int]:
    blocks = (node for node in nodes(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
    return {line for block in blocks for line in range(block.lineno, (block.end_lineno or 0) + 1)}


def test_a_pure_part_reaches_no_clock_file_socket_or_thread() -> None:
    """Nor does anything that it imports: only so can a simulation run it, and a seed bring a failure back."""
    found = [
        f"{module} reaches {name}, imported by {importer}"
        for module in pure_modules()
        for name, importer in reached(module).items()
        if folder_of(name) in IMPURE
    ]
    assert not found, "\n".join(found)


def test_every_core_is_there() -> None:
    for core in CORES:
        assert any(name == core or name.startswith(f"{core}.") for name in pure_modules()), core


# What can fail where nothing may be lost


STEPS = "safekit.disk.steps"
RECORDING = (
    "nfsbox.fs.base",
    "nfsbox.fs.changes",
    "nfsbox.fs.content",
    "nfsbox.fs.former",
    "nfsbox.fs.names",
    "nfsbox.fs.operations",
    "nfsbox.pair.apply",
    "nfsbox.pair.commit",
    "nfsbox.pair.engine",
    "nfsbox.pair.files",
    "nfsbox.pair.hidden",
    "nfsbox.pair.secondary",
    "nfsbox.pair.tracking",
    "safekit.disk.files",
    "safekit.rfs.system",
    "safekit.rfs.tree",
)
"""Where changes are recorded, applied here and applied by the secondary."""
CANNOT_FAIL = frozenset(
    """
    close fstat fsencode fsdecode strerror getpid getuid getgid major minor path stat_result statvfs_result
    """.split()  # noqa: SIM905 - a table to read
)
"""Of `os`: what asks no disk. Names in capitals are numbers."""


def unlabelled(tree: ast.Module) -> Iterator[ast.Call | ast.ImportFrom]:
    """System calls that no test can make fail alone."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            raw = name.startswith("os.") and not name.startswith("os.path.") and name[3:] not in CANNOT_FAIL
            if raw or name == "open" or name.endswith((".read_bytes", ".write_bytes", ".unlink", ".rename")):
                tree_of_ours = name.split(".")[-2:-1] == ["tree"]
                if not tree_of_ours:
                    yield node
        elif isinstance(node, ast.ImportFrom) and node.module in ("os", "safekit.syscalls", STEPS):
            yield node  # a test replaces it in its module, for whoever looks there


@pytest.mark.parametrize("module", RECORDING)
def test_what_records_and_applies_fails_by_label(module: str) -> None:
    source = sources()[module]
    path = source.path.relative_to(CHECKOUT)
    found = [f"{path}:{node.lineno} {ast.unparse(node)}" for node in unlabelled(source.tree)]
    assert not found, "a system call without a label (safekit/disk/steps.py):\n" + "\n".join(found)


def test_the_search_finds_a_call_without_a_label() -> None:
    text = "os.pwrite(1, b'', 0)\nos.close(1)\nsteps.x(1)\nopen('x')\nself.tree.unlink(b'x')\nfrom os import pwrite"
    assert sorted(node.lineno for node in unlabelled(ast.parse(text))) == [1, 4, 6]


def test_every_label_is_used() -> None:
    labels = {
        target.id if isinstance(target, ast.Name) else ""
        for node in sources()[STEPS].tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
    } | {node.name for node in sources()[STEPS].tree.body if isinstance(node, ast.FunctionDef)}
    used = {
        node.attr
        for module in RECORDING
        for node in nodes(sources()[module].tree)
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "steps"
    }
    assert labels == used and len(labels) > 50


# What runs beside


def test_what_nobody_awaits_is_kept_and_told_in_one_place() -> None:
    """A task that is only kept in a set of one's own ends with its defect unheard, until the collector comes by."""
    found = [
        f"{source.path.relative_to(CHECKOUT)}:{node.lineno}"
        for name, source in sources().items()
        for node in nodes(source.tree)
        if name != "safekit.process.tasks"
        and isinstance(node, ast.Call)
        and ast.unparse(node.func).endswith("add_done_callback")
        and ast.unparse(node.args[0]).endswith((".discard", ".remove"))
    ]
    assert not found, "safekit.process.tasks.Beside is for that: " + ", ".join(found)


# What is bound by hand


BY_HAND = {
    "safekit.syscalls": "the system calls that Python has no name for, each once",
    "nfsbox.fs.libfuse": "libfuse, and the memory in which a mount reads requests of the kernel",
    "nfsbox.fs.callbacks": "the memory in which libfuse gives and takes what a callback is about",
    "vipd.farm.nft": "libnftables",
    "lab.kernel": "the calls that make namespaces and overlays, which no process of the product needs",
    "lab.chaos.programs.application": "a stranger to the product that runs on a node: it imports nothing of ours",
    "lab.chaos.programs.server": "the same",
}
"""Modules that call what is not Python. Whatever a system call does, it has one binding with one way to fail."""


def test_system_calls_are_bound_in_one_place() -> None:
    found = {each.importer for each in imports() if folder_of(each.imported) in ("ctypes", "cffi")}
    assert found == set(BY_HAND), "safekit/syscalls.py is the place for a system call"


# Who asks whom


BUS = "safekit.bus"


def outside_the_bus() -> Iterator[Source]:
    return (source for name, source in sources().items() if not f"{name}.".startswith(f"{BUS}."))


def test_nobody_sends_a_request_by_bare_words() -> None:
    """What a process may be asked is declared in `safekit.bus.requests`, where both sides read it."""
    found = [
        f"{source.path.relative_to(CHECKOUT)}:{node.lineno}"
        for source in outside_the_bus()
        for node in nodes(source.tree)
        if (isinstance(node, ast.Attribute) and node.attr.startswith("by_word"))
        or (isinstance(node, ast.ImportFrom) and any(each.name.startswith("by_word") for each in node.names))
    ]
    assert not found, "a request without a declaration: " + ", ".join(found)
    assert {"by_word", "by_word_sync"} <= {
        node.name
        for name in (f"{BUS}.endpoint", f"{BUS}.message")
        for node in nodes(sources()[name].tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }, "the law does not know what sends words any more"


def words_of_a_request(tree: ast.Module) -> Iterator[ast.Attribute]:
    """Where a function looks into the request of the bus that it was given."""
    imported = [
        (each.name, each.asname or each.name)
        for node in nodes(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(BUS)
        for each in node.names
    ]
    known = {own if name == "Request" else f"{own}.Request" for name, own in imported}
    for node in nodes(tree) if known else ():
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        arguments = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
        named = {a.arg for a in arguments if a.annotation is not None and ast.unparse(a.annotation) in known}
        for inner in ast.walk(node) if named else ():
            if isinstance(inner, ast.Attribute) and isinstance(inner.value, ast.Name) and inner.value.id in named:
                yield inner


def test_a_word_becomes_a_request_in_one_place() -> None:
    """`safekit.bus.asking.Service`, which refuses an unknown one; others pass a request of the bus on whole."""
    found = [
        f"{source.path.relative_to(CHECKOUT)}:{each.lineno} {ast.unparse(each)}"
        for source in outside_the_bus()
        for each in words_of_a_request(source.tree)
    ]
    assert not found, "\n".join(found)


def test_the_search_finds_a_handler_of_words() -> None:
    for how, what in (("endpoint import Request", "Request"), ("message import Request as R", "R")):
        text = f"from safekit.bus.{how}\nasync def f(r: {what}) -> None:\n    match r.op:\n        case _: ..."
        assert [ast.unparse(each) for each in words_of_a_request(ast.parse(text))] == ["r.op"]
    text = "from safekit.bus import endpoint\ndef f(r: endpoint.Request) -> bool:\n    return r.fields['x']"
    assert [ast.unparse(each) for each in words_of_a_request(ast.parse(text))] == ["r.fields"]
    asking = sources()[f"{BUS}.asking"].tree
    assert {ast.unparse(each) for each in words_of_a_request(asking)} == {"request.op", "request.fields"}


# What is said


# By their files: nothing is read while tests are only listed.
PACKAGES = sorted(
    ".".join(path.relative_to(CHECKOUT).parent.parts)
    for folder in FOLDERS
    for path in (CHECKOUT / folder).rglob("__init__.py")
)


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_says_what_it_is(package: str) -> None:
    """Not its name: the first sentence, without the words of its path, still says something."""
    path = CHECKOUT.joinpath(*package.split("."), "__init__.py")
    text = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n\n")[0]
    own = set(package.split("."))
    words = [word for word in re.findall(r"[\w.]+", text) if word.rstrip(".").lower() not in own]
    assert len(words) >= 6, f"{package}: {text!r}"
    assert not re.match(r"\W*(the\s+)?(package|module|code|files?)\b", text, re.IGNORECASE), text
    assert text[0].isupper(), f"{package} begins with its name: {text!r}"


def test_every_folder_has_a_place_on_the_page() -> None:
    page = (CHECKOUT / "docs/architecture.md").read_text(encoding="utf-8")
    rooms = {name.replace(".", "/") for name in PACKAGES if folder_of(name) == SHARED}
    for folder in (*FOLDERS, *sorted(rooms)):
        assert f"`{folder}/`" in page, f"docs/architecture.md does not say what {folder}/ is"


def test_every_file_that_the_documents_name_is_there() -> None:
    for document in (*CHECKOUT.glob("docs/*.md"), *CHECKOUT.glob("*.md")):
        text = document.read_text(encoding="utf-8")
        for named in re.findall(rf"`((?:{'|'.join(FOLDERS)}|tests|docs)/[\w./]*)`", text):
            assert (CHECKOUT / named).exists(), f"{document.name} names {named}"


def remarks(text: str) -> Iterator[tuple[int, str]]:
    """Comments and docstrings, with their lines."""
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.lineno, node.value.value


def laws() -> dict[str, list[str]]:
    """Label -> the other cells of its line in docs/invariants.md."""
    page = (CHECKOUT / "docs/invariants.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line[:2] == "| "]
    return {row[0]: row[1:] for row in rows if LABEL.fullmatch(row[0])}


def test_every_law_that_the_code_names_is_written_down() -> None:
    known = laws()
    assert len(known) > 20
    files: Iterable[Path] = (*(s.path for s in sources().values()), *sorted((CHECKOUT / "tests").rglob("*.py")))
    for path in files:
        text = path.read_text(encoding="utf-8")
        if set(LABEL.findall(text)) <= set(known):
            continue  # the common case: nothing to find, wherever the labels stand
        for line, remark in remarks(text):
            for label in LABEL.findall(remark):
                assert label in known, f"{path.relative_to(CHECKOUT)}:{line} names {label}, which no document explains"


def test_every_law_names_what_enforces_it_and_a_test_that_is_there() -> None:
    for label, (_, _, enforced, tested) in laws().items():
        assert re.search(r"`[\w/]+\.py`", enforced), f"{label}: nothing enforces it"
        named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", tested)
        assert named, f"{label}: no test"
        for file, test in named:
            text = (CHECKOUT / file).read_text(encoding="utf-8")
            assert not test or f"def {test}(" in text, f"{label}: {file} {test}"


def test_every_name_that_a_law_gives_with_its_file_is_in_that_file() -> None:
    for label, (_, _, enforced, _) in laws().items():
        for file, names in re.findall(r"`([\w/]+\.py)`((?:,? `\w+`)*)", enforced):
            text = (CHECKOUT / file).read_text(encoding="utf-8")
            for name in re.findall(r"`(\w+)`", names):
                assert name in text, f"{label}: {file} has no {name}"


def test_every_part_that_the_page_on_threads_names_is_there() -> None:
    text = (CHECKOUT / "docs/threads.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([A-Z]\w+)\.(\w+)`", text))
    assert len(named) > 20
    code = [source.path.read_text(encoding="utf-8") for source in sources().values()]
    for owner, name in sorted(named):
        assert any(f"class {owner}" in t and re.search(rf"\b{name}\b", t) for t in code), f"{owner}.{name}"


def test_whoever_runs_an_event_loop_writes_its_stacks_on_a_signal() -> None:
    """Without that, kill -USR1 would end the process, which administrators are told to ask by it."""
    missing = []
    for source in sources().values():
        if "asyncio.run" not in source.path.read_text(encoding="utf-8"):
            continue
        called = {ast.unparse(node.func) for node in nodes(source.tree) if isinstance(node, ast.Call)}
        if "asyncio.run" in called and "stacks.write_on_signal" not in called:
            missing.append(source.name)
    assert not missing
