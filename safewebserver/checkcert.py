"""SAFE/web/bin/checkcert: whether the certificates of this server are as they have to be (guide 7.2.3, 11.3.2)."""

from __future__ import annotations

import ipaddress
import stat
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization

from safekit.disk.expiry import WARN_SECONDS
from safekit.disk.paths import node_name
from safekit.model.cluster import ClusterError, load_cluster
from safekit.process import standard
from safekit.wire.certificates import Certificate, Use, of_pem, revoked
from safekit.wire.tls import (
    ADMIN_CERTIFICATE,
    ADMIN_KEY,
    CLIENT_AUTHORITIES,
    PROXY,
    REVOKED,
    SERVER_AUTHORITIES,
    SERVER_CERTIFICATE,
    SERVER_KEY,
)
from safewebserver.roles import certified, parse_certificate_groups
from safewebserver.settings import conf_dir

USAGE = """usage: checkcert -t all|server|client|CA|CLCA    check the files of SAFE/web/conf
       checkcert -h NAME                          whether server.crt is for that DNS name
       checkcert -i ADDRESS                       whether server.crt is for that IP address

Exit status: 0 all is well (warnings may be shown), 1 an error, 2 wrong usage."""
Level = Literal["error", "warning"]


@dataclass(frozen=True)
class Finding:
    """What is wrong with a file, in which field, and what to do."""

    file: str
    field: str
    text: str
    next_step: str
    level: Level = "error"


Findings = Iterator[Finding]


def _read(file: str) -> tuple[list[Finding], tuple[Certificate, ...], list[x509.Certificate]]:
    try:
        data = (conf_dir() / file).read_bytes()
        return [], of_pem(data), x509.load_pem_x509_certificates(data)
    except OSError as error:
        found = Finding(file, "file", error.strerror or str(error), f"put it there: {conf_dir() / file}")
    except ValueError:
        found = Finding(file, "format", "there is no certificate in PEM format (Base-64)", "export it again as PEM")
    return [found], (), []


def _dates(file: str, certificates: Sequence[Certificate], now: float) -> Findings:
    for each in certificates:
        who = each.name or each.subject
        if now < each.begins:
            text = f"{who} is not yet valid: it begins on {_date(each.begins)}, and this clock says {_date(now)}"
            yield Finding(file, "Validity, Not Before", text, "set the clocks of all servers (timedatectl)")
        elif now >= each.ends:
            text = f"{who} has expired on {_date(each.ends)}"
            yield Finding(file, "Validity, Not After", text, "renew it; or set the clock of this server (timedatectl)")
        elif each.ends - now < WARN_SECONDS:
            text = f"{who} ends in {(each.ends - now) / 86400:.0f} days, on {_date(each.ends)}"
            yield Finding(file, "Validity, Not After", text, "renew it before that day", "warning")


def _date(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))


def _key(certificate: x509.Certificate, file: str, key: str) -> Findings:
    path = conf_dir() / key
    try:
        loaded = serialization.load_pem_private_key(path.read_bytes(), None)
    except OSError as error:
        yield Finding(key, "file", error.strerror or str(error), f"put it there: {path}")
        return
    except TypeError:
        yield Finding(key, "encryption", "the key is encrypted", f"openssl pkey -in {path} -out PLAIN, then replace it")
        return
    except (ValueError, UnsupportedAlgorithm):
        yield Finding(key, "format", "this is no private key in PEM format", f"give the key of {file}")
        return
    if loaded.public_key() != certificate.public_key():
        yield Finding(key, "key", f"it is not the key of {file}", "give the two files that belong together")
    if stat.S_IMODE(path.stat().st_mode) & 0o007:
        yield Finding(key, "mode", "every user of this server may use the key", f"chmod o= {path}", "warning")


def _issued(file: str, certificate: x509.Certificate, authorities: str) -> Findings:
    """The chain up to a root, by signatures."""
    problems, _, known = _read(authorities)
    if problems:
        return  # told where that file itself is checked
    current = certificate
    for _ in range(len(known) + 1):
        issuer = next((each for each in known if _signed(current, each)), None)
        if issuer is None:
            text = f"its issuer {current.issuer.rfc4514_string()} is not in {authorities}"
            yield Finding(file, "Issuer", text, f"add the certificates of that authority, root included: {authorities}")
            return
        if issuer.subject == issuer.issuer:
            return
        current = issuer
    yield Finding(authorities, "chain", "the chain of authorities has no root", "add the root certificate")


def _signed(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (InvalidSignature, ValueError, TypeError, UnsupportedAlgorithm):
        return False
    return True


def _pair(file: str, key: str, authorities: str, use: Use, now: float) -> Iterator[Finding | Certificate]:
    problems, certificates, loaded = _read(file)
    yield from problems
    if problems:
        return
    yield certificates[0]
    yield from _dates(file, certificates, now)
    yield from _key(loaded[0], file, key)
    yield from _issued(file, loaded[0], authorities)
    if not certificates[0].usable(use):
        what = "Client Authentication" if use == "client" else "Server Authentication"
        missing: Level = "error" if certificates[0].uses or use == "client" else "warning"
        yield Finding(file, "Extended Key Usage", f"{what} is not in it", "get a certificate with it", missing)


def server(now: float) -> Findings:
    """server.crt and server.key."""
    for found in _pair(SERVER_CERTIFICATE, SERVER_KEY, SERVER_AUTHORITIES, "server", now):
        if isinstance(found, Finding):
            yield found
        else:
            yield from _names(found)


def _names(certificate: Certificate) -> Findings:
    """Every address of this server in cluster.xml must be one of the certificate."""
    if not (certificate.dns or certificate.addresses):
        text = "there is no name in it; browsers do not look at the CN"
        yield Finding(SERVER_CERTIFICATE, "Subject Alternative Name", text, "get a certificate with it", "warning")
    try:
        lans = load_cluster().lans
    except ClusterError:
        return
    for address in {node.addr for lan in lans if lan.console for node in lan.nodes if node.name == node_name()}:
        if not certificate.known_as(address):
            text = f"{address}, the address of this server in cluster.xml, is not in it"
            yield Finding(SERVER_CERTIFICATE, "Subject Alternative Name", text, "get a certificate with it")
        elif address != address.lower():
            text = f"{address} in cluster.xml has capitals"
            yield Finding(SERVER_CERTIFICATE, "Subject Alternative Name", text, "use lower case there", "warning")


def client(now: float) -> Findings:
    """admin.crt, admin.key and, where it is, proxy.crtkey."""
    for found in _pair(ADMIN_CERTIFICATE, ADMIN_KEY, CLIENT_AUTHORITIES, "client", now):
        if isinstance(found, Finding):
            yield found
            continue
        path = conf_dir() / "sslgroup.conf"
        groups = parse_certificate_groups(path.read_text(errors="replace") if path.exists() else "")
        role = certified(found, groups)
        if role is None and found.usable("client"):
            text = f"it gives no role: OU is not Admin, and sslgroup.conf does not name {found.name or found.subject!r}"
            yield Finding(ADMIN_CERTIFICATE, "Subject, OU", text, f'add to sslgroup.conf: Admin:"{found.name}"')
        elif role is not None and role.label != "Admin":
            text = f"its role is {role.label}: distributed commands of this server have no more"
            yield Finding(ADMIN_CERTIFICATE, "Subject, OU", text, "get a certificate with OU Admin", "warning")
        if (found.issuer_name, found.serial) in _revoked():
            yield Finding(ADMIN_CERTIFICATE, "Serial Number", f"it was revoked ({REVOKED})", "get a new one")
    yield from _proxy()


def _revoked() -> frozenset[tuple[str, int]]:
    try:
        return revoked((conf_dir() / REVOKED).read_bytes(), (conf_dir() / CLIENT_AUTHORITIES).read_bytes())
    except (OSError, ValueError):
        return frozenset()  # a list that is damaged is told by _clca


def _proxy() -> Findings:
    path = conf_dir() / PROXY
    if not path.exists():
        return
    problems, certificates, loaded = _read(PROXY)
    yield from problems
    if problems:
        return
    yield from _key(loaded[0], PROXY, PROXY)
    _, own, _ = _read(ADMIN_CERTIFICATE)
    if own and own[0].fingerprint != certificates[0].fingerprint:
        yield Finding(
            PROXY, "certificate", f"it is not that of {ADMIN_CERTIFICATE}", "cat admin.crt rsa-admin.key > it"
        )


def _authorities(file: str, now: float) -> Findings:
    problems, certificates, loaded = _read(file)
    yield from problems
    yield from _dates(file, certificates, now)
    for certificate, each in zip(certificates, loaded, strict=True):
        if not certificate.authority:
            text = f"{certificate.name or certificate.subject} is no authority (Basic Constraints)"
            yield Finding(file, "Basic Constraints", text, "give the certificates of the authority, not its products")
        elif each.subject != each.issuer and not any(_signed(each, other) for other in loaded):
            text = f"the issuer of {certificate.name} is missing: {certificate.issuer_name}"
            yield Finding(file, "chain", text, "add it: the file holds every authority up to the root")


def authorities(now: float) -> Findings:
    """cacert.crt."""
    yield from _authorities(SERVER_AUTHORITIES, now)


def client_authorities(now: float) -> Findings:
    """clcacert.crt, and what depends on it: clca.crl, sslgroup.conf."""
    yield from _authorities(CLIENT_AUTHORITIES, now)
    lists = conf_dir() / REVOKED
    if lists.exists():
        try:
            revoked(lists.read_bytes(), (conf_dir() / CLIENT_AUTHORITIES).read_bytes())
        except (OSError, ValueError) as error:
            yield Finding(REVOKED, "list", f"no certificate is accepted: {error}", "get the list again, or remove it")
    path, certificates = conf_dir() / "sslgroup.conf", _read(CLIENT_AUTHORITIES)[1]
    roots = {each.subject for each in certificates if each.subject == each.issuer_name}
    if path.exists() and len(roots) > 1:
        for member in parse_certificate_groups(path.read_text(errors="replace")):
            if not member.issuer:
                text = f"{member.name!r} has the role {member.role} whichever of {len(roots)} authorities says its name"
                step = f'say which: "{member.name}" issuer="CN of the authority"'
                yield Finding(path.name, member.role, text, step, "warning")


CHECKS: dict[str, Callable[[float], Findings]] = {
    "server": server, "client": client, "CA": authorities, "CLCA": client_authorities,
}  # fmt: skip


def holds(host: str) -> list[Finding]:
    """Whether server.crt is for that name or address."""
    problems, certificates, _ = _read(SERVER_CERTIFICATE)
    if problems or certificates[0].known_as(host):
        return problems
    known = ", ".join((*certificates[0].dns, *certificates[0].addresses)) or "none"
    text = f"{host} is not in it; it has {known}"
    return [Finding(SERVER_CERTIFICATE, "Subject Alternative Name", text, "get a certificate with it")]


def run(arguments: Sequence[str]) -> int:
    """0 all is well, 1 an error, 2 wrong usage."""
    match list(arguments):
        case ["-t", "all"]:
            found = [each for check in CHECKS.values() for each in check(time.time())]
        case ["-t", what] if what in CHECKS:
            found = list(CHECKS[what](time.time()))
        case ["-h", name] if name and not name.startswith("-"):
            found = holds(name)
        case ["-i", address] if _is_address(address):
            found = holds(str(ipaddress.ip_address(address)))
        case _:
            print(USAGE, file=sys.stderr)
            return 2
    for each in dict.fromkeys(found):
        print(f"{each.level.capitalize()}: {Path(each.file).name}: {each.field}: {each.text}", file=sys.stderr)
        print(f"Next step: {each.next_step}", file=sys.stderr)
    if any(each.level == "error" for each in found):
        return 1
    print(f"{' '.join(arguments)}: OK ({conf_dir()})")
    return 0


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def main() -> int:
    """Entry point of the script."""
    return standard.run(lambda: run(sys.argv[1:]))


if __name__ == "__main__":
    sys.exit(main())
