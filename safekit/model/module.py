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
from safekit.model.types import ClusterConfig, ModuleConfig
from safekit.model.xmlload import expand_macros, parse, read_bytes


@dataclass(frozen=True)
class Loaded:
    """A configuration without errors, where its values stand, and the warnings about it."""

    config: ModuleConfig
    places: Places
    warnings: tuple[Finding, ...]


def load_module(
    path: Path,
    module: str,
    module_id: int,
    cluster: ClusterConfig,
    *,
    environment: Mapping[str, str] | None = None,
    refuse_unsupported: bool = True,
) -> Loaded:
    """Read, expand, check and compile a userconfig.xml (chapter 13).

    `environment` serves %NAME% (13.1), by default this process's. Raises ConfigError with everything
    that was found; nothing is changed anywhere, and nothing of the machine is looked at.
    """
    file = str(path)
    root = parse(read_bytes(path), file)
    findings: list[Finding] = expand_macros(root, os.environ if environment is None else environment, file)
    if findings:
        raise ConfigError(ordered([*findings, *schema.check(root, schema.load("userconfig"), file)]))
    findings += schema.check(root, schema.load("userconfig"), file)
    if not root.usable:
        raise ConfigError(ordered(findings))
    builder = Builder(file, cluster)
    config = builder.module(root, module, module_id)
    findings += builder.findings
    if config is not None:
        findings += check_module(config, cluster, builder.places)
        if refuse_unsupported:
            findings += unsupported(config, builder.places)
    if config is None or errors(findings):
        raise ConfigError(ordered(findings))
    return Loaded(config, builder.places, ordered(findings))
