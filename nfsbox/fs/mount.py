"""One replicated directory, mounted: the kernel's requests reach the file system through libfuse 2, in a loop of ours.

The parts: the session with the kernel (`libfuse.py`), who serves it (`relief.py`), the loop of each thread that does
(`loop.py`), what libfuse calls (`callbacks.py`), what the kernel has of files (`known.py`). How long the kernel may
keep a reply depends on the role: not at all while this server is not primary, because files change underneath then.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import threading
import traceback
from typing import TYPE_CHECKING

from nfsbox.fs import kernel, reading
from nfsbox.fs.callbacks import Asked, Callbacks
from nfsbox.fs.exchange import Paths
from nfsbox.fs.known import Known
from nfsbox.fs.libfuse import Session, take_away
from nfsbox.fs.loop import Loop
from nfsbox.fs.relief import Relief
from safekit.rfs.tree import Tree
from safekit.syscalls import unmount

if TYPE_CHECKING:
    from nfsbox.fs.operations import Operations

log = logging.getLogger("nfsbox")

#: Seconds that the threads of a mount may take to end once it is gone.
END_SECONDS = 10.0

_KEPT = ((os.ST_NOEXEC, "noexec"), (os.ST_NOATIME, "noatime"), (os.ST_SYNCHRONOUS, "sync"))


def _taken_off(path: bytes) -> bool:
    """Unmount; False when it is in use."""
    try:
        unmount(path)
    except OSError as error:
        return error.errno != errno.EBUSY  # whatever is mounted there no more is off
    return True


def kept_options(flags: int) -> tuple[str, ...]:
    """Options of the mount that the file system of the data was mounted with: what an administrator has forbidden on it
    stays forbidden (f_flag of statvfs)."""
    return (
        "nosuid" if flags & os.ST_NOSUID else "suid",
        "nodev" if flags & os.ST_NODEV else "dev",
        *(option for flag, option in _KEPT if flags & flag),
    )


class Mount:
    """`start` mounts and returns; a thread serves it. The loop ends when the mount is gone."""

    def __init__(self, operations: Operations, path: bytes, name: str, *, writeback: bool = False) -> None:
        self.operations = operations
        self.path = path
        self.name = name
        self._asked = Asked()
        self._known = Known(writeback=writeback)
        self._session = Session(path, self._adjusted)
        self._paths = Paths(self._session, operations, self._asked)
        self._relief = Relief(self._one_more)
        self._threads: list[threading.Thread] = []  # the last one reads requests

    # --- life ---------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Mount and serve. Raises MountFailure."""
        options = ",".join(("allow_other,default_permissions", *kept_options(self.operations.tree.statvfs().f_flag)))
        options += f",fsname={self.name},subtype=safekit"
        self._session.open(options, Callbacks(self.operations, self._asked).structure())
        self.operations.engine.relief.append(self._relief.relieve)
        self._relief.begin()

    def _one_more(self) -> None:
        thread = threading.Thread(target=self._run, name=f"fuse {self.name}", daemon=True)
        self._threads = [*(former for former in self._threads if former.is_alive()), thread]
        thread.start()

    def _run(self) -> None:
        try:
            with reading.Answers(self._session.fd) as answers:
                loop = Loop(
                    self._session, self.operations, answers, self._relief, self._known, self._paths, self._asked
                )
                loop.run()
        except BaseException:
            log.critical("the loop of %s ended: %s", self.name, traceback.format_exc())
            # While we live, whoever uses the mount waits without end; of our death there is a reaction (M5).
            os._exit(1)
        finally:
            if self._relief.ended():
                self.operations.ended()

    def mounted(self) -> None:
        """Wait until the mount answers. Raises OSError."""
        reading.read_ahead(os.stat(self.path).st_dev)

    @property
    def alive(self) -> bool:
        """Whether the loop still serves."""
        return bool(self._threads) and self._threads[-1].is_alive()

    def stop(self, *, force: bool = True) -> bool:
        """Unmount; False when it is in use and not `force`. With `force`, files that are still open get errors.
        Returns when the serving thread has ended."""
        if not _taken_off(self.path):
            if not force:
                return False
            # The loop sleeps in read: a last request wakes it. The mount must still be reachable for that.
            self._session.closing = True
            with contextlib.suppress(OSError):
                os.statvfs(self.path)
            take_away(self.path)
        self._known.leave(())  # nobody tells the kernel anything any more
        relief = self.operations.engine.relief
        if self._relief.relieve in relief:
            relief.remove(self._relief.relieve)
        for thread in self._threads:
            thread.join(END_SECONDS)
        self._session.close(at_work=any(thread.is_alive() for thread in self._threads))
        return True

    # --- what the kernel keeps ----------------------------------------------------------------------------

    def _adjusted(self, reply: bytes) -> bytes | None:
        asked = self._asked
        if asked.opcode in (kernel.INIT, kernel.OWN):
            return None  # the kernel has had our answer; nobody asked
        if asked.opcode == kernel.LINK:
            # What the kernel keeps of a file under its first name would hide what is changed through the second. It
            # is told between the change and its answer.
            self._session.invalidate(asked.node, pages=False)
        caching = self.operations.caching and not asked.shared
        return self._known.told(asked.opcode, asked.node, reply, caching=caching, names=asked.names)

    def leave_pages(self) -> None:
        """The role of a primary was left: files that stay open change underneath from now on."""
        self._known.leave(self.operations.former.replicated().keys())
        self.renew_pages()

    def renew_pages(self) -> None:
        """Call every second: the kernel keeps what it reads of files that were opened in the role of a primary, and
        reads it again here."""
        for node in self._known.stale():
            self._session.invalidate(node, pages=True)

    def forget_pages(self) -> None:
        """The data of open files may have changed underneath: the kernel shall read it again. Waits for pages that were
        changed, which the loop takes meanwhile."""
        nodes, paths = self._known.forget(self.operations.former.forget)
        for node in nodes:
            self._session.invalidate(node, pages=True)
        if not paths:
            return
        seen = Tree(self.path)
        seen.open()
        try:
            for path in paths:
                with contextlib.suppress(OSError):  # it is gone again
                    seen.lstat(path)  # an append goes where the kernel believes the end to be
        finally:
            seen.close()
