#!/usr/bin/python3 -I
"""`systemctl` and `service` of a lab node: asks the node's process 1.

Stands alone: it is copied into the node, and runs with the distribution's Python.
"""

import json
import os
import socket
import sys

SOCKET = "/run/safelab.sock"
CODES = {"active": 0, "activating": 0, "inactive": 3, "deactivating": 3, "failed": 3}


def ask(verb: str, unit: str) -> dict[str, str]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.connect(SOCKET)
        connection.sendall(json.dumps({"verb": verb, "unit": unit}).encode() + b"\n")
        with connection.makefile() as stream:
            answer: dict[str, str] = json.loads(stream.readline())
    return answer


def main() -> int:
    words = [word for word in sys.argv[1:] if not word.startswith("-")]
    if os.path.basename(sys.argv[0]) == "service" and len(words) == 2:
        words.reverse()
    if words == ["daemon-reload"]:
        return 0
    if len(words) < 2:
        print("usage: systemctl start|stop|restart|kill|status|show|is-active|is-enabled UNIT", file=sys.stderr)
        return 1
    verb, unit = words[0], words[1].removesuffix(".service")
    try:
        answer = ask(verb, unit)
    except OSError as error:
        print(f"Failed to reach process 1 of this node: {error}", file=sys.stderr)
        return 1
    if verb == "show" and answer.get("code") == "5":
        # systemd shows a unit that does not exist as one that is not active
        answer = {"phase": "inactive", "pid": "0"}
    if "error" in answer:
        print(answer["error"], file=sys.stderr)
        return int(answer.get("code", 1))
    if verb == "status":
        print(f"{unit}.service: {answer['phase']}; main PID: {answer['pid']}")
        return CODES[answer["phase"]]
    if verb == "show":
        print(f"ActiveState={answer['phase']}\nMainPID={answer['pid']}")
        return 0
    if verb == "is-active":
        print(answer["phase"])
        return CODES[answer["phase"]]
    if verb == "is-enabled":
        print(answer["enabled"])
        return 0 if answer["enabled"] == "enabled" else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
