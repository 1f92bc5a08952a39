"""Lists of revoked certificates go from server to server: a higher number of a known authority, and nothing else."""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from caserv import authority, installed, places, tasks
from caserv.authority import Authority
from caserv.errors import PkiError
from safekit.disk.paths import safevar
from safekit.wire.certificates import lists_in, revoked
from safewebserver import revocations
from safewebserver.revocations import Revocations, newer
from tests.ports import free_port

Make = Callable[..., Authority]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Makes authorities, each in a SAFE of its own, which is then the present one."""
    monkeypatch.setattr(authority, "BITS", 2048)
    monkeypatch.setattr(authority, "CA_BITS", 2048)
    monkeypatch.setattr(places, "hostname", lambda: "n1")
    monkeypatch.setenv("SAFENODE", "n1")

    def made(name: str, subject: str = "") -> Authority:
        for variable, folder in (("SAFE", "safe"), ("SAFEVAR", "var")):
            monkeypatch.setenv(variable, str(tmp_path / name / folder))
        (tmp_path / name / "var/cluster").mkdir(parents=True)
        (tmp_path / name / "safe/web/conf/ssl").mkdir(parents=True)
        for file, values in (("ipv4.json", ["10.0.0.1"]), ("ipv6.json", []), ("ipnames.json", [])):
            (places.conf() / file).write_text(json.dumps(values))
        return tasks.first_server(tasks.quietly, subject)

    return made


def serials(data: bytes) -> set[int]:
    return {entry.serial_number for entry in x509.load_pem_x509_crl(data)}


def test_a_higher_number_of_a_known_authority_is_taken(make: Make) -> None:
    ours = make("ours")
    authorities = (places.conf() / "clcacert.crt").read_bytes()
    first = ours.crl()
    tasks.user_certificate("mary", "Admin", "long password", tasks.quietly)
    ours.revoke("user_Admin_mary")
    second = ours.crl()
    assert newer(first, second, authorities) == second and len(serials(second)) == 1
    assert newer(b"", first, authorities) == first
    for offered in (first, second, b"", b"x", second[:-40], first + first):
        assert newer(second, offered, authorities) is None
    foreign = make("theirs", "/CN=Another Authority").crl()
    assert newer(second, foreign, authorities) is None
    both = authorities + (places.conf() / "clcacert.crt").read_bytes()
    merged = newer(second, foreign, both)
    assert merged is not None and second in merged and foreign in merged
    assert newer(merged, second + foreign, both) is None
    # Of the same name, but another key.
    same = make("same")
    assert same.certificate.subject == ours.certificate.subject
    same.revoke("user_Admin_system")
    same.revoke("server_localca")
    assert newer(second, same.crl(), authorities) is None


def test_a_file_that_is_no_list_revokes_nothing_silently(make: Make) -> None:
    """What was revoked there would be good again; nor is the file of an administrator written over."""
    ours = make("ours")
    authorities, good = (places.conf() / "clcacert.crt").read_bytes(), ours.crl()
    assert revoked(good, authorities) == frozenset() and newer(b"", good, authorities) == good
    ours.revoke("user_Admin_system")
    with pytest.raises(ValueError, match=r"clcacert.crt cannot be read: .*checkcert"):
        newer(b"", good, b"no certificate")
    der = x509.load_pem_x509_crl(good).public_bytes(Encoding.DER)
    for damaged in (b"", b"\n", der, good[:-40], good + good[:100], b"-----BEGIN X509 CRL-----\n"):
        with pytest.raises(ValueError, match=r"openssl crl"):
            revoked(damaged, authorities)
        if damaged:
            with pytest.raises(ValueError, match=r"openssl crl"):
                newer(damaged, ours.crl(), authorities)


def test_a_hostile_list_costs_no_more_than_its_length() -> None:
    """A megabyte of beginnings kept the interpreter, and so the service, busy for minutes."""
    hostile = b"-----BEGIN X509 CRL-----" * 40_000
    started = time.process_time()
    assert lists_in(hostile) == []
    assert time.process_time() - started < 5, "some milliseconds; the square would be minutes"


def test_to_revoke_keeps_the_lists_of_other_authorities(make: Make) -> None:
    theirs = make("theirs", "/CN=Company Users CA")
    theirs.revoke("user_Admin_system")
    company = theirs.crl()
    ca = (places.conf() / "clcacert.crt").read_bytes()
    ours = make("ours")
    conf = places.conf()
    tasks.user_certificate("mary", "Admin", "long password", tasks.quietly)
    (conf / "clcacert.crt").write_bytes((conf / "clcacert.crt").read_bytes() + ca)
    (conf / "clca.crl").write_bytes(company + (conf / "clca.crl").read_bytes())
    before = revoked((conf / "clca.crl").read_bytes(), (conf / "clcacert.crt").read_bytes())
    tasks.revoke("user_Admin_mary", tasks.quietly)
    after = revoked((conf / "clca.crl").read_bytes(), (conf / "clcacert.crt").read_bytes())
    assert before < after and len(before) == 1 and len(after) == 2
    assert authority.published_crl() == ours.crl() != company
    said: list[str] = []
    (conf / "clcacert.crt").write_bytes(authority.certificate_pem(ours.certificate))
    installed.install_crl(ours.crl(), said.append)
    (copy,) = conf.glob("clca.crl.2*")
    assert company in copy.read_bytes() and (conf / "clca.crl").read_bytes() == ours.crl() and copy.name in said[0]
    (conf / "clca.crl").write_bytes(b"0\x82")
    with pytest.raises(PkiError, match=r"clca.crl cannot be used"):
        installed.install_crl(ours.crl(), said.append)


def test_strangers_who_fetch_the_list_do_not_have_the_key_loaded(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = make("ours")
    monkeypatch.setattr(authority, "load_key", lambda path: pytest.fail("the key is loaded"))
    assert authority.published_crl() == ours.crl()


def test_a_server_fetches_the_list_of_the_others(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = make("ours")
    conf, port = places.conf(), free_port()
    (conf / "ssl/httpd.webconsolessl.conf").write_text("")
    (conf / "httpd.conf").write_text(f"Define httpsport {port}\n")
    lans = {"lans": [{"nodes": [{"name": "n1", "addr": "127.0.0.1"}, {"name": "n2", "addr": "127.0.0.2"}]}]}
    (safevar() / "cluster/cluster.json").write_text(json.dumps(lans))
    monkeypatch.setattr(revocations, "FETCH_SECONDS", 0.1)
    tasks.user_certificate("mary", "Admin", "long password", tasks.quietly)
    ours.revoke("user_Admin_mary")
    offered = [b"no list", b"x" * (revocations.MAX_LIST + 1), ours.crl()]
    answers: list[bytes] = []

    async def serve(_: web.Request) -> web.Response:
        answers.append(offered[min(len(answers), len(offered) - 1)])
        return web.Response(body=answers[-1])

    async def run() -> None:
        app = web.Application()
        app.add_routes([web.get(revocations.PATH, serve)])
        runner = web.AppRunner(app)
        await runner.setup()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(conf / "server.crt", conf / "server.key")
        await web.TCPSite(runner, "127.0.0.2", port, ssl_context=context).start()
        before = (conf / "clca.crl").read_bytes()
        task = asyncio.create_task(Revocations().run())
        try:
            async with asyncio.timeout(30):
                while len(answers) < 2:
                    assert (conf / "clca.crl").read_bytes() == before
                    await asyncio.sleep(0.02)
                while (conf / "clca.crl").read_bytes() != ours.crl():
                    await asyncio.sleep(0.02)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await runner.cleanup()

    asyncio.run(run())
    assert serials((conf / "clca.crl").read_bytes()) == {entry.serial for entry in ours.entries() if entry.revoked}


def test_a_list_of_a_former_authority_is_put_aside(make: Make) -> None:
    """With it nobody's certificate could be judged."""
    make("ours")
    former = (places.conf() / "clca.crl").read_bytes()
    theirs = make("theirs")
    renamed = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "Another")])
    other = authority._self_signed(renamed, theirs.key)
    (places.conf() / "clca.crl").write_bytes(former)
    said: list[str] = []
    pem = authority.certificate_pem(other)
    installed.install_authorities(pem, pem, said.append)
    (kept,) = places.conf().glob("clca.crl.2*")
    assert kept.read_bytes() == former and not (places.conf() / "clca.crl").exists()
    assert any("of another authority" in line for line in said)
