"""Authorities and certificates for the tests, good ones and wrong ones."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

CLIENT, SERVER = ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH


def named(name: str, *units: str) -> x509.Name:
    parts = [x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, unit) for unit in units]
    return x509.Name([*parts, *([x509.NameAttribute(NameOID.COMMON_NAME, name)] if name else [])])


@dataclass
class Pair:
    """A certificate and its key."""

    certificate: x509.Certificate
    secret: ec.EllipticCurvePrivateKey

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(Encoding.PEM)

    def key(self, password: bytes = b"") -> bytes:
        how = BestAvailableEncryption(password) if password else NoEncryption()
        return self.secret.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, how)

    def put(self, directory: Path, name: str) -> tuple[Path, Path]:
        """NAME.crt and NAME.key."""
        directory.mkdir(parents=True, exist_ok=True)
        certificate, key = directory / f"{name}.crt", directory / f"{name}.key"
        key.write_bytes(self.key())
        key.chmod(0o600)
        certificate.write_bytes(self.pem)
        return certificate, key

    def revoke(self, *gone: Pair) -> bytes:
        """A list of this authority."""
        now = datetime.now(UTC)
        made = x509.CertificateRevocationListBuilder().issuer_name(self.certificate.subject)
        made = made.last_update(now - timedelta(days=9)).next_update(now - timedelta(days=2))
        for each in gone:
            entry = x509.RevokedCertificateBuilder().serial_number(each.certificate.serial_number)
            made = made.add_revoked_certificate(entry.revocation_date(now).build())
        return made.sign(self.secret, hashes.SHA256()).public_bytes(Encoding.PEM)


def make(
    name: str,
    *units: str,
    by: Pair | None = None,
    uses: tuple[x509.ObjectIdentifier, ...] = (CLIENT,),
    hosts: tuple[str, ...] = (),
    authority: bool = False,
    days: tuple[float, float] = (-1, 365),
) -> Pair:
    """A certificate that `by` issued (itself, without), valid between `days` from now."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject, now = named(name, *units), datetime.now(UTC)
    made = x509.CertificateBuilder().subject_name(subject).public_key(key.public_key())
    made = made.issuer_name(by.certificate.subject if by is not None else subject)
    made = made.serial_number(x509.random_serial_number())
    made = made.not_valid_before(now + timedelta(days=days[0])).not_valid_after(now + timedelta(days=days[1]))
    made = made.add_extension(x509.BasicConstraints(authority, None), critical=True)
    if authority:
        made = made.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    elif uses:
        made = made.add_extension(x509.ExtendedKeyUsage(uses), critical=False)
    if hosts:
        names = [_host(host) for host in hosts]
        made = made.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return Pair(made.sign(by.secret if by is not None else key, hashes.SHA256()), key)


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)
