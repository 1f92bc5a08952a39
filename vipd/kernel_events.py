"""The kernel's news about interfaces and addresses, from a netlink multicast socket."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable

from safekit.net import addresses as net
from safekit.net.netlink import messages, monitor

_GROUPS = net.RTMGRP_LINK | net.RTMGRP_IPV4_IFADDR | net.RTMGRP_IPV6_IFADDR
_RECEIVE = 1 << 17


class KernelEvents:
    """Calls `address(there, address)` and `link(there, link)` for each change, `lost()` when the kernel had to
    drop some: the state must then be read again."""

    def __init__(
        self,
        address: Callable[[bool, net.Address], None],
        link: Callable[[bool, net.Link], None],
        lost: Callable[[], None],
    ) -> None:
        self._address = address
        self._link = link
        self._lost = lost
        self._socket = monitor(_GROUPS)
        asyncio.get_running_loop().add_reader(self._socket.fileno(), self._read)

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._socket.fileno())
        self._socket.close()

    def _read(self) -> None:
        try:
            data = self._socket.recv(_RECEIVE)
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            self._lost()
            return
        for _, _, message in messages(data):
            if message.kind in (net.RTM_NEWADDR, net.RTM_DELADDR):
                address = net.parse_address(message.body)
                if address is not None:
                    self._address(message.kind == net.RTM_NEWADDR, address)
            elif message.kind in (net.RTM_NEWLINK, net.RTM_DELLINK) and message.body[:1] == b"\0":
                # Of another family: an interface that joins or leaves a bridge, which is not our matter.
                self._link(message.kind == net.RTM_NEWLINK, net.parse_link(message.body))
