"""A server with a CA service of its own for the tests: its directories, its process, its commands, and requests."""

from __future__ import annotations

import base64
import http.client
import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.ports import free_port
from tests.t2_process.unit_filter import under

CHECKOUT = Path(__file__).resolve().parents[2]
PASSWORD = "PasW0rD"
HERE = """
import os, sys
from datetime import timedelta
from caserv import authority, commands, gate, places
from caserv.gate import Access
gate.FIRST_WAIT = float(os.environ["CA_TEST_WAIT"])
places.hostname = lambda: os.environ["CA_TEST_HOST"]
clock, shift = authority.now, timedelta(seconds=float(os.environ["CA_TEST_SHIFT"]))
authority.now = lambda: clock() + shift
authority.BITS = authority.CA_BITS = 2048  # a key of the product's own size takes seconds
"""


@dataclass
class Answer:
    """What the service said."""

    status: int
    data: bytes
    headers: dict[str, str]

    @property
    def json(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.data)
        return found

    @property
    def text(self) -> str:
        """The reason of a refusal."""
        return str(self.json["text"])


@dataclass
class CaServer:
    """SAFE and SAFEVAR of one server. `host`: what it takes for its host name."""

    root: Path
    host: str = "n1"
    port: int = 0
    said: str = ""
    """By `initssl ca`."""
    process: subprocess.Popen[bytes] | None = None
    wait: float = 1.0
    """Seconds after the first wrong password too many."""
    shift: float = 0.0
    """Seconds by which its clock is ahead."""

    def __post_init__(self) -> None:
        self.safe, self.var = self.root / "safe", self.root / "var"
        self.conf = self.safe / "web/conf"
        self.ca, self.certs, self.private = self.conf / "ca", self.conf / "ca/certs", self.conf / "ca/private"
        for directory in (self.conf / "ssl", self.safe / "private/bin", self.var / "cluster"):
            directory.mkdir(parents=True, exist_ok=True)
        (self.conf / "httpd.webconsolessl.conf").write_text("# https\n")
        self.done = self.root / "done"
        for path, words in ((self.safe / "safekit", "safekit"), (self.safe / "private/bin/firewallcfg", "firewallcfg")):
            path.write_text(f'#!/bin/sh\necho {words} "$@" >> {self.done}\n')
            path.chmod(0o755)
        tools = self.root / "tools"
        tools.mkdir()
        (tools / "systemctl").write_text(f'#!/bin/sh\necho systemctl "$@" >> {self.done}\n')
        (tools / "systemctl").chmod(0o755)
        self.env = {
            "SAFE": str(self.safe), "SAFEVAR": str(self.var), "SAFENODE": self.host, "CA_TEST_HOST": self.host,
            "PATH": f"{tools}:{os.environ['PATH']}", "PYTHONPATH": str(CHECKOUT),
        }  # fmt: skip

    def lists(self, v4: str, names: str = "", v6: str = "") -> None:
        """The files of getipandnames, as an administrator would write them."""
        for file, text in (("ipv4.json", v4), ("ipv6.json", v6), ("ipnames.json", names)):
            (self.conf / file).write_text(json.dumps(text.split()))

    def _environment(self) -> dict[str, str]:
        return {**os.environ, **self.env, "CA_TEST_SHIFT": str(self.shift), "CA_TEST_WAIT": str(self.wait)}

    def command(self, name: str, *words: str, given: str = "", check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run one of SAFE/web/bin. `given`: its standard input."""
        code = f"{HERE}sys.argv[0] = {name!r}\ncommands.{name}()"
        done = subprocess.run(
            [sys.executable, "-c", code, *words], env=self._environment(), input=given,
            capture_output=True, text=True, timeout=120, cwd=self.root,
        )  # fmt: skip
        assert not check or done.returncode == 0, done.stdout + done.stderr
        assert "Traceback" not in done.stderr, done.stderr
        return done

    def make_authority(self, passwords: tuple[str, str, str] = ("pwd1", "pwd2", "pwd3"), *words: str) -> str:
        """`initssl ca`; what it said."""
        given = "".join(f"{each}\n{each}\n" for each in passwords)
        return self.command("initssl", "ca", *words, given=given).stdout

    def start(self, password: str = PASSWORD) -> CaServer:
        """`startcaserv`, whose systemctl does nothing, then the process."""
        if not (self.conf / "ipv4.json").exists():
            self.lists("10.0.0.1", self.host)
        self._serve_first(password)
        return self

    def _serve_first(self, password: str) -> None:
        self.port = free_port()
        (self.conf / "httpd.caserv.conf").write_text(f"# comment\nDefine caservport {self.port}\n")
        code = (
            f"{HERE}places.make_directories(); commands._new_service_certificate(); Access.of(sys.argv[1]).save()\n"
            "from caserv import main; sys.exit(main.main())"
        )
        with (self.root / "output").open("wb") as output:
            self.process = subprocess.Popen(
                [*under("safecaserv"), sys.executable, "-c", code, password], env=self._environment(), cwd=self.root,
                stdout=output, stderr=subprocess.STDOUT,
            )  # fmt: skip
        deadline = time.monotonic() + 90
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            except OSError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    self.process.kill()
                    self.process.wait()
                    raise AssertionError((self.root / "output").read_text()) from None
                time.sleep(0.05)

    def stop(self) -> str:
        """What it said; its end is orderly."""
        assert self.process is not None
        self.process.terminate()
        self.process.wait(15)
        output = (self.root / "output").read_text(errors="replace")
        assert self.process.returncode == 0 and "Traceback" not in output, output
        return output

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    def connection(self, host: str = "127.0.0.1") -> http.client.HTTPSConnection:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        return http.client.HTTPSConnection(host, self.port, timeout=30, context=context)

    def ask(
        self, method: str, path: str, body: bytes | str | None = None, *, password: str | None = PASSWORD,
        user: str = "CA_admin", headers: dict[str, str] | None = None, host: str = "127.0.0.1",
    ) -> Answer:  # fmt: skip
        """A request with that password; None sends none."""
        sent = dict(headers or {})
        if password is not None:
            sent["Authorization"] = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
        connection = self.connection(host)
        try:
            connection.request(method, path, body, sent)
            response = connection.getresponse()
            return Answer(response.status, response.read(), dict(response.getheaders()))
        finally:
            connection.close()

    def post(self, path: str, data: dict[str, Any], **options: Any) -> Answer:
        """JSON, as the wizard sends it."""
        headers = {"Content-Type": "application/json", **options.pop("headers", {})}
        return self.ask("POST", path, json.dumps(data), headers=headers, **options)


def openssl(*words: str, given: bytes = b"", check: bool = True) -> str:
    """The system's openssl, which judges what we made."""
    tool = shutil.which("openssl")
    assert tool is not None
    done = subprocess.run([tool, *words], input=given, capture_output=True, timeout=60)
    assert not check or done.returncode == 0, done.stderr.decode()
    return done.stdout.decode("utf-8", "replace")
