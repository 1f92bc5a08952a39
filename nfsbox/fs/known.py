"""What the kernel has of the files of a mount: which node a handle belongs to, how long it may keep a reply, and which
of its nodes stand for files of before."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping

from nfsbox.fs import kernel
from safekit.rfs.exclusions import is_hidden


class Known:
    """One per mount. Replies of libfuse pass it on their way to the kernel."""

    def __init__(self, *, writeback: bool = False) -> None:
        self.writeback = writeback
        self._lock = threading.Lock()
        self._open: dict[int, int] = {}  # handle -> node
        self._stale: dict[int, int] = {}  # the same, of what was opened in the role of a primary that was left since
        self._tenure = 0  # rises whenever what the kernel has of files is void
        self._tenures: dict[int, int] = {}  # node -> its tenure, of those that differ from the rest

    def told(self, opcode: int, node: int, reply: bytes, *, caching: bool, names: int | None) -> bytes:
        """What the kernel gets in place of a reply about `node`. `caching`: it may keep names and attributes; `names`:
        see `kernel.adjusted`."""
        opened = kernel.opened(opcode, reply, node)
        if opened is not None:
            with self._lock:
                self._open[opened[0]] = opened[1]
        reply = kernel.adjusted(opcode, reply, caching=caching, names=names)
        if (self.writeback or self._tenures) and kernel.tells_file(opcode, reply):
            tenure = self._tenures.get(kernel.entry_node(reply), self._tenure if self.writeback else 0)
            reply = kernel.of_generation(reply, tenure)
        return reply

    def closed(self, handle: int) -> None:
        """The kernel has closed that handle."""
        with self._lock:
            self._open.pop(handle, None)
            self._stale.pop(handle, None)

    def leave(self, replicated: Collection[int]) -> None:
        """The role of a primary was left: files change underneath from now on, also those of `replicated` handles,
        which stay open."""
        with self._lock:
            self._stale = {handle: node for handle, node in self._open.items() if handle in replicated}

    def stale(self) -> set[int]:
        """Nodes whose pages are void, and are again after each read: see `leave`."""
        if not self._stale:
            return set()
        with self._lock:
            return set(self._stale.values())

    def forget(self, former: Callable[[], Mapping[int, bytes | None]]) -> tuple[set[int], set[bytes]]:
        """Files may have changed underneath. `former` tells the replicated ones that are open: of each handle the path,
        None when its name leads to another file by now, or to none. Returns the nodes whose pages are void, and the
        paths of files that are open still.

        Files that are other ones for the kernel from now on: who has the former one open gets errors. Those whose
        name was given to another file meanwhile: their pages, and whose they are, would be mixed. With write-back all:
        the kernel then believes the size and the times that it has rather than ours, as long as it has anything of a
        file, open or not, and would write behind an end of before, over what the other server acknowledged since; what
        is open and stays local is as it knows it."""
        with self._lock:
            self._stale = {}
            nodes = set(self._open.values())
            found = former()
            self._tenure += 1
            if self.writeback:
                kept = {node for handle, node in self._open.items() if handle not in found}
                self._tenures = {node: self._tenures.get(node, self._tenure - 1) for node in kept}
            else:
                self._tenures |= {
                    self._open[handle]: self._tenure
                    for handle, path in found.items()
                    if path is None and handle in self._open
                }
        return nodes, {path for path in found.values() if path is not None and not is_hidden(path)}
