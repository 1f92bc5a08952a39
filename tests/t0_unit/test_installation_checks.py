"""What the installer says about the system before and after it has done its work (guide 2.1.2, 2.1.6)."""

from __future__ import annotations

from pathlib import Path

import pytest

from installation import main as installer
from installation.target import InstallError, Target


@pytest.fixture
def system(tmp_path: Path) -> Target:
    for path in ("etc/passwd", "usr/sbin/nft", "usr/bin/ip"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("")
    return Target(tmp_path)


def test_nothing_is_said_of_a_complete_system(system: Target) -> None:
    assert installer.check_system(system) == []
    installer.check_target(system)


def test_a_missing_tool_is_told_with_its_package(system: Target) -> None:
    system.at("/usr/sbin/nft").unlink()
    (warning,) = installer.check_system(system)
    assert "nft is missing" in warning and "load of farm modules" in warning and "package nftables" in warning


def test_logwatch_is_warned_of(system: Target) -> None:
    system.at("/usr/sbin/logwatch").write_text("")
    (warning,) = installer.check_system(system)
    assert warning.startswith("Warning: logwatch") and "remove it" in warning


def test_little_space_for_states_is_a_warning_and_for_the_product_a_refusal(
    system: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(installer, "MINIMUM_FREE_VAR", 1 << 60)
    (warning,) = installer.check_system(system)
    assert "/var/safekit" in warning and "20 MB" in warning
    monkeypatch.setattr(installer, "MINIMUM_FREE", 1 << 60)
    with pytest.raises(InstallError, match="are free for /opt/safekit") as caught:
        installer.check_target(system)
    assert caught.value.next_step == "free some space"
    assert not system.safe.exists()


def test_who_is_not_root_and_what_is_no_system_is_refused(system: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InstallError, match="no such directory"):
        installer.check_target(Target(system.root / "none"))
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(InstallError, match="as root") as caught:
        installer.check_target(system)
    assert caught.value.next_step.startswith("sudo ")
