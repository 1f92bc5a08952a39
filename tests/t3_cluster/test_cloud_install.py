"""What the templates for clouds run on their servers, and what docs/cloud.md says to do then, on two servers of a lab
(guide 17). Not tried: the providers' own parts, and the installation of the package, which tests of their own do.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.cluster import Lab, Node
from lab.waiting import wait_until
from tests.conftest import unique_lab_name

CHECKOUT = Path(__file__).resolve().parents[2]
CLOUD = CHECKOUT / "private/cloud"
PASSWORD = "an admin password"
ADDRESSES = {"aws": ("10.0.1.10", "10.0.2.10"), "azure": ("10.0.0.10", "10.0.0.11"), "gcp": ("10.0.0.10", "10.0.0.11")}
# What a server of a cloud fetches and installs is there already: the programs that would do it only note it.
NOTED = """#!/bin/sh
echo "$(basename "$0") $*" >> /root/fetched
"""


def script(provider: str, number: int, kind: str) -> str:
    """What the provider gives to server `number` to run, with the values that a person has put in."""
    if provider == "aws":
        text = (CLOUD / "aws.yaml").read_text()
        found = re.findall(r"Fn::Base64: !Sub \|\n((?: {10}.*\n|\n)+)", text)[number - 1]
        lines = "\n".join(line.removeprefix(" " * 10) for line in found.splitlines())
        values = {"AdminPassword": PASSWORD, "PackageUrl": "https://x/safekit.deb", "Kind": kind}
        return re.sub(r"\$\{(\w+)\}", lambda name: values[name[1]], lines)
    if provider == "azure":
        install: str = json.loads((CLOUD / "azure.json").read_text())["variables"]["install"]
        return install.format(PASSWORD, "https://x/safekit.deb", kind)
    made: dict[str, Any] = json.loads((CLOUD / "gcp.tf.json").read_text())["resource"]["google_compute_instance"]
    values = {"admin_password": PASSWORD, "package_url": "https://x/safekit.deb", "kind": kind}
    told: str = made[f"server{number}"]["metadata_startup_script"]
    return re.sub(r"\$\{var\.(\w+)\}", lambda name: values[name[1]], told)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    made = Lab.up(unique_lab_name(), bare=True)
    try:
        for node in made:
            for name in ("curl", "apt-get"):
                node.write(f"/root/bin/{name}", NOTED, mode=0o755)
            user = ["/opt/safekit/web/bin/htpasswd", "-b", "/opt/safekit/web/conf/user.conf", "admin", PASSWORD]
            node.run(user)  # the package does it, from SAFEKIT_PASSWORD
        yield made
    finally:
        made.down()


def first_boot(lab: Lab, node: Node, provider: str, number: int, kind: str) -> None:
    text = script(provider, number, kind)
    for there, here in zip(ADDRESSES[provider], (n.address() for n in lab), strict=True):
        text = text.replace(there, here).replace(there.replace(".", r"\."), here.replace(".", r"\."))
    node.write("/root/install.sh", text)
    node.run("PATH=/root/bin:$PATH bash /root/install.sh", timeout=120)


def signature(node: Node) -> str:
    return str(node.read("/var/safekit/cluster/cluster.key"))


def ready(node: Node, kind: str) -> str:
    url = f"http://{node.address()}:9010/var/modules/{kind}/ready.txt"
    return str(node.run(["/usr/bin/curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", url], check=False).stdout)


@pytest.mark.parametrize(("provider", "kind"), [("aws", "mirror"), ("azure", "farm"), ("gcp", "mirror")])
def test_from_the_first_boot_to_a_healthy_target(lab: Lab, provider: str, kind: str) -> None:
    one, two = lab
    for number, node in enumerate(lab, 1):
        node.run("rm -f /root/cluster.xml /root/fetched")
        first_boot(lab, node, provider, number, kind)
        fetched = node.read("/root/fetched")
        assert "https://x/safekit.deb" in fetched and "install /root/safekit.deb" in fetched
    key = signature(one)
    first_boot(lab, one, provider, 1, kind)
    assert signature(one) == key, "a script that runs at each boot makes no new cluster"
    # docs/cloud.md
    assert "Server1" in one.safekit("cluster", "confinfo", check=False).stdout
    one.run("safekit -H Server2 -G", env={"SAFEKIT_USER": "admin", "SAFEKIT_PASSWORD": PASSWORD}, timeout=60)
    one.safekit("-H", "Server2", "-E", kind)
    if kind == "mirror":
        one.safekit("prim", "-m", kind)
        one.safekit("-H", "Server2", "second", "-m", kind)
        one.safekit("waitstate", "-m", kind, "PRIM", timeout=90)
        wanted = ("200", "404")
    else:
        one.safekit("-H", "*", "start", "-m", kind)
        wanted = ("200", "200")
    wait_until(lambda: (ready(one, kind), ready(two, kind)) == wanted, 60, lambda: ready(one, kind) + ready(two, kind))
    for node in (two, one):
        node.safekit("stop", "-m", kind)
        node.safekit("waitstop", "-m", kind)
        node.safekit("deconfig", "-m", kind)
        node.safekit("module", "uninstall", "-m", kind)
        node.safekit("cluster", "deconfig")
