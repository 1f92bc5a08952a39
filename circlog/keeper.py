"""The keeper of a module log (guide 7.3, 3.5): bounds module.log, copies E(vent) lines to module.elog.

Processes append to module.log themselves and follow its name, so nothing is lost while circlog is dead. What
circlog has done stands in one small file, `log/circlog.state`: for module.log and module.log.1 how far their
E lines are copied, and how long module.elog was then. After a crash module.elog is cut to that length and
the lines behind are copied again, so no line is lost and none is there twice.

Sizes: module.log and module.elog are each renamed to .1 when they exceed their limit; the .1 before is
dropped. So a module's logs take at most 2 * (LOG_LIMIT + ELOG_LIMIT), plus what is written between two looks.
"""

from __future__ import annotations

import errno
import json
import os
from dataclasses import dataclass, field
from pathlib import Path

from safekit.disk.files import write_atomic
from safekit.disk.paths import ModulePaths

LOG_LIMIT = 4 << 20
"""Bytes of module.log before it becomes module.log.1 (some 30,000 lines)."""
ELOG_LIMIT = 1 << 20
"""Bytes of module.elog before it becomes module.elog.1."""
CHUNK = 1 << 18
"""Bytes looked at in one step: memory stays small after a long absence."""


@dataclass
class State:
    """Progress: inode -> bytes of it whose E lines are copied; the elog's inode and its length then."""

    copied: dict[int, int] = field(default_factory=dict)
    elog_inode: int = 0
    elog_size: int = 0

    def dump(self) -> bytes:
        """As stored."""
        return json.dumps({"copied": self.copied, "elog": [self.elog_inode, self.elog_size]}).encode()

    @classmethod
    def load(cls, data: bytes) -> State:
        """From what dump() wrote. Raises ValueError for anything else."""
        try:
            fields = json.loads(data)
            copied = {int(inode): int(offset) for inode, offset in fields["copied"].items()}
            inode, size = fields["elog"]
            return cls(copied, int(inode), int(size))
        except (TypeError, KeyError, AttributeError, ValueError) as error:
            raise ValueError(f"damaged: {error}") from None


def event_lines(chunk: bytes) -> tuple[bytes, int]:
    """The E lines of a chunk that starts at a line, and the length of its complete lines."""
    end = chunk.rfind(b"\n") + 1
    lines = chunk[:end].splitlines(keepends=True)
    return b"".join(line for line in lines if _level(line) == b"E"), end


def _level(line: bytes) -> bytes:
    parts = line.split(b"|", 3)
    return parts[2] if len(parts) == 4 else b""


class Keeper:
    """One look at a time: step() copies, rotates, records. Raises OSError, and can then be called again."""

    def __init__(self, module: str, log_limit: int = LOG_LIMIT, elog_limit: int = ELOG_LIMIT) -> None:
        paths = ModulePaths(module)
        self.log, self.elog = paths.log, paths.elog
        self.old_log = self.log.with_name(self.log.name + ".1")
        self.old_elog = self.elog.with_name(self.elog.name + ".1")
        self._state_path = self.log.with_name("circlog.state")
        self._log_limit, self._elog_limit = log_limit, elog_limit
        self.state, self._known = State(), False
        self._stored = b""

    def step(self) -> bool:
        """Copy what is new, rotate what is too long. True when there may be more to do at once."""
        if not self._known:
            self._load()
        more = self._copy(self.old_log)
        more |= self._copy(self.log)
        if not more and self._size(self.log) > self._log_limit:
            self._rotate_log()
            more = True
        return more

    # State

    def _load(self) -> None:
        try:
            self.state = State.load(self._state_path.read_bytes())
        except (FileNotFoundError, ValueError):
            self.state = self._guess()
        else:
            self._redo()
            self._forget_others()
        self._known = True

    def _guess(self) -> State:
        """Without a record: go on behind the last line of the elog, where a log has it."""
        state = State()
        last = self._last_line(self.elog) or self._last_line(self.old_elog)
        if not last:
            return state
        for path in (self.log, self.old_log):
            status = self._stat(path)
            if status is None:
                continue
            data = path.read_bytes()
            found = 0 if data.startswith(last) else data.rfind(b"\n" + last) + 1
            if data.startswith(last) or found:
                state.copied[status.st_ino] = found + len(last)
                if path == self.log and (old := self._stat(self.old_log)) is not None:
                    state.copied[old.st_ino] = old.st_size
                break
        return state

    @staticmethod
    def _last_line(path: Path) -> bytes:
        try:
            lines = path.read_bytes().splitlines(keepends=True)
        except FileNotFoundError:
            return b""
        return next((line for line in reversed(lines) if line.endswith(b"\n")), b"")

    def _redo(self) -> None:
        """A crash may have come between writing the elog and recording it: what is there beyond the recorded
        length is the beginning of what is copied next."""
        status = self._stat(self.elog)
        if status is None or status.st_ino != self.state.elog_inode:
            # Rotated or removed since: rotation records first, so nothing was copied in between.
            self.state.elog_inode, self.state.elog_size = 0, 0
            return
        extra = status.st_size - self.state.elog_size
        if extra <= 0:
            self.state.elog_size = status.st_size
            return
        # Cutting and copying again gives the same bytes, and heals a line that the crash cut.
        os.truncate(self.elog, self.state.elog_size)

    def _record(self) -> None:
        data = self.state.dump()
        if data != self._stored:
            write_atomic(self._state_path, data, durable=False)
            self._stored = data

    # Copying

    def _copy(self, path: Path) -> bool:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            status = os.fstat(descriptor)
            offset = self.state.copied.get(status.st_ino, 0)
            if offset > status.st_size:
                # Somebody emptied the log: begin again.
                offset = 0
            if offset == status.st_size:
                self.state.copied[status.st_ino] = offset
                return False
            chunk = os.pread(descriptor, CHUNK, offset)
        finally:
            os.close(descriptor)
        events, length = event_lines(chunk)
        if not length and len(chunk) == CHUNK:
            # No line is that long: damage, passed over.
            length = CHUNK
        if events:
            self._append_events(events)
        self.state.copied[status.st_ino] = offset + length
        self._record()
        return offset + length < status.st_size and length > 0

    def _append_events(self, events: bytes) -> None:
        if self._size(self.elog) + len(events) > self._elog_limit and self._size(self.elog):
            os.replace(self.elog, self.old_elog)
            self.state.elog_inode, self.state.elog_size = 0, 0
        descriptor = os.open(self.elog, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o660)
        try:
            status = os.fstat(descriptor)
            if status.st_ino != self.state.elog_inode:
                self.state.elog_inode, self.state.elog_size = status.st_ino, status.st_size
                self._record()
            before = status.st_size
            try:
                written = 0
                while written < len(events):
                    written += os.write(descriptor, events[written:])
            except OSError:
                # Half of the lines would be there twice after the next try.
                os.ftruncate(descriptor, before)
                raise
        finally:
            os.close(descriptor)
        self.state.elog_size = before + len(events)

    # Rotation

    def _rotate_log(self) -> None:
        """Order: drop the oldest file, forget it, then rename. Inode numbers are used again, and a new file must
        not inherit the progress of an old one; forgotten too early, the old one would be copied again."""
        self.old_log.unlink(missing_ok=True)
        self._forget_others()
        self._record()
        os.replace(self.log, self.old_log)
        # Made here, so that the new file has the rights of the group whoever writes first.
        os.close(os.open(self.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o660))

    def _forget_others(self) -> None:
        """Keep the progress of the files that are there."""
        present = {status.st_ino for status in map(self._stat, (self.log, self.old_log)) if status is not None}
        self.state.copied = {inode: done for inode, done in self.state.copied.items() if inode in present}

    @staticmethod
    def _stat(path: Path) -> os.stat_result | None:
        try:
            return os.stat(path)
        except FileNotFoundError:
            return None

    def _size(self, path: Path) -> int:
        status = self._stat(path)
        return 0 if status is None else status.st_size


FULL = (errno.ENOSPC, errno.EDQUOT)
LOW_WATER = 64 << 10


def check_space(directory: Path) -> None:
    """Raises OSError(ENOSPC) when the disk cannot take more log lines."""
    status = os.statvfs(directory)
    if status.f_blocks and status.f_bfree * status.f_frsize < LOW_WATER:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(directory))


class DiskReport:
    """Says once that the log cannot be kept, and once that it is kept again."""

    def __init__(self) -> None:
        self._since = ""

    def failed(self, error: OSError, date: str) -> str | None:
        """Text to log about a failure at `date`, None when it was said already."""
        if self._since:
            return None
        self._since = date
        cause = "the disk is full" if error.errno in FULL else error.strerror or str(error)
        return (
            f"the module log cannot be kept: {error.filename or 'write'}: {cause}; "
            "lines that do not fit are lost until there is space (df -h)"
        )

    def worked(self) -> str | None:
        """Text to log when all is well, None when nothing was wrong before."""
        since, self._since = self._since, ""
        return f"the module log is kept again; lines since {since} may be missing" if since else None
