"""Is this start of safeadmin a start of the server? (guide 9.2, 10.3)

SAFEVAR/safeadmin.boot holds the identity of the boot whose modules were started. A crash of safeadmin leaves
it; an orderly stop of the service, which stops the modules too, takes it away.
"""

from __future__ import annotations

from pathlib import Path

from safekit.disk.files import boot_identity, write_atomic


class BootRecord:
    """The boot that was served last."""

    def __init__(self, safevar: Path) -> None:
        self.path = safevar / "safeadmin.boot"

    def is_new(self) -> bool:
        """Whether the modules with boot on have not been started since the server, or the service, started."""
        try:
            return self.path.read_text() != boot_identity()
        except OSError:
            return True

    def served(self) -> None:
        """The modules of this boot have been started. Raises OSError."""
        write_atomic(self.path, boot_identity().encode())

    def forget(self) -> None:
        """The service was stopped in order: its next start starts the modules again. Raises OSError."""
        self.path.unlink(missing_ok=True)
