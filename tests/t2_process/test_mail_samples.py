"""MAI-001 to MAI-003 with real mail programs: the scripts of docs/failover.md reach a mail server (guide 10.6)."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.ports import free_port
from tests.t2_process.web_server import CHECKOUT

controller = pytest.importorskip("aiosmtpd.controller")
RECIPES = (CHECKOUT / "docs/failover.md").read_text(encoding="utf-8").partition("## Recipe: mail")[2]
SCRIPTS = re.findall(r"```sh\n(.*?)```", RECIPES, re.DOTALL)[:3]


class Sink:
    def __init__(self) -> None:
        self.letters: list[str] = []

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        self.letters.append(envelope.content.decode())
        return "250 taken"


@pytest.fixture
def sink() -> Iterator[tuple[Sink, int]]:
    made, port = Sink(), free_port()
    running = controller.Controller(made, hostname="127.0.0.1", port=port)
    running.start()
    yield made, port
    running.stop()


@pytest.mark.skipif(shutil.which("s-nail") is None, reason="s-nail is not here: bin/setup test")
@pytest.mark.parametrize(
    ("number", "arguments", "subject"),
    [
        (0, "STOP WAIT start", "Start of db"),
        (0, "STOP WAIT stopstart", ""),
        (1, "WAIT STOP stop", "Stop of db"),
        (1, "WAIT STOP stopwait", ""),
        (2, "SECOND ALONE stop", "db is ALONE"),
        (2, "ALONE PRIM start", ""),
    ],
)
def test_the_samples_reach_a_mail_server(
    tmp_path: Path, sink: tuple[Sink, int], number: int, arguments: str, subject: str
) -> None:
    mail = tmp_path / "mail"
    mail.write_text(
        f"#!/bin/sh\nexec s-nail -n -S v15-compat -S mta=smtp://127.0.0.1:{sink[1]} -S smtp-auth=none "
        f'-S from=c@example.com -S sendwait "$@"\n'
    )
    script = tmp_path / "script"
    text = SCRIPTS[number]
    script.write_text(text if text.startswith("#!") else f"#!/bin/sh\n{text}")
    for program in (mail, script):
        program.chmod(0o755)
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "SAFEMODULE": "db", "HOME": str(tmp_path)}
    done = subprocess.run([script, *arguments.split()], env=env, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    deadline = time.monotonic() + (10 if subject else 0.5)
    while not sink[0].letters and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(sink[0].letters) == bool(subject), (done.stdout, done.stderr)
    if subject:
        assert f"Subject: {subject}" in sink[0].letters[0] and "To: admin@example.com" in sink[0].letters[0]
