"""A POSIX exerciser: runs cases in a directory and writes down what every call returned.

The same cases run in a plain directory are the oracle: a file system passes when its record is equal, apart from
the differences that are listed, with their reasons, in tests/t3_cluster/test_filesystem_posix.py.

Usage: exerciser.py DIRECTORY [CASE...]    prints the record as JSON
"""

from __future__ import annotations

import errno
import json
import os
import stat
import sys
import traceback
from collections.abc import Callable
from typing import Any

NOBODY, OTHER = 65534, 65533


class Recorder:
    """What a case may do: act in its own directory, and note outcomes under labels."""

    def __init__(self, base: str) -> None:
        self.base = base
        self.lines: list[list[Any]] = []

    def path(self, name: str) -> str:
        """A name in the directory of the case."""
        return f"{self.base}/{name}"

    def note(self, label: str, value: Any) -> None:
        """An outcome that must be the same everywhere."""
        self.lines.append([label, value])

    def do(self, label: str, call: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """Call and note the result (a file descriptor is only noted as such) or the name of the error."""
        try:
            result = call(*args, **options)
        except OSError as error:
            self.note(label, errno.errorcode.get(error.errno or 0, str(error.errno)))
            return None
        shown = (
            result
            if isinstance(result, str | bool | list | type(None))
            else result.decode("latin-1")
            if isinstance(result, bytes)
            else "fd"
            if call is os.open
            else result
            if isinstance(result, int)
            else "ok"
        )
        self.note(label, shown)
        return result

    def stat(self, label: str, name: str, *, times: bool = False, follow: bool = False) -> None:
        """Kind, mode, owner, links and size; for directories no size, which is the file system's affair."""
        try:
            s = os.stat(self.path(name), follow_symlinks=follow)
        except OSError as error:
            self.note(label, errno.errorcode.get(error.errno or 0, "?"))
            return
        directory = stat.S_ISDIR(s.st_mode)
        value: list[Any] = [
            oct(s.st_mode),
            s.st_uid,
            s.st_gid,
            0 if directory else s.st_nlink,
            0 if directory else s.st_size,
        ]
        if stat.S_ISCHR(s.st_mode) or stat.S_ISBLK(s.st_mode):
            value.append(s.st_rdev)
        if times:
            value += [s.st_atime_ns, s.st_mtime_ns]
        self.note(label, value)

    def names(self, label: str, name: str = "") -> None:
        """Sorted entries of a directory."""
        self.do(label, lambda: sorted(os.listdir(self.path(name) if name else self.base)))

    def create(self, name: str, data: bytes = b"", mode: int = 0o644) -> str:
        """A file with content."""
        path = self.path(name)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
        finally:
            os.close(fd)
        return path

    def read(self, label: str, name: str) -> None:
        """Whole content."""

        def content() -> bytes:
            with open(self.path(name), "rb") as handle:
                return handle.read()

        self.do(label, content)

    def as_user(self, label: str, uid: int, body: Callable[[], None]) -> None:
        """Run a part as another user, in a child; what it notes is kept."""
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            os.close(reader)
            status = 1
            try:
                os.setgroups([])
                os.setresgid(uid, uid, uid)
                os.setresuid(uid, uid, uid)
                self.lines = []
                body()
                with os.fdopen(writer, "w") as out:
                    json.dump(self.lines, out)
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        os.close(writer)
        with os.fdopen(reader) as source:
            text = source.read()
        _, status = os.waitpid(child, 0)
        if status:
            raise RuntimeError(f"the part {label} failed as user {uid}")
        for name, value in json.loads(text):
            self.note(f"{label}: {name}", value)


Case = Callable[[Recorder], None]
CASES: dict[str, Case] = {}


def case(function: Case) -> Case:
    """Register a case under its name."""
    CASES[function.__name__] = function
    return function


def run(directory: str, wanted: list[str]) -> dict[str, list[list[Any]]]:
    """Each case in an empty directory of its own; a case that breaks notes it."""
    from tests.posix import cases_data, cases_names, cases_rights  # noqa: F401  (they register themselves)

    os.umask(0o022)
    record: dict[str, list[list[Any]]] = {}
    for name, function in CASES.items():
        if wanted and name not in wanted:
            continue
        base = f"{directory}/{name}"
        os.mkdir(base)
        os.chmod(base, 0o777)
        recorder = Recorder(base)
        try:
            function(recorder)
        except Exception as error:
            recorder.note("broken", f"{type(error).__name__}: {error}".replace(directory, ""))
        record[name] = recorder.lines
    return record


if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
    from tests.posix import exerciser

    print(json.dumps(exerciser.run(sys.argv[1], sys.argv[2:])))
