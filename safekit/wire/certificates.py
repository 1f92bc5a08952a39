"""What stands in a certificate, as far as SafeKit looks at it (guide 7.2, 11.3, 11.4). Bytes in, values out."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID, NameOID

Use = Literal["client", "server"]
# Base64 has no hyphen: a text of beginnings without an end must not cost the square of its length.
_CRL = re.compile(rb"-----BEGIN X509 CRL-----[^-]+-----END X509 CRL-----\n?")
_USES = {"client": ExtendedKeyUsageOID.CLIENT_AUTH, "server": ExtendedKeyUsageOID.SERVER_AUTH}


@dataclass(frozen=True)
class Certificate:
    """One certificate. `begins` and `ends` are Unix seconds; `uses` is empty when it names none; names are as they
    stand in it, DNS names in lower case."""

    names: tuple[str, ...]
    units: tuple[str, ...]
    subject: str
    issuer: str
    issuer_name: str
    begins: float
    ends: float
    uses: tuple[str, ...]
    dns: tuple[str, ...]
    addresses: tuple[str, ...]
    authority: bool
    serial: int
    fingerprint: str

    @property
    def name(self) -> str:
        """The CN. A certificate with none or with several is nobody in particular: ''. Nor is one with a CN that would
        break the line of a log."""
        return self.names[0] if len(self.names) == 1 and self.names[0].isprintable() else ""

    def usable(self, use: Use) -> bool:
        """Whether its extended key usage names that use."""
        return _USES[use].dotted_string in self.uses

    def known_as(self, host: str) -> bool:
        """Whether a client that asked for `host`, a name or an address, is content."""
        lower = host.lower()
        if lower in self.addresses:
            return True
        known = self.dns or tuple(name.lower() for name in self.names)
        return any(lower == name or _covers(name, lower) for name in known)


def _covers(pattern: str, host: str) -> bool:
    first, dot, rest = host.partition(".")
    return bool(first and dot) and pattern == f"*.{rest}"


def of_pem(data: bytes) -> tuple[Certificate, ...]:
    """Every certificate of a file. Raises ValueError when there is none, or one is damaged."""
    return tuple(_read(each) for each in x509.load_pem_x509_certificates(data))


def of_der(data: bytes) -> Certificate:
    """One certificate as it comes in a handshake. Raises ValueError."""
    return _read(x509.load_der_x509_certificate(data))


def lists_in(data: bytes) -> list[bytes]:
    """The lists of revoked certificates of a text, each in PEM; parts that are none are left out."""
    return _CRL.findall(data)


def whole_lists(data: bytes) -> list[bytes]:
    """The same of a file that counts. Raises ValueError where there is none, or a part of one: what was revoked there
    would be good again."""
    found = lists_in(data)
    if not found or len(found) != data.count(b"BEGIN X509 CRL"):
        raise ValueError("no list in PEM format, or a damaged one: openssl crl -inform DER -in FILE -out clca.crl")
    return found


class Authorities:
    """The certificates of a file in PEM, which say whose lists count."""

    def __init__(self, data: bytes) -> None:
        """Raises ValueError."""
        self._keys = [(each.subject, each.public_key()) for each in x509.load_pem_x509_certificates(data)]

    def signed(self, crl: x509.CertificateRevocationList) -> bool:
        """Whether one of them has signed it. An authority that was renewed stands there twice, with two keys."""
        return any(
            isinstance(key, rsa.RSAPublicKey | ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey)
            and crl.is_signature_valid(key)
            for subject, key in self._keys
            if subject == crl.issuer
        )


def revoked(lists: bytes, authorities: bytes) -> frozenset[tuple[str, int]]:
    """(issuer, serial number) of every certificate of the lists, each signed by one of the authorities; all in PEM. A
    list that is due for renewal still counts. Raises ValueError."""
    known = Authorities(authorities)
    found = set()
    for block in whole_lists(lists):
        each = x509.load_pem_x509_crl(block)
        issuer = each.issuer.rfc4514_string()
        if not known.signed(each):
            raise ValueError(f"the list of {issuer} is not signed by an authority of clcacert.crt")
        found |= {(issuer, entry.serial_number) for entry in each}
    return frozenset(found)


def _read(found: x509.Certificate) -> Certificate:
    dns, addresses = _alternatives(found)
    return Certificate(
        names=_texts(found.subject, NameOID.COMMON_NAME),
        units=_texts(found.subject, NameOID.ORGANIZATIONAL_UNIT_NAME),
        subject=found.subject.rfc4514_string(),
        issuer=next(iter(_texts(found.issuer, NameOID.COMMON_NAME)), ""),
        issuer_name=found.issuer.rfc4514_string(),
        begins=found.not_valid_before_utc.timestamp(),
        ends=found.not_valid_after_utc.timestamp(),
        uses=_uses(found),
        dns=dns,
        addresses=addresses,
        authority=_is_authority(found),
        serial=found.serial_number,
        fingerprint=found.fingerprint(hashes.SHA256()).hex(),
    )


def _texts(name: x509.Name, oid: x509.ObjectIdentifier) -> tuple[str, ...]:
    return tuple(str(each.value) for each in name.get_attributes_for_oid(oid))


def _extension(found: x509.Certificate, oid: x509.ObjectIdentifier) -> x509.ExtensionType | None:
    try:
        return found.extensions.get_extension_for_oid(oid).value
    except x509.ExtensionNotFound:
        return None


def _uses(found: x509.Certificate) -> tuple[str, ...]:
    value = _extension(found, ExtensionOID.EXTENDED_KEY_USAGE)
    return tuple(each.dotted_string for each in value) if isinstance(value, x509.ExtendedKeyUsage) else ()


def _is_authority(found: x509.Certificate) -> bool:
    value = _extension(found, ExtensionOID.BASIC_CONSTRAINTS)
    return isinstance(value, x509.BasicConstraints) and value.ca


def _alternatives(found: x509.Certificate) -> tuple[tuple[str, ...], tuple[str, ...]]:
    value = _extension(found, ExtensionOID.SUBJECT_ALTERNATIVE_NAME)
    if not isinstance(value, x509.SubjectAlternativeName):
        return (), ()
    dns = tuple(name.lower() for name in value.get_values_for_type(x509.DNSName))
    return dns, tuple(str(address) for address in value.get_values_for_type(x509.IPAddress))
