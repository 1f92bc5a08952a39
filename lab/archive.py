"""Modules for the nodes of a lab, packed as an administrator gets them."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping


def archive(config: str, scripts: Mapping[str, str]) -> bytes:
    """A .safe file."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as opened:
        opened.writestr("conf/userconfig.xml", config)
        for name, text in scripts.items():
            opened.writestr(f"bin/{name}", text)
    return buffer.getvalue()
