"""The local port of safeadmin, and what it does when another program has it (guide 10.2.3.2).

Any user may bind a port above 1023 while safeadmin is not there, and a server whose safeadmin cannot come back has
lost its commands. So safeadmin takes another port then, and says in a file of root's where it is: whoever looks for
it reads that file first. Messages are sealed, so that the stranger on the usual port learns nothing secret, and what
he answers is no answer.
"""

from __future__ import annotations

import contextlib
import errno

from safeadmin.adminlog import AdminLog
from safekit.bus.endpoint import Endpoint, Handler
from safekit.bus.message import ADMIN
from safekit.disk.files import write_atomic
from safekit.disk.paths import admin_port_file, configured_mapper_port


async def open_own_port(handler: Handler, log: AdminLog) -> Endpoint:
    """The bus of this safeadmin, whose lock says that it is the only one. Raises OSError when there is no port at all,
    BusError when the key of the bus cannot be read."""
    configured = configured_mapper_port()
    try:
        endpoint = await Endpoint.open(ADMIN, handler, port=configured)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        return await _elsewhere(handler, log, configured)
    with contextlib.suppress(FileNotFoundError):
        admin_port_file().unlink()
    return endpoint


async def _elsewhere(handler: Handler, log: AdminLog, configured: int) -> Endpoint:
    endpoint = await Endpoint.open(ADMIN, handler)
    # Readable by all: it tells no secret, and users of group safekit look for safeadmin with it.
    write_atomic(admin_port_file(), f"{configured} {endpoint.port}\n".encode(), mode=0o644, durable=False)
    log.error(
        f"UDP port {configured} of 127.0.0.1 is held by a program that is no safeadmin: port {endpoint.port} is used "
        f"instead, and commands find it; see who it is with ss -lunp 'sport = {configured}' and end it, then "
        "restart safeadmin"
    )
    return endpoint
