"""The rules of a module in the order of evaluation: its own, then the default ones. Pure: the rules come as text."""

from __future__ import annotations

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
