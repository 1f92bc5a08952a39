"""The state file of this server's data, as nfsadmin has it written (see `safekit.rfs.generations`)."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nfsbox.place import BoxError, Fields
from safekit.disk.files import reserve, write_atomic
from safekit.rfs import generations


class StateFile:
    """One state after the other: whoever writes holds `recording`, and what follows from it as well."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.recording = threading.Lock()

    def reserve(self) -> None:
        """It can be written on a disk that is full later."""
        with contextlib.suppress(OSError):  # no room to put by: it works as long as there is room
            reserve(self.path)

    def read(self) -> Fields | None:
        """None when there is none. A damaged one is a map without its fields, which nobody takes for a state."""
        try:
            return generations.to_fields(generations.decode(self.path.read_bytes()))
        except FileNotFoundError:
            return None
        except generations.StateError as error:
            return {"damaged": str(error)}

    def write(self, fields: Mapping[str, Any]) -> generations.DataState:
        """Durable when it returns. Raises BoxError."""
        try:
            state = generations.from_fields(fields)
            write_atomic(self.path, generations.encode(state))
        except generations.StateError as error:
            raise BoxError("state", str(error)) from None
        except OSError as error:
            raise BoxError("state", f"{self.path} cannot be written: {error.strerror}") from None
        return state
