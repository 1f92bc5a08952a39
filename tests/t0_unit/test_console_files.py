"""The files of the console: texts, imports, what the content security policy forbids, types, and its pure modules."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from installation.console import ENTRIES, made
from safewebserver.assets import Console, imports

CHECKOUT = Path(__file__).resolve().parents[2]
CONSOLE = CHECKOUT / "safewebserver/console"
MODULES = {
    path.relative_to(CONSOLE).as_posix(): path.read_text()
    for path in CONSOLE.rglob("*.js")
    if "vendor" not in path.parts
}
TEXTS = {name: json.loads((CONSOLE / f"i18n/{name}.json").read_text()) for name in ("en", "fr", "ja")}
NODE = shutil.which("node")
# Texts whose names are put together: by the state, the action, the place.
FAMILIES = re.compile(
    r"(action|will|global|says|todo|step|verdict|color|help|help\.color|tab|detail|format|theme|level|banner|panel|"
    r"resource|class|figure|kind|wizard|editor|editor\.as|form|why|timeline|compare)\."
)


@pytest.mark.parametrize("language", ["fr", "ja"])
def test_every_text_exists_in_each_language_with_the_same_places(language: str) -> None:
    assert TEXTS[language].keys() == TEXTS["en"].keys()
    for key, english in TEXTS["en"].items():
        other = TEXTS[language][key]
        # A language without a singular says the number in both forms.
        places = [set(re.findall(r"\{\w+\}", text)) - {"{count}"} for text in (english, other)]
        assert places[0] == places[1], key
        assert other.strip() and (other != english or len(english) < 30), key


def test_every_text_that_is_used_exists_and_no_other() -> None:
    known = set(TEXTS["en"]) | {key.removesuffix(".other") for key in TEXTS["en"]}
    code = "\n".join(MODULES.values())
    used = set(re.findall(r"""\bt\(\s*["']([\w.]+)["']""", code))
    assert not used - known
    idle = {
        key for key in TEXTS["en"] if key.rpartition(".")[0] not in used and key not in used and f'"{key}"' not in code
    }
    assert not {key for key in idle if not FAMILIES.match(key)}


def test_no_sentence_stands_in_the_code() -> None:
    for name, text in MODULES.items():
        plain = re.sub(r"/\*.*?\*/|//[^\n]*", "", text, flags=re.DOTALL)
        found = re.findall(r">\s*([A-Z][a-z]+(?: [a-z]+){2,})", plain)
        assert not found, (name, found)


def test_nothing_that_the_policy_of_the_pages_forbids() -> None:
    forbidden = re.compile(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|DOMParser|style=\""
    )
    for name, text in MODULES.items():
        assert not forbidden.search(text), name
        assert not re.search(r"https?://(?!www\.w3\.org)[a-z]", text), f"{name} asks another site"


def test_a_page_names_all_modules_that_it_will_need() -> None:
    files = {name: text.encode() for name, text in MODULES.items()} | {"vendor/preact.js": b"", "style.css": b""}
    found = imports("app.js", files)
    lost = set(MODULES) - set(found)
    assert not lost, "a module that nothing imports"
    page = Console(files)._page("")
    assert page.count('rel="modulepreload"') == len(found) and "vendor/codemirror.js" not in page
    assert re.search(r"<script(?! type=\"module\" src=)|<style|style=|onclick", page) is None


def test_another_content_is_another_address() -> None:
    one = Console({"app.js": b"1", "style.css": b""})
    other = Console({"app.js": b"2", "style.css": b""})
    assert one.hash != other.hash and not one.complete


def test_the_lock_of_the_libraries_names_no_host() -> None:
    recipe = CHECKOUT / "packaging/console"
    wanted = json.loads((recipe / "package.json").read_text())
    for name, version in {**wanted["dependencies"], **wanted["devDependencies"]}.items():
        assert re.fullmatch(r"\d+\.\d+\.\d+", version), f"{name} has no exact version"
    lock = json.loads((recipe / "package-lock.json").read_text())
    for path, about in lock["packages"].items():
        assert "resolved" not in about and (not path or about["integrity"].startswith("sha512-")), path
    assert all((recipe / name).is_file() for name in ENTRIES)


def evaluate(module: str, script: str, *arguments: object) -> Any:
    """The JSON that an expression of a module gives, in node. The module has no browser around it."""
    if NODE is None:
        pytest.skip("no node on this machine")
    program = (
        f"import * as m from {json.dumps(str(CONSOLE / module))}; const a = {json.dumps(arguments)};"
        f"console.log(JSON.stringify((() => {{ {script} }})()));"
    )
    done = subprocess.run(
        [NODE, "--input-type=module", "-e", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.skipif(NODE is None or not made(CHECKOUT), reason="the console's libraries are not here")
def test_the_types_of_the_modules(tmp_path: Path) -> None:
    """tsc checks what the comments say of the types."""
    libraries = CHECKOUT / ".cache/console/node_modules"
    if not (libraries / "typescript").is_dir():
        pytest.skip("the compiler is not here")
    shutil.copytree(CONSOLE, tmp_path / "console", ignore=shutil.ignore_patterns("vendor"))
    (tmp_path / "console/vendor").mkdir()
    for file in (CHECKOUT / "packaging/console").glob("*.d.ts"):
        shutil.copyfile(file, tmp_path / "console/vendor" / file.name)
    shutil.copyfile(CHECKOUT / "packaging/console/tsconfig.json", tmp_path / "tsconfig.json")
    (tmp_path / "node_modules").symlink_to(libraries)
    done = subprocess.run(
        [str(NODE), str(libraries / "typescript/bin/tsc"), "-p", str(tmp_path)], capture_output=True, text=True,
        timeout=180, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


def row(state: str, color: str, **more: object) -> dict[str, object]:
    base = {
        "module": "app", "mode": "mirror", "state": state, "color": color, "since": 100.0, "running": state != "STOP",
        "configured": True, "degraded": False, "failover": "on", "uptodate": "up", "down": [],
        "verdict": {"kind": "", "since": 0, "reason": "", "next_step": ""},
    }  # fmt: skip
    return {**base, **more}


@pytest.mark.parametrize(
    ("rows", "kind", "key"),
    [
        ([row("PRIM", "green"), row("SECOND", "green")], "protected", "pair"),
        ([row("PRIM", "green", verdict={"kind": "protected", "reason": ""})], "protected", "pair_unseen"),
        ([row("PRIM", "green", failover="off"), row("SECOND", "green")], "degraded", "failover_off"),
        ([row("ALONE", "green"), row("SECOND", "magenta")], "degraded", "copying"),
        ([row("ALONE", "green"), row("STOP", "red")], "degraded", "alone_stopped"),
        ([row("ALONE", "green"), row("WAIT", "red")], "degraded", "alone_waits"),
        ([row("ALONE", "green", degraded=True), row("WAIT", "red")], "risk", "replication"),
        ([row("ALONE", "green"), row("ALONE", "green")], "risk", "split"),
        ([row("WAIT", "red", uptodate="down"), row("STOP", "red")], "risk", "waits_data"),
        ([row("STOP", "red"), row("STOP", "red")], "stopped", "stopped"),
        ([row("STOP", "red", configured=False)], "stopped", "unconfigured"),
        ([row("UP", "green", mode="farm"), row("UP", "green", mode="farm")], "protected", "farm"),
        ([row("UP", "green", mode="farm"), row("STOP", "red", mode="farm")], "degraded", "farm_one"),
        ([row("UP", "green", mode="light")], "protected", "light"),
    ],
)
def test_verdicts(rows: list[dict[str, object]], kind: str, key: str) -> None:
    """FAR-021 among them: a farm that lacks a server is degraded."""
    places = [{"node": f"node{i}", "reachable": True, "at": 0, "row": each} for i, each in enumerate(rows, 1)]
    found = evaluate("verdict.js", "return m.judge(a[0]);", places)
    assert (found["kind"], found["key"]) == (kind, key)
    assert f"says.{key}" in TEXTS["en"]


def test_a_server_that_does_not_answer_is_never_an_old_green() -> None:
    places = [
        {"node": "node1", "reachable": False, "at": 50.0, "row": row("PRIM", "green")},
        {"node": "node2", "reachable": True, "at": 0, "row": row("STOP", "red")},
    ]
    found = evaluate("verdict.js", "return m.judge(a[0]);", places)
    assert (found["kind"], found["values"]["node"], found["serving"]) == ("unknown", "node1", [])


DOCUMENT = """<!DOCTYPE safe>
<!-- a comment with <tags> -->
<safe>
   <service mode="mirror" maxloop='3'>
      <heart pulse="700">
         <heartbeat name="default" ident="flow"/>
      </heart>
      <user/>
   </service>
</safe>
"""


def test_an_edit_of_xml_touches_nothing_else() -> None:
    script = """
      const tree = () => m.parse(a[0]);
      const service = tree().children[0], heart = service.children[0];
      const beat = heart.children[0], user = service.children[1];
      return [m.setAttribute(a[0], service, "mode", "a<b\\"c"),
        m.setAttribute(a[0], heart, "timeout", "3000"),
        m.insert(a[0], heart, '<heartbeat name="x"/>'), m.insert(a[0], user, '<var name="a" value="b"/>'),
        m.remove(a[0], beat), m.setAttribute(a[0], beat, "ident", ""), m.parse("<a><b></a>"),
        m.value(service, "maxloop")];
    """
    mode, timeout, beat, var, gone, plain, broken, loop = evaluate("xml.js", script, DOCUMENT)
    assert mode == DOCUMENT.replace('"mirror"', '"a&lt;b&quot;c"')
    assert timeout == DOCUMENT.replace('pulse="700"', 'pulse="700" timeout="3000"')
    assert beat == DOCUMENT.replace('ident="flow"/>', 'ident="flow"/>\n         <heartbeat name="x"/>')
    assert var == DOCUMENT.replace("<user/>", '<user>\n       <var name="a" value="b"/>\n      </user>')
    assert gone == DOCUMENT.replace('\n         <heartbeat name="default" ident="flow"/>', "")
    assert plain == DOCUMENT.replace(' ident="flow"', "")
    assert broken is None and loop == "3"


def test_events_that_come_in_pieces() -> None:
    script = """
      const parser = new m.Parser();
      return [parser.feed("id: 1\\neve"), parser.feed("nt: change\\nda"),
        parser.feed("ta: {}\\n\\n: alive\\n\\nid: 2\\ndata: x\\n\\n")];
    """
    stub = "globalThis.addEventListener ??= () => {};"
    first, second, third = evaluate("stream.js", stub + script)
    assert first == [] and second == []
    assert third == [{"type": "change", "data": "{}", "id": "1"}, {"type": "message", "data": "x", "id": "2"}]
