"""The command `safelab chaos`."""

from __future__ import annotations

import json
import signal
import sys
import time
from pathlib import Path

import click

from lab.chaos import campaign
from lab.chaos.campaign import Campaign, Wish
from lab.chaos.faults import FARM, MIRROR
from lab.chaos.rules import Settings
from lab.errors import LabError


def _kinds(subject: str, names: str) -> tuple[str, ...]:
    known = FARM if subject == "farm" else MIRROR
    chosen = tuple(name for name in names.split(",") if name)
    wrong = [name for name in chosen if name not in known]
    if wrong:
        raise LabError(f"no such kind of fault: {', '.join(wrong)}", f"kinds: {', '.join(known)}")
    return chosen


@click.command()
@click.option("--seed", default=1, show_default=True, metavar="N", help="The seed of the first lab; the next has N+1.")
@click.option("--faults", default=50, show_default=True, metavar="N", help="How many, in all labs together.")
@click.option("--labs", default=1, show_default=True, type=click.IntRange(1, 16), help="Labs side by side.")
@click.option("--subject", type=click.Choice(["mirror", "farm"]), default="mirror", show_default=True)
@click.option("--from", "begin", default=1, show_default=True, metavar="STEP", help="Begin with this step of the seed.")
@click.option("--only", default="", metavar="KIND,KIND", help="Only these kinds of faults.")
@click.option("--minutes", default=0.0, metavar="M", help="End after this time at the latest.")
@click.option("--no-database", is_flag=True, help="Without PostgreSQL and its clients.")
@click.option("--witness", is_flag=True, help="With a witness (the client): then two servers never run at once.")
@click.option(
    "--timeout", default=2.0, show_default=True, metavar="SECONDS", help="Of heart; longer on a busy machine."
)
@click.option("--keep-going", is_flag=True, help="Go on with a fresh lab after a finding.")
@click.option("--keep-labs", is_flag=True, help="Leave the lab of a finding as it is.")
@click.option(
    "--evidence", "directory", default="chaos", show_default=True, type=click.Path(path_type=Path), metavar="DIR",
    help="Where logs, states, trees and the timeline of a finding are kept.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="The summary as JSON; progress goes to standard error.")
def chaos(
    seed: int, faults: int, labs: int, subject: str, begin: int, only: str, minutes: float, no_database: bool,
    witness: bool, timeout: float, keep_going: bool, keep_labs: bool, directory: Path, as_json: bool,
) -> None:  # fmt: skip
    """Random faults against a cluster under load, with an audit of every promise after each.

    Kills, power failures, cables, full disks, frozen servers, wrong configurations and commands come in an order that
    the seed decides; after each step: nobody else ran the application or held its address, no acknowledged record is
    lost, both trees are equal, what `safekit state` says is so, and the recovery was in time. docs/lab.md has the table
    of what a fault may cost. A finding ends the campaign with exit status 1, and keeps its evidence.

    \b
    Example:
      safelab chaos --seed 7 --faults 100 --labs 2
      safelab chaos --seed 7 --from 31 --faults 2 --keep-labs      that step once more
      safelab chaos --only kill_all,poweroff_prim --faults 20
    """
    wish = Wish(
        seed, faults, labs, subject, begin, _kinds(subject, only), not no_database, witness, keep_going, keep_labs,
        minutes, directory.resolve(), Settings(timeout=timeout),
    )  # fmt: skip
    wish.directory.mkdir(parents=True, exist_ok=True)
    made = Campaign(wish, lambda line: click.echo(f"{time.strftime('%H:%M:%S')} {line}", err=as_json))
    for number in (signal.SIGINT, signal.SIGTERM):  # a shell starts what runs in its background deaf to interrupts
        signal.signal(number, signal.default_int_handler)
    good = made.run()
    data = campaign.figures(wish, made.account, made.broken)
    campaign.save(data, wish.directory)
    click.echo(json.dumps(data, indent=1) if as_json else "\n".join(campaign.summary(data)))
    sys.exit(0 if good else 1)
