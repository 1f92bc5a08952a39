"""Run cases by hand: python -m tests.t2_process.copies --seeds 0:200 [--cycles 6] [--until HH:MM] [--shrink]"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

from tests.t2_process.copies.cases import Case, Different, make, run, shrink
from tests.t2_process.copies.changes import KINDS, MADE
from tests.t2_process.copies.nursery import Nursery

_INSIDE = "SAFEKIT_COPIES_INSIDE"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", default="0:10", help="first:end")
    parser.add_argument("--cycles", type=int, default=6, help="of each seed")
    parser.add_argument("--until", help="HH:MM at which it ends")
    parser.add_argument("--seconds", type=float, help="no seed begins later than that")
    parser.add_argument("--shrink", action="store_true", help="reduce a seed that fails")
    parser.add_argument("--tries", type=int, default=3, help="times that a smaller case may pass before it counts")
    options = parser.parse_args()
    first, _, end = options.seeds.partition(":")
    until = (
        time.mktime(time.strptime(time.strftime("%Y-%m-%d ") + options.until, "%Y-%m-%d %H:%M")) if options.until else 0
    )
    if not os.environ.get(_INSIDE):
        # Another namespace that is made meanwhile would keep our disks mounted.
        os.environ[_INSIDE] = "1"
        os.execvp("unshare", ["unshare", "--mount", "--propagation", "private", sys.executable, *sys.orig_argv[1:]])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that everything is cleaned up
    work = Path(tempfile.mkdtemp(prefix="copies.", dir="/tmp"))
    nursery = Nursery(work)
    begun, cycles, failed, numbers = time.monotonic(), 0, 0, iter(range(10**9))

    def attempt(case: Case) -> str:
        directory = work / str(next(numbers))
        try:
            run(case, directory, nursery)
            return ""
        except Different as error:
            return f"Different: {error}"
        except Exception:
            return traceback.format_exc()
        finally:
            shutil.rmtree(directory, ignore_errors=True)

    def fails(case: Case) -> bool:
        return any(attempt(case).startswith("Different") for _ in range(options.tries))

    try:
        for seed in range(int(first), int(end or int(first) + 1)):
            if (until and time.time() > until) or (options.seconds and time.monotonic() - begun > options.seconds):
                break
            case = make(seed, options.cycles)
            told = attempt(case)
            cycles += options.cycles
            if told:
                failed += 1
                print(f"seed {seed}: {told}", flush=True)
                if options.shrink:
                    print(shrink(case, fails), flush=True)
            elif random.random() < 0.1:
                print(f"{time.strftime('%T')} seed {seed}: {cycles} cycles, {failed} seeds failed", flush=True)
    finally:
        nursery.close()
        shutil.rmtree(work, ignore_errors=True)
        print("changes:", ", ".join(f"{kind} {MADE[kind, True]}-{MADE[kind, False]}" for kind in KINDS))
        print(f"{cycles} cycles in {time.monotonic() - begun:.0f} s, {failed} seeds failed", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
