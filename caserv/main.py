"""The process safecaserv (guide 10.1, 11.6.5): started by startcaserv, ended by stopcaserv or after IDLE_SECONDS in
which nobody with the password has asked."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import ssl
import subprocess
import sys

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from caserv import places
from caserv.errors import PkiError
from caserv.gate import Access, Gate
from caserv.service import Service
from caserv.settings import NAME, port
from safekit.disk.paths import safebin
from safekit.process import stacks
from safekit.process.frame import set_process_name

IDLE_SECONDS = 8 * 3600.0
HANDSHAKE_SECONDS = 10.0
KEEPALIVE_SECONDS = 20.0
CLOSE_SECONDS = 2.0
LINGER_SECONDS = 1.0
"""For a client that is refused and still sends: he shall get the answer, and nobody's time."""
BACKLOG = 64


def tls() -> tuple[ssl.SSLContext, bytes]:
    """What the service shows: its own certificate, which only this run has. Raises PkiError, OSError."""
    certificate, key = places.service() / "service.crt", places.service() / "service.key"
    if not certificate.exists():
        raise PkiError(f"{certificate}: no such file", "start the service by SAFE/web/bin/startcaserv")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("ECDHE+AESGCM:ECDHE+CHACHA20")
    context.load_cert_chain(certificate, key)
    der = x509.load_pem_x509_certificate(certificate.read_bytes()).public_bytes(serialization.Encoding.DER)
    return context, der


def _is_ours(record: logging.LogRecord) -> bool:
    """What is no HTTP is answered with 400; whoever sends it must not fill the journal with what he sends."""
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, HttpProcessingError)


async def _serve() -> int:
    logging.getLogger("aiohttp.server").addFilter(_is_ours)
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    stacks.write_on_signal(loop)
    context, certificate = tls()
    gate = Gate(Access.load(), certificate)
    runner = web.AppRunner(
        Service(gate).app(), access_log=None, shutdown_timeout=CLOSE_SECONDS, handle_signals=False,
        keepalive_timeout=KEEPALIVE_SECONDS, lingering_time=LINGER_SECONDS,
    )  # fmt: skip
    await runner.setup()
    assert runner.server is not None
    tcp = port()
    server = await loop.create_server(
        runner.server, None, tcp, ssl=context, backlog=BACKLOG, ssl_handshake_timeout=HANDSHAKE_SECONDS
    )
    print(f"{NAME}: TCP port {tcp} (https), until stopcaserv", flush=True)
    try:
        while not stopping.is_set():
            left = gate.used + IDLE_SECONDS - loop.time()
            if left <= 0:
                print(f"{NAME}: ends, as nobody used it for {IDLE_SECONDS / 3600:.0f} hours", flush=True)
                _close_port()
                break
            try:
                async with asyncio.timeout(left):
                    await stopping.wait()
            except TimeoutError:
                continue
    finally:
        server.close()
        await runner.cleanup()
        stacks.ignore()
    return 0


def _close_port() -> None:
    """As stopcaserv does; the firewall may not be ours to change from here."""
    (places.service() / "access.json").unlink(missing_ok=True)
    subprocess.run([str(safebin() / "firewallcfg"), "del", "caserv"], check=False, timeout=60)


def main() -> int:
    """Serve until SIGTERM. 2 when it cannot be started like this, 1 when the port cannot be had."""
    set_process_name(NAME)
    stacks.write_on_signal()
    os.umask(0o077)
    try:
        return asyncio.run(_serve())
    except PkiError as error:
        print(f"{NAME}: {error.text}; {error.next_step}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"{NAME}: {error}; see who has the port: ss -ltnp", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
