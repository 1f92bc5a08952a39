"""A real slapd for the tests: users and groups with memberOf, and the attribute of Active Directory."""

from __future__ import annotations

import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from tests.ports import free_ports

BASE = "dc=example,dc=com"
PEOPLE, GROUPS = f"ou=people,{BASE}", f"ou=groups,{BASE}"
SEARCHER, SEARCHER_PASSWORD = f"cn=searcher,{BASE}", "search secret"
CONFIGURATION = """
include /etc/ldap/schema/core.schema
include /etc/ldap/schema/cosine.schema
include /etc/ldap/schema/inetorgperson.schema
attributetype ( 1.2.840.113556.1.4.221 NAME 'sAMAccountName' EQUALITY caseIgnoreMatch
  SYNTAX 1.3.6.1.4.1.1466.115.121.1.15 SINGLE-VALUE )
objectclass ( 1.2.840.113556.1.5.9 NAME 'adUser' SUP inetOrgPerson STRUCTURAL MAY ( sAMAccountName ) )
modulepath /usr/lib/ldap
moduleload back_mdb
moduleload memberof
pidfile {root}/pid
TLSCACertificateFile {root}/ca.crt
TLSCertificateFile {root}/ldap.crt
TLSCertificateKeyFile {root}/ldap.key
database mdb
suffix "dc=example,dc=com"
rootdn "cn=root,dc=example,dc=com"
rootpw root
directory {root}/data
index objectClass,sAMAccountName eq
overlay memberof
memberof-refint TRUE
access to attrs=userPassword by anonymous auth by * none
access to * by dn="cn=searcher,dc=example,dc=com" read by * none
"""
USERS = {"mary": "mary secret", "bob": "bob secret", "wall": "wall secret", "lost": "lost secret", "O'Neil (x)*": "odd"}


def entries() -> str:
    """Users; three groups of roles; `night` in `operators`, and `operators` and `night` in each other."""
    people = "".join(
        f"dn: cn=user{number},{PEOPLE}\nobjectClass: adUser\ncn: user{number}\nsn: x\nsAMAccountName: {name}\n"
        f"userPassword: {password}\n\n"
        for number, (name, password) in enumerate(USERS.items())
    )

    def group(name: str, *members: str) -> str:
        lines = "".join(f"member: {member}\n" for member in members)
        return f"dn: cn={name},{GROUPS}\nobjectClass: groupOfNames\ncn: {name}\n{lines}\n"

    def user(number: int) -> str:
        return f"cn=user{number},{PEOPLE}"

    return (
        f"dn: {BASE}\nobjectClass: dcObject\nobjectClass: organization\ndc: example\no: example\n\n"
        f"dn: ou=people,{BASE}\nobjectClass: organizationalUnit\nou: people\n\n"
        f"dn: ou=groups,{BASE}\nobjectClass: organizationalUnit\nou: groups\n\n"
        f"dn: {SEARCHER}\nobjectClass: organizationalRole\nobjectClass: simpleSecurityObject\ncn: searcher\n"
        f"userPassword: {SEARCHER_PASSWORD}\n\n{people}"
        + group("admins", user(0))
        + group("night", user(1), f"cn=operators,{GROUPS}")
        + group("operators", f"cn=night,{GROUPS}")
        + group("viewers", user(2), user(1))
    )


@dataclass
class LdapServer:
    """slapd in a directory of its own."""

    root: Path
    process: subprocess.Popen[bytes] | None = None

    def __post_init__(self) -> None:
        self.port, self.tls_port = free_ports(2)
        (self.root / "data").mkdir(parents=True)
        _certificates(self.root)
        (self.root / "slapd.conf").write_text(CONFIGURATION.replace("{root}", str(self.root)))
        self.start()
        self.change(entries(), tool="ldapadd")

    def start(self) -> None:
        places = f"ldap://127.0.0.1:{self.port}/ ldaps://127.0.0.1:{self.tls_port}/"
        with (self.root / "output").open("ab") as output:
            self.process = subprocess.Popen(
                ["slapd", "-f", str(self.root / "slapd.conf"), "-h", places, "-d", "0"], stdout=output, stderr=output
            )
        deadline = time.monotonic() + 30
        while True:
            asked = ["ldapwhoami", "-x", "-H", f"ldap://127.0.0.1:{self.port}", "-D", f"cn=root,{BASE}", "-w", "root"]
            if subprocess.run(asked, capture_output=True, timeout=20).returncode == 0:
                return
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError((self.root / "output").read_text())
            time.sleep(0.1)

    def stop(self) -> None:
        assert self.process is not None
        self.process.terminate()
        self.process.wait(20)

    def change(self, text: str, tool: str = "ldapmodify") -> None:
        """As an administrator of the directory."""
        done = subprocess.run(
            [tool, "-x", "-H", f"ldap://127.0.0.1:{self.port}", "-D", f"cn=root,{BASE}", "-w", "root"],
            input=text, text=True, capture_output=True, timeout=30,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr

    def define(self, *more: str, scheme: str = "ldap") -> str:
        """The lines of httpd.conf, as the guide has them."""
        port = self.tls_port if scheme == "ldaps" else self.port
        return (
            "Define useldap\n"
            f'Define binddn "{SEARCHER}"\nDefine bindpwd "{SEARCHER_PASSWORD}"\n'
            f'Define searchurl "{scheme}://127.0.0.1:{port}/{PEOPLE}?sAMAccountName, memberOf?sub?(objectClass=*)"\n'
            + "".join(f"Define {line}\n" for line in more)
        )


ROLES = (
    f'admingroup "CN=admins, OU=groups,DC=example,DC=com"',  # noqa: F541 - as an administrator spells it
    f'controlgroup "cn=operators,{GROUPS}"',
    f'monitorgroup "cn=viewers,{GROUPS}"',
)


def there() -> bool:
    """Whether slapd and its tools are on this machine."""
    return all(map(shutil.which, ("slapd", "ldapadd", "openssl")))


def _certificates(root: Path) -> None:
    def run(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=root, check=True, capture_output=True, timeout=60)

    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "30")
    run("req", "-x509", *curve, "-keyout", "ca.key", "-out", "ca.crt", "-subj", "/CN=Directory CA")
    run("req", *curve[:-2], "-keyout", "ldap.key", "-out", "ldap.csr", "-subj", "/CN=127.0.0.1")
    (root / "ext").write_text("subjectAltName=IP:127.0.0.1\n")
    run("x509", "-req", "-in", "ldap.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-out", "ldap.crt",
        "-days", "30", "-extfile", "ext")  # fmt: skip
