"""The port mapper of the local bus: which port and pid a process name has (guide 10.2.3.2).

Processes register when they begin, when a restarted safeadmin asks them to (it remembers their ports), and now and
then. An entry lasts as long as its process: one that hangs stays known, so
that who asks it sees a time-out, not an unknown name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from safekit.process.table import lives, start_time

MAX_ENTRIES = 4096
SERVICES = ("safewebserver", "safeagent", "safenotify")
"""Processes of the server, which have no module before their name."""
_NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9_.-]{{0,63}}/[A-Za-z0-9_.:-]{{1,64}}|{'|'.join(SERVICES)}")


@dataclass(frozen=True, slots=True)
class Entry:
    """A registered process. `born` is its start time: with the pid it names the process for ever; `incarnation` is what
    it calls this life of its endpoint, which messages to it have to name."""

    name: str
    port: int
    pid: int
    born: int
    incarnation: str = ""

    def alive(self) -> bool:
        """Whether that process still exists."""
        return lives(self.pid, self.born)


class Mapper:
    """Names, ports and pids of the processes of this server."""

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}

    def register(self, name: str, port: int, pid: int, incarnation: str = "") -> Entry | None:
        """Note a process. Of two living processes of one name the younger wins: the older one hangs or is
        on its way out. Returns the entry when it is new. Raises ValueError for nonsense."""
        if _NAME.fullmatch(name) is None:
            raise ValueError(f"{name!r} is not the name of a process (module/process)")
        if not 1 <= port <= 65535 or pid <= 0:
            raise ValueError(f"{name}: port {port} or pid {pid} is out of range")
        born = start_time(pid)
        if born is None:
            return None
        entry = Entry(name, port, pid, born, incarnation)
        known = self._entries.get(name)
        if known == entry:
            return None
        if known is not None and known.pid != pid and known.born > born and known.alive():
            return None
        if known is None and len(self._entries) >= MAX_ENTRIES:
            self._purge()
            if len(self._entries) >= MAX_ENTRIES:
                raise ValueError(f"{MAX_ENTRIES} processes are registered already")
        # Who had the port before has left it, whatever its process does.
        for other in [other for other, held in self._entries.items() if held.port == port]:
            del self._entries[other]
        self._entries[name] = entry
        return entry

    def lookup(self, name: str) -> Entry | None:
        """The living process of that name."""
        entry = self._entries.get(name)
        if entry is not None and not entry.alive():
            del self._entries[name]
            return None
        return entry

    def entries(self) -> list[Entry]:
        """All living processes, by name."""
        self._purge()
        return [self._entries[name] for name in sorted(self._entries)]

    def _purge(self) -> None:
        for name in [name for name, entry in self._entries.items() if not entry.alive()]:
            del self._entries[name]
