"""Which parts of a module's form its integrator left in web/index.html (guide 14.6.3).

The file is the integrator's: it is looked at, and none of it is run or shown as a page of ours.
"""

from __future__ import annotations

from pathlib import Path

from lxml import html

MAX_PAGE = 1 << 20
SECTIONS = {"macros": "macroTarget", "heartbeats": "hbTarget", "replication": "rfsTarget", "addresses": "vipTarget"}
"""Section of our form -> id of the element that stands for it in the page."""


def form_of(page: Path) -> list[str] | None:
    """The sections of the form in their order; None without a page, and then the file itself is edited."""
    try:
        content = page.read_bytes()[:MAX_PAGE]
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None
    try:
        document = html.document_fromstring(content.decode("utf-8", "replace").encode())
    except (ValueError, html.etree.ParserError):
        return []
    present = {str(element.get("id")) for element in document.iter() if isinstance(element.tag, str)}
    return [name for name, target in SECTIONS.items() if target in present]
