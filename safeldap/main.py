"""The process safeldap: one question a line on the socket that is its standard input, one answer a line (JSON).

The first line has the settings. It ends when the other side is gone.

    {"id": 1, "op": "check", "name": "mary", "password": "..."}  {"id": 2, "op": "person", "name": "mary"}
    {"id": 1, "found": true, "role": "Control"}                  {"id": 2, "error": "the directory does not answer"}
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import socket
import sys
from typing import Any

from safekit.model.ldap import LdapSettings
from safekit.process import stacks
from safekit.process.frame import set_process_name
from safekit.process.tasks import Beside
from safeldap.ask import Asker, Unanswered

NAME = "safeldap"
MAX_LINE = 64 << 10
MAX_AT_ONCE = 16
ANSWER_SECONDS = 12.0


async def _answer(asker: Asker, question: dict[str, Any]) -> dict[str, Any]:
    """What the directory says. A library that fails is no reason to end: others wait for answers too."""
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            if question["op"] == "check":
                found = await asker.check(str(question["name"]), str(question["password"]))
            else:
                found = await asker.person(str(question["name"]))
        return {"found": found is not None, "role": found.role if found is not None else None}
    except Unanswered as error:
        return {"error": str(error)}
    except TimeoutError:
        servers = ", ".join(asker.settings.servers)
        return {"error": f"{servers} did not answer within {ANSWER_SECONDS:.0f} s: is the port open from this server?"}
    except Exception as error:  # never the text of it: it may have what was asked
        print(f"{NAME}: defect: {type(error).__name__}", file=sys.stderr, flush=True)
        return {"error": f"defect: {type(error).__name__}; see journalctl -u safewebserver"}


async def _serve(sock: socket.socket) -> int:
    reader, writer = await asyncio.open_connection(sock=sock, limit=MAX_LINE)
    asker = Asker(LdapSettings.from_json(json.loads(await reader.readline())))
    turn = asyncio.Semaphore(MAX_AT_ONCE)
    beside = Beside()

    async def work(question: dict[str, Any]) -> None:
        async with turn:
            answer = await _answer(asker, question)
        writer.write(json.dumps({"id": question["id"], **answer}).encode() + b"\n")

    while line := await reader.readline():
        beside.start(work(json.loads(line)))
    await beside.end()
    writer.close()
    return 0


def main() -> int:
    """Answer until the other side closes."""
    set_process_name(NAME)
    stacks.write_on_signal()
    # Passwords are in its memory: it leaves no copy of it on a disk.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.umask(0o077)
    os.chdir("/")
    try:
        return asyncio.run(_serve(socket.socket(fileno=os.dup(0))))
    except (OSError, ValueError, TypeError) as error:
        print(f"{NAME}: {type(error).__name__}: it is started by the web service", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
