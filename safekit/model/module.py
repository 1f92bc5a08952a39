"""Loading a userconfig.xml: the steps in their order, all findings at once."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safekit.model import schema
from safekit.model.build import Builder
from safekit.model.checks import check_module, unsupported
from safekit.model.findings import ConfigError, Finding, Places, errors, ordered
from safekit.model.rules_check import check_rules
from safekit.model.types import ClusterConfig, ModuleConfig
from safekit.model.xmlload import expand_macros, parse, read_bytes
from safekit.rules.source import default_rules, default_text


@dataclass(frozen=True)
class Loaded:
    """A configuration without errors, where its values stand, and the warnings about it."""

    config: ModuleConfig
    places: Places
    warnings: tuple[Finding, ...]


@dataclass(frozen=True)
class Examined:
    """What could be compiled of a file, with everything that was found; `config` None when nothing could."""

    config: ModuleConfig | None
    places: Places
    findings: tuple[Finding, ...]


def examine_module(
    path: Path,
    module: str,
    module_id: int,
    cluster: ClusterConfig,
    *,
    environment: Mapping[str, str] | None = None,
    refuse_unsupported: bool = True,
) -> Examined:
    """Read, expand, check and compile a userconfig.xml (chapter 13) and tell every mistake.

    `environment` serves %NAME% (13.1), by default this process's. Nothing is changed anywhere, and
    nothing of the machine is looked at. Raises ConfigError for a file that cannot be parsed at all.
    """
    file = str(path)
    root = parse(read_bytes(path), file)
    unknown = expand_macros(root, os.environ if environment is None else environment, file)
    findings = unknown + schema.check(root, schema.load("userconfig"), file)
    builder = Builder(file, cluster)
    if unknown or not root.usable:
        return Examined(None, builder.places, ordered(findings))
    config = builder.module(root, module, module_id)
    findings += builder.findings
    if config is not None:
        findings += check_module(config, cluster, builder.places)
        findings += check_rules(config, builder.places, default_text(default_rules()))
        if refuse_unsupported:
            findings += unsupported(config, builder.places)
    return Examined(config, builder.places, ordered(findings))


def load_module(
    path: Path,
    module: str,
    module_id: int,
    cluster: ClusterConfig,
    *,
    environment: Mapping[str, str] | None = None,
    refuse_unsupported: bool = True,
) -> Loaded:
    """As `examine_module`, for a file that must be right. Raises ConfigError with everything found."""
    examined = examine_module(
        path, module, module_id, cluster, environment=environment, refuse_unsupported=refuse_unsupported
    )
    if examined.config is None or errors(examined.findings):
        raise ConfigError(examined.findings)
    return Loaded(examined.config, examined.places, examined.findings)
