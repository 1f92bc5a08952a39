"""An SNMP agent of its own for the tests, its modules, and net-snmp's tools to ask it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from lab.waiting import wait_until
from safekit.disk.files import boot_identity, write_atomic
from safekit.log.module import ModuleLog
from safekit.wire import seal
from tests.ports import free_port
from tests.t2_process.unit_filter import under
from tests.t2_process.web_server import CHECKOUT

SETTINGS = "agentaddress 127.0.0.1:{port}\nrocommunity public\nrwcommunity private\n"
PREFIX = ".1.3.6.1.4.1.107.175.10"
STATE, NAME, ACTION, OUTCOME, MESSAGE = (f"{PREFIX}.1.1.{column}" for column in (2, 3, 4, 5, 6))
CHANGES = f"{PREFIX}.1.1.14"
UDP = 2  # socket.SOCK_DGRAM


def tool(*words: str, timeout: float = 20) -> subprocess.CompletedProcess[str]:
    """A program of net-snmp, without any MIB."""
    return subprocess.run(
        words, capture_output=True, text=True, timeout=timeout, env={**os.environ, "MIBS": "", "LC_ALL": "C"}
    )


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except FileNotFoundError:  # a descriptor that was closed meanwhile
        return []


@dataclass
class AgentServer:
    root: Path
    settings: str = SETTINGS
    prefix: tuple[str, ...] = ()
    """What the process is started through: a network of its own."""
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    def __post_init__(self) -> None:
        self.safe, self.var = self.root / "safe", self.root / "var"
        for directory in (self.safe / "snmp/conf", self.safe / "modules", self.var / "modules"):
            directory.mkdir(parents=True, exist_ok=True)
        self.mapper = free_port()
        (self.var / "bus.key").write_text(seal.new_key().hex())
        self.env = {
            "SAFE": str(self.safe), "SAFEVAR": str(self.var), "SAFEMAPPER": str(self.mapper), "SAFENODE": "n1",
        }  # fmt: skip
        self.write(self.settings)

    def write(self, settings: str) -> None:
        (self.safe / "snmp/conf/snmpd.conf").write_text(settings.format(port=self.port))

    @property
    def output(self) -> Path:
        return self.root / "output"

    def start(self) -> AgentServer:
        with self.output.open("ab") as output:
            self.process = subprocess.Popen(
                [*self.prefix, *under("safeagent"), sys.executable, "-m", "safeagent.main"], cwd=CHECKOUT,
                env={**os.environ, **self.env}, stdout=output, stderr=subprocess.STDOUT,
            )  # fmt: skip
        wait_until(lambda: b" port " in self.output.read_bytes(), 30, lambda: self.output.read_text())
        return self

    def stop(self) -> str:
        """What it said; its end is orderly."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(15) == 0, self.output.read_text()
        return self.output.read_text()

    def module(
        self, name: str, number: int, resources: dict[str, str], *, runs: bool = True, date: float = 1.0
    ) -> None:
        """An installed module. A new resource file, as heart writes it."""
        (self.safe / "modules" / name / "conf").mkdir(parents=True, exist_ok=True)
        var = self.var / "modules" / name
        (var / "log").mkdir(parents=True, exist_ok=True)
        write_atomic(var / "id", f"{number}\n".encode(), durable=False)
        text = "".join(f"{k} {v} {date:.3f} heart\n" for k, v in resources.items())
        write_atomic(var / "resources", text.encode(), durable=False)
        if runs:
            write_atomic(var / "running", boot_identity().encode(), durable=False)
        else:
            (var / "running").unlink(missing_ok=True)

    def log(self, module: str) -> ModuleLog:
        """The log of a module (SAFE and SAFEVAR must be those of this server)."""
        return ModuleLog(module, "heart", "n1")

    def followed_log(self, module: str) -> ModuleLog:
        """The same, when the agent looks at it: what it finds there at its beginning is no news."""
        wait_until(lambda: self._watches(self.var / "modules" / module / "log"), 20, lambda: self.output.read_text())
        return self.log(module)

    def _watches(self, directory: Path) -> bool:
        assert self.process is not None
        inode = f" ino:{directory.stat().st_ino:x} "
        told = Path(f"/proc/{self.process.pid}/fdinfo").iterdir()
        return any(line.startswith("inotify") and inode in line for each in told for line in _lines(each))

    # net-snmp

    def get(self, oid: str, *, community: str = "public", options: tuple[str, ...] = ("-v2c",), host: str = "") -> str:
        """Value and type of one object, or what the tool said."""
        done = tool(
            "snmpget", *options, *(("-c", community) if community else ()), "-Oqn", "-t", "2", "-r", "1",
            host or f"127.0.0.1:{self.port}", oid,
        )  # fmt: skip
        return done.stdout.partition(" ")[2].strip() if done.returncode == 0 else f"{done.stdout}{done.stderr}".strip()

    def set(
        self, *triples: str, community: str = "private", options: tuple[str, ...] = ("-v2c",), host: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """SET of (object, type, value) after each other."""
        given = ("-c", community) if community is not None and options[0] != "-v3" else ()
        return tool(
            "snmpset", *options, *given, "-Oqn", "-t", "1", "-r", "0", host or f"127.0.0.1:{self.port}", *triples
        )

    def walk(self, oid: str = PREFIX, *, program: str = "snmpwalk", options: tuple[str, ...] = ("-v2c",)) -> list[str]:
        """Lines `OID value` below an object."""
        done = tool(program, *options, "-c", "public", "-Oqn", "-t", "2", f"127.0.0.1:{self.port}", oid)
        assert done.returncode == 0, done.stderr
        ends = [line for line in done.stdout.splitlines() if "No more variables" in line or line == "End of MIB"]
        assert len(ends) <= 1, ends
        return [line for line in done.stdout.splitlines() if line not in ends]
