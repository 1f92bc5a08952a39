"""TLS of the web service and of those who ask it (guide 11.3): the files of SAFE/web/conf as contexts.

TLS 1.2 and newer, with forward secrecy and authenticated ciphers only. A certificate of a client is asked for where
clcacert.crt is, and never needed for the connection: whoever has none is known by other means, or refused by name.
"""

from __future__ import annotations

import contextlib
import os
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from safekit.disk.files import stamp_of

SERVER_CERTIFICATE, SERVER_KEY = "server.crt", "server.key"
ADMIN_CERTIFICATE, ADMIN_KEY = "admin.crt", "admin.key"
SERVER_AUTHORITIES, CLIENT_AUTHORITIES = "cacert.crt", "clcacert.crt"
PROXY = "proxy.crtkey"
"""Certificate and key with which a server asks the others for a console that was opened with proxy=true (guide
11.3.2.2.2)."""
REVOKED = "clca.crl"
"""Certificates of clients that are no longer good, as their authorities say. It is looked at with each request: OpenSSL
would refuse everybody whose authority has no such list."""
FILES = (
    SERVER_CERTIFICATE, SERVER_KEY, ADMIN_CERTIFICATE, ADMIN_KEY, SERVER_AUTHORITIES, CLIENT_AUTHORITIES,
    PROXY,
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


@dataclass(frozen=True)
class Keys:
    """What the server's side needs, PEM as latin-1: the certificate with those between it and its root, its key, and
    the authorities of clients ("" where none is asked for a certificate)."""

    chain: str
    key: str
    authorities: str


def server_keys(conf: Path) -> Keys:
    """The keys of the web service, which can be used. Raises TlsError."""
    chain = _read(conf / SERVER_CERTIFICATE).rstrip() + b"\n" + _intermediates(conf)
    path = conf / CLIENT_AUTHORITIES
    parts = chain, _read(conf / SERVER_KEY), _read(path) if path.exists() else b""
    keys = Keys(*(part.decode("latin-1") for part in parts))
    context_of(keys, conf)
    return keys


def context_of(keys: Keys, conf: Path = Path()) -> ssl.SSLContext:
    """What the web service speaks. `conf` is for messages only. Raises TlsError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(CIPHERS)
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION | ssl.OP_CIPHER_SERVER_PREFERENCE
    chain, key, authorities = (part.encode("latin-1") for part in (keys.chain, keys.key, keys.authorities))
    _load_pair(context, chain, key, conf / SERVER_CERTIFICATE, conf / SERVER_KEY)
    if authorities:
        context.verify_mode = ssl.CERT_OPTIONAL
        _load_authorities(context, authorities, conf / CLIENT_AUTHORITIES)
    return context


def client_context(conf: Path, *, proxy: bool = False) -> ssl.SSLContext:
    """What a distributed command speaks: it trusts cacert.crt, or the system where there is none, and shows admin.crt
    when a server asks for it; with `proxy` the certificate of proxy.crtkey, which must be there. Raises TlsError."""
    authorities = conf / SERVER_AUTHORITIES
    context = ssl.create_default_context()
    if authorities.exists():
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        _load_authorities(context, _read(authorities), authorities)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if proxy:
        both = _read(conf / PROXY)
        _load_pair(context, both, both, conf / PROXY, conf / PROXY)
    elif (conf / ADMIN_CERTIFICATE).exists():
        certificate, key = conf / ADMIN_CERTIFICATE, conf / ADMIN_KEY
        _load_pair(context, _read(certificate), _read(key), certificate, key)
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


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise TlsError(f"{error.filename}: {error.strerror}", CHECK) from None


@contextlib.contextmanager
def _in_memory(data: bytes) -> Iterator[str]:
    """A file of that content for OpenSSL, which takes no key but from one; on no disk."""
    descriptor = os.memfd_create("certificates", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, data)
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


def _load_pair(context: ssl.SSLContext, chain: bytes, key: bytes, certificate: Path, key_file: Path) -> None:
    """A certificate with those between it and its root, and its key, which must not want a password."""

    def password() -> str:
        raise TlsError(
            f"{key_file} is encrypted", f"openssl pkey -in {key_file} -out {key_file}: a service asks nobody"
        )

    with _in_memory(chain) as first, _in_memory(key) as second:
        try:
            context.load_cert_chain(first, second, password)
        except ssl.SSLError as error:
            if error.reason == "KEY_VALUES_MISMATCH":
                raise TlsError(f"{key_file} is not the key of {certificate.name}", CHECK) from None
            text = f"{certificate} or {key_file.name} cannot be used: {error.reason or error}"
            raise TlsError(text, CHECK) from None


def _load_authorities(context: ssl.SSLContext, data: bytes, path: Path) -> None:
    try:
        with _in_memory(data) as file:
            context.load_verify_locations(file)
    except ssl.SSLError as error:
        raise TlsError(f"{path} cannot be used: {error.reason or error}", CHECK) from None


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
