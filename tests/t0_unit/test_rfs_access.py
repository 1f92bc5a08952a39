"""Nobody but safekit/rfs/tree.py opens anything in a replicated tree (R11): looked up in the syntax of the code."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent.parent
#: Calls that resolve a path.
RESOLVING = {
    "os": {
        *("access", "chdir", "chmod", "chown", "getxattr", "lchown", "link", "listdir", "listxattr", "lstat"),
        *("makedirs", "mkdir", "mkfifo", "mknod", "open", "pathconf", "readlink", "remove", "removedirs"),
        *("removexattr", "rename", "renames", "replace", "rmdir", "scandir", "setxattr", "stat", "statvfs"),
        *("symlink", "truncate", "unlink", "utime", "walk", "fwalk"),
    },
    "os.path": {"exists", "lexists", "isdir", "isfile", "islink", "getsize", "realpath", "samefile", "ismount"},
    "shutil": None,
    "glob": None,
}
#: What is no data of a replicated directory: (file, function) -> what it opens.
ELSEWHERE = {
    ("nfsbox/check/ask.py", ""): "the mount, as a user of it",
    ("nfsbox/check/main.py", "is_mounted"): "the kernel's table of mounts",
    ("nfsbox/fs/directories.py", "Directories.take"): "the lock in SAFEVAR",
    ("nfsbox/fs/libfuse.py", "_let_go"): "the null device",
    ("nfsbox/fs/mount.py", "Mount.stop"): "the mount, to wake its own loop",
    ("nfsbox/fs/mount.py", "Mount.mounted"): "the mount, as a user of it",
    ("nfsbox/fs/switch.py", "is_mounted"): "the kernel's table of mounts",
    ("nfsbox/fs/switch.py", "mount_point"): "the top, which root alone can exchange",
    ("nfsbox/fs/switch.py", "_empty"): "the top, which root alone can exchange",
    ("nfsbox/fs/switch.py", "check"): "the top, which root alone can exchange",
    ("nfsbox/fs/switch.py", "to_mount_point"): "the place of the mount",
    ("nfsbox/fs/switch.py", "_empty_directory"): "the place of the mount",
    ("nfsbox/fs/switch.py", "_remove"): "the place of the mount",
    ("nfsbox/fs/switch.py", "to_link"): "the place of the mount",
    ("safekit/rfs/quarantine.py", "keep"): "SAFEVAR",
    ("safekit/rfs/quarantine.py", "_keep_one"): "a copy in SAFEVAR",
    ("safekit/rfs/quarantine.py", "restore"): "a directory that the administrator chose",
    ("safekit/rfs/quarantine.py", "remove"): "SAFEVAR",
}
#: All their calls take descriptors, which Tree has opened.
BY_DESCRIPTOR = {"safekit/rfs/top.py"}
PARTS = ("nfsbox", "reintegre", "safekit/rfs")


class Resolving(ast.NodeVisitor):
    """Finds calls that resolve a path, and where they stand."""

    def __init__(self) -> None:
        self.found: list[tuple[str, str, int]] = []
        self._inside: list[str] = []

    def _scope(self, node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self._inside.append(node.name)
        self.generic_visit(node)
        self._inside.pop()

    visit_ClassDef = visit_FunctionDef = visit_AsyncFunctionDef = _scope

    def visit_Call(self, node: ast.Call) -> None:
        name = ast.unparse(node.func)
        holder, _, called = name.rpartition(".")
        names = RESOLVING.get(holder, set())
        if name == "open" or (holder in RESOLVING and (names is None or called in names)):
            # Closures count as the function or the method in which they stand.
            depth = 2 if self._inside and self._inside[0].lstrip("_")[:1].isupper() else 1
            self.found.append((name, ".".join(self._inside[:depth]), node.lineno))
        self.generic_visit(node)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        if node.module in RESOLVING:
            self.found.append((f"from {node.module} import", ".".join(self._inside), node.lineno))


def calls(path: Path) -> Iterator[tuple[str, str, int]]:
    visitor = Resolving()
    visitor.visit(ast.parse(path.read_text()))
    yield from visitor.found


def sources() -> list[Path]:
    return [path for part in PARTS for path in sorted((CHECKOUT / part).rglob("*.py"))]


def test_only_the_tree_opens_what_is_replicated() -> None:
    strays = [
        f"{path.relative_to(CHECKOUT)}:{line} {where}: {name}"
        for path in sources()
        if str(path.relative_to(CHECKOUT)) not in {"safekit/rfs/tree.py", *BY_DESCRIPTOR}
        for name, where, line in calls(path)
        if (str(path.relative_to(CHECKOUT)), where) not in ELSEWHERE
    ]
    assert not strays, "these resolve paths beside safekit/rfs/tree.py:\n" + "\n".join(strays)


def test_what_takes_descriptors_makes_none() -> None:
    for name in BY_DESCRIPTOR:
        for node in ast.walk(ast.parse((CHECKOUT / name).read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("os.") and node.args:
                called, first = ast.unparse(node.func), ast.unparse(node.args[0])
                known = called in {"os.strerror", "os.stat_result"} or first == "fd"
                assert known, f"{name}:{node.lineno}: {called}({first})"


def test_what_is_said_to_open_something_else_exists() -> None:
    there = {(str(path.relative_to(CHECKOUT)), where) for path in sources() for _, where, _ in calls(path)}
    assert not set(ELSEWHERE) - there


def test_the_search_sees_what_it_must_see() -> None:
    visitor = Resolving()
    visitor.visit(ast.parse("class A:\n  def b(self):\n    def c(): os.open(p, 0)\n    shutil.rmtree(p)\nopen(p)\n"))
    assert [(name, where) for name, where, _ in visitor.found] == [
        ("os.open", "A.b"),
        ("shutil.rmtree", "A.b"),
        ("open", ""),
    ]
