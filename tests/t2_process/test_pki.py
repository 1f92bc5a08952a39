"""The authority of a cluster: its commands, its files, its service (guide 11.3.1, 11.6; PKI-001 to PKI-025)."""

from __future__ import annotations

import json
import re
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import pkcs12

from cli.snapshots import snapshot
from tests.t2_process.ca_server import CHECKOUT, PASSWORD, CaServer, openssl

HTTPS = "httpd.webconsolessl.conf"


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CaServer]:
    """The first server: `initssl ca` is done, and its CA service runs. Tests that change it make their own."""
    server = CaServer(tmp_path_factory.mktemp("first"))
    server.lists("10.0.0.1 203.0.113.1", "n1 n1.example.com", "2001:db8::1")
    server.said = server.make_authority()
    server.start()
    yield server
    server.stop()


def copied(server: CaServer, place: Path) -> CaServer:
    """Another server with the same authority, not started."""
    place.mkdir()
    made = CaServer(place, server.host)
    shutil.rmtree(made.conf)
    shutil.copytree(server.conf, made.conf)
    return made


def new_server(place: Path, host: str = "n2", address: str = "10.0.0.2") -> CaServer:
    place.mkdir(exist_ok=True)
    server = CaServer(place, host)
    server.lists(address, f"{host} {host}.example.com")
    return server


def certificate(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_initssl_ca_makes_what_the_guide_lists(first: CaServer) -> None:
    """PKI-003, PKI-004, PKI-008, PKI-023, PKI-024."""
    assert openssl("x509", "-in", str(first.certs / "cacert.crt"), "-noout", "-subject") == (
        "subject=CN = SafeKit Local Certificate Authority\n"
    )
    for name in ("cacert", "server_localca", "user_Admin_system"):
        assert (first.certs / f"{name}.crt").is_file() and (first.private / f"{name}.key").is_file()
    for name, role in (("administrator", "Admin"), ("manager", "Control"), ("operator", "Monitor")):
        file = f"user_{role}_{name}"
        assert (
            f"Enter the password for the {role} role pkcs12 file (../conf/ca/private/{file}.p12) twice:" in first.said
        )
        assert (first.certs / f"{file}.crt").is_file() and (first.private / f"{file}.key").is_file()
        subject = openssl("x509", "-in", str(first.certs / f"{file}.crt"), "-noout", "-subject")
        assert subject == f"subject=OU = {role}, CN = {name}\n"
        assert "BEGIN PRIVATE KEY" in (first.private / f"{file}.key").read_text(), "not encrypted"
    for installed, source in (("server.crt", "server_localca.crt"), ("admin.crt", "user_Admin_system.crt")):
        assert (first.conf / installed).read_bytes() == (first.certs / source).read_bytes()
    ca = (first.certs / "cacert.crt").read_bytes()
    assert (first.conf / "cacert.crt").read_bytes() == (first.conf / "clcacert.crt").read_bytes() == ca


def test_only_root_reads_keys(first: CaServer) -> None:
    """admin.key and proxy.crtkey are for group safekit too, whose members run distributed commands."""
    assert [mode(path) for path in (first.ca, first.certs, first.private)] == [0o700] * 3
    kept = [path for path in first.private.iterdir() if path.suffix in (".key", ".p12", ".csr")]
    assert kept and {mode(path) for path in kept} == {0o600}
    assert (mode(first.conf / "server.key"), mode(first.conf / "server.crt")) == (0o600, 0o644)
    assert {mode(first.conf / name) for name in ("admin.key", "proxy.crtkey")} == {0o640}


def test_certificates_say_what_they_are_for(first: CaServer) -> None:
    """PKI-011, PKI-012; SAN with the addresses that an administrator listed, and never localhost."""
    server = openssl("x509", "-in", str(first.conf / "server.crt"), "-noout", "-text")
    assert "DNS:n1, DNS:n1.example.com, IP Address:10.0.0.1, IP Address:203.0.113.1" in server
    assert "TLS Web Server Authentication" in server and "CA:FALSE" in server and "localhost" not in server
    assert "TLS Web Client Authentication" in openssl("x509", "-in", str(first.conf / "admin.crt"), "-noout", "-text")
    for path, years in (
        (first.certs / "cacert.crt", 10),
        (first.conf / "server.crt", 5),
        (first.conf / "admin.crt", 5),
    ):
        dates = certificate(path)
        begins, ends = dates.not_valid_before_utc, dates.not_valid_after_utc
        assert ends.year - begins.year == years and (ends.month, ends.day) == (begins.month, begins.day)
    for name in ("server.crt", "admin.crt"):
        checked = openssl("verify", "-x509_strict", "-CAfile", str(first.conf / "cacert.crt"), str(first.conf / name))
        assert checked.endswith(": OK\n")
    issued = list(first.certs.glob("*.crt"))
    serials = {certificate(path).serial_number for path in issued}
    assert len(serials) == len(issued) >= 6 and min(serials).bit_length() > 100


def test_p12_files_open_with_their_passwords_in_openssl(first: CaServer) -> None:
    """PKI-004."""
    for file, password in (("user_Admin_administrator", "pwd1"), ("user_Monitor_operator", "pwd3")):
        path = first.private / f"{file}.p12"
        opened = openssl("pkcs12", "-in", str(path), "-passin", f"pass:{password}", "-nodes")
        assert "BEGIN PRIVATE KEY" in opened and opened.count("BEGIN CERTIFICATE") == 2
        assert "friendlyName: administrator (Admin)" in opened or "operator" in opened
        wrong = openssl("pkcs12", "-in", str(path), "-passin", "pass:wrong", "-nodes", check=False)
        assert "PRIVATE KEY" not in wrong
        key, own, _ = pkcs12.load_key_and_certificates(path.read_bytes(), password.encode())
        assert key is not None and own is not None and key.public_key() == own.public_key()


def test_another_server_gets_its_certificates(first: CaServer, tmp_path: Path) -> None:
    """PKI-005, PKI-009; repeated, it keeps its keys."""
    two = new_server(tmp_path / "two")
    said = two.command("initssl", "req", first.url, f"CA_admin:{PASSWORD}").stdout
    for name in ("server_n2", "user_Admin_n2"):
        assert (two.private / f"{name}.csr").is_file() and (two.private / f"{name}.key").is_file()
        assert (two.certs / f"{name}.crt").read_bytes() == (first.certs / f"{name}.crt").read_bytes()
    assert "server.crt: good" in said and "admin.crt: good" in said
    assert (two.conf / "cacert.crt").read_bytes() == (first.certs / "cacert.crt").read_bytes()
    assert (two.conf / "clca.crl").is_file()
    names = openssl("x509", "-in", str(two.conf / "server.crt"), "-noout", "-ext", "subjectAltName")
    assert "DNS:n2, DNS:n2.example.com, IP Address:10.0.0.2" in names
    key = (two.conf / "server.key").read_bytes()
    again = two.command("initssl", "req", first.url, "CA_admin", given=f"{PASSWORD}\n")
    assert "Password of CA_admin at https://127.0.0.1" in again.stdout
    assert (two.conf / "server.key").read_bytes() == key, "an interrupted set-up is repeated as it is"
    log = (two.var / "commandlog").read_text()
    assert "initssl req" in log and PASSWORD not in log
    assert "CA_admin:***" in log


def test_requests_for_another_authority(first: CaServer, tmp_path: Path) -> None:
    """PKI-006."""
    two = new_server(tmp_path / "two")
    two.command("initssl", "req")
    assert sorted(path.name for path in two.private.iterdir()) == [
        "server_n2.csr", "server_n2.key", "user_Admin_n2.csr", "user_Admin_n2.key"
    ]  # fmt: skip
    assert not list(two.certs.iterdir()) and not (two.conf / "server.crt").exists()
    text = openssl("req", "-in", str(two.private / "server_n2.csr"), "-noout", "-text", "-verify")
    assert "CN = n2" in text and "IP Address:10.0.0.2" in text
    assert "OU = Admin, CN = n2" in openssl("req", "-in", str(two.private / "user_Admin_n2.csr"), "-noout", "-subject")


def test_makeusercert(first: CaServer, tmp_path: Path) -> None:
    """PKI-007, PKI-023."""
    one = copied(first, tmp_path / "one")
    one.command("makeusercert", "night shift", "Monitor", given="long password\nlong password\n")
    for path in (
        one.private / "user_Monitor_night shift.key",
        one.certs / "user_Monitor_night shift.crt",
        one.private / "user_Monitor_night shift.p12",
    ):
        assert path.is_file(), path
    refused = one.command("makeusercert", "night shift", "Admin", given="pwd1\npwd1\n", check=False)
    assert refused.returncode == 1 and "has the certificate user_Monitor_night shift already" in refused.stderr
    differ = one.command("makeusercert", "other", "Admin", given="pwd1\npwd2\n", check=False)
    assert differ.returncode == 1 and "not the same" in differ.stderr
    for name, role, why in (("x", "Root", "is not a role"), ("../x", "Admin", "is not a name")):
        bad = one.command("makeusercert", name, role, given="pwd1\npwd1\n", check=False)
        assert bad.returncode == 1 and why in bad.stderr and "Next step: " in bad.stderr
    two = new_server(tmp_path / "two")
    two.command("makeusercert", "operator", "Monitor")
    assert sorted(path.name for path in two.private.iterdir()) == [
        "user_Monitor_operator.csr",
        "user_Monitor_operator.key",
    ]


def test_own_subject_and_repeated_initssl_ca(tmp_path: Path) -> None:
    """PKI-003; interrupted anywhere, the command goes on where it was."""
    one = new_server(tmp_path / "one", "n1", "10.0.0.1")
    subject = "/O=My Company/OU=My Entity/CN=My Company Private Certificate Authority"
    cut = one.command("initssl", "ca", subject, given="pwd1\npwd1\n", check=False)
    assert cut.returncode == 1 and "standard input is at its end" in cut.stderr
    ca = (one.certs / "cacert.crt").read_bytes()
    one.make_authority(("pwd2", "pwd3", ""))
    assert (one.certs / "cacert.crt").read_bytes() == ca
    assert "O = My Company, OU = My Entity" in openssl(
        "x509", "-in", str(one.certs / "cacert.crt"), "-noout", "-subject"
    )
    other = one.command("initssl", "ca", "/CN=Another", check=False)
    assert other.returncode == 1 and "has a certification authority already" in other.stderr
    assert "rm -r" in other.stderr and (one.certs / "cacert.crt").read_bytes() == ca


def test_renewal_keeps_keys_and_names_follow_the_lists(first: CaServer, tmp_path: Path) -> None:
    one = copied(first, tmp_path / "one")
    before = certificate(one.conf / "server.crt")
    one.lists("10.0.0.1 10.0.5.1", "n1")
    one.command("initssl", "renew")
    after = certificate(one.conf / "server.crt")
    assert after.serial_number != before.serial_number and after.public_key() == before.public_key()
    assert "10.0.5.1" in openssl("x509", "-in", str(one.conf / "server.crt"), "-noout", "-ext", "subjectAltName")
    one.command("initssl", "renew", "user_Control_manager", given="new password\nnew password\n")
    openssl("pkcs12", "-in", str(one.private / "user_Control_manager.p12"), "-passin", "pass:new password", "-nodes")
    one.command("initssl", "renew", "ca")
    renewed, former = one.certs / "cacert.crt", first.certs / "cacert.crt"
    assert certificate(renewed).serial_number != certificate(former).serial_number
    checked = openssl("verify", "-CAfile", str(renewed), str(first.certs / "user_Admin_administrator.crt"))
    assert checked.endswith(": OK\n"), "what was issued before stays good"
    unknown = one.command("initssl", "renew", "server_n9", check=False)
    assert unknown.returncode == 1 and "on that server: initssl renew https://" in unknown.stderr


def test_revocation_makes_a_list_that_openssl_understands(first: CaServer, tmp_path: Path) -> None:
    one = copied(first, tmp_path / "one")
    one.command("initssl", "revoke", "user_Control_manager")
    crl = str(one.conf / "clca.crl")
    text = openssl("crl", "-in", crl, "-noout", "-text", "-CAfile", str(one.conf / "cacert.crt"))
    serial = f"{certificate(one.certs / 'user_Control_manager.crt').serial_number:X}"
    assert serial in text.replace("\n", "")
    check = ["verify", "-crl_check", "-CRLfile", crl, "-CAfile", str(one.conf / "cacert.crt")]
    assert "certificate revoked" in openssl_error(*check, str(one.certs / "user_Control_manager.crt"))
    assert openssl(*check, str(one.certs / "user_Monitor_operator.crt")).endswith(": OK\n")
    number = int(re.findall(r"X509v3 CRL Number:\s+(\d+)", text)[0])
    listed = {each["name"]: each["state"] for each in json.loads(one.command("initssl", "list", "--json").stdout)}
    assert (listed["user_Control_manager"], listed["user_Monitor_operator"]) == ("revoked", "valid")
    twice = one.command("initssl", "revoke", "user_Control_manager", check=False)
    assert twice.returncode == 1 and "no valid certificate" in twice.stderr
    one.command("initssl", "revoke", "user_Monitor_operator")
    later = int(re.findall(r"CRL Number:\s+(\d+)", openssl("crl", "-in", crl, "-noout", "-text"))[0])
    assert later > number
    # A revoked name may come back, with another key.
    one.command("makeusercert", "manager", "Control", given="pwd1\npwd1\n")
    assert openssl(*check, str(one.certs / "user_Control_manager.crt")).endswith(": OK\n")


def openssl_error(*words: str) -> str:
    import subprocess

    done = subprocess.run(["openssl", *words], capture_output=True, text=True, timeout=60)
    assert done.returncode != 0, done.stdout
    return done.stderr + done.stdout


def test_clocks_that_differ_are_named(first: CaServer, tmp_path: Path) -> None:
    """PKI-017."""
    ahead = copied(first, tmp_path / "ahead")
    ahead.shift = 3600
    ahead.start()
    two = new_server(tmp_path / "two")
    done = two.command("initssl", "req", ahead.url, f"CA_admin:{PASSWORD}", check=False)
    ahead.stop()
    assert done.returncode == 1 and "Certificate is not yet valid: server_n2.crt begins at " in done.stderr
    assert "timedatectl" in done.stderr and not (two.conf / "server.crt").exists()
    later = new_server(tmp_path / "later", "n3", "10.0.0.3")
    later.shift = 6 * 365 * 86400
    done = later.command("initssl", "req", first.url, f"CA_admin:{PASSWORD}", check=False)
    assert done.returncode == 1 and "Certificate has expired: server_n3.crt ended at " in done.stderr


def test_a_new_authority_makes_the_old_certificates_worthless(first: CaServer, tmp_path: Path) -> None:
    """PKI-018; PKI-020: without conf/ca everything that the web service uses is there."""
    one = copied(first, tmp_path / "one")
    shutil.rmtree(one.ca)
    assert {path.name for path in one.conf.iterdir()} >= {
        "server.crt", "server.key", "cacert.crt", "clcacert.crt", "admin.crt", "admin.key", "proxy.crtkey"
    }  # fmt: skip
    said = one.make_authority()
    (kept,) = one.conf.glob("clcacert.crt.2*")
    assert kept.name in said and kept.read_bytes() == (first.conf / "clcacert.crt").read_bytes()
    old = first.certs / "user_Admin_administrator.crt"
    assert "error" in openssl_error("verify", "-CAfile", str(one.conf / "clcacert.crt"), str(old))


def test_getipandnames_lists_what_the_machine_has(tmp_path: Path) -> None:
    """PKI-010, PKI-011."""
    import subprocess

    one = CaServer(tmp_path, "n1")
    cluster = {"lans": [{"nodes": [{"name": "n1", "addr": "Console.Example.com"}, {"name": "n2", "addr": "10.9.9.9"}]}]}
    (one.var / "cluster/cluster.json").write_text(json.dumps(cluster))
    one.command("getipandnames")
    listed = {name: json.loads((one.conf / name).read_text()) for name in ("ipv4.json", "ipv6.json", "ipnames.json")}
    shown = json.loads(subprocess.run(["ip", "-j", "-4", "addr"], capture_output=True, check=True).stdout)
    own = [info["local"] for each in shown for info in each["addr_info"] if not info["local"].startswith("127.")]
    assert listed["ipv4.json"] == own
    assert {"n1", "console.example.com"} <= set(listed["ipnames.json"])
    assert "10.9.9.9" not in listed["ipv4.json"] and "localhost" not in listed["ipnames.json"]
    one.lists(" ".join([*own, "203.0.113.5"]), "console.example.com")
    one.command("getipandnames")
    assert json.loads((one.conf / "ipv4.json").read_text()) == [*own, "203.0.113.5"]
    assert "n1" not in json.loads((one.conf / "ipnames.json").read_text()), "it was taken away by hand"
    (one.conf / "ipv4.json").write_text("{")
    done = one.command("initssl", "req", check=False)
    assert (
        done.returncode == 1 and str(one.conf / "ipv4.json") in done.stderr and "Next step: correct it" in done.stderr
    )


def test_proxy_key_is_rsa(first: CaServer, tmp_path: Path) -> None:
    """PKI-025."""
    import subprocess

    source, out = first.conf / "admin.key", tmp_path / "rsa-admin.key"
    tool = CHECKOUT / "private/conf/openssl"
    subprocess.run(["sh", tool, "rsa", "-in", source, "-out", out], check=True, capture_output=True, timeout=60)
    assert out.read_text().startswith("-----BEGIN RSA PRIVATE KEY-----\n")
    assert (first.conf / "proxy.crtkey").read_bytes() == (first.conf / "admin.crt").read_bytes() + out.read_bytes()
    plain = subprocess.run(
        ["sh", tool, "x509", "-noout", "-subject", "-in", first.conf / "server.crt"], capture_output=True, check=True
    )
    assert plain.stdout == b"subject=CN = n1\n"


def test_no_snapshot_holds_the_authority(first: CaServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import zipfile

    for name, value in first.env.items():
        monkeypatch.setenv(name, value)
    (first.safe / "modules/AM/conf").mkdir(parents=True)
    snapshot("AM", tmp_path / "s.zip")
    secrets = [path.read_bytes() for path in (*first.private.iterdir(), first.conf / "server.key")]
    with zipfile.ZipFile(tmp_path / "s.zip") as opened:
        assert opened.namelist()
        for name in opened.namelist():
            assert not any(secret in opened.read(name) for secret in secrets) and "conf/ca" not in name


# The service


def test_the_service_wants_its_password(first: CaServer) -> None:
    """PKI-001, PKI-013."""
    for path in ("/", "/advanced.html", "/getcsr.html", "/legacy.html"):
        refused = first.ask("GET", path, password=None)
        assert refused.status == 401 and refused.headers["WWW-Authenticate"].startswith("Basic")
        assert first.ask("GET", path, user="admin").status == 401
        page = first.ask("GET", path)
        assert page.status == 200 and b"<!DOCTYPE html>" in page.data
        assert "default-src 'none'" in page.headers["Content-Security-Policy"]
    assert first.ask("GET", "/nothing.html").status == 404


def test_certificates_are_served(first: CaServer) -> None:
    """PKI-014."""
    ca = first.ask("GET", "/certs/cacert.crt", password=None)
    assert ca.status == 200 and ca.data == (first.certs / "cacert.crt").read_bytes()
    own = "/certs/user_Admin_administrator.crt"
    assert first.ask("GET", own, password=None).status == 401 and first.ask("GET", own).status == 200
    assert b"X509 CRL" in first.ask("GET", "/certs/crl.pem", password=None).data
    assert first.ask("GET", "/certs/user_Admin_administrator.p12").status == 404, "until it is published there"
    published = first.certs / "user_Admin_administrator.p12"
    shutil.copyfile(first.private / published.name, published)
    assert first.ask("GET", f"/certs/{published.name}").data == published.read_bytes()
    published.unlink()


def test_requests_are_signed_as_the_guide_says(first: CaServer, tmp_path: Path) -> None:
    """PKI-015, by a form of either kind."""
    two = new_server(tmp_path / "two", "n7", "10.0.0.7")
    two.command("initssl", "req")
    csr = (two.private / "server_n7.csr").read_text()
    form = urlencode({"action": "signrequest", "name": "server_n7", "servercsr": csr})
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    got = first.ask("POST", "/caserv", form, headers=headers)
    assert got.status == 200 and x509.load_pem_x509_certificate(got.data).subject.rfc4514_string() == "CN=n7"
    user = (two.private / "user_Admin_n7.csr").read_text()
    parts = {"action": "signrequest", "name": "user_Admin_n7", "usercsr": user}
    body = "".join(
        f'--x\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n' for name, value in parts.items()
    )
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    got = first.ask("POST", "/caserv", f"{body}--x--\r\n", headers=headers)
    assert got.status == 200, got.data
    assert x509.load_pem_x509_certificate(got.data).subject.rfc4514_string() == "CN=n7,OU=Admin"
    for form, why in (
        (urlencode({"action": "delete"}), "action: 'delete' is unknown"),
        (urlencode({"action": "signrequest"}), "0 requests were given"),
        (urlencode({"action": "signrequest", "servercsr": csr, "usercsr": csr}), "2 requests were given"),
        (urlencode({"action": "signrequest", "usercsr": csr}), "0 OU (the role)"),
        ("%", "the form cannot be read"),
        ("a=%ff%fe", "the form cannot be read"),
        ("&".join(f"f{n}=1" for n in range(100)), "the form cannot be read"),
    ):
        bad = first.ask("POST", "/caserv", form, headers={"Content-Type": "application/x-www-form-urlencoded"})
        assert bad.status == 400 and why in bad.text and bad.json["next_step"], (form, bad.data)


def test_the_wizard_sets_up_two_servers(tmp_path: Path) -> None:
    """PKI-021, PKI-022: the buttons of the wizard, from a server without anything."""
    (tmp_path / "one").mkdir()
    one, two = CaServer(tmp_path / "one"), new_server(tmp_path / "two")
    one.start()
    (one.conf / "ipv4.json").unlink()
    done = one.post("/api/first", {})
    assert done.status == 200 and any("https is switched on" in line for line in done.json["lines"]), done.data
    assert (one.conf / "ssl" / HTTPS).is_file() and "safekit webserver restart" in one.done.read_text()
    assert one.post("/api/first", {}).json["lines"] == ["this server is configured already; initssl renew renews"]
    p12 = one.post("/api/user", {"name": "administrator", "role": "Admin", "password": "long password"})
    assert p12.status == 200 and "user_Admin_administrator.p12" in p12.headers["Content-Disposition"]
    assert pkcs12.load_key_and_certificates(p12.data, b"long password")[0] is not None
    again = one.post("/api/user", {"name": "administrator", "role": "Monitor", "password": "long password"})
    assert again.status == 400 and "has the certificate user_Admin_administrator already" in again.text
    two.start()
    wrong = two.post("/api/additional", {"address": f"127.0.0.1:{one.port}", "password": "another"})
    assert wrong.status == 400 and "the password of CA_admin is wrong" in wrong.text
    assert not (two.conf / "server.crt").exists()
    own = json.loads((one.conf / "ipv4.json").read_text())
    for file in ("ipv4.json", "ipv6.json", "ipnames.json"):  # both are on this machine: n2 has other addresses
        (two.ca / "detected.json").write_text(json.dumps({"ipv4.json": own}))
        (two.conf / file).write_text(json.dumps(["10.0.0.2"] if file == "ipv4.json" else []))
    done = two.post("/api/additional", {"address": f"127.0.0.1:{one.port}", "password": PASSWORD})
    text = done.data.decode()
    assert done.status == 200 or "is in the certificate server_localca" in text, text
    if done.status == 200:
        assert (two.conf / "ssl" / HTTPS).is_file() and "safekit webserver restart" in two.done.read_text()
    assert one.post("/api/firewall", {}).status == 200 and "firewallcfg add" in one.done.read_text()
    state = one.ask("GET", "/api/state").json
    assert state["https"] and {each["name"] for each in state["issued"]} >= {"server_localca", "user_Admin_system"}
    two.stop()
    output = one.stop()
    assert "long password" not in output and PASSWORD not in output


def test_certificates_of_another_authority_are_uploaded(first: CaServer, tmp_path: Path) -> None:
    """PKI-013 (advanced.html): judged as a whole before one of them is installed."""
    one = copied(first, tmp_path / "one")
    for name in ("server.crt", "server.key", "cacert.crt", "clcacert.crt", "admin.crt", "admin.key", "proxy.crtkey"):
        (one.conf / name).unlink()
    one.start()
    files = {name: (first.conf / name).read_text() for name in ("server.crt", "server.key", "cacert.crt")}
    other = (first.private / "user_Admin_system.key").read_text()
    for change, why in (
        ({"server.key": other}, "server.key is not the key of server.crt"),
        ({"server.key": ""}, "server.crt was given without its other half"),
        ({"server.crt": "x"}, "server.crt: there is no certificate"),
        ({"cacert.crt": (first.conf / "server.crt").read_text()}, "was not issued by an authority of the CA file"),
    ):
        bad = one.post("/api/upload", {**files, **change})
        assert bad.status == 400 and why in bad.text, bad.data
        assert not (one.conf / "server.crt").exists() and not (one.conf / "cacert.crt").exists()
    assert one.post("/api/upload", files).status == 200
    assert (one.conf / "server.key").read_bytes() == (first.conf / "server.key").read_bytes()
    assert (one.conf / "clcacert.crt").exists() and mode(one.conf / "server.key") == 0o600
    one.stop()


def test_startcaserv_and_stopcaserv(tmp_path: Path) -> None:
    """PKI-001, PKI-002, PKI-016: systemd is asked, the firewall follows, the password is kept as what proves it."""
    import socket
    import threading

    (tmp_path / "one").mkdir()
    one = CaServer(tmp_path / "one")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        threading.Thread(target=lambda: listener.accept(), daemon=True).start()
        (one.conf / "httpd.caserv.conf").write_text(f"Define caservport {port}\n")
        done = one.command("startcaserv", given=f"{PASSWORD}\n{PASSWORD}\n")
    assert f"https://n1:{port}" in done.stdout and "Fingerprint" in done.stdout
    assert one.done.read_text() == "systemctl restart safecaserv.service\nfirewallcfg add caserv\n"
    access = one.var / "caserv/access.json"
    assert mode(access) == 0o600 and PASSWORD not in access.read_text() and mode(access.parent) == 0o700
    assert {name for name in ("ipv4.json", "ipv6.json", "ipnames.json") if (one.conf / name).exists()}
    one.done.unlink()
    one.command("stopcaserv")
    assert one.done.read_text() == "systemctl stop safecaserv.service\nfirewallcfg del caserv\n"
    assert not access.exists() and not (one.var / "caserv/service.key").exists()
    short = one.command("startcaserv", given="short\nshort\n", check=False)
    assert short.returncode == 1 and "has 7 printable" in short.stderr
    (one.conf / "httpd.caserv.conf").write_text("Define caservport 99999\n")
    bad = one.command("startcaserv", given=f"{PASSWORD}\n{PASSWORD}\n", check=False)
    assert bad.returncode == 1 and "httpd.caserv.conf: caservport: '99999' is not a port" in bad.stderr


@pytest.mark.parametrize("name", ["startcaserv", "stopcaserv", "initssl", "makeusercert", "getipandnames"])
def test_every_command_has_help_with_an_example(tmp_path: Path, name: str) -> None:
    (tmp_path / "one").mkdir()
    one = CaServer(tmp_path / "one")
    told = one.command(name, "--help").stdout
    assert "Example" in told and f"Usage: {name}" in told
    for sub in ("ca", "req", "renew", "revoke", "list") if name == "initssl" else ():
        assert "Example" in one.command(name, sub, "--help").stdout
