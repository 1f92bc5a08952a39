"""A web service over HTTPS: an authority with certificates of all kinds, and a server that has one."""

from __future__ import annotations

from pathlib import Path

from certificates import CLIENT, SERVER, Pair, make
from web_server import WebServer

from tests.ports import free_ports


class Pki:
    """An authority for servers with one between it and them, one for people, and what they issued."""

    def __init__(self) -> None:
        self.root = make("Root CA", authority=True)
        self.between = make("Server CA", by=self.root, authority=True)
        self.people = make("Company CA", authority=True)
        self.other = make("Other CA", authority=True)
        self.server = make("n1", by=self.between, uses=(SERVER, CLIENT), hosts=("127.0.0.1", "n1.example"))
        self.clients = {
            "admin": make("administrator", "Admin", by=self.people),
            "control": make("manager", "IT", "Control", by=self.people),
            "monitor": make("operator", "Monitor", by=self.people),
            "mary": make("MARY SMITH", "Finance", by=self.people),
            "norole": make("bob", "admin", by=self.people),
            "nouse": make("carl", "Admin", by=self.people, uses=()),
            "serveronly": make("dave", "Admin", by=self.people, uses=(SERVER,)),
            "expired": make("eve", "Admin", by=self.people, days=(-9, -1)),
            "early": make("fred", "Admin", by=self.people, days=(1, 9)),
            "stranger": make("administrator", "Admin", by=self.other),
            "itself": make("administrator", "Admin"),
            "gone": make("gone", "Admin", by=self.people),
        }

    def put(self, conf: Path, server: Pair | None = None) -> None:
        (server or self.server).put(conf, "server")
        (conf / "cacert.crt").write_bytes(self.between.pem + self.root.pem)
        (conf / "clcacert.crt").write_bytes(self.people.pem + self.root.pem + self.between.pem)


def secure_server(root: Path, pki: Pki, define: str = "") -> tuple[WebServer, int]:
    """A service that speaks HTTPS, and its port."""
    port, https = free_ports(2)
    server = WebServer(root, f"Define httpsport {https}\n{define}", port)
    server.module("mirror", {"state.local": "ALONE", "state.color": "green"})
    conf = server.safe / "web/conf"
    pki.put(conf)
    for name, pair in pki.clients.items():
        pair.put(root / "clients", name)
    (conf / "ssl").mkdir(exist_ok=True)
    (conf / "ssl/httpd.webconsolessl.conf").write_text("")
    return server, https
