"""The local port of safeadmin, from /etc/safeini.xml."""

from __future__ import annotations

from pathlib import Path

import pytest

from safekit.disk import paths


@pytest.mark.parametrize(
    ("text", "port"),
    [
        ('<safeini mapper="7000"/>', 7000),
        ("<?xml version='1.0'?>\n<safeini other='1'\n  mapper = '7001'>\n</safeini>", 7001),
        ('<!-- <safeini mapper="1"/> --><safeini mapper="7002"/>', 7002),
        ("<safeini/>", 6259),
        ('<safeini xmapper="7"/>', 6259),
        ('<other mapper="7"/>', 6259),
        ("", 6259),
    ],
)
def test_mapper(text: str, port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SAFEMAPPER", raising=False)
    monkeypatch.setattr(paths, "SAFEINI", str(tmp_path / "safeini.xml"))
    assert paths.mapper_port() == 6259
    (tmp_path / "safeini.xml").write_text(text)
    assert paths.mapper_port() == port
    monkeypatch.setenv("SAFEMAPPER", "7003")
    assert paths.mapper_port() == 7003
