"""SAFE/web/conf/httpd.caserv.conf: where the CA service listens (guide 11.6.5)."""

from __future__ import annotations

from caserv import places
from caserv.errors import PkiError
from safekit.model import ports

NAME = "safecaserv"
"""The process, and its unit."""


def port() -> int:
    """The port of httpd.caserv.conf. Raises PkiError."""
    path = places.conf() / "httpd.caserv.conf"
    try:
        return ports.ca_service_port(path.read_text(encoding="utf-8", errors="replace"))
    except FileNotFoundError:
        return ports.CASERV
    except ValueError as error:
        raise PkiError(f"{path}: {error}", "correct it, then startcaserv") from None
