"""TLS of the web service and of those who ask it (guide 11.3): the files of SAFE/web/conf as contexts.

TLS 1.2 and newer, with forward secrecy and authenticated ciphers only. A certificate of a client is asked for where
clcacert.crt is, and never needed for the connection: whoever has none is known by other means, or refused by name.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable
from pathlib import Path

from safekit.disk.files import stamp_of

SERVER_CERTIFICATE, SERVER_KEY = "server.crt", "server.key"
ADMIN_CERTIFICATE, ADMIN_KEY = "admin.crt", "admin.key"
SERVER_AUTHORITIES, CLIENT_AUTHORITIES = "cacert.crt", "clcacert.crt"
REVOKED = "clca.crl"
"""Certificates of clients that are no longer good, as their authorities say. It is looked at with each request: OpenSSL
would refuse everybody whose authority has no such list."""
FILES = (
    SERVER_CERTIFICATE, SERVER_KEY, ADMIN_CERTIFICATE, ADMIN_KEY, SERVER_AUTHORITIES, CLIENT_AUTHORITIES,
)  # fmt: skip
CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""Of TLS 1.2; those of 1.3 are all of this kind."""


class TlsError(Exception):
    """A file that cannot be used: the text names it, and the next step."""

    def __init__(self, text: str, next_step: str) -> None:
        super().__init__(f"{text}; next step: {next_step}")
        self.text = text
        self.next_step = next_step


CHECK = "SAFE/web/bin/checkcert -t all tells what is wrong (guide 11.3)"


def server_context(conf: Path, refused: Callable[[str], None] = lambda why: None) -> ssl.SSLContext:
    """What the web service speaks. `refused` is told why a client's certificate was. Raises TlsError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(CIPHERS)
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION | ssl.OP_CIPHER_SERVER_PREFERENCE
    _load_pair(context, conf / SERVER_CERTIFICATE, conf / SERVER_KEY, _intermediates(conf))
    authorities = conf / CLIENT_AUTHORITIES
    if authorities.exists():
        context.verify_mode = ssl.CERT_OPTIONAL
        _load_authorities(context, authorities)

    class Telling(ssl.SSLObject):
        def do_handshake(self) -> None:
            try:
                super().do_handshake()
            except ssl.SSLCertVerificationError as error:
                refused(error.verify_message)
                raise

    context.sslobject_class = Telling
    return context


def client_context(conf: Path) -> ssl.SSLContext:
    """What a distributed command speaks: it trusts cacert.crt, or the system where there is none, and shows admin.crt
    when a server asks for it. Raises TlsError."""
    authorities = conf / SERVER_AUTHORITIES
    context = ssl.create_default_context()
    if authorities.exists():
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        _load_authorities(context, authorities)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if (conf / ADMIN_CERTIFICATE).exists():
        _load_pair(context, conf / ADMIN_CERTIFICATE, conf / ADMIN_KEY, b"")
    return context


def refusal_of(error: ssl.SSLError, host: str) -> tuple[str, str]:
    """Why a handshake failed, and the next step, for who asked `host`."""
    reason = (error.reason or str(error)).lower().replace("_", " ")
    if isinstance(error, ssl.SSLCertVerificationError):
        why = error.verify_message or reason
        step = {
            62: f"{host} is in no Subject Alternative Name of SAFE/web/conf/server.crt there: checkcert -h {host}",
            64: f"{host} is in no Subject Alternative Name of SAFE/web/conf/server.crt there: checkcert -i {host}",
            10: "renew SAFE/web/conf/server.crt there, or set the clock here (timedatectl)",
            9: "set the clocks of both servers (timedatectl)",
        }.get(error.verify_code, "SAFE/web/conf/cacert.crt here must hold the authority of that server, root included")
        return f"its certificate is refused: {why}", step
    if "certificate expired" in reason:
        return "it refuses the certificate SAFE/web/conf/admin.crt: expired", "renew it: checkcert -t client"
    if "alert" in reason and ("unknown ca" in reason or "certificate" in reason):
        text = f"it refuses the certificate SAFE/web/conf/admin.crt: {reason}"
        return text, "its clcacert.crt must hold the authority of that file: checkcert -t client"
    if "wrong version number" in reason or "http request" in reason:
        return "it does not speak HTTPS", 'safekit -H "[http],*" asks over HTTP; or activate HTTPS there (guide 11.3)'
    return f"no TLS connection: {reason}", CHECK


def stamp(conf: Path) -> tuple[object, ...]:
    """What changes when a file does that a context is made of."""
    return tuple(stamp_of(conf / name) for name in FILES)


def _load_pair(context: ssl.SSLContext, certificate: Path, key: Path, more: bytes) -> None:
    """A certificate with those between it and its root, and its key, which must not want a password."""

    def password() -> str:
        raise TlsError(f"{key} is encrypted", f"openssl pkey -in {key} -out {key}: a service has nobody to ask")

    try:
        data = certificate.read_bytes()
        key.open("rb").close()
    except OSError as error:
        raise TlsError(f"{error.filename}: {error.strerror}", CHECK) from None
    descriptor = os.memfd_create("certificates", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, data.rstrip() + b"\n" + more)
        context.load_cert_chain(f"/proc/self/fd/{descriptor}", key, password)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise TlsError(f"{key} is not the key of {certificate.name}", CHECK) from None
        raise TlsError(f"{certificate} or {key.name} cannot be used: {error.reason or error}", CHECK) from None
    finally:
        os.close(descriptor)


def _load_authorities(context: ssl.SSLContext, path: Path) -> None:
    try:
        context.load_verify_locations(path)
    except ssl.SSLError as error:
        raise TlsError(f"{path} cannot be used: {error.reason or error}", CHECK) from None
    except OSError as error:
        raise TlsError(f"{path}: {error.strerror}", CHECK) from None


def _intermediates(conf: Path) -> bytes:
    """The authorities of cacert.crt that are no roots: a browser knows the root only."""
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding

    try:
        own = x509.load_pem_x509_certificates((conf / SERVER_CERTIFICATE).read_bytes())
        known = x509.load_pem_x509_certificates((conf / SERVER_AUTHORITIES).read_bytes())
    except (OSError, ValueError):
        return b""  # what is wrong with them is told where they are loaded
    between = [each for each in known if each.subject != each.issuer and each not in own]
    return b"".join(each.public_bytes(Encoding.PEM) for each in between)
