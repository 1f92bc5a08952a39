"""The files of the console, served under a name that changes with their content: no cache is ever cleared by hand.

All of them are read once. /console/HASH/... may be kept by a browser for ever; the pages that name HASH are asked for
every time. A page names every module that it will need, so that a slow line is waited for once and not once a module.
"""

from __future__ import annotations

import gzip
import hashlib
import html
import re
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import PurePosixPath

from aiohttp import web

from safekit.disk.paths import safe

KINDS = {
    ".js": "text/javascript", ".css": "text/css", ".json": "application/json", ".svg": "image/svg+xml",
    ".txt": "text/plain",
}  # fmt: skip
LANGPACK = "jquery.lang/langpack"
"""Where an integrator finds, and may replace, the texts (guide 3.1.1), below SAFE/web/htdocs."""
PAGES = {"/": "", "/deploy.html": "", "/monitor_and_control.html": "Control", "/monitor_only.html": "Monitor"}
"""Addresses of the console, and the role that a page is at most for (guide 3.10.1)."""
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "font-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
_IMPORT = re.compile(r"""^\s*(?:import|export)\b[^"';]*?["'](\.[^"']+)["']""", re.MULTILINE)
_LAZY = ("vendor/codemirror.js",)


@dataclass(frozen=True)
class Asset:
    """A file, with what a browser may get instead of it."""

    content: bytes
    packed: bytes
    kind: str


def _walk(folder: Traversable, below: str = "") -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for entry in sorted(folder.iterdir(), key=lambda each: each.name):
        name = f"{below}{entry.name}"
        if entry.is_dir():
            found |= _walk(entry, f"{name}/")
        elif PurePosixPath(name).suffix in KINDS:
            found[name] = entry.read_bytes()
    return found


def imports(name: str, files: dict[str, bytes]) -> list[str]:
    """Every module that `name` needs, itself first, as the browser would find them one after the other."""
    found: list[str] = []
    waiting = [name]
    while waiting:
        each = waiting.pop(0)
        if each in found or each not in files or each in _LAZY:
            continue
        found.append(each)
        for target in _IMPORT.findall(files[each].decode("utf-8", "replace")):
            parts: list[str] = []
            for part in [*PurePosixPath(each).parent.parts, *PurePosixPath(target).parts]:
                if part == "..":
                    parts.pop()
                elif part != ".":
                    parts.append(part)
            waiting.append("/".join(parts))
    return found


class Console:
    """The pages and files of the console."""

    def __init__(self, files: dict[str, bytes] | None = None) -> None:
        found = _walk(resources.files("safewebserver") / "console") if files is None else files
        found = {name: content for name, content in found.items() if not name.startswith("node_modules/")}
        for language in ("en", "fr", "ja"):
            own = safe() / "web" / "htdocs" / LANGPACK / f"{language}.json"
            if files is None and own.is_file():
                found[f"i18n/{language}.json"] = own.read_bytes()
        digest = hashlib.sha256()
        for name, content in sorted(found.items()):
            digest.update(name.encode() + b"\0" + content + b"\0")
        self.hash = digest.hexdigest()[:16]
        self.complete = "vendor/preact.js" in found
        self._files = {
            name: Asset(content, gzip.compress(content, 6, mtime=0), KINDS[PurePosixPath(name).suffix])
            for name, content in found.items()
        }
        self.modules = imports("app.js", found)
        self._pages = {role: self._page(role).encode() for role in set(PAGES.values())}

    def _page(self, role: str) -> str:
        base = f"/console/{self.hash}"
        preload = "".join(f'<link rel="modulepreload" href="{base}/{html.escape(name)}">\n' for name in self.modules)
        return (
            '<!DOCTYPE html>\n<html lang="en" data-base="' + base + '" data-role="' + role + '">\n<head>\n'
            '<meta charset="utf-8">\n<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            '<meta name="color-scheme" content="light dark">\n<title>SafeKit</title>\n'
            f'<link rel="icon" href="{base}/icon.svg" type="image/svg+xml">\n'
            f'<link rel="stylesheet" href="{base}/style.css">\n'
            + preload
            + f'<script type="module" src="{base}/app.js"></script>\n</head>\n<body>\n<div id="app">'
            '<noscript><p class="plain">The console needs JavaScript. '
            "On a server: safekit state</p></noscript></div>\n</body>\n</html>\n"
        )

    def routes(self) -> list[web.RouteDef]:
        """Its routes: all are for everybody, as nothing of them tells about the cluster."""
        pages = [web.get(path, self.page) for path in PAGES]
        return [*pages, web.get("/console/{hash}/{path:.+}", self.file)]

    async def page(self, request: web.Request) -> web.Response:
        """A page; it asks the API who is there."""
        if not self.complete:
            return web.Response(
                status=503,
                text="The console's libraries are missing in this installation: bin/setup fetches them (it needs npm);"
                " then safekitinstall again. Everything else works: /api/v1/openapi.json, safekit.\n",
            )
        headers = {"Cache-Control": "no-cache", "Content-Security-Policy": POLICY}
        return web.Response(
            body=self._pages[PAGES[request.path]], content_type="text/html", charset="utf-8", headers=headers
        )

    async def file(self, request: web.Request) -> web.Response:
        """A file of the console."""
        asset = self._files.get(request.match_info["path"])
        if asset is None:
            raise web.HTTPNotFound
        current = request.match_info["hash"] == self.hash
        headers = {"Cache-Control": "public, max-age=31536000, immutable" if current else "no-store"}
        headers["Content-Security-Policy"] = "default-src 'none'"
        body = asset.content
        if "gzip" in request.headers.get("Accept-Encoding", "") and len(asset.packed) < len(asset.content):
            headers |= {"Content-Encoding": "gzip", "Vary": "Accept-Encoding"}
            body = asset.packed
        return web.Response(body=body, content_type=asset.kind, charset="utf-8", headers=headers)
