"""The code of `safekit cluster join` at the web service: what it opens, how often, and how long."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from web_server import KEY, WebServer

from safekit.wire import invitation
from safekit.wire.targets import Credentials, Target
from safekit.wire.webclient import Ask, CallError, proved

CLUSTER = Ask("PUT", "/api/v1/cluster", json.dumps({"cluster.xml": "<cluster/>", "cluster.key": KEY.hex()}).encode())
WRONG = "2222-2222"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WebServer]:
    """A server in no cluster yet; this process invites and asks with the same directories."""
    made = WebServer(tmp_path)
    for name in ("cluster.key", "cluster.json"):
        (made.var / "cluster" / name).unlink()
    for name, value in made.env.items():
        monkeypatch.setenv(name, value)
    made.start()
    yield made
    made.stop()


def ask(server: WebServer, code: str, order: Ask = CLUSTER) -> dict[str, object]:
    target = Target("", "http", "127.0.0.1", server.port)
    return proved(target, order, Credentials(invitation.USER, invitation.plain(code)))


def refused(server: WebServer, code: str, order: Ask = CLUSTER) -> str:
    with pytest.raises(CallError) as caught:
        ask(server, code, order)
    assert caught.value.next_step
    return caught.value.kind


def test_the_code_brings_a_cluster_however_it_is_typed(server: WebServer) -> None:
    code = invitation.make()
    for typed in (code, code.lower(), code.replace("-", " ")):
        # No safeadmin runs here: the command cannot apply it, and the code is not used up by that.
        answer = ask(server, typed)
        assert answer["status"] == 1 and "safeadmin" in str(answer["output"]), "the command that applies it was run"
    assert invitation.present() is not None


def test_the_code_opens_nothing_else(server: WebServer) -> None:
    for order in (Ask("GET", "/api/v1/state"), Ask("POST", "/api/v1/command", b'{"arguments": ["level"]}'),
                  Ask("PUT", "/api/v1/modules/x/archive", b"")):  # fmt: skip
        assert refused(server, invitation.make(), order) in ("credentials", "no_invitation")
    code = invitation.make()
    basic = server.ask("GET", "/api/v1/state", user=invitation.USER, password=invitation.plain(code))
    assert basic.status == 401, "it is no password"


def test_wrong_codes_are_counted_and_then_the_right_one_is_void(server: WebServer) -> None:
    code = invitation.make()
    for _ in range(invitation.TRIES):
        assert refused(server, WRONG) == "credentials"
    assert refused(server, code) in ("wait", "no_invitation", "unproved"), "this address has guessed often, too"
    assert not invitation.spend()


def test_the_last_try_counts_as_the_others(server: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    code = invitation.make()
    for _ in range(invitation.TRIES - 1):
        assert invitation.spend()
    assert ask(server, code)["status"] == 1, "the command that applies the cluster was run"
    assert not invitation.spend(), "there was no try left"
    later = time.clock_gettime(time.CLOCK_BOOTTIME) + invitation.JUDGED_SECONDS
    monkeypatch.setattr(invitation, "_now", lambda: later)
    assert invitation.present() is None and not invitation.left()


def test_a_code_ends_with_its_time_with_the_boot_and_with_the_cluster(
    server: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = invitation.make()
    made = invitation.present()
    assert made is not None and 0 < invitation.left() <= invitation.SECONDS
    for changed in (replace(made, until=made.until - invitation.SECONDS - 1), replace(made, boot="another")):
        invitation.path().write_text(json.dumps(changed.__dict__))
        assert invitation.present() is None and not invitation.spend()
        assert refused(server, code) == "unproved"
    invitation.path().write_text("no file of ours")
    assert invitation.present() is None
    invitation.make()
    invitation.withdraw()
    assert refused(server, code) == "unproved"


def test_nobody_on_the_way_reads_the_code_or_the_key(server: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    import http.client

    sent: list[bytes] = []
    real = http.client.HTTPConnection.send

    def noted(self: http.client.HTTPConnection, data: object) -> None:
        read = getattr(data, "read", None)
        if read is not None:
            data = read()
        sent.append(bytes(data))  # type: ignore[call-overload]
        real(self, data)  # type: ignore[arg-type]

    monkeypatch.setattr(http.client.HTTPConnection, "send", noted)
    code = invitation.make()
    ask(server, code)
    wire = b"".join(sent)
    assert b"/api/v1/cluster" in wire
    for secret in (invitation.plain(code).encode(), KEY.hex().encode(), b"cluster.key"):
        assert secret not in wire
    assert oct(invitation.path().stat().st_mode & 0o777) == "0o640"
    assert invitation.plain(code) not in invitation.path().read_text()
