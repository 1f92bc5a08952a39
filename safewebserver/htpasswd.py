"""SAFE/web/bin/htpasswd: users of the web service (guide 11.4.4), with bcrypt only."""

from __future__ import annotations

import getpass
import os
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path

import bcrypt

from safekit.disk.files import write_atomic

ROUNDS = 10
MIN_LENGTH = 8
MAX_BYTES = 72
USAGE = """usage: htpasswd [-c] [-b] [-i] FILE USER [PASSWORD]    add or change a user
       htpasswd -D FILE USER                           delete a user
       htpasswd -v [-b] FILE USER [PASSWORD]           verify a password

 -c  begin a new file     -b  the password is on the command line     -i  it is on standard input
Passwords are always stored as bcrypt hashes (-B is accepted and changes nothing)."""


def hashed(password: str) -> str:
    """The form that is stored. Raises ValueError for a password that bcrypt would cut."""
    data = password.encode()
    if len(data) > MAX_BYTES or "\0" in password:
        raise ValueError(f"a password has at most {MAX_BYTES} bytes and no NUL")
    return "$2y$" + bcrypt.hashpw(data, bcrypt.gensalt(ROUNDS)).decode()[4:]


def generated() -> str:
    """A password that nobody chose: 20 letters and digits, 100 bits."""
    alphabet = "abcdefghjkmnpqrstuvwxyzABCDEFGH23456789"
    return "".join(secrets.choice(alphabet) for _ in range(20))


def with_user(text: str, name: str, entry: str | None) -> str:
    """The file's text with the user's line replaced, added, or taken away (None). Raises ValueError."""
    if not name or ":" in name or name != name.strip() or not name.isprintable() or name.startswith(("#", "-")):
        raise ValueError("a user name has no colon and no blanks around it, and begins with neither # nor -")
    lines = [line for line in text.splitlines() if line.partition(":")[0] != name]
    if entry is not None:
        lines.append(f"{name}:{entry}")
    return "".join(f"{line}\n" for line in lines)


def _password(letters: str, words: list[str]) -> str:
    if "b" in letters:
        return words.pop()
    if "i" in letters:
        return sys.stdin.readline().rstrip("\n")
    first = getpass.getpass("New password: ")
    if getpass.getpass("Re-type new password: ") != first:
        raise ValueError("the passwords are not the same")
    return first


def run(arguments: Sequence[str]) -> int:
    """0 done, 2 wrong usage, 3 wrong password, 6 no such user; 1 anything else."""
    letters = "".join(a[1:] for a in arguments if a.startswith("-") and len(a) > 1)
    words = [a for a in arguments if not a.startswith("-") or a == "-"]
    if set(letters) - set("cbiBDv") or len(words) != (3 if "b" in letters else 2):
        print(USAGE, file=sys.stderr)
        return 2
    path, name = Path(words[0]), words[1]
    text = "" if "c" in letters or not path.exists() else path.read_text()
    users = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    if ("D" in letters or "v" in letters) and name not in users:
        print(f"User {name} is not in {path}", file=sys.stderr)
        return 6
    if "v" in letters:
        asked = words.pop() if "b" in letters else getpass.getpass("Password: ")
        right = len(asked.encode()) <= MAX_BYTES and bcrypt.checkpw(asked.encode(), users[name].encode())
        print("Password correct." if right else "Password wrong.", file=sys.stderr)
        return 0 if right else 3
    entry = None if "D" in letters else hashed(_password(letters, words))
    mode = path.stat().st_mode & 0o777 if path.exists() else 0o640
    write_atomic(path, with_user(text, name, entry).encode(), mode=mode)
    print(f"{'Deleting' if entry is None else 'Updating'} password for user {name}", file=sys.stderr)
    return 0


def main() -> int:
    """Entry point of the script."""
    os.umask(0o027)
    try:
        return run(sys.argv[1:])
    except (ValueError, OSError, EOFError) as error:
        print(f"htpasswd: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
