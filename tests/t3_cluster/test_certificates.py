"""Three blank servers, an authority on the first, https everywhere, three roles, renewal, revocation, and what may be
wrong with a certificate (guide 11.3.1, 11.6; PKI-001 to PKI-024), as docs/certificates.md tells administrators."""

from __future__ import annotations

import json
import re
import time

import pytest
from labs import blocks, lab_of_the_file

from lab.cluster import Completed, Lab, Node
from lab.waiting import wait_until

PASSWORD = "PasW0rD"
BIN, CONF = "/opt/safekit/web/bin", "/opt/safekit/web/conf"
USERS = {"administrator": "Admin", "manager": "Control", "operator": "Monitor"}


lab = lab_of_the_file(nodes=3, bare=True)


def tool(node: Node, *words: str, given: str = "", check: bool = True) -> Completed:
    """One of SAFE/web/bin."""
    return node.run([f"{BIN}/{words[0]}", *words[1:]], input=given, check=check, timeout=120)


def everybody_answers(lab: Lab) -> bool:
    return all(blocks(n.safekit("-H", "*", "level", check=False).stdout).keys() == lab.nodes.keys() for n in lab)


def curl(lab: Lab, node: Node, name: str, *words: str) -> str:
    """Status of a command asked by that user's certificate, '000' when the connection is refused."""
    body = json.dumps({"arguments": words or ["level"]})
    done = lab.client.run(
        ["curl", "-s", "-o", "/root/answer", "-w", "%{http_code}", "--max-time", "20", "--cacert", "/root/cacert.crt",
         "--cert", f"/root/{name}.pem", "-H", "Content-Type: application/json", "-d", body,
         f"https://{node.address()}:9453/api/v1/command"],
        check=False,
    )  # fmt: skip
    return done.stdout


def give(lab: Lab, source: Node, name: str) -> None:
    """A user's p12 file and the authority's certificate, on his workstation."""
    certificate, key = (source.read(f"{CONF}/ca/{place}") for place in (f"certs/{name}.crt", f"private/{name}.key"))
    lab.client.write(f"/root/{name}.pem", certificate + key)


def serial(lab: Lab, node: Node) -> str:
    """Of the certificate that the web service shows."""
    shown = lab.client.run(
        f"openssl s_client -connect {node.address()}:9453 </dev/null 2>/dev/null | openssl x509 -noout -serial",
        check=False,
    )
    return shown.stdout.strip()


def test_from_blank_servers_to_https(lab: Lab) -> None:
    """PKI-001, PKI-003, PKI-004, PKI-005, PKI-013, PKI-014."""
    one, two, three = lab
    nodes = "".join(f'<node name="{node.name}" addr="{node.address()}"/>' for node in lab)
    one.write("/root/cluster.xml", f'<cluster><lans><lan name="default">{nodes}</lan></lans></cluster>')
    one.safekit("cluster", "config", "/root/cluster.xml")
    password = one.read("/var/safekit/admin-password").strip()
    one.run(["safekit", "-H", "*", "-G"], env={"SAFEKIT_PASSWORD": password})

    started = tool(one, "startcaserv", given=f"{PASSWORD}\n{PASSWORD}\n")
    fingerprint = re.search(r"SHA-256\): ([0-9a-f]{64})", started.stdout)
    assert fingerprint is not None
    assert ":9001" in one.run(["ss", "-ltn"]).stdout
    url = f"https://{one.address()}:9001"
    assert lab.client.run(["curl", "-sk", "-o", "/dev/null", "-w", "%{http_code}", f"{url}/"]).stdout == "401"
    page = lab.client.run(["curl", "-sk", "-u", f"CA_admin:{PASSWORD}", f"{url}/"]).stdout
    assert "<!DOCTYPE html>" in page
    said = tool(one, "initssl", "ca", given="".join(f"{name} p12\n" * 2 for name in USERS)).stdout
    assert "Enter the password for the Control role pkcs12 file" in said and "admin.crt: good" in said
    wrong = tool(two, "initssl", "req", url, "CA_admin:wrong one", check=False)
    assert wrong.returncode == 1 and "the password of CA_admin is wrong, or this is not your CA server" in wrong.stderr
    tool(two, "initssl", "req", url, f"CA_admin:{PASSWORD}")
    tool(three, "initssl", "req", url, "CA_admin", "--fingerprint", fingerprint[1], given=f"{PASSWORD}\n")
    for node in lab:
        names = node.run(["openssl", "x509", "-noout", "-ext", "subjectAltName", "-in", f"{CONF}/server.crt"]).stdout
        assert f"IP Address:{node.address()}" in names and f"DNS:{node.name}" in names
        node.run(["cp", f"{CONF}/httpd.webconsolessl.conf", f"{CONF}/ssl/"])
        node.safekit("webserver", "restart")
        checked = tool(node, "checkcert", "-t", "all", check=False)
        assert checked.returncode == 0, checked.stdout + checked.stderr
    wait_until(lambda: everybody_answers(lab), 30, "all servers over https, from each", 0.5)
    authority = lab.client.run(["curl", "-sk", f"{url}/certs/cacert.crt"]).stdout
    lab.client.write("/root/cacert.crt", authority)
    for name, role in USERS.items():
        give(lab, one, f"user_{role}_{name}")


def test_certificates_have_their_roles_everywhere(lab: Lab) -> None:
    for node in lab:
        allowed = {
            name: [
                curl(lab, node, f"user_{role}_{name}", *words)
                for words in (("level",), ("shutdown",), ("module", "genkey"))
            ]
            for name, role in USERS.items()
        }
        assert [codes[0] for codes in allowed.values()] == ["200"] * 3
        assert allowed["operator"][1:] == ["403", "403"] and allowed["manager"][2] == "403"
        assert "403" not in allowed["administrator"]


def test_renewal_reaches_those_who_connect_next(lab: Lab) -> None:
    one, two, _ = lab
    before = serial(lab, two)
    assert before.startswith("serial=")
    tool(two, "initssl", "renew", f"https://{one.address()}:9001", f"CA_admin:{PASSWORD}")
    wait_until(lambda: serial(lab, two) not in ("", before), 20, "the renewed certificate", 0.5)
    tool(one, "initssl", "renew")
    wait_until(lambda: everybody_answers(lab), 20, "all servers after the renewal", 0.5)


def test_a_revoked_certificate_is_refused_everywhere(lab: Lab) -> None:
    one, _, three = lab
    tool(one, "initssl", "revoke", "user_Control_manager")
    assert curl(lab, one, "user_Control_manager") == "401"
    assert "revoked" in lab.client.read("/root/answer")
    wait_until(lambda: curl(lab, three, "user_Control_manager") == "401", 60, "the list on the third server", 1.0)
    assert curl(lab, three, "user_Monitor_operator") == "200"


ISSUE = """
import datetime, sys
sys.path.insert(0, "/opt/safekit/private/env/lib")
from caserv import authority, tasks
clock, shift = authority.now, datetime.timedelta(days={days})
authority.now = lambda: clock() + shift
tasks.user_certificate({name!r}, "Admin", "long password", print)
"""


@pytest.mark.parametrize(("name", "days"), [("late", -6 * 365), ("early", 1)])
def test_a_certificate_is_good_in_its_time_only(lab: Lab, name: str, days: int) -> None:
    """PKI-017: expired, and of a clock that is ahead. The reason is in the journal of the server, by its file."""
    one, two, _ = lab
    one.run(["/opt/safekit/private/env/bin/python", "-c", ISSUE.format(days=days, name=name)])
    give(lab, one, f"user_Admin_{name}")
    assert curl(lab, two, f"user_Admin_{name}") in ("000", "401")


def test_a_server_under_another_name_is_refused_by_name(lab: Lab) -> None:
    _, two, three = lab
    kept = {name: three.read(f"{CONF}/{name}") for name in ("ipv4.json", "server.crt", "server.key")}
    three.write(f"{CONF}/ipv4.json", '["192.0.2.9"]')
    url = f"https://{lab.nodes['node1'].address()}:9001"
    tool(three, "initssl", "renew", url, f"CA_admin:{PASSWORD}")
    wait_until(lambda: two.safekit("-H", "node3", "level", check=False).returncode != 0, 20, "the wrong name", 0.5)
    refused = two.safekit("-H", "node3", "level", check=False)
    assert three.address() in refused.stderr and "Next step" in refused.stderr, refused.stderr
    for name, text in kept.items():
        three.write(f"{CONF}/{name}", text)
    wait_until(lambda: everybody_answers(lab), 20, "all servers with their names", 0.5)


def test_a_server_of_another_authority_is_refused(lab: Lab) -> None:
    """PKI-018: what the old one issued is worthless for it, and it for the others, until they have the new one."""
    one, two, three = lab
    three.run(["cp", "-a", CONF, "/root/conf"])
    three.run(["rm", "-r", f"{CONF}/ca"])
    tool(three, "getipandnames")
    tool(three, "initssl", "ca", given="".join(f"{name} p12\n" * 2 for name in USERS))
    wait_until(lambda: curl(lab, three, "user_Admin_administrator") == "000", 20, "the new authority", 0.5)
    refused = two.safekit("-H", "node3", "level", check=False)
    assert refused.returncode == 1 and "cacert.crt" in refused.stderr, refused.stderr
    three.run(["sh", "-c", f"rm -r {CONF} && cp -a /root/conf {CONF}"])
    wait_until(lambda: everybody_answers(lab), 20, "all servers with one authority", 0.5)
    assert curl(lab, one, "user_Admin_administrator") == "200"


def test_without_the_authority_everything_goes_on(lab: Lab) -> None:
    """PKI-002, PKI-020."""
    one, two, _ = lab
    tool(one, "makeusercert", "guest", "Monitor", given="guest p12\nguest p12\n")
    give(lab, one, "user_Monitor_guest")
    assert curl(lab, one, "user_Monitor_guest") == "200"
    tool(one, "initssl", "revoke", "user_Monitor_guest")
    said = tool(one, "stopcaserv").stdout
    assert "is stopped" in said and f"{CONF}/ca" in said
    assert ":9001" not in one.run(["ss", "-ltn"]).stdout
    refused = tool(two, "initssl", "renew", f"https://{one.address()}:9001", f"CA_admin:{PASSWORD}", check=False)
    assert refused.returncode == 1 and "there: startcaserv" in refused.stderr
    one.run(["mv", f"{CONF}/ca", "/root/vault"])
    one.safekit("webserver", "restart")
    wait_until(lambda: everybody_answers(lab), 30, "all servers without the authority", 0.5)
    assert curl(lab, one, "user_Monitor_guest") == "401" and curl(lab, one, "user_Monitor_operator") == "200"
    one.run(["mv", "/root/vault", f"{CONF}/ca"])
    started = time.monotonic()
    tool(one, "startcaserv", given=f"{PASSWORD}\n{PASSWORD}\n")
    assert time.monotonic() - started < 60
    assert "user_Monitor_guest" in tool(one, "initssl", "list").stdout
    tool(one, "stopcaserv")
