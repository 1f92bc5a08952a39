"""Virtual host names: the environment file that a script reads to run the application under another name (13.8).

The file is made by `safekit config`. Sourced by a user script, it makes gethostname() and uname() of all that the
script starts from there on tell the virtual name, in the roles that `when` names.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable
from pathlib import Path

from safekit.disk.files import write_atomic
from safekit.disk.paths import ModulePaths, safe
from safekit.model.types import ModuleConfig, VirtualHostname

LIBRARY = "libsafekitvhost.so"
HEADER = "# Virtual host name, made by safekit config: changes are lost at the next one."

_ROLES = {"prim": "PRIM|ALONE", "second": "SECOND", "both": "PRIM|ALONE|SECOND|UP"}


def library() -> Path:
    """The preloaded library, built by safekitinstall."""
    return safe() / "private" / "lib" / LIBRARY


def text(host: VirtualHostname, paths: ModulePaths) -> str:
    """The environment file. The role is that of the script that reads it, else that of the module: the file
    may also be read by a checker or by hand."""
    return f"""{HEADER}
# In a script of the module:   . "$SAFEUSERBIN/{Path(host.envfile).name}"
case "${{0##*/}}" in
    start_prim|stop_prim) safekit_role=PRIM ;;
    start_second|stop_second) safekit_role=SECOND ;;
    *)
        safekit_role=STOP
        while read -r safekit_name safekit_value safekit_rest; do
            [ "$safekit_name" = state.local ] && safekit_role=$safekit_value
        done < {shlex.quote(str(paths.resources))}
        ;;
esac
case "$safekit_role" in
    {_ROLES[host.when]})
        SAFEKIT_VHOSTNAME={shlex.quote(host.name)}
        LD_PRELOAD={shlex.quote(str(library()))}${{LD_PRELOAD:+:$LD_PRELOAD}}
        export SAFEKIT_VHOSTNAME LD_PRELOAD
        ;;
esac
unset safekit_role safekit_name safekit_value safekit_rest
"""


def generate(config: ModuleConfig, paths: ModulePaths, bin_dir: Path) -> None:
    """Write the files with a relative path into the scripts' directory. Raises OSError."""
    for host in config.vhost:
        if not os.path.isabs(host.envfile):
            path = bin_dir / host.envfile
            path.parent.mkdir(mode=0o770, parents=True, exist_ok=True)
            path.write_text(text(host, paths))
            path.chmod(0o750)


def generate_absolute(config: ModuleConfig, paths: ModulePaths) -> None:
    """Write the files with an absolute path. Raises OSError."""
    for host in config.vhost:
        if os.path.isabs(host.envfile):
            write_atomic(Path(host.envfile), text(host, paths).encode(), mode=0o755)


def remove_absolute(configs: Iterable[ModuleConfig], kept: Iterable[ModuleConfig]) -> None:
    """Remove files that no configuration wants any more; only what is ours. Raises OSError."""
    wanted = {host.envfile for config in kept for host in config.vhost}
    for config in configs:
        for host in config.vhost:
            path = Path(host.envfile)
            if path.is_absolute() and host.envfile not in wanted and path.is_file():
                with path.open(encoding="utf-8", errors="replace") as handle:
                    ours = handle.readline().rstrip("\n") == HEADER
                if ours:
                    path.unlink()
