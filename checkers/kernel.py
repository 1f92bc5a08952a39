"""Wake up when the kernel changes links or addresses."""

from __future__ import annotations

import asyncio
from types import TracebackType

from safekit.net.netlink import monitor

_LINK, _IPV4_ADDRESS, _IPV6_ADDRESS = 1, 0x10, 0x100


class NetworkChanges:
    """Sets `wake` at each change of a link or an address. Events only say `look again`: lost ones (ENOBUFS)
    wake as well, and nothing is read from them."""

    def __init__(self, *, links: bool, addresses: bool) -> None:
        self.wake = asyncio.Event()
        groups = (_LINK if links else 0) | (_IPV4_ADDRESS | _IPV6_ADDRESS if addresses else 0)
        self._socket = monitor(groups)

    def __enter__(self) -> NetworkChanges:
        asyncio.get_running_loop().add_reader(self._socket.fileno(), self._drain)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.get_running_loop().remove_reader(self._socket.fileno())
        self._socket.close()

    def _drain(self) -> None:
        try:
            while self._socket.recv(65536):
                continue
        except BlockingIOError:
            pass
        except OSError:
            # Events were lost (ENOBUFS): what they said is read from the kernel anyway.
            pass
        self.wake.set()
