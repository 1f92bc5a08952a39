"""Where the rules of a module come from: its own, then the default ones."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

from safekit.disk.paths import private_conf
from safekit.rules.ast import Rule
from safekit.rules.parser import parse

SYNCDELTA_RULE = """
force_uptodate:
  if (heartbeat.* == down && cluster() == down && rfs.synced == up && rfs.uptodate == down)
  then rfs.uptodate=up;
"""
"""Added when syncdelta > 1 (guide 13.6.4.4)."""

SYNCAT_RULE = "syncat_wait: if (rfs.syncat == down) then wait();"
"""Added when syncat is configured (guide 13.6.4.10)."""


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


def module_rules(own: str, default: str | None, *, syncdelta: int = 0, syncat: bool = False) -> tuple[Rule, ...]:
    """Rules in the order of evaluation: the module's own before the default ones.

    `default` is None for ``extends="no"``.  A label of the module hides the
    default rule with the same label.  Raises RuleError.
    """
    rules = list(parse(own))
    taken = {rule.label for rule in rules}
    extra = default or ""
    if default is not None and syncdelta > 1:
        extra += SYNCDELTA_RULE
    if default is not None and syncat:
        extra += SYNCAT_RULE
    rules.extend(rule for rule in parse(extra) if rule.label not in taken)
    return tuple(rules)
