"""Where things are (guide 10.9). Every function reads the environment when it is called, so that a
lab node, a test and the installed product use the same code."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

DEFAULT_MAPPER_PORT = 6259
SAFEINI = "/etc/safeini.xml"
_COMMENT = re.compile(rb"<!--.*?-->", re.DOTALL)
_MAPPER = re.compile(rb"""<safeini\b[^<>]*\smapper\s*=\s*["'](\d{1,5})["']""")
_MODULE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


def safe() -> Path:
    """Installation directory (SAFE)."""
    return Path(os.environ.get("SAFE", "/opt/safekit"))


def safevar() -> Path:
    """Working files (SAFEVAR)."""
    return Path(os.environ.get("SAFEVAR", "/var/safekit"))


def safebin() -> Path:
    """Special commands (SAFEBIN, guide 14.5)."""
    return safe() / "private" / "bin"


def process_program(name: str) -> str:
    """Absolute path of the script that starts one of our processes; the kernel shows it under `name`."""
    return str(safe() / "private" / "env" / "bin" / name)


def private_conf() -> Path:
    """Schemas, default failover rules and templates: SAFE/private/conf, or the checkout's own when the
    code runs from a checkout that is not installed."""
    installed = safe() / "private" / "conf"
    if installed.is_dir():
        return installed
    return Path(__file__).resolve().parents[2] / "private" / "conf"


def bus_key_file() -> Path:
    """Secret of the local bus, readable by root and group safekit only."""
    return safevar() / "bus.key"


def cluster_dir() -> Path:
    """cluster.xml, cluster.key and the compiled cluster.json."""
    return safevar() / "cluster"


def node_name() -> str:
    """Name of this server in the cluster: SAFENODE, else SAFEVAR/nodename (written when the cluster is
    configured), else the host name."""
    override = os.environ.get("SAFENODE")
    if override:
        return override
    try:
        name = (safevar() / "nodename").read_text().strip()
    except OSError:
        name = ""
    return name or os.uname().nodename


def mapper_port() -> int:
    """Local UDP port at which safeadmin is: the configured one, or the one that it had to take instead."""
    configured = configured_mapper_port()
    try:
        words = admin_port_file().read_text(encoding="ascii").split()
        instead_of, taken = (int(word) for word in words)
    except (OSError, ValueError):
        return configured
    return taken if instead_of == configured and 0 < taken < 65536 else configured


def admin_port_file() -> Path:
    """The configured port of safeadmin and the one that it has, there only while another program holds the first."""
    return safevar() / "safeadmin.port"


def configured_mapper_port() -> int:
    """Local UDP port of safeadmin: attribute `mapper` of /etc/safeini.xml (guide 10.2.3.2), 6259 by default.

    The environment variable SAFEMAPPER wins; a file that cannot be read or parsed means the default.
    """
    override = os.environ.get("SAFEMAPPER")
    if override:
        return int(override)
    found = _MAPPER.search(safeini())
    return int(found[1]) if found else DEFAULT_MAPPER_PORT


def safeini() -> bytes:
    """/etc/safeini.xml without its comments, empty when it cannot be read.

    Its attributes are found without an XML parser: importing one is a tenth of the time of every command.
    """
    try:
        with open(SAFEINI, "rb") as handle:
            return _COMMENT.sub(b"", handle.read(65536))
    except OSError:
        return b""


def valid_module_name(name: str) -> bool:
    """A module name is a file name and a bus name: letters, digits, `_`, `-`, `.`; at most 64 characters."""
    return _MODULE_NAME.fullmatch(name) is not None


@dataclass(frozen=True)
class ModulePaths:
    """Directories and files of one module.

    Raises ValueError for a name that could leave the module directories.
    """

    module: str

    def __post_init__(self) -> None:
        if not valid_module_name(self.module):
            raise ValueError(f"{self.module!r} is not a module name (letters, digits, '_', '-', '.', at most 64)")

    @property
    def root(self) -> Path:
        """Editable module: SAFE/modules/AM."""
        return safe() / "modules" / self.module

    @property
    def conf_dir(self) -> Path:
        return self.root / "conf"

    @property
    def bin_dir(self) -> Path:
        return self.root / "bin"

    @property
    def userconfig(self) -> Path:
        return self.conf_dir / "userconfig.xml"

    @property
    def active(self) -> Path:
        """Active configuration: a symbolic link that `config` swaps atomically."""
        return safe() / "private" / "modules" / self.module

    @property
    def active_store(self) -> Path:
        """Directory that holds the numbered configurations behind `active`."""
        return safe() / "private" / "modules" / f".{self.module}"

    @property
    def userbin(self) -> Path:
        """SAFEUSERBIN: run-time copy of the user scripts."""
        return self.active / "bin"

    @property
    def active_json(self) -> Path:
        return self.active / "conf" / "active.json"

    @property
    def var(self) -> Path:
        """SAFEUSERVAR."""
        return safevar() / "modules" / self.module

    @property
    def resources(self) -> Path:
        return self.var / "resources"

    @property
    def log_dir(self) -> Path:
        return self.var / "log"

    @property
    def log(self) -> Path:
        """Verbose log: every level."""
        return self.log_dir / "module.log"

    @property
    def elog(self) -> Path:
        """Non verbose log: E(vent) messages only."""
        return self.log_dir / "module.elog"

    @property
    def script_log(self) -> Path:
        """What each script wrote last, and how it ended (safekit.log.scripts)."""
        return self.log.with_name("scripts.jsonl")

    @property
    def userlog(self) -> Path:
        return self.var / "userlog.ulog"

    @property
    def supervisor_conf(self) -> Path:
        return self.var / "supervisord.conf"

    @property
    def supervisor_sock(self) -> Path:
        return self.var / "supervisor.sock"

    @property
    def marker(self) -> Path:
        """Present while the module runs; one that is found at start tells of an unexpected halt."""
        return self.var / "running"

    @property
    def id_file(self) -> Path:
        return self.var / "id"

    @property
    def boot_file(self) -> Path:
        return self.var / "boot"

    @property
    def rfs(self) -> Path:
        """Durable state of the replicated file system."""
        return self.var / "rfs"

    @property
    def full_required(self) -> Path:
        """Note of `config` to nfsadmin: the next reintegration copies everything (guide 13.6.4.9)."""
        return self.rfs / "full_required"

    @property
    def why(self) -> Path:
        """Decision history read by `safekit why`."""
        return self.var / "why"

    def environment(self) -> dict[str, str]:
        """Variables exported to user scripts and to our own processes (guide 10.9, 14.4)."""
        return {
            "SAFE": str(safe()),
            "SAFEVAR": str(safevar()),
            "SAFEBIN": str(safebin()),
            "SAFEMODULE": self.module,
            "SAFEUSERBIN": str(self.userbin),
            "SAFEUSERVAR": str(self.var),
        }


def speaks_https() -> bool:
    """Whether the web service of this server speaks HTTPS: SAFE/web/conf/ssl has a file (guide 9.1, 10.5.4)."""
    try:
        return any(entry.is_file() for entry in os.scandir(safe() / "web" / "conf" / "ssl"))
    except FileNotFoundError:
        return False
