"""The Python packages that the product needs, read from setup.cfg, and whether an environment has them.

Run as a script, by the shell that prepares a checkout, before anything else of the product can be imported:
only the standard library and pip's own copy of `packaging` are at hand.
"""

from __future__ import annotations

import configparser
import sys
from importlib import metadata
from pathlib import Path


def requirements(setup_cfg: Path, extra: str | None = None) -> tuple[str, ...]:
    """The requirement lines of `setup_cfg`; with `extra`, those of that optional set too."""
    parser = configparser.ConfigParser()
    parser.read_string(setup_cfg.read_text())
    text = parser["options"]["install_requires"]
    if extra is not None:
        text += parser["options.extras_require"][extra]
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def missing(lines: tuple[str, ...]) -> tuple[str, ...]:
    """Those of `lines` that the running environment does not satisfy."""
    from pip._vendor.packaging.requirements import Requirement

    unmet = []
    for line in lines:
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate():
            continue
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            unmet.append(line)
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            unmet.append(line)
    return tuple(unmet)


def main(arguments: list[str]) -> int:
    """`requirements.py setup.cfg [extra]` prints the lines; `--check FILE` exits 1 when one is unmet."""
    if arguments[:1] == ["--check"]:
        return 1 if missing(tuple(Path(arguments[1]).read_text().split("\n")[:-1])) else 0
    print("\n".join(requirements(Path(arguments[0]), arguments[1] if len(arguments) > 1 else None)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
