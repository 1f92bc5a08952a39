"""A process around one Box, for tests: JSON commands on standard input, JSON answers on standard output.

    {"op": "primary", ...} -> {"ok": true, ...} | {"ok": false, "code": ..., "text": ...}

What the box notifies is collected and returned by {"op": "notes"}.
"""

from __future__ import annotations

import base64
import faulthandler
import json
import logging
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

from nfsbox.box import Box
from nfsbox.place import BoxError, Place
from safekit.bus.asking import answer_fields, request_fields
from safekit.bus.requests import nfsbox as asked
from safekit.model.types import Replicated, Rfs
from safekit.rfs import generations


def plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    raise TypeError(type(value))


def main() -> None:
    os.umask(0)
    faulthandler.register(10)
    logging.basicConfig(stream=sys.stderr, level=logging.DEBUG if os.environ.get("NFSBOX_DEBUG") else logging.INFO)
    options = json.loads(sys.argv[1])
    replicated = tuple(
        Replicated(**{key: tuple(value) if isinstance(value, list) else value for key, value in item.items()})
        for item in options["replicated"]
    )
    rfs = Rfs(replicated=replicated, **options.get("rfs", {}))
    notes: list[Any] = []
    state = generations.DataState(options.get("server", 1), current=options.get("current", 0))

    def pair(peer: str, server: int, session: int) -> dict[str, Any]:
        notes.append(["pair", {"peer": peer, "server": server, "session": session}])
        if options.get("refuse_pair"):
            raise BoxError("pair", "refused by the test")
        return generations.to_fields(state)

    listen = (options["address"], options["port"])
    place = Place("test", options["node"], Path(options["directory"]), lambda: (b"k" * 32,), listen)
    box = Box(place, rfs, lambda news: notes.append([news.op, request_fields(news)]), pair)

    def ticking() -> None:
        while True:
            time.sleep(1)
            box.tick()

    threading.Thread(target=ticking, daemon=True).start()
    fields = generations.to_fields(state)

    def run(request: dict[str, Any]) -> Any:
        op = request.pop("op")
        match op:
            case "prepare":
                return answer_fields(box.prepare(**request))
            case "primary":
                return box.primary(asked.Primary(state=fields, **request))
            case "secondary":
                return answer_fields(box.secondary(asked.Secondary(**request)))
            case "mark":
                return box.set_state(fields | {"consistent": request["consistent"]})
            case "standby":
                return box.standby(state=None)
            case "alone":
                return box.alone(state=fields)
            case "demote":
                return box.demote(request.get("timeout", 20))
            case "release":
                return box.release()
            case "status":
                return answer_fields(box.status())
            case "checkpoint":
                return box.engine.checkpoint()
            case "tick":
                return box.tick()
            case "notes":
                taken, notes[:] = list(notes), []
                return taken
        raise ValueError(op)

    print(json.dumps({"ok": True}), flush=True)
    for line in sys.stdin:
        try:
            answer = {"ok": True, "value": run(json.loads(line))}
        except BoxError as error:
            answer = {"ok": False, "code": error.code, "text": error.text}
        except Exception as error:
            logging.exception("driver")
            answer = {"ok": False, "code": "exception", "text": repr(error)}
        print(json.dumps(answer, default=plain), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
