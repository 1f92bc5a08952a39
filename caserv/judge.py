"""Whether a certificate request may be granted, and what its certificate says then. Pure.

Nothing is copied from a request but its key, its names and its role, each judged; extensions are ours.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from caserv.errors import PkiError

ROLES = ("Admin", "Control", "Monitor")
MAX_REQUEST = 32 << 10
MAX_NAMES = 100
MAX_COMMON_NAME = 64
RSA_BITS = (2048, 4096)
CURVES = ("secp256r1", "secp384r1", "secp521r1")
HASHES = ("sha256", "sha384", "sha512")
RESERVED = frozenset({"server_localca", "user_Admin_system"})
"""Made by `initssl ca` on the server of the authority, never for somebody who asks."""
_LABEL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)", re.ASCII)
_COMMON_NAME = re.compile(r"[\w](?:[\w .@'+-]*[\w.'+-])?")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class Kind(Enum):
    """What a certificate is for."""

    SERVER = "server"
    USER = "user"


@dataclass(frozen=True)
class Names:
    """DNS names, in lower case, and addresses of a server."""

    dns: tuple[str, ...] = ()
    addresses: tuple[Address, ...] = ()

    def texts(self) -> tuple[str, ...]:
        """All of them as text."""
        return (*self.dns, *map(str, self.addresses))


@dataclass(frozen=True)
class Wanted:
    """A certificate that may be issued. `role` is empty for a server."""

    kind: Kind
    common_name: str
    public_key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey
    role: str = ""
    names: Names = Names()

    @property
    def name(self) -> str:
        """Name of its files."""
        return certificate_name(self.kind, self.common_name, self.role)


@dataclass(frozen=True)
class Known:
    """What the authority knows of the cluster. `owners`: name or address -> server of cluster.xml. `certified`: the
    same -> name of the valid certificate that has it. `asked`: names that who asks has listed, None when he listed
    none. `client`: the address that he asks from."""

    owners: Mapping[str, str] = field(default_factory=dict)
    certified: Mapping[str, str] = field(default_factory=dict)
    asked: frozenset[str] | None = None
    client: str = ""


def certificate_name(kind: Kind, common_name: str, role: str = "") -> str:
    """server_<hostname> or user_<role>_<name>."""
    return f"server_{common_name}" if kind is Kind.SERVER else f"user_{role}_{common_name}"


def common_name_of(text: str) -> str:
    """The name of a person, as a CN and as part of a file name. Raises PkiError."""
    if len(text) > MAX_COMMON_NAME or not text.isprintable() or _COMMON_NAME.fullmatch(text) is None:
        raise PkiError(
            f"CN: {text[:80]!r} is not a name: 1 to {MAX_COMMON_NAME} letters, digits, blanks and . _ @ ' + -",
            "choose another name",
        )
    return text


def role_of(text: str) -> str:
    """The role in its documented spelling. Raises PkiError."""
    for role in ROLES:
        if role.lower() == text.lower():
            return role
    raise PkiError(f"OU: {text[:80]!r} is not a role", f"use one of {', '.join(ROLES)}")


def dns_name(text: str) -> str:
    """A name that a server can have, in lower case: no wildcard, not this machine itself. Raises PkiError."""
    name = text.lower().rstrip(".")
    if len(name) > 253 or not all(map(_LABEL.fullmatch, name.split("."))):
        raise PkiError(f"{text[:80]!r} is not a DNS name (wildcards are none)", "give the full names of the server")
    if name == "localhost" or name.endswith((".localhost", ".localdomain")) or name.split(".")[-1].isdecimal():
        raise PkiError(f"{name} is a name of every machine, or none", "leave it out")
    return name


def address(text: str) -> Address:
    """An address under which others reach a server. Raises PkiError."""
    try:
        found = ipaddress.ip_address(text)
    except ValueError:
        raise PkiError(f"{text[:80]!r} is not an IP address", "give IPv4 or IPv6 addresses") from None
    if found.is_loopback or found.is_link_local or found.is_multicast or found.is_unspecified:
        raise PkiError(f"{found} is no address under which others reach a server", "leave it out")
    return found


def parse(data: bytes) -> x509.CertificateSigningRequest:
    """A request whose key is strong and whose signature shows that its sender has the key. Raises PkiError."""
    if len(data) > MAX_REQUEST:
        raise PkiError(f"the request has {len(data)} bytes; at most {MAX_REQUEST} are read", "send one request")
    try:
        request = x509.load_pem_x509_csr(data)
        key = request.public_key()
    except (ValueError, UnsupportedAlgorithm, TypeError):
        raise PkiError("this is not a certificate request in PEM format", "openssl req -verify -in FILE") from None
    # The size comes first: a key of 100 kbit would be slow to verify.
    _usable_key(key)
    hashing = request.signature_hash_algorithm
    if hashing is None or hashing.name not in HASHES:
        raise PkiError("the request is signed with a weak hash", "openssl req -new -sha256")
    try:
        valid = request.is_signature_valid
    except (ValueError, UnsupportedAlgorithm, InvalidSignature, TypeError):
        valid = False
    if not valid:
        raise PkiError("the signature of the request is wrong", "make the request again: initssl req")
    return request


def _usable_key(key: object) -> rsa.RSAPublicKey | ec.EllipticCurvePublicKey:
    if isinstance(key, rsa.RSAPublicKey):
        least, most = RSA_BITS
        if not least <= key.key_size <= most or key.public_numbers().e != 65537:
            raise PkiError(f"an RSA key has {least} to {most} bits and the exponent 65537", "openssl genrsa 3072")
        return key
    if isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name in CURVES:
        return key
    raise PkiError(f"the key is neither RSA nor on one of {', '.join(CURVES)}", "openssl genrsa 3072")


def _subject_field(request: x509.CertificateSigningRequest, oid: x509.ObjectIdentifier, label: str) -> str:
    found = request.subject.get_attributes_for_oid(oid)
    if len(found) != 1 or not isinstance(found[0].value, str):
        raise PkiError(f"the subject of the request has {len(found)} {label}; one is needed", "make it by initssl req")
    return found[0].value


def _names_of(request: x509.CertificateSigningRequest) -> Names:
    try:
        extension = request.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        general = list(extension.value)
    except x509.ExtensionNotFound:
        general = []
    except (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType):
        raise PkiError("the extensions of the request cannot be read", "make it by initssl req") from None
    if len(general) > MAX_NAMES:
        raise PkiError(f"the request has {len(general)} names; at most {MAX_NAMES} are granted", "leave some out")
    dns, addresses = [], []
    for each in general:
        if isinstance(each, x509.DNSName):
            dns.append(dns_name(each.value))
        elif isinstance(each, x509.IPAddress) and not isinstance(
            each.value, ipaddress.IPv4Network | ipaddress.IPv6Network
        ):
            addresses.append(address(str(each.value)))
        else:
            raise PkiError(
                "subjectAltName: only DNS names and IP addresses are granted", "leave the others out of the request"
            )
    return Names(tuple(dict.fromkeys(dns)), tuple(dict.fromkeys(addresses)))


def judge(kind: Kind, data: bytes, name: str, known: Known) -> Wanted:
    """What the request `data` for the certificate `name` gets. Raises PkiError with the reason why not."""
    request = parse(data)
    common = _subject_field(request, NameOID.COMMON_NAME, "CN")
    key = _usable_key(request.public_key())
    if kind is Kind.USER:
        role = role_of(_subject_field(request, NameOID.ORGANIZATIONAL_UNIT_NAME, "OU (the role)"))
        wanted = Wanted(kind, common_name_of(common), key, role)
    else:
        wanted = Wanted(kind, dns_name(common), key, "", _names_of(request))
        _owned(wanted, known)
    if wanted.name in RESERVED:
        raise PkiError(f"{wanted.name} belongs to the server of the authority", "choose another name")
    if name and name.lower() != wanted.name.lower():
        raise PkiError(f"name: {name[:80]!r} does not fit the subject of the request", f"name={wanted.name}")
    return wanted


def _owned(wanted: Wanted, known: Known) -> None:
    """A certificate names one server, by names that are its own."""
    names = (wanted.common_name, *wanted.names.texts())
    if not wanted.names.texts():
        raise PkiError("subjectAltName: the request has no name and no address", "initssl req; openssl req -addext")
    owners = {owner: each for each in names if (owner := known.owners.get(each))}
    if len(owners) > 1:
        text = " and ".join(f"{each} ({owner})" for owner, each in sorted(owners.items()))
        raise PkiError(f"the request names several servers of cluster.xml: {text}", "one request for each server")
    for each in names:
        other = known.certified.get(each)
        if other is not None and other != wanted.name:
            raise PkiError(
                f"{each} is in the certificate {other}",
                f"where that is no longer used: initssl revoke {other}; else leave the name out (ipv4.json, "
                "ipv6.json, ipnames.json)",
            )
    if known.asked is None and not known.owners:
        return
    allowed = {*known.owners, known.client, *(known.asked or ()), wanted.common_name}
    strange = [each for each in wanted.names.texts() if each not in allowed]
    if strange:
        raise PkiError(
            f"names that neither cluster.xml nor who asks has listed: {', '.join(strange[:5])}",
            "add them to cluster.xml, or list them in the field names of the form",
        )
