"""The replicated directories of a module on this server: taken, looked at, mounted; and given back.

The order is what makes it safe: nobody else serves them (the lock), their data is where it was when the module ran here
last, users are kept out of it, and only when the mounts stand in the place of the links is it asked who holds it (R9).
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
from pathlib import Path

from nfsbox.fs import switch
from nfsbox.fs.libfuse import MountFailure
from nfsbox.fs.mount import Mount
from nfsbox.fs.operations import Operations
from nfsbox.pair.engine import Engine
from nfsbox.place import BoxError, text_of
from safekit.disk.files import write_atomic
from safekit.process import holders

log = logging.getLogger("nfsbox")


class Directories:
    """One per box. `directory` is where nfsbox keeps its files."""

    def __init__(self, engine: Engine, directory: Path, module: str) -> None:
        self.roots = engine.roots
        self.mounts: list[Mount] = []
        self._engine = engine
        self._directory = directory
        self._module = module
        self._lock = -1  # a descriptor
        self._known: dict[bytes, bytes] = {}  # mount -> where the file system of its data was, when it was here last

    @property
    def served(self) -> tuple[str, ...]:
        """Those whose mount answers."""
        return tuple(os.fsdecode(mount.path) for mount in self.mounts if mount.alive)

    # --- taken ----------------------------------------------------------------------------------------------

    def take(self) -> None:
        """Nobody else may serve them, whatever became of a former life. Raises BoxError."""
        if self._lock >= 0:
            return
        self._lock = os.open(self._directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o660)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(self._lock, 20, 0).decode("ascii", "replace").strip()
            self._give_back()
            raise BoxError(
                "mount",
                f"another nfsbox of this module (process {holder or 'unknown'}) has the replicated directories "
                f"({error.strerror}): end it, then start the module again",
            ) from None
        with contextlib.suppress(OSError):  # on a full disk the lock holds, only its holder's number is not told
            os.ftruncate(self._lock, 0)
            os.pwrite(self._lock, b"%d\n" % os.getpid(), 0)

    def _give_back(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def check(self) -> None:
        """Their data is where it must be. Raises BoxError."""
        self._known = self._places()
        for root in self.roots:
            try:
                switch.check(root, self._known.get(root.mount))
            except switch.SwitchFailure as error:
                self._close_trees()
                raise BoxError("tocheck", text_of(error)) from None

    def _places(self) -> dict[bytes, bytes]:
        try:
            lines = (self._directory / "places").read_bytes().split(b"\0")
        except FileNotFoundError:
            return {}
        return dict(zip(lines[0::2], lines[1::2], strict=False))

    def note_places(self) -> None:
        """The module runs with them as they are: `check` asks for the same the next time."""
        found = {root.mount: switch.mount_point(root.backing) for root in self.roots}
        if found != self._known:
            try:
                write_atomic(self._directory / "places", b"\0".join(b for pair in found.items() for b in pair))
            except OSError as error:
                log.warning("it cannot be noted where the file systems are mounted: %s", error)

    # --- mounted --------------------------------------------------------------------------------------------

    def mount(self, *, degraded: bool) -> None:
        """In the place of the links. Raises BoxError, OSError; `give_up` afterwards. `degraded`: the application has
        its directory already, and waits for it."""
        self._engine.disks.open()
        switch.clean_hidden(self._directory, self.roots)
        self._close_to_others()
        self._mount_all()
        self._refuse_holders(degraded=degraded)

    def _close_to_others(self) -> None:
        for root in self.roots:
            try:
                root.tree.close_to_others()
            except OSError as error:
                log.warning(
                    "%s stays reachable beside the mount for those who may enter it (%s): its file system should keep "
                    "extended attributes of root",
                    os.fsdecode(root.backing),
                    text_of(error),
                )

    def _mount_all(self) -> None:
        writeback = self._engine.settings.writeback
        for root in self.roots:
            try:
                switch.to_mount_point(root)
                operations = Operations(self._engine, root)
                mount = Mount(operations, root.mount, f"{self._module}:{root.index}", writeback=writeback)
                mount.start()
                self.mounts.append(mount)
                mount.mounted()
            except (switch.SwitchFailure, MountFailure) as error:
                raise BoxError("mount", text_of(error)) from None
            except OSError as error:
                raise BoxError("mount", f"{os.fsdecode(root.mount)}: {error.strerror}") from None

    def _refuse_holders(self, *, degraded: bool) -> None:
        """Nobody else has anything of the data (R9). Looked at when the data is closed to users and the mounts stand in
        the place of the links: whoever comes now comes to them. Raises BoxError."""
        for root in self.roots:
            problem = holders.objection(root.backing)
            if problem is None:
                continue
            text = ". Next step: ".join(problem)
            if not degraded:
                raise BoxError("held", text)
            log.error("%s", text)  # the application waits for its directory, which it had already

    # --- given back -----------------------------------------------------------------------------------------

    def unmount(self) -> None:
        """The links stand in the place of the mounts again, and nothing is left of files that were unlinked while
        open. Raises OSError."""
        self._unmount_all()
        switch.clean_hidden(self._directory, self.roots)

    def leave(self) -> None:
        """Nothing holds the file systems of the data any more, and another nfsbox may serve them."""
        self._close_trees()
        self._give_back()

    def give_up(self) -> None:
        """What was taken and mounted so far is given back."""
        self._unmount_all(failed=True)
        self.leave()

    def clear_leftovers(self) -> None:
        """A nfsbox that was killed left its mounts, and the module is stopped before they are used again. Raises
        BoxError."""
        try:
            for root in self.roots:
                if switch.is_mounted(root.mount):
                    switch.to_mount_point(root)
                    switch.to_link(root)
        except OSError as error:
            raise BoxError("release", f"what was left mounted could not be released: {text_of(error)}") from None

    def _unmount_all(self, *, failed: bool = False) -> None:
        mounts, self.mounts = self.mounts, []
        for mount in mounts:
            mount.stop()
        for root in self.roots:
            if not switch.is_mounted(root.mount):
                try:
                    switch.to_link(root, put_aside=not failed)
                except OSError as error:
                    if not failed:
                        raise
                    log.warning("%s stays as it is: %s", os.fsdecode(root.mount), text_of(error))

    def _close_trees(self) -> None:
        self._engine.disks.close()
        for root in self.roots:
            root.tree.close()
