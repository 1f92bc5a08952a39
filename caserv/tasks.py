"""What an administrator does with certificates, by command or in the wizard (guide 11.3.1, 11.6). Each tells its steps
through `say`."""

from __future__ import annotations

import re
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import pkcs12
from cryptography.x509.oid import NameOID

from caserv import authority, installed, names, places
from caserv.authority import Authority, certificate_pem, common_name, load_certificate
from caserv.client import MAX_SKEW, CaClient
from caserv.errors import PkiError
from caserv.installed import Say
from caserv.judge import ROLES, Kind, Known, Names, Wanted, certificate_name, common_name_of, dns_name, judge, role_of

LOCAL, SYSTEM = "server_localca", "user_Admin_system"
DEFAULT_USERS = (("administrator", "Admin"), ("manager", "Control"), ("operator", "Monitor"))
MIN_PASSWORD = 4
KDF_ROUNDS = 100_000
_USER = re.compile(rf"user_({'|'.join(ROLES)})_(.+)")


def quietly(_: str) -> None:
    """Nobody listens."""


def first_server(say: Say, subject: str = "") -> Authority:
    """The authority, the certificates of this server, and both where the web service uses them (`initssl ca`).

    What is there already is kept, so that an interrupted run can be repeated. Raises PkiError, OSError.
    """
    places.make_directories()
    own = names.load()
    if authority.is_there():
        ours = authority.load()
        if subject and authority.parse_subject(subject) != ours.certificate.subject:
            authority.create(subject)  # refuses, and says what to do
        say(f"authority: {authority.subject_text(ours.certificate.subject)} is there already")
    else:
        say("authority: its key is made (some seconds)")
        ours = authority.create(subject or authority.DEFAULT_SUBJECT)
        say(f"authority: {authority.subject_text(ours.certificate.subject)}, for {authority.CA_YEARS} years")
    renew_own(ours, own, say)
    return ours


def renew_own(ours: Authority, own: Names, say: Say) -> None:
    """The certificates of the server that has the authority. Raises PkiError, OSError."""
    server_key, admin_key = own_key(LOCAL), own_key(SYSTEM)
    server = Wanted(Kind.SERVER, dns_name(places.hostname()), server_key.public_key(), "", own)
    server_certificate = ours.issue(server, LOCAL, again=True)
    say(f"{places.certs() / LOCAL}.crt: {', '.join(own.texts())}")
    admin = Wanted(Kind.USER, "system", admin_key.public_key(), "Admin")
    admin_certificate = ours.issue(admin, SYSTEM, again=True)
    pem = certificate_pem(ours.certificate)
    installed.install_authorities(pem, pem, say)
    installed.install_crl(ours.crl(), say)
    installed.install_server(server_certificate, authority.key_pem(server_key), say)
    installed.install_admin(admin_certificate, authority.key_pem(admin_key), say)


def own_key(name: str) -> rsa.RSAPrivateKey:
    """private/<name>.key, made when it is not there. Raises PkiError, OSError."""
    path = places.private() / f"{name}.key"
    if path.exists():
        return authority.load_key(path)
    key = authority.new_key()
    places.write(path, authority.key_pem(key), places.SECRET)
    return key


def _request(name: str, common: str, role: str, own: Names | None) -> bytes:
    """The request for the key private/<name>.key, also in private/<name>.csr. Raises PkiError, OSError."""
    key = own_key(name)
    fields = [x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, role)] if role else []
    subject = x509.Name([*fields, x509.NameAttribute(NameOID.COMMON_NAME, common)])
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
    if own is not None:
        general: list[x509.GeneralName] = [x509.DNSName(each) for each in own.dns]
        general += [x509.IPAddress(each) for each in own.addresses]
        builder = builder.add_extension(x509.SubjectAlternativeName(general), critical=False)
    data = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    places.write(places.private() / f"{name}.csr", data, places.SECRET)
    return data


def requests(say: Say) -> tuple[bytes, bytes]:
    """The requests of this server, for its certificate and for the user of its distributed commands (`initssl req`).

    Raises PkiError, OSError.
    """
    places.make_directories()
    own, host = names.load(), places.hostname()
    server = _request(f"server_{host}", dns_name(host), "", own)
    say(f"{places.private() / f'server_{host}'}.csr: {', '.join(own.texts())}")
    user = _request(f"user_Admin_{host}", common_name_of(host), "Admin", None)
    say(f"{places.private() / f'user_Admin_{host}'}.csr: role Admin")
    return server, user


def additional_server(client: CaClient, say: Say) -> None:
    """Certificates from the authority on another server, checked and installed. Raises PkiError, OSError."""
    if authority.is_there():
        raise PkiError(
            "this server has the certification authority itself",
            "initssl renew renews its own certificates; initssl req is for the other servers",
        )
    server_request, user_request = requests(say)
    host = places.hostname()
    say(f"{client.where} is asked")
    ca_pem = client.ca_certificate()
    if abs(client.skew) > MAX_SKEW:
        say(f"Warning: the clock of {client.where} differs by {client.skew:.0f} s: timedatectl set-ntp true")
    ca, crl = installed.chain("cacert.crt", ca_pem), client.crl()
    own = names.load()
    server = client.sign("servercsr", f"server_{host}", server_request, own.texts())
    user = client.sign("usercsr", f"user_Admin_{host}", user_request)
    for name, data in ((f"server_{host}", server), (f"user_Admin_{host}", user)):
        certificate = installed.chain(f"{name}.crt", data)[0]
        key = authority.key_pem(own_key(name))
        installed.check_pair(name, certificate, key)
        installed.check_dates(f"{name}.crt", certificate, authority.now())
        installed.check_issued(f"{name}.crt", certificate, ca)
        places.write(places.certs() / f"{name}.crt", data, places.READABLE)
    places.write(places.certs() / authority.CACERT, ca_pem, places.READABLE)
    installed.install_authorities(ca_pem, ca_pem, say)
    installed.install_crl(crl, say)
    for name, install in (
        (f"server_{host}", installed.install_server),
        (f"user_Admin_{host}", installed.install_admin),
    ):
        install(load_certificate(places.certs() / f"{name}.crt"), authority.key_pem(own_key(name)), say)
    for line in installed.check_all():
        say(line)


def check_password(password: str) -> None:
    """Of a p12 file. Raises PkiError."""
    if len(password) < MIN_PASSWORD or len(password) > 128 or not password.isprintable():
        raise PkiError(
            f"the password of a p12 file has {MIN_PASSWORD} to 128 printable characters",
            "choose a long one: whoever has the file can try passwords as long as he wants",
        )


def user_request(name: str, role: str, say: Say) -> str:
    """The request of a person, on a server without the authority; the name of its files. Raises PkiError, OSError."""
    places.make_directories()
    role, name = role_of(role), common_name_of(name)
    file = certificate_name(Kind.USER, name, role)
    _request(file, name, role, None)
    say(f"{places.private() / file}.csr: have it signed on the CA server (https://CA:9001/getcsr.html)")
    return file


def user_certificate(name: str, role: str, password: str, say: Say) -> Path:
    """Request, certificate and p12 file of a person; the p12 file. Raises PkiError, OSError."""
    ours = authority.load()
    check_password(password)
    role, name = role_of(role), common_name_of(name)
    file = certificate_name(Kind.USER, name, role)
    known = any(entry.name == file for entry in ours.valid())
    if known:
        raise PkiError(
            f"CN: {name} has the certificate {file} already",
            f"choose another name; or initssl renew {file}; or first: initssl revoke {file}",
        )
    # A revoked or expired certificate takes its key along.
    (places.private() / f"{file}.key").unlink(missing_ok=True)
    return _issue_user(ours, file, name, role, password, say)


def _issue_user(ours: Authority, file: str, name: str, role: str, password: str, say: Say) -> Path:
    wanted = judge(Kind.USER, _request(file, name, role, None), file, Known())
    certificate = ours.issue(wanted, file)
    key, path = own_key(file), places.private() / f"{file}.p12"
    places.write(path, p12(f"{name} ({role})", key, certificate, ours.certificate, password), places.SECRET)
    say(f"{path}: valid until {certificate.not_valid_after_utc:%Y-%m-%d}; import it into the browser of {name}")
    return path


def p12(label: str, key: rsa.RSAPrivateKey, own: x509.Certificate, ca: x509.Certificate, password: str) -> bytes:
    """Key and certificates of a person under a password."""
    builder = serialization.PrivateFormat.PKCS12.encryption_builder().kdf_rounds(KDF_ROUNDS)
    builder = builder.key_cert_algorithm(pkcs12.PBES.PBESv2SHA256AndAES256CBC).hmac_hash(hashes.SHA256())
    return pkcs12.serialize_key_and_certificates(label.encode(), key, own, [ca], builder.build(password.encode()))


def sign(kind: Kind, data: bytes, name: str, known: Known) -> tuple[str, bytes]:
    """Name and certificate (PEM) for a request that somebody else made. Raises PkiError, OSError."""
    ours = authority.load()
    wanted = judge(kind, data, name, known)
    return wanted.name, certificate_pem(ours.issue(wanted))


def renew(what: str, password: str, say: Say) -> None:
    """On the CA server: its own certificates (''), the authority's ('ca'), or a person's. Raises PkiError, OSError."""
    ours = authority.load()
    if what in ("", LOCAL, SYSTEM):
        renew_own(ours, names.load(), say)
        return
    if what == "ca":
        renewed = ours.renewed()
        say(f"{places.certs() / authority.CACERT}: valid until {renewed.certificate.not_valid_after_utc:%Y-%m-%d}")
        renew_own(renewed, names.load(), say)
        say("on each other server: initssl renew https://THIS_SERVER:9001 CA_admin; and in the browsers: cacert.crt")
        return
    found = _USER.fullmatch(what.removesuffix(".p12").removesuffix(".crt"))
    if found is None:
        raise PkiError(
            f"{what[:80]!r} is not a certificate that is renewed here",
            "a user's: user_ROLE_NAME; a server's, on that server: initssl renew https://CA:9001 CA_admin",
        )
    file = certificate_name(Kind.USER, found[2], found[1])
    if not (places.private() / f"{file}.key").is_file():
        raise PkiError(f"{places.private() / file}.key: no such file", "makeusercert makes a new user")
    check_password(password)
    _issue_user(ours, file, common_name_of(found[2]), found[1], password, say)


def revoke(name: str, say: Say) -> None:
    """A certificate is no longer good, here at once and on the others when they fetch the list. Raises PkiError,
    OSError."""
    ours = authority.load()
    count = ours.revoke(name)
    installed.install_crl(ours.crl(), say)
    say(f"{name}: {count} revoked; the other servers fetch the list within a minute")


def upload(files: dict[str, bytes], say: Say) -> None:
    """Certificates and keys of another authority (advanced.html), judged as a whole before one is installed.

    Raises PkiError, OSError.
    """
    known = {"server.crt", "server.key", "admin.crt", "admin.key", "cacert.crt", "clcacert.crt"}
    if not files or set(files) - known:
        raise PkiError("no file was given", f"give one or more of {', '.join(sorted(known))}")
    if "cacert.crt" in files or "clcacert.crt" in files:
        # One authority for servers and clients, where only one is given and none is there.
        for name, other in (("cacert.crt", "clcacert.crt"), ("clcacert.crt", "cacert.crt")):
            path = places.conf() / name
            if name not in files:
                files[name] = path.read_bytes() if path.exists() else files[other]
    chains = {
        name: installed.chain(name, files[name] if name in files else _present(name))
        for name in ("cacert.crt", "clcacert.crt")
    }
    pairs = []
    for what, issuer in (("server", "cacert.crt"), ("admin", "clcacert.crt")):
        given = {f"{what}.crt", f"{what}.key"} & set(files)
        if len(given) == 1:
            raise PkiError(f"{given.pop()} was given without its other half", f"give {what}.crt and {what}.key")
        if given:
            certificate = installed.chain(f"{what}.crt", files[f"{what}.crt"])[0]
            key = installed.check_pair(what, certificate, files[f"{what}.key"])
            installed.check_dates(f"{what}.crt", certificate, authority.now())
            installed.check_issued(f"{what}.crt", certificate, chains[issuer])
            pairs.append((what, certificate, key))
    if "cacert.crt" in files:
        clean = {name: installed.pem_blocks(files[name]) for name in ("cacert.crt", "clcacert.crt")}
        installed.install_authorities(clean["cacert.crt"], clean["clcacert.crt"], say)
    for what, certificate, key in pairs:
        install = installed.install_server if what == "server" else installed.install_admin
        install(certificate, key, say, installed.pem_blocks(files[f"{what}.crt"]))


def _present(name: str) -> bytes:
    try:
        return (places.conf() / name).read_bytes()
    except FileNotFoundError:
        raise PkiError(f"{name} is neither given nor installed", "give the certificate of the authority too") from None


def listed() -> list[dict[str, str]]:
    """Everything that was issued here, newest first. Raises PkiError, OSError."""
    when = authority.now()
    return [
        {
            "name": entry.name,
            "subject": entry.subject,
            "serial": f"{entry.serial:X}",
            "ends": entry.expires.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "state": entry.state(when),
        }
        for entry in reversed(authority.load().entries())
    ]


def own_names() -> str:
    """Names of the installed server certificate; empty without one."""
    try:
        return ", ".join(authority.alternative_names(load_certificate(places.conf() / "server.crt")))
    except PkiError:
        return ""


def installed_files() -> list[dict[str, str]]:
    """What the web service uses: file, subject, end."""
    found = []
    for name in ("cacert.crt", "clcacert.crt", "server.crt", "admin.crt"):
        try:
            certificate = load_certificate(places.conf() / name)
        except PkiError:
            continue
        end = certificate.not_valid_after_utc.strftime("%Y-%m-%dT%H:%M:%SZ")
        found.append({"file": name, "subject": common_name(certificate), "ends": end})
    return found
