"""The mail scripts of docs/failover.md, as an administrator would copy them (guide 10.6)."""

from __future__ import annotations

import os
import re
import subprocess
import time
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs" / "failover.md"
PRESTART, POSTSTOP, TRANSITION = re.findall(
    r"```sh\n(.*?)```", DOCS.read_text(encoding="utf-8").partition("## Recipe: mail")[2], re.DOTALL
)


@pytest.mark.parametrize(
    ("script", "arguments", "subject"),
    [
        (PRESTART, "STOP WAIT start", "Start of mirror"),
        (PRESTART, "STOP WAIT stopstart", ""),
        (POSTSTOP, "WAIT STOP stop", "Stop of mirror"),
        (POSTSTOP, "WAIT STOP stopstart", ""),
        (TRANSITION, "SECOND ALONE stop", "mirror is ALONE"),
        (TRANSITION, "WAIT ALONE start", "mirror is ALONE"),
        (TRANSITION, "PRIM ALONE start", "mirror is ALONE"),
        (TRANSITION, "ALONE PRIM start", ""),
        (TRANSITION, "STOP WAIT start", ""),
        (TRANSITION, "PRIM WAIT stopwait", ""),
    ],
)
def test_mail_is_sent_when_it_should_be(tmp_path: Path, script: str, arguments: str, subject: str) -> None:
    sent = tmp_path / "sent"
    mail = tmp_path / "mail"
    mail.write_text(f'#!/bin/sh\ncat > /dev/null\necho "$2" > {sent}.new && mv {sent}.new {sent}\n')
    mail.chmod(0o755)
    path = tmp_path / "script"
    path.write_text(script if script.startswith("#!") else f"#!/bin/sh\n{script}")
    path.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "SAFEMODULE": "mirror"}
    subprocess.run([path, *arguments.split()], env=environment, check=True, timeout=20)
    deadline = time.monotonic() + (10.0 if subject else 0.2)
    while not sent.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert sent.exists() == bool(subject)
    if subject:
        assert sent.read_text().startswith(subject)
