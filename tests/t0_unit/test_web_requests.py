"""Signed requests, who may run which command, settings, and lists of servers: without I/O."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safekit.model.types import ClusterConfig, Lan, LanNode
from safekit.wire import remote
from safekit.wire.targets import Credentials, Target, TargetError, default_list, parse_targets
from safekit.wire.webclient import Ask
from safewebserver import deploy, relay
from safewebserver.permissions import Refusal, Role, judge
from safewebserver.settings import SettingsError, parse_groups, parse_settings, parse_users

KEY, OTHER = bytes(range(32)), bytes(range(1, 33))
BODY = b'{"arguments":["state"]}'


def checked(
    header: str, *, method: str = "POST", path: str = "/api/v1/command?x=1", now: float = 1000.0
) -> remote.Signed:
    return remote.verify(header, [KEY], "n2", method, path, remote.Nonces(), now=now)


def signed(now: float = 1000.0, key: bytes = KEY, target: str = "n2") -> str:
    return remote.sign(key, "n1", target, "POST", "/api/v1/command?x=1", BODY, now=now)[0]


def test_a_signed_request_is_accepted_once() -> None:
    nonces, header = remote.Nonces(), signed()
    found = remote.verify(header, [OTHER, KEY], "n2", "post", "/api/v1/command?x=1", nonces, now=1000.0)
    assert (found.sender, found.key) == ("n1", KEY)
    assert remote.check_body(found, BODY) == BODY
    with pytest.raises(remote.SignatureError) as error:
        remote.verify(header, [KEY], "n2", "POST", "/api/v1/command?x=1", nonces, now=1001.0)
    assert error.value.kind == "replay"


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (lambda h: h.replace("from=n1", "from=n3"), "altered"),
        (lambda h: h.replace("time=1000000", "time=1000001"), "altered"),
        (lambda h: h.replace("sealed=0", "sealed=1"), "altered"),
        (lambda h: h[:-1] + ("0" if h[-1] != "0" else "1"), "altered"),
        (lambda h: h.replace(",mac=", ",extra=1,mac="), "malformed"),
        (lambda h: h.replace("SafeKit", "Basic"), "malformed"),
        (lambda h: h.replace("time=1000000", "time=x"), "malformed"),
        (lambda h: h + ",mac=1", "malformed"),
    ],
)
def test_an_altered_header_is_refused(change: object, kind: str) -> None:
    with pytest.raises(remote.SignatureError) as error:
        checked(change(signed()))  # type: ignore[operator]
    assert error.value.kind == kind


def test_another_path_method_target_key_or_body_is_refused() -> None:
    for method, path in (("POST", "/api/v1/cluster"), ("PUT", "/api/v1/command?x=1")):
        with pytest.raises(remote.SignatureError) as error:
            checked(signed(), method=method, path=path)
        assert error.value.kind == "altered"
    for header, kind in ((signed(target="n3"), "target"), (signed(key=OTHER), "key")):
        with pytest.raises(remote.SignatureError) as error:
            checked(header)
        assert error.value.kind == kind
    with pytest.raises(remote.SignatureError) as error:
        remote.check_body(checked(signed()), BODY + b" ")
    assert error.value.kind == "altered"


@pytest.mark.parametrize(
    ("skew", "words"), [(-3600.0, "60 min behind"), (3600.0, "60 min ahead of"), (-121.0, "121 s behind")]
)
def test_a_wrong_clock_is_named(skew: float, words: str) -> None:
    with pytest.raises(remote.SignatureError) as error:
        checked(signed(now=1_000_000.0 + skew), now=1_000_000.0)
    assert error.value.kind == "clock"
    assert words in error.value.text and "n1" in error.value.text and "n2" in error.value.text
    assert error.value.skew == pytest.approx(skew)


def test_a_clock_within_the_bound_is_accepted() -> None:
    for skew in (-119.0, 0.0, 119.0):
        checked(signed(now=10_000.0 + skew), now=10_000.0)


def test_a_full_memory_refuses_instead_of_forgetting() -> None:
    nonces = remote.Nonces(limit=3)
    for number in range(3):
        nonces.use(f"{number}", 100.0, 1.0)
    with pytest.raises(remote.SignatureError) as error:
        nonces.use("3", 100.0, 1.0)
    assert error.value.kind == "busy"
    nonces.use("4", 300.0, 200.0)


def test_sealed_bodies_and_signed_answers() -> None:
    body = remote.seal_body(KEY, b"cluster.key")
    assert b"cluster.key" not in body
    header, nonce = remote.sign(KEY, "n1", "n2", "PUT", "/p", body, sealed=True, now=1.0)
    found = remote.verify(header, [KEY], "n2", "PUT", "/p", remote.Nonces(), now=1.0)
    assert remote.check_body(found, body) == b"cluster.key"
    content = b'{"status": 0}'
    data = b"   " + content + b"\n" + remote.answer_mac(KEY, nonce, 200, content).encode() + b"\n"
    assert remote.check_answer(KEY, nonce, 200, data).strip() == content
    for status, altered in ((500, data), (200, data.replace(b"0}", b"1}")), (200, content)):
        with pytest.raises(remote.SignatureError):
            remote.check_answer(KEY, nonce, status, altered)


@given(st.text(max_size=300))
def test_any_header_is_refused_by_an_error_of_ours(text: str) -> None:
    with pytest.raises(remote.SignatureError):
        checked(text)
    with pytest.raises(remote.SignatureError):
        checked("SafeKit " + text)


@pytest.mark.parametrize(
    ("words", "needed"),
    [
        ("state", Role.MONITOR),
        ("-m mirror state -v", Role.MONITOR),
        ("log -m mirror -s 10", Role.MONITOR),
        ("module list", Role.MONITOR),
        ("cluster confinfo", Role.MONITOR),
        ("boot -m mirror status", Role.MONITOR),
        ("boot webstatus", Role.MONITOR),
        ("start -m mirror", Role.CONTROL),
        ("-m state shutdown", Role.CONTROL),
        ("swap nosync -m mirror", Role.CONTROL),
        ("boot -m mirror on", Role.ADMIN),
        ("boot -m status off", Role.ADMIN),
        ("boot status -m off", Role.MONITOR),
        ("config -m mirror", Role.ADMIN),
        ("module install -m list x.safe", Role.ADMIN),
        ("module -m list uninstall", Role.ADMIN),
        ("cluster genkey", Role.ADMIN),
        ("logsave -m mirror /etc/passwd", Role.ADMIN),
        ("snapshot -m mirror /tmp/x", Role.ADMIN),
        ("set -m mirror -r x", Role.ADMIN),
        ("state -u root", Role.ADMIN),
        ("start -m mirror -i handler", Role.ADMIN),
        ("nonsense", Role.ADMIN),
    ],
)
def test_the_role_that_a_command_needs(words: str, needed: Role) -> None:
    for role in Role:
        judged = judge(words.split(), role)
        assert isinstance(judged, Refusal) == (role < needed), role
        if isinstance(judged, Refusal):
            assert judged.kind == "forbidden"
            assert "the role" in judged.text


@pytest.mark.parametrize(
    "words",
    [
        "logview -m mirror",
        "-r foo",
        "-H * state",
        "-p",
        "-u x state",
        "-m",
        "-m -r x",
        "webserver stop",
        "-i x state",
        "--help",
    ],
)
def test_what_is_for_one_server_only(words: str) -> None:
    judged = judge(words.split(), Role.ADMIN)
    assert isinstance(judged, Refusal) and judged.kind == "local"


def test_malformed_commands() -> None:
    for words in ([], ["x" * 5000], ["state", "a\0b"], ["state"] * 101):
        judged = judge(words, Role.ADMIN)
        assert isinstance(judged, Refusal) and judged.kind == "malformed"


def test_settings() -> None:
    text = "Define httpadminport 9020\n#Define usefile\nDefine httpmonitorport 9012\nListen 80\n"
    settings = parse_settings(text)
    assert settings.listen == ((9020, Role.ADMIN), (9012, Role.MONITOR)) and not settings.authenticated
    assert parse_settings("Define httpcontrolport 9011\nDefine usefile").authenticated
    for wrong in (
        "",
        "Define httpadminport",
        "Define httpadminport 99999",
        "Define httpadminport 1\nDefine httpmonitorport 1",
    ):
        with pytest.raises(SettingsError):
            parse_settings(wrong)


def test_users_and_groups() -> None:
    users = parse_users("a:$2y$10$x\n# c:$2y$1\nmd5:$apr1$x\nplain:secret\n:$2y$x\n")
    assert users == {"a": b"$2y$10$x"}
    assert parse_groups("Admin: a\nControl: b a\nmonitor: c\nOther: d\nnonsense") == {
        "a": Role.ADMIN,
        "b": Role.CONTROL,
        "c": Role.MONITOR,
    }


CLUSTER = ClusterConfig(
    lans=(
        Lan("private", framework=False, nodes=(LanNode("n1", "192.168.0.1"), LanNode("n2", "192.168.0.2"))),
        Lan("default", nodes=(LanNode("n1", "10.0.0.1"), LanNode("n2", "n2.example"), LanNode("n3", "fd00::3"))),
    )
)


def urls(text: str, protocol: str = "http") -> list[str]:
    return [f"{t.node}={t.url}" for t in parse_targets(text, CLUSTER, "n1", protocol)]


def test_lists_of_servers() -> None:
    everybody = ["n1=http://10.0.0.1:9010", "n2=http://n2.example:9010", "n3=http://[fd00::3]:9010"]
    assert urls("*") == urls("[http],*") == urls("*,n1") == everybody
    assert urls("*", "https")[0] == "n1=https://10.0.0.1:9453"
    assert urls("[https:9500],n1,n2") == ["n1=https://10.0.0.1:9500", "n2=https://n2.example:9500"]
    assert urls("[http:9011], n3") == ["n3=http://[fd00::3]:9011"]
    assert urls("http://192.168.0.2:9010,https://x") == ["n2=http://192.168.0.2:9010", "=https://x:9453"]
    assert urls("http://localhost:9010") == ["n1=http://localhost:9010"]
    assert urls("http://[fd00::3]") == ["n3=http://[fd00::3]:9010"]
    (found,) = parse_targets("http://bob:pa:ss@10.0.0.1:9010", CLUSTER, "n1", "http")
    assert found.credentials == Credentials("bob", "pa:ss") and "bob" not in found.url


@pytest.mark.parametrize(
    "text", ["", ",", "n9", "[ftp],n1", "[http:0],n1", "http://", "ftp://x", "http://x/y", "a@b", "[http]"]
)
def test_lists_that_make_no_sense(text: str) -> None:
    with pytest.raises(TargetError) as error:
        urls(text)
    assert error.value.next_step


def test_names_need_a_cluster_but_urls_do_not() -> None:
    assert parse_targets("http://10.0.0.9", None, "n1", "http")[0].node == ""
    with pytest.raises(TargetError, match="not configured"):
        parse_targets("*", None, "n1", "http")


def test_default_cluster() -> None:
    assert default_list("# all\nn1, n2\n\nhttp://10.0.0.3:9010 # third\n") == "n1, n2,http://10.0.0.3:9010"


def test_the_console_seals_no_key_with_a_former_one_for_who_has_the_present_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As `-G` does: see call."""
    asked: dict[str, bool] = {}

    def call(target: Target, ask: Ask, *_: object) -> tuple[dict[str, object], bool]:
        asked[target.node] = ask.only_sealed
        return {"status": 0, "output": "done"}, False

    monkeypatch.setattr(deploy, "key_holders", lambda: frozenset({"n2"}))
    monkeypatch.setattr(deploy, "asking_keys", lambda: (KEY, OTHER))
    monkeypatch.setattr(deploy, "call", call)
    wanted = [Target(name, "http", "10.0.0.9", 9010) for name in ("n2", "n3")]
    rows = asyncio.run(deploy._all(wanted, lambda _: Ask("PUT", "/api/v1/cluster", secret=True), {}))
    assert [row["status"] for row in rows] == [0, 0] and asked == {"n2": True, "n3": False}


def test_the_relay_seals_nothing_with_a_former_key_over_http(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody in between who has it needs only to say that the key is another one."""
    used: list[tuple[str, bytes]] = []

    async def refused(_: object, target: Target, key: bytes, *__: object) -> relay.Reply:
        used.append((target.protocol, key))
        raise relay.Unreachable("key", "the key is another one")

    monkeypatch.setattr(relay, "asking_keys", lambda: (KEY, OTHER))
    monkeypatch.setattr(relay.Relay, "_once", refused)

    async def ask(protocol: str, *, secret: bool) -> list[tuple[str, bytes]]:
        used.clear()
        with pytest.raises(relay.Unreachable):
            await relay.Relay().ask([Target("n2", protocol, "10.0.0.9", 9010)], "PUT", "/x", b"{}", secret=secret)
        return list(used)

    assert asyncio.run(ask("http", secret=True)) == [("http", KEY)]
    assert asyncio.run(ask("http", secret=False)) == [("http", KEY), ("http", OTHER)], "nothing to keep from him"
    assert asyncio.run(ask("https", secret=True)) == [("https", KEY), ("https", OTHER)], "his certificate was checked"
