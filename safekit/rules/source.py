"""Where the default failover rules are, and how they are read."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

from safekit.disk.paths import private_conf


def default_rules() -> Path:
    """Where the default failover rules are: SAFE/private/conf/include/failover.xml."""
    return private_conf() / "include" / "failover.xml"


class RulesFileError(Exception):
    """The default rules file is missing or is not XML; the text says which and what to do."""


def default_text(path: Path) -> str:
    """The rules text inside <failover> of `path` (SAFE/private/conf/include/failover.xml)."""
    try:
        root = ElementTree.fromstring(path.read_bytes())
    except OSError as error:
        raise RulesFileError(f"cannot read the default failover rules {path}: {error.strerror}") from error
    except ElementTree.ParseError as error:
        raise RulesFileError(f"{path} is not well-formed XML ({error}): reinstall it") from error
    if root.tag != "failover":
        raise RulesFileError(f"{path}: found <{root.tag}>, expected <failover>: reinstall it")
    return root.text or ""
