"""Where keys, requests and certificates are (guide 11.6.4): below SAFE/web/conf, names as documented."""

from __future__ import annotations

import grp
import os
from pathlib import Path

from caserv.errors import PkiError
from safekit.disk.files import write_atomic
from safekit.disk.paths import safe, safevar

GROUP = "safekit"
SECRET, READABLE, SHARED = 0o600, 0o644, 0o640
"""Modes of keys, of certificates, and of the key with which members of group safekit run distributed commands."""


def conf() -> Path:
    """Configuration of the web service, and the certificates that it uses."""
    return safe() / "web" / "conf"


def ca() -> Path:
    """Everything that makes, not what is used: can be kept elsewhere afterwards (guide 11.6.1.8)."""
    return conf() / "ca"


def certs() -> Path:
    """Certificates, and what an administrator published there."""
    return ca() / "certs"


def private() -> Path:
    """Keys, requests and p12 files."""
    return ca() / "private"


def newcerts() -> Path:
    """Every certificate ever issued, by its serial number."""
    return ca() / "newcerts"


def service() -> Path:
    """Of the CA web service while it is used: its own key and certificate, and what proves the password."""
    return safevar() / "caserv"


def hostname() -> str:
    """The name that files of this server have."""
    return os.uname().nodename


def make_directories() -> None:
    """The tree below conf/ca, for root alone. Raises PkiError without an installed product, OSError."""
    if not conf().is_dir():
        raise PkiError(f"{conf()}: no such directory", "install the product: bin/safekitinstall")
    for directory in (ca(), certs(), private(), newcerts()):
        directory.mkdir(mode=0o700, exist_ok=True)
        os.chmod(directory, 0o700)


def write(path: Path, data: bytes, mode: int) -> None:
    """Replace a file; nobody but those whom `mode` names can read it, from its first byte. Raises OSError."""
    write_atomic(path, data, mode=mode)
    if mode == SHARED and os.geteuid() == 0:
        try:
            gid = grp.getgrnam(GROUP).gr_gid
        except KeyError:
            return
        os.chown(path, 0, gid)
