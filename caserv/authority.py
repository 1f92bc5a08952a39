"""The authority itself: its key, what it has issued and what it has revoked, in SAFE/web/conf/ca (guide 11.6).

The tree is one that `openssl ca` understands: index.txt, newcerts, crlnumber.
"""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from caserv import places
from caserv.errors import PkiError
from caserv.judge import Kind, Wanted
from safekit.disk.files import locked

DEFAULT_SUBJECT = "/CN=SafeKit Local Certificate Authority"
CA_YEARS, YEARS = 10, 5
CA_BITS, BITS = 4096, 3072
EARLIER = timedelta(minutes=5)
"""A certificate is valid a little before it was made: clocks are never quite the same."""
CACERT, CAKEY, CRL = "cacert.crt", "cacert.key", "crl.pem"
_FIELDS = {
    "C": NameOID.COUNTRY_NAME,
    "ST": NameOID.STATE_OR_PROVINCE_NAME,
    "L": NameOID.LOCALITY_NAME,
    "O": NameOID.ORGANIZATION_NAME,
    "OU": NameOID.ORGANIZATIONAL_UNIT_NAME,
    "CN": NameOID.COMMON_NAME,
}
_LABELS = {oid: label for label, oid in _FIELDS.items()}


def now() -> datetime:
    """Of this server's clock, to the second."""
    return datetime.now(UTC).replace(microsecond=0)


def years_after(start: datetime, years: int) -> datetime:
    """The same day, years later; the 28th for a 29th of February."""
    try:
        return start.replace(year=start.year + years)
    except ValueError:
        return start.replace(year=start.year + years, day=28)


def parse_subject(text: str) -> x509.Name:
    r"""`/O=My Company/CN=My Authority`, as openssl takes it; `\/` is a slash. Raises PkiError."""
    text = text.strip(" \"'“”")
    attributes = []
    for part in re.split(r"(?<!\\)/", text.removeprefix("/")):
        label, equals, value = part.replace("\\/", "/").partition("=")
        oid = _FIELDS.get(label.strip().upper())
        if oid is None or not equals:
            raise PkiError(
                f"subject: {part[:40]!r} is none of {', '.join(f'{each}=' for each in _FIELDS)}",
                'initssl ca "/O=My Company/CN=My Private Authority"',
            )
        try:
            attributes.append(x509.NameAttribute(oid, value.strip()))
        except ValueError as error:
            raise PkiError(f"subject: {label}={value[:40]!r}: {error}", "correct it") from None
    if not any(each.oid == NameOID.COMMON_NAME for each in attributes):
        raise PkiError("subject: CN= is missing", 'initssl ca "/O=My Company/CN=My Private Authority"')
    return x509.Name(attributes)


def subject_text(name: x509.Name) -> str:
    """`/OU=Admin/CN=administrator`: as openssl writes it in its index."""
    parts = ((_LABELS.get(each.oid, each.oid.dotted_string), str(each.value)) for each in name)
    return "".join(f"/{label}={value.replace('/', chr(92) + '/')}" for label, value in parts)


def new_key(bits: int = 0) -> rsa.RSAPrivateKey:
    """RSA, which `openssl rsa` and every browser know; of BITS."""
    return rsa.generate_private_key(public_exponent=65537, key_size=bits or BITS)


def key_pem(key: rsa.RSAPrivateKey, *, traditional: bool = False) -> bytes:
    """Not encrypted: a service reads it without anybody to ask. `traditional`: RSA PRIVATE KEY."""
    form = serialization.PrivateFormat.TraditionalOpenSSL if traditional else serialization.PrivateFormat.PKCS8
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())


def load_key(path: Path) -> rsa.RSAPrivateKey:
    """Raises PkiError."""
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), None)
    except FileNotFoundError:
        raise PkiError(f"{path}: no such file", "restore SAFE/web/conf/ca from where it is kept") from None
    except (OSError, ValueError, TypeError) as error:
        raise PkiError(f"{path}: the key cannot be read: {error}", "restore the file") from None
    if not isinstance(key, rsa.RSAPrivateKey):
        raise PkiError(f"{path}: this is no RSA key", "restore the file")
    return key


def load_certificate(path: Path) -> x509.Certificate:
    """Raises PkiError."""
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except FileNotFoundError:
        raise PkiError(f"{path}: no such file", "initssl ca on the first server, initssl req on the others") from None
    except (OSError, ValueError) as error:
        raise PkiError(f"{path}: the certificate cannot be read: {error}", "restore the file") from None


def certificate_pem(certificate: x509.Certificate) -> bytes:
    """As it is stored."""
    return certificate.public_bytes(serialization.Encoding.PEM)


@dataclass(frozen=True)
class Entry:
    """One line of the index: a certificate that was issued. `revoked` is None while it is not."""

    name: str
    serial: int
    expires: datetime
    subject: str
    revoked: datetime | None = None

    def state(self, when: datetime) -> str:
        """valid, expired or revoked."""
        return "revoked" if self.revoked is not None else "expired" if self.expires < when else "valid"

    def line(self) -> str:
        """As `openssl ca` has it."""
        status = "V" if self.revoked is None else "R"
        revoked = "" if self.revoked is None else _stamp(self.revoked)
        serial = f"{self.serial:X}"
        serial = serial if len(serial) % 2 == 0 else f"0{serial}"
        return f"{status}\t{_stamp(self.expires)}\t{revoked}\t{serial}\t{self.name}.crt\t{self.subject}\n"


def _stamp(when: datetime) -> str:
    return when.strftime("%y%m%d%H%M%SZ" if when.year < 2050 else "%Y%m%d%H%M%SZ")


def _date(text: str) -> datetime:
    return datetime.strptime(text if len(text) > 13 else f"20{text}", "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)


def parse_index(text: str) -> list[Entry]:
    """The entries of index.txt. Raises PkiError for a line that is none: a revocation may be in it."""
    entries = []
    for number, line in enumerate(text.splitlines(), 1):
        try:
            status, expires, revoked, serial, file, subject = line.split("\t")
            when = _date(revoked.partition(",")[0]) if status == "R" else None
            entries.append(Entry(file.removesuffix(".crt"), int(serial, 16), _date(expires), subject, when))
        except ValueError:
            raise PkiError(
                f"{places.ca() / 'index.txt'}:{number}: the line is damaged", "restore the file from where it is kept"
            ) from None
    return entries


def is_there() -> bool:
    """Whether this server has the authority."""
    return (places.private() / CAKEY).is_file() and (places.certs() / CACERT).is_file()


def create(subject: str = DEFAULT_SUBJECT) -> Authority:
    """A new authority. Raises PkiError when there is one, OSError."""
    name = parse_subject(subject)
    places.make_directories()
    with _alone():
        if is_there():
            raise PkiError(
                f"{places.ca()} has a certification authority already",
                "for longer validity: initssl renew ca; to begin anew, which makes all its certificates worthless: "
                f"rm -r {places.ca()} on every server (guide 11.6.2)",
            )
        key = new_key(CA_BITS)
        certificate = _self_signed(name, key)
        places.write(places.private() / CAKEY, key_pem(key), places.SECRET)
        places.write(places.ca() / "index.txt", b"", places.SECRET)
        # The certificate comes last: with it there is an authority.
        places.write(places.certs() / CACERT, certificate_pem(certificate), places.READABLE)
    return Authority(certificate, key)


def load() -> Authority:
    """The authority of this server. Raises PkiError without one."""
    if not is_there():
        raise PkiError(
            f"{places.private() / CAKEY}: this server has no certification authority",
            "on the first server: initssl ca; on the others: initssl req https://FIRST:9001 CA_admin",
        )
    return Authority(load_certificate(places.certs() / CACERT), load_key(places.private() / CAKEY))


def published_crl() -> bytes:
    """The list of what is revoked. Strangers may ask for it, so the key, whose check takes long, is loaded only where
    there is no list yet. Raises PkiError, OSError."""
    path = places.ca() / CRL
    return path.read_bytes() if is_there() and path.exists() else load().crl()


def _alone() -> contextlib.AbstractContextManager[None]:
    return locked(places.ca() / ".lock")


def _self_signed(name: x509.Name, key: rsa.RSAPrivateKey) -> x509.Certificate:
    start = now()
    usage = x509.KeyUsage(
        digital_signature=False, content_commitment=False, key_encipherment=False, data_encipherment=False,
        key_agreement=False, key_cert_sign=True, crl_sign=True, encipher_only=False, decipher_only=False,
    )  # fmt: skip
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(start - EARLIER).not_valid_after(years_after(start, CA_YEARS))
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(usage, critical=True)
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    return builder.sign(key, hashes.SHA256())


@dataclass(frozen=True)
class Authority:
    """Issues and revokes. Every change is on disk before anybody gets the certificate."""

    certificate: x509.Certificate
    key: rsa.RSAPrivateKey

    def entries(self) -> list[Entry]:
        """All that was issued, oldest first. Raises PkiError, OSError."""
        return parse_index((places.ca() / "index.txt").read_text(encoding="utf-8"))

    def valid(self) -> list[Entry]:
        """Those that are neither expired nor revoked."""
        when = now()
        return [entry for entry in self.entries() if entry.state(when) == "valid"]

    def certified_names(self) -> dict[str, str]:
        """Name or address -> the valid certificate of a server that has it."""
        found = {}
        for entry in self.valid():
            if entry.name.startswith("server_"):
                for name in (common_name(self.issued(entry.serial)), *alternative_names(self.issued(entry.serial))):
                    found[name] = entry.name
        return found

    def issued(self, serial: int) -> x509.Certificate:
        """A certificate that was issued. Raises PkiError."""
        return load_certificate(places.newcerts() / f"{serial:X}.pem")

    def issue(self, wanted: Wanted, file: str = "", *, again: bool = False) -> x509.Certificate:
        """A certificate, also in certs/<file>.crt. `again`: an earlier one of that name may have another key.

        Raises PkiError when its name is taken, OSError.
        """
        with _alone():
            entries = self.entries()
            if not again:
                self._refuse_double(wanted, entries)
            certificate = self._build(wanted)
            data = certificate_pem(certificate)
            name = file or wanted.name
            entry = Entry(
                name, certificate.serial_number, certificate.not_valid_after_utc, subject_text(certificate.subject)
            )
            places.write(places.newcerts() / f"{entry.serial:X}.pem", data, places.READABLE)
            self._write_index([*entries, entry])
            places.write(places.certs() / f"{name}.crt", data, places.READABLE)
        return certificate

    def _refuse_double(self, wanted: Wanted, entries: list[Entry]) -> None:
        """One name is one person, with one role. A server may ask again, with the user of its commands."""
        if wanted.kind is Kind.SERVER:
            return
        when = now()
        valid = [entry for entry in entries if entry.state(when) == "valid"]
        servers = {entry.name.removeprefix("server_") for entry in valid if entry.name.startswith("server_")}
        for entry in valid:
            certificate = None if entry.name.startswith("server_") else self.issued(entry.serial)
            if certificate is None or common_name(certificate) != wanted.common_name:
                continue
            same = entry.name == wanted.name
            if same and (wanted.common_name in servers or certificate.public_key() == wanted.public_key):
                continue
            raise PkiError(
                f"CN: {wanted.common_name} has the certificate {entry.name} already",
                f"choose another name; or initssl renew {entry.name}; or first: initssl revoke {entry.name}",
            )

    def _build(self, wanted: Wanted) -> x509.Certificate:
        start = now()
        fields = [x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, wanted.role)] if wanted.role else []
        subject = x509.Name([*fields, x509.NameAttribute(NameOID.COMMON_NAME, wanted.common_name)])
        encipher = isinstance(wanted.public_key, rsa.RSAPublicKey)
        usage = x509.KeyUsage(
            digital_signature=True, content_commitment=False, key_encipherment=encipher, data_encipherment=False,
            key_agreement=False, key_cert_sign=False, crl_sign=False, encipher_only=False, decipher_only=False,
        )  # fmt: skip
        purpose = ExtendedKeyUsageOID.SERVER_AUTH if wanted.kind is Kind.SERVER else ExtendedKeyUsageOID.CLIENT_AUTH
        end = min(years_after(start, YEARS), self.certificate.not_valid_after_utc)
        builder = x509.CertificateBuilder().subject_name(subject).issuer_name(self.certificate.subject)
        builder = builder.public_key(wanted.public_key).serial_number(x509.random_serial_number())
        builder = builder.not_valid_before(start - EARLIER).not_valid_after(end)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(usage, critical=True)
        builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(wanted.public_key), critical=False)
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        builder = builder.add_extension(issuer, critical=False)
        if wanted.kind is Kind.SERVER:
            general: list[x509.GeneralName] = [x509.DNSName(each) for each in wanted.names.dns]
            general += [x509.IPAddress(each) for each in wanted.names.addresses]
            builder = builder.add_extension(x509.SubjectAlternativeName(general), critical=False)
        return builder.sign(self.key, hashes.SHA256())

    def revoke(self, name: str) -> int:
        """All valid certificates of that name, or the one with that serial number (hexadecimal); how many.

        Raises PkiError when there is none, OSError.
        """
        wanted = name.removesuffix(".crt").removesuffix(".p12")
        with _alone():
            when, entries, count = now(), self.entries(), 0
            for index, entry in enumerate(entries):
                if entry.state(when) == "valid" and wanted in (entry.name, f"{entry.serial:X}"):
                    entries[index] = replace(entry, revoked=when)
                    count += 1
            if not count:
                known = ", ".join(dict.fromkeys(entry.name for entry in entries if entry.state(when) == "valid"))
                raise PkiError(f"there is no valid certificate {name[:80]!r}", f"initssl revoke one of: {known}")
            self._write_index(entries)
            self._write_crl(entries)
        return count

    def crl(self) -> bytes:
        """The list of what is revoked, PEM; made when there is none yet. Raises PkiError, OSError."""
        path = places.ca() / CRL
        if not path.exists():
            with _alone():
                self._write_crl(self.entries())
        return path.read_bytes()

    def _write_index(self, entries: list[Entry]) -> None:
        text = "".join(entry.line() for entry in entries)
        places.write(places.ca() / "index.txt", text.encode(), places.SECRET)

    def _write_crl(self, entries: list[Entry]) -> None:
        """Each list has a higher number; it is in force until the next one, so that an authority that is kept in a
        vault closes nothing."""
        numbers = places.ca() / "crlnumber"
        number = int(numbers.read_text(), 16) if numbers.exists() else 1
        builder = x509.CertificateRevocationListBuilder().issuer_name(self.certificate.subject)
        builder = builder.last_update(now()).next_update(self.certificate.not_valid_after_utc)
        builder = builder.add_extension(x509.CRLNumber(number), critical=False)
        builder = builder.add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False
        )
        for entry in entries:
            if entry.revoked is not None:
                revoked = x509.RevokedCertificateBuilder().serial_number(entry.serial).revocation_date(entry.revoked)
                builder = builder.add_revoked_certificate(revoked.build())
        data = builder.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        places.write(numbers, f"{number + 1:02X}\n".encode(), places.SECRET)
        places.write(places.ca() / CRL, data, places.READABLE)

    def renewed(self) -> Authority:
        """The same authority, for ten more years: what it has issued stays good. Raises OSError."""
        with _alone():
            certificate = _self_signed(self.certificate.subject, self.key)
            places.write(places.certs() / CACERT, certificate_pem(certificate), places.READABLE)
        return Authority(certificate, self.key)


def common_name(certificate: x509.Certificate) -> str:
    """The CN of the subject; empty without one."""
    found = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(found[0].value) if found else ""


def unit(certificate: x509.Certificate) -> str:
    """The OU of the subject; empty without one."""
    found = certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATIONAL_UNIT_NAME)
    return str(found[0].value) if found else ""


def alternative_names(certificate: x509.Certificate) -> tuple[str, ...]:
    """DNS names and addresses of subjectAltName."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    dns = names.get_values_for_type(x509.DNSName)
    return (*dns, *map(str, names.get_values_for_type(x509.IPAddress)))
