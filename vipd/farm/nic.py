"""Makes a network card deliver frames for a MAC that is not its own (13.5.7.2).

The card's filter gets one more address; only where the driver has no such filter the interface becomes
promiscuous. Both outlive this process: with vipd dead, packets still flow.
"""

from __future__ import annotations

import errno
import fcntl
import socket
import struct

from safekit.net.addresses import RTM_DELNEIGH, RTM_NEWNEIGH
from safekit.net.netlink import NLM_F_CREATE, NLM_F_REPLACE, Netlink, attribute

_AF_BRIDGE, _NTF_SELF, _NUD_PERMANENT, _NDA_LLADDR = 7, 0x02, 0x80, 2
_NEIGHBOUR = struct.Struct("=BxxxiHBB")
_SIOCADDMULTI, _SIOCDELMULTI = 0x8931, 0x8932
_RTM_NEWLINK, _IFF_PROMISC = 16, 0x100
_LINK = struct.Struct("=BxHiII")


def accept(index: int, device: str, mac: bytes) -> None:
    """Let frames to `mac` in. Raises OSError."""
    if mac[0] & 1:
        _multicast(_SIOCADDMULTI, device, mac)
        return
    with Netlink() as kernel:
        try:
            kernel.request(RTM_NEWNEIGH, _entry(index, mac), NLM_F_CREATE | NLM_F_REPLACE)
        except OSError as error:
            if error.errno == errno.EEXIST:
                return
            kernel.request(_RTM_NEWLINK, _LINK.pack(0, 0, index, _IFF_PROMISC, _IFF_PROMISC))


def refuse(index: int, device: str, mac: bytes) -> None:
    """Undo `accept`; an interface that is gone needs none. Raises OSError."""
    try:
        if mac[0] & 1:
            _multicast(_SIOCDELMULTI, device, mac)
            return
        with Netlink() as kernel:
            kernel.request(RTM_DELNEIGH, _entry(index, mac))
    except OSError as error:
        # An interface that had to be promiscuous stays so: somebody else may need it by now.
        if error.errno not in (errno.ENODEV, errno.ENOENT, errno.EADDRNOTAVAIL, errno.EOPNOTSUPP, errno.EINVAL):
            raise


def _entry(index: int, mac: bytes) -> bytes:
    return _NEIGHBOUR.pack(_AF_BRIDGE, index, _NUD_PERMANENT, _NTF_SELF, 0) + attribute(_NDA_LLADDR, mac)


def _multicast(order: int, device: str, mac: bytes) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as any_socket:
        fcntl.ioctl(any_socket, order, struct.pack("16sH6s8x", device.encode(), socket.AF_UNSPEC, mac))
