"""What the web service uses: SAFE/web/conf/server.crt, server.key, cacert.crt, clcacert.crt, admin.crt, admin.key,
proxy.crtkey (guide 11.3.2), and the change to https (guide 10.5.4)."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization

from caserv import places
from caserv.authority import certificate_pem, common_name, load_certificate, now
from caserv.errors import PkiError
from safekit.disk.paths import safe
from safekit.wire.certificates import whole_lists

ACTIVE = "httpd.webconsolessl.conf"
CRL = "clca.crl"
RESTART_SECONDS = 120
_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----[^-]+-----END CERTIFICATE-----\s*")
Say = Callable[[str], None]


def check_pair(what: str, certificate: x509.Certificate, key_data: bytes) -> bytes:
    """The key in PEM, when it is the certificate's. Raises PkiError."""
    try:
        key = serialization.load_pem_private_key(key_data, None)
    except TypeError:
        raise PkiError(
            f"{what}.key: the key is encrypted; a service has nobody to ask for its password",
            f"openssl pkey -in {what}.key -out {what}-plain.key",
        ) from None
    except (ValueError, UnsupportedAlgorithm):
        raise PkiError(f"{what}.key: this is no private key in PEM format", "give the key of the certificate") from None
    if key.public_key() != certificate.public_key():
        raise PkiError(f"{what}.key is not the key of {what}.crt", "give the two files that belong together")
    plain = serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)


def chain(what: str, data: bytes) -> list[x509.Certificate]:
    """The certificates of a PEM file. Raises PkiError."""
    try:
        found = x509.load_pem_x509_certificates(data)
    except ValueError:
        found = []
    if not found:
        raise PkiError(f"{what}: there is no certificate in PEM format", "give the file in Base-64 (PEM) format")
    return found


def check_dates(what: str, certificate: x509.Certificate, when: datetime) -> None:
    """Raises PkiError outside of its validity."""
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if when < begins:
        raise PkiError(
            f"Certificate is not yet valid: {what} begins at {begins:%Y-%m-%d %H:%M:%S} UTC, and the clock of this "
            f"server says {when:%Y-%m-%d %H:%M:%S} UTC",
            "set the clocks of all servers (timedatectl set-ntp true), then run the command again",
        )
    if when > ends:
        raise PkiError(
            f"Certificate has expired: {what} ended at {ends:%Y-%m-%d %H:%M:%S} UTC, and the clock of this server says "
            f"{when:%Y-%m-%d %H:%M:%S} UTC",
            "initssl renew; or set the clock of this server (timedatectl)",
        )


def check_issued(what: str, certificate: x509.Certificate, authorities: list[x509.Certificate]) -> None:
    """Raises PkiError when none of the authorities, each by the next one, has signed it."""
    current = certificate
    for _ in range(len(authorities) + 1):
        issuer = next((each for each in authorities if _signed_by(current, each)), None)
        if issuer is None:
            raise PkiError(
                f"{what} ({common_name(certificate)}) was not issued by an authority of the CA file: its issuer is "
                f"{current.issuer.rfc4514_string()}",
                "give the certificates of that authority, root and intermediate ones, in cacert.crt",
            )
        if issuer.subject == issuer.issuer or issuer == current:
            return
        current = issuer
    raise PkiError(f"{what}: the chain of authorities has no end", "give the root certificate too")


def _signed_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (InvalidSignature, ValueError, TypeError, UnsupportedAlgorithm):
        return False
    return True


def install_authorities(server_chain: bytes, client_chain: bytes, say: Say) -> None:
    """cacert.crt and clcacert.crt. Former ones that are others are kept under a dated name. Raises OSError."""
    for name, data in (("cacert.crt", server_chain), ("clcacert.crt", client_chain)):
        path = places.conf() / name
        if path.exists() and path.read_bytes() != data:
            copy = path.with_name(f"{name}.{time.strftime('%Y-%m-%d-%H%M%S')}")
            shutil.copyfile(path, copy)
            say(f"{path} is replaced; what it held is in {copy.name}")
        places.write(path, data, places.READABLE)
    _put_aside_foreign_list(client_chain, say)


def _put_aside_foreign_list(client_chain: bytes, say: Say) -> None:
    """A list of an authority that is no longer asked: with it, nobody's certificate could be judged."""
    path = places.conf() / CRL
    if not path.exists():
        return
    known = {each.subject for each in chain("clcacert.crt", client_chain)}
    try:
        own = x509.load_pem_x509_crl(path.read_bytes()).issuer in known
    except ValueError:
        own = False
    if not own:
        copy = path.with_name(f"{CRL}.{time.strftime('%Y-%m-%d-%H%M%S')}")
        path.rename(copy)
        say(f"{path} is of another authority; it is in {copy.name} now")


def install_server(certificate: x509.Certificate, key: bytes, say: Say, pem: bytes = b"") -> None:
    """server.crt and server.key. `pem`: the certificate with the intermediate ones that follow it. Raises OSError."""
    # The key first: a service that reads between the two sees that they do not fit, and goes on with its former ones.
    places.write(places.conf() / "server.key", key, places.SECRET)
    places.write(places.conf() / "server.crt", pem or certificate_pem(certificate), places.READABLE)
    say(f"{places.conf() / 'server.crt'}: valid until {certificate.not_valid_after_utc:%Y-%m-%d}")


def install_admin(certificate: x509.Certificate, key: bytes, say: Say, pem: bytes = b"") -> None:
    """admin.crt, admin.key and proxy.crtkey: who this server is for the others. Group safekit may read the keys: its
    members run distributed commands. Raises OSError."""
    loaded = serialization.load_pem_private_key(key, None)
    traditional = loaded.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )
    pem = pem or certificate_pem(certificate)
    places.write(places.conf() / "admin.key", key, places.SHARED)
    places.write(places.conf() / "admin.crt", pem, places.READABLE)
    places.write(places.conf() / "proxy.crtkey", pem + traditional, places.SHARED)
    say(f"{places.conf() / 'admin.crt'}: valid until {certificate.not_valid_after_utc:%Y-%m-%d}")


def install_crl(data: bytes, say: Say) -> None:
    """clca.crl: certificates of clients that are no longer good. Lists of other authorities of clcacert.crt, which an
    administrator put there, stay: without them their certificates would be good again. Raises PkiError, OSError."""
    path, issuer = places.conf() / CRL, x509.load_pem_x509_crl(data).issuer
    beside = _lists_beside(path, issuer) if path.exists() else {}
    known = {each.subject for each in chain("clcacert.crt", _read("clcacert.crt"))}
    if set(beside) - known:
        copy = path.with_name(f"{CRL}.{time.strftime('%Y-%m-%d-%H%M%S')}")
        shutil.copyfile(path, copy)
        say(f"{path} had lists of authorities that are not in clcacert.crt; they are in {copy.name}")
    kept = [each for name, each in beside.items() if name in known]
    places.write(path, b"".join(each.rstrip() + b"\n" for each in (data, *kept)), places.READABLE)


def _lists_beside(path: Path, issuer: x509.Name) -> dict[x509.Name, bytes]:
    """The lists of all but one authority."""
    try:
        found = {x509.load_pem_x509_crl(each).issuer: each for each in whole_lists(path.read_bytes())}
    except ValueError as error:
        raise PkiError(
            f"{path} cannot be used, and no certificate is accepted: {error}",
            f"correct it; or, when it has nothing that counts: cp {places.ca() / 'crl.pem'} {path}",
        ) from None
    return {name: each for name, each in found.items() if name != issuer}


def check_all() -> list[str]:
    """What is installed, one line each. Raises PkiError with what is wrong."""
    authorities = {
        name: chain(str(places.conf() / name), _read(name)) for name in ("cacert.crt", "clcacert.crt")
    }  # fmt: skip
    lines = []
    for what, name in (("server", "cacert.crt"), ("admin", "clcacert.crt")):
        path = places.conf() / f"{what}.crt"
        certificate = load_certificate(path)
        check_pair(str(path.with_suffix("")), certificate, _read(f"{what}.key"))
        check_dates(str(path), certificate, now())
        check_issued(str(path), certificate, authorities[name])
        lines.append(f"{path}: good")
    return lines


def _read(name: str) -> bytes:
    try:
        return (places.conf() / name).read_bytes()
    except FileNotFoundError:
        raise PkiError(f"{places.conf() / name}: no such file", "initssl ca, or initssl req") from None


def is_active() -> bool:
    """Whether the web service speaks https."""
    return (places.conf() / "ssl" / ACTIVE).is_file()


def activate(say: Say) -> None:
    """The web service speaks https from now on. Raises PkiError when it does not start again."""
    source, target = places.conf() / ACTIVE, places.conf() / "ssl" / ACTIVE
    if not source.is_file():
        raise PkiError(f"{source}: no such file", "install the product again: safekitinstall")
    target.parent.mkdir(mode=0o750, exist_ok=True)
    places.write(target, source.read_bytes(), places.SHARED)
    say(f"{target}: https is switched on")
    run([str(safe() / "safekit"), "webserver", "restart"], say)


def run(command: list[str], say: Say) -> None:
    """Run one of our commands and tell what it said. Raises PkiError when it fails."""
    say(f"> {' '.join(command)}")
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=RESTART_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PkiError(f"{' '.join(command)}: {error}", "run it as root, and look at what it says") from None
    said = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    if done.returncode:
        raise PkiError(f"{' '.join(command)}: {' '.join(said)[-500:] or done.returncode}", "run it as root")
    for line in said:
        say(line)


def pem_blocks(data: bytes) -> bytes:
    """Only the certificates of a file, without what people write between them."""
    return b"".join(match[0] for match in _PEM.finditer(data))
