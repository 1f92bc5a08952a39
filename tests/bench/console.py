#!/usr/bin/env python3
"""The console against its budgets: from a change of state to the screen, and what it costs while nobody does anything.

    sudo tests/bench/console.py [--rounds 9] [--idle 20] [--lab NAME]

Three servers of a lab and a browser on this machine, without --lab made for it. The change is one of the resource
file of a module, so that no start of an application is in the figure; its row is looked for in the page by the page
itself. The cost of an idle console is the processor time of the web service on each server, with and without one,
taken in turns. Medians with their range. Figures of one machine: nothing here is a test.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from playwright.sync_api import Page, sync_playwright  # noqa: E402

from lab.cluster import Lab, Node  # noqa: E402
from lab.window import open_window  # noqa: E402

MODULE = "bench"
XML = """<!DOCTYPE safe><safe><service mode="farm"><farm><lan name="default"/></farm><user/></service></safe>"""
WATCH = """() => { window.seen = []; new MutationObserver(() => {
  const text = document.querySelector("article[data-module=bench] [data-node=node2] .state")?.innerText ?? "";
  if (window.seen.at(-1)?.[0] !== text) window.seen.push([text, Date.now() / 1000]);
}).observe(document.body, { subtree: true, childList: true, characterData: true, attributes: true }); }"""


def shown(values: list[float], unit: str, scale: float = 1.0) -> str:
    """Median and range."""
    return f"{statistics.median(values) * scale:.2f} ({min(values) * scale:.2f} to {max(values) * scale:.2f}) {unit}"


def used(node: Node) -> float:
    """Processor seconds of the web service of a node, with the process that runs commands for it."""
    done = node.run("for p in $(pgrep safewebserver); do cut -d' ' -f14,15 /proc/$p/stat; done")
    return sum(int(each) for each in done.stdout.split()) / os.sysconf("SC_CLK_TCK")


def changes(page: Page, two: Node, rounds: int) -> list[float]:
    """Seconds from a written resource file on node2 to its state in the page of node1."""
    path = f"/var/safekit/modules/{MODULE}/resources"
    before = two.read(path)
    page.evaluate(WATCH)
    found = []
    for number in range(rounds):
        state = ("WAIT", "UP")[number % 2]
        text = "\n".join(f"state.local {state} {time.time():.3f} bench" if line.startswith("state.local ") else line
                         for line in before.splitlines())  # fmt: skip
        two.write(f"{path}.bench", text + "\n")
        done = two.run(f"mv {path}.bench {path} && date +%s.%N")
        began = float(done.stdout)
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            last = page.evaluate("window.seen.at(-1) ?? ['', 0]")
            if last[0].startswith(state):
                found.append(last[1] - began)
                break
            time.sleep(0.02)
        time.sleep(0.5)
    return found


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--idle", type=float, default=20.0, help="seconds of each look at an idle console")
    parser.add_argument("--lab", help="a lab that is up, with three servers")
    options = parser.parse_args()
    lab = Lab.attach(options.lab) if options.lab else Lab.up(nodes=3)
    try:
        nodes = list(lab.nodes.values())
        for node in nodes:
            node.safekit("module", "install", "-m", MODULE, "farm.safe", check=False)
            node.write(f"/opt/safekit/modules/{MODULE}/conf/userconfig.xml", XML)
            node.safekit("config", "-m", MODULE)
            node.safekit("start", "-m", MODULE)
        url = open_window(lab.name)["node1"]
        with sync_playwright() as running:
            browser = running.chromium.launch(executable_path=shutil.which("chromium") or "", args=["--no-sandbox"])
            page = browser.new_page()
            page.goto(url)
            page.locator("input[name=user]").fill("admin")
            page.locator("input[name=password]").fill(nodes[0].read("/var/safekit/admin-password").strip())
            page.locator("button[type=submit]").click()
            page.locator(f"article[data-module={MODULE}] [data-node=node2]").wait_for()
            time.sleep(3)
            print(
                f"a change on node2 is in the page of node1 after {shown(changes(page, nodes[1], options.rounds), 's')}"
            )
            costs: dict[bool, list[float]] = {True: [], False: []}
            for with_console in (True, False, True, False):
                if not with_console:
                    page.goto("about:blank")
                    time.sleep(16)  # the service looks on for a little while
                else:
                    page.goto(url)
                    page.locator(".top").wait_for()
                    time.sleep(3)
                before, began = [used(node) for node in nodes], time.monotonic()
                time.sleep(options.idle)
                span = time.monotonic() - began
                costs[with_console] += [(used(n) - b) / span for n, b in zip(nodes, before, strict=True)]
            print(f"an idle console costs each web service {shown(costs[True], '% of a core', 100)}")
            print(f"without one it needs                   {shown(costs[False], '% of a core', 100)}")
            browser.close()
    finally:
        if not options.lab:
            lab.down()


if __name__ == "__main__":
    main()
