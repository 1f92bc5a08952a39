"""Commands of SAFE/web/bin (guide 11.6.4): startcaserv, stopcaserv, initssl, makeusercert, getipandnames."""

from __future__ import annotations

import getpass
import hashlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, NoReturn

import click
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from caserv import authority, installed, names, places, tasks
from caserv.client import USER, CaClient
from caserv.errors import PkiError
from caserv.gate import Access
from caserv.judge import ROLES
from caserv.settings import NAME, port
from safekit.disk.paths import safebin
from safekit.log import commands as commandlog
from safekit.process import standard

PASSWORD_VARIABLE = "SAFEKIT_CA_PASSWORD"
START_SECONDS = 15.0
HELP: dict[str, Any] = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


def say(text: str) -> None:
    """One line for who runs the command."""
    click.echo(text)


def read_password(prompt: str) -> str:
    """From the terminal, unseen; else the next line of standard input. Raises PkiError at its end."""
    if sys.stdin.isatty():
        return getpass.getpass(prompt)
    click.echo(prompt)
    line = sys.stdin.readline()
    if not line:
        raise PkiError("a password is needed, and standard input is at its end", "run the command in a terminal")
    return line.rstrip("\n")


def twice(prompt: str) -> str:
    """A new password. Raises PkiError when the two differ."""
    click.echo(prompt)
    first = read_password("  password: ")
    if read_password("  again: ") != first:
        raise PkiError("the two passwords are not the same", "run the command again")
    return first


def _root() -> None:
    if os.geteuid() != 0:
        raise PkiError("keys and certificates are root's", f"sudo {' '.join(sys.argv)}")


def _run(command: click.Command, name: str, logged: bool) -> NoReturn:
    """Run a command: errors in words, an entry in the commands log without passwords."""

    def body() -> int:
        os.umask(0o077)
        entry = commandlog.started(_told(name, sys.argv[1:])) if logged and os.geteuid() == 0 else None
        code = 1
        try:
            code = int(command.main(prog_name=name, standalone_mode=False) or 0)
        except PkiError as error:
            click.echo(f"Error: {error.text}\nNext step: {error.next_step}", err=True)
        except click.Abort:
            click.echo("Error: interrupted", err=True)
        except click.ClickException as error:
            error.show()
            code = error.exit_code
        except OSError as error:
            click.echo(f"Error: {error.filename or ''}: {error.strerror or error}", err=True)
            click.echo("Next step: free space on the disk, or run it as root; then run it again", err=True)
        finally:
            if entry is not None:
                commandlog.finished(entry, code)
        return code

    standard.run(body)


def _told(name: str, words: list[str]) -> str:
    shown = [f"{word.partition(':')[0]}:***" if word.startswith(f"{USER}:") else word for word in words]
    return " ".join([name, *shown])


# startcaserv, stopcaserv


def _new_service_certificate() -> str:
    """A key and a self-signed certificate for one run of the service; the fingerprint."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"SafeKit CA service of {places.hostname()}"[:64])])
    start = authority.now()
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key())
    builder = builder.serial_number(x509.random_serial_number()).not_valid_before(start - authority.EARLIER)
    builder = builder.not_valid_after(authority.years_after(start, 1))
    own = names.load()
    general: list[x509.GeneralName] = [x509.DNSName(each) for each in ("localhost", *own.dns)]
    general += [x509.IPAddress(each) for each in own.addresses]
    builder = builder.add_extension(x509.SubjectAlternativeName(general), critical=False)
    certificate = builder.sign(key, hashes.SHA256())
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    places.service().mkdir(mode=0o700, exist_ok=True)
    os.chmod(places.service(), 0o700)
    places.write(places.service() / "service.key", secret, places.SECRET)
    places.write(places.service() / "service.crt", authority.certificate_pem(certificate), places.SECRET)
    return hashlib.sha256(certificate.public_bytes(serialization.Encoding.DER)).hexdigest()


def _systemctl(verb: str) -> None:
    try:
        done = subprocess.run(
            ["systemctl", verb, f"{NAME}.service"], capture_output=True, text=True, check=False, timeout=60
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PkiError(f"systemctl {verb} {NAME}: {error}", f"run {NAME} by hand") from None
    if done.returncode:
        raise PkiError(
            f"systemctl {verb} {NAME}: {(done.stderr or done.stdout).strip() or done.returncode}",
            f"journalctl -u {NAME}",
        )


def _firewall(verb: str) -> None:
    """A firewall that refuses is told and stops nothing."""
    try:
        installed.run([str(safebin() / "firewallcfg"), verb, "caserv"], lambda _: None)
    except PkiError as error:
        click.echo(f"Warning: {error.text}", err=True)


def _wait(tcp: int) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            socket.create_connection(("127.0.0.1", tcp), timeout=1).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise PkiError(
                    f"the CA service does not listen on TCP port {tcp}: {error.strerror or error}",
                    f"journalctl -u {NAME}; see who has the port: ss -ltnp; another one: caservport in "
                    "SAFE/web/conf/httpd.caserv.conf",
                ) from None
            time.sleep(0.05)


@click.command(context_settings=HELP)
def startcaserv_command() -> int:
    """Start the CA web service of this server, with its wizard for https.

    Asks for the password of CA_admin, who may use it; scripts give it on standard input, or in the variable
    SAFEKIT_CA_PASSWORD. Opens its TCP port, 9001, in the local firewall. When all is done: stopcaserv.

    \b
    Example:  SAFE/web/bin/startcaserv      then https://SERVER:9001 in a browser, or initssl
    """
    _root()
    names.update()
    password = os.environ.get(PASSWORD_VARIABLE) or twice(f"Enter the password of {USER} for the CA service:")
    access = Access.of(password)
    fingerprint = _new_service_certificate()
    access.save()
    tcp = port()
    _systemctl("restart")
    _wait(tcp)
    _firewall("add")
    say(f"The CA service runs: https://{places.hostname()}:{tcp}   name {USER}, with that password")
    say(f"Fingerprint of its certificate (SHA-256): {fingerprint}")
    say("Next step: the wizard at that address, or: initssl ca on this server, then on each other one: "
        f"initssl req https://{places.hostname()}:{tcp} {USER}")  # fmt: skip
    return 0


@click.command(context_settings=HELP)
def stopcaserv_command() -> int:
    """Stop the CA web service and close its port in the local firewall.

    \b
    Example:  SAFE/web/bin/stopcaserv
    """
    _root()
    _systemctl("stop")
    for name in ("access.json", "service.key", "service.crt"):
        (places.service() / name).unlink(missing_ok=True)
    _firewall("del")
    say("The CA service is stopped, its password is forgotten, its port is closed")
    if authority.is_there():
        say(f"The authority is in {places.ca()}: keep it on a medium in a safe place, and remove it from this server")
    return 0


# initssl


@click.group(context_settings=HELP)
def initssl_group() -> None:
    """Make, fetch, renew and revoke the certificates for https (guide 11.6).

    \b
    Examples:
      initssl ca                                               on the first server
      initssl req https://10.0.0.1:9001 CA_admin               on each other server
      initssl renew; initssl revoke user_Control_manager       on the first server
    """


@initssl_group.command("ca", context_settings=HELP)
@click.argument("subject", required=False, default="")
def ca_command(subject: str) -> int:
    """Create the certification authority on this server, and with it the certificates of this server, of its
    distributed commands, and of three users (Admin, Control, Monitor), whose p12 files get a password each.

    \b
    Examples:  initssl ca
               initssl ca "/O=My Company/OU=My Unit/CN=My Company Private Certificate Authority"
    """
    _root()
    if not (places.conf() / names.FILES[0]).exists():
        names.update()
    tasks.first_server(say, subject)
    there = {entry.name for entry in authority.load().valid()}
    for name, role in tasks.DEFAULT_USERS:
        file = f"user_{role}_{name}"
        if file in there and (places.private() / f"{file}.p12").exists():
            say(f"{file}.p12 is there already; initssl renew {file} makes a new one")
            continue
        password = twice(f"Enter the password for the {role} role pkcs12 file (../conf/ca/private/{file}.p12) twice:")
        if file in there:
            tasks.renew(file, password, say)
        else:
            tasks.user_certificate(name, role, password, say)
    for line in installed.check_all():
        say(line)
    _next_step()
    return 0


def _next_step() -> None:
    if installed.is_active():
        say("https is switched on already: the web service uses the new certificates")
        return
    say("Next step: cp SAFE/web/conf/httpd.webconsolessl.conf SAFE/web/conf/ssl/; safekit webserver restart")


def _client(url: str, user: str, fingerprint: str) -> CaClient:
    name, colon, password = user.partition(":")
    if name != USER:
        raise PkiError(f"user: {name[:40]!r} is unknown to a CA service", f"use {USER}, or {USER}:PASSWORD")
    client = CaClient(url, password, fingerprint)
    if not colon:
        client.password = os.environ.get(PASSWORD_VARIABLE) or read_password(f"Password of {USER} at {client.where}: ")
    return client


@initssl_group.command("req", context_settings=HELP)
@click.argument("url", required=False, default="")
@click.argument("user", required=False, default=USER, metavar=f"{USER}[:PASSWORD]")
@click.option("--fingerprint", default="", help="SHA-256 of the service's certificate, as startcaserv printed it.")
def req_command(url: str, user: str, fingerprint: str) -> int:
    """Make the certificate requests of this server; with URL, have them signed by the CA server, and install.

    Without URL it stops after the requests (.csr files), for another authority. The password goes nowhere: both
    servers prove that they know it.

    \b
    Examples:  initssl req https://192.168.0.1:9001 CA_admin
               initssl req https://192.168.0.1:9001 CA_admin:PasW0rD
               initssl req
    """
    _root()
    if not (places.conf() / names.FILES[0]).exists():
        names.update()
    if not url:
        tasks.requests(say)
        say("Next step: have the two .csr files signed, then install the certificates (guide 11.3.2), or upload them: "
            "startcaserv, https://localhost:9001/advanced.html")  # fmt: skip
        return 0
    tasks.additional_server(_client(url, user, fingerprint), say)
    _next_step()
    return 0


@initssl_group.command("renew", context_settings=HELP)
@click.argument("what", required=False, default="")
@click.argument("user", required=False, default=USER, metavar=f"[{USER}[:PASSWORD]]")
@click.option("--fingerprint", default="", help="SHA-256 of the service's certificate, as startcaserv printed it.")
def renew_command(what: str, user: str, fingerprint: str) -> int:
    """Renew certificates, with the keys that are there: nothing else changes, and nobody is cut off.

    On the CA server: its own ones, a user's, or (WHAT is ca) that of the authority. On another server WHAT is the URL
    of the CA service, which must run.

    \b
    Examples:  initssl renew
               initssl renew user_Admin_administrator
               initssl renew ca
               initssl renew https://192.168.0.1:9001 CA_admin
    """
    _root()
    if "://" in what:
        tasks.additional_server(_client(what, user, fingerprint), say)
    else:
        is_user = what.startswith("user_") and what != tasks.SYSTEM
        password = twice(f"Enter the password for {what}.p12 twice:") if is_user else ""
        tasks.renew(what, password, say)
    return 0


@initssl_group.command("revoke", context_settings=HELP)
@click.argument("name")
def revoke_command(name: str) -> int:
    """Revoke a certificate: a user's, a server's, or one by its serial number (initssl list). On the CA server.

    The web service refuses it at once here, and on the other servers when they have fetched the list: within a
    minute while this server's web service runs.

    \b
    Example:  initssl revoke user_Control_manager
    """
    _root()
    tasks.revoke(name, say)
    return 0


@initssl_group.command("list", context_settings=HELP)
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def list_command(as_json: bool) -> int:
    """List what the authority of this server has issued, newest first.

    \b
    Example:  initssl list
    """
    _root()
    found = tasks.listed()
    if as_json:
        click.echo(json.dumps(found, indent=1))
        return 0
    width = max((len(each["name"]) for each in found), default=0)
    for each in found:
        click.echo(f"{each['name']:{width}}  {each['state']:8} until {each['ends'][:10]}  {each['serial']}")
    return 0


# makeusercert, getipandnames


@click.command(context_settings=HELP)
@click.argument("name")
@click.argument("role", metavar="|".join(ROLES))
def makeusercert_command(name: str, role: str) -> int:
    """Make a certificate for a user of the console: NAME is its CN, ROLE what he may do.

    On the CA server: key, certificate and p12 file, for which a password is asked twice. On another server: key and
    request.

    \b
    Examples:  makeusercert administrator Admin
               makeusercert manager Control
               makeusercert operator Monitor
    """
    _root()
    if not authority.is_there():
        tasks.user_request(name, role, say)
        return 0
    password = twice(f"Enter the password for the pkcs12 file (../conf/ca/private/user_{role}_{name}.p12) twice:")
    tasks.user_certificate(name, role, password, say)
    return 0


@click.command(context_settings=HELP)
def getipandnames_command() -> int:
    """List the addresses and DNS names of this server in SAFE/web/conf/ipv4.json, ipv6.json and ipnames.json.

    They go into the server's certificate. Edit the files to add others, such as a public address; what was added or
    taken away by hand stays when the command is run again.

    \b
    Example:  getipandnames
    """
    _root()
    found = names.update()
    for file in names.FILES:
        say(f"{places.conf() / file}: {', '.join(names.read_list(file)) or 'none'}")
    return 0 if found.texts() else 1


def _entry(command: click.Command, name: str, logged: bool = True) -> Callable[[], NoReturn]:
    return lambda: _run(command, name, logged)


startcaserv = _entry(startcaserv_command, "startcaserv")
stopcaserv = _entry(stopcaserv_command, "stopcaserv")
initssl = _entry(initssl_group, "initssl")
makeusercert = _entry(makeusercert_command, "makeusercert")
getipandnames = _entry(getipandnames_command, "getipandnames", logged=False)
