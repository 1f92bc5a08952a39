"""The module templates that are delivered: they configure, and their scripts are scripts."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from safekit.model.module import load_module
from safekit.model.store import USER_SCRIPTS
from safekit.model.types import ClusterConfig, Lan, LanNode

ROOT = Path(__file__).resolve().parents[2] / "Application_Modules"
TEMPLATES = sorted(path.parent.parent for path in ROOT.glob("*/*/conf/userconfig.xml"))
LANS = tuple(
    Lan(name, nodes=(LanNode("n1", f"10.{number}.0.1"), LanNode("n2", f"10.{number}.0.2")))
    for number, name in enumerate(("default", "repli"))
)


@pytest.mark.parametrize("template", TEMPLATES, ids=[t.name for t in TEMPLATES])
def test_template_configures_without_warnings(template: Path) -> None:
    path = template / "conf" / "userconfig.xml"
    # What farms need of heart is not there yet: `config` refuses them, the templates are right all the same.
    supported = 'mode="farm"' not in path.read_text()
    loaded = load_module(path, template.name, 1, ClusterConfig(LANS), environment={}, refuse_unsupported=supported)
    assert loaded.warnings == ()


def _mirror(template: Path) -> bool:
    return 'mode="mirror"' in (template / "conf" / "userconfig.xml").read_text()


@pytest.mark.parametrize("template", TEMPLATES, ids=[t.name for t in TEMPLATES])
def test_scripts_parse_and_are_executable(template: Path) -> None:
    scripts = sorted((template / "bin").iterdir())
    start, stop = ("start_prim", "stop_prim") if _mirror(template) else ("start_both", "stop_both")
    assert {start, stop, "prestart"} <= {s.name for s in scripts}
    assert not {"poststop", "transition"} & {s.name for s in scripts}
    for script in scripts:
        subprocess.run(["sh", "-n", str(script)], check=True, timeout=10)
        if script.name in USER_SCRIPTS:
            assert os.access(script, os.X_OK) and script.read_text().startswith("#!/bin/sh\n")


def test_generic_mirror_is_the_one_of_the_guide() -> None:
    path = ROOT / "generic" / "mirror" / "conf" / "userconfig.xml"
    config = load_module(path, "mirror", 1, ClusterConfig(LANS), environment={}).config
    assert config.service.mode == "mirror" and config.service.defaultprim == "alone"
    assert config.heart is not None and config.rfs is not None and config.vip is not None and config.user is not None
    (beat,) = config.heart.heartbeats
    assert (beat.name, beat.ident, beat.pulse_ms, beat.timeout_ms) == ("default", "flow", 700, 30000)
    assert [r.read_only for r in config.rfs.replicated] == [True, True]
    assert config.vip.interfaces[0].kind == "real" and config.vip.interfaces[0].arpreroute
