"""`config` and `deconfig` on real directories: whole or not at all, and undone when anything fails."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path

import pytest

from safekit import configuration
from safekit.configuration import ConfigureError
from safekit.disk import resources
from safekit.disk.paths import ModulePaths
from safekit.model import store
from safekit.model.cluster import load_cluster_xml, new_key, write_key
from safekit.model.codec import from_json, to_json
from safekit.model.findings import ConfigError
from safekit.model.types import ModuleConfig
from safekit.wire.keys import cluster_key, give_module_key, module_key, take_module_key, valid_until, wire_keys

CLUSTER = """<cluster><lans>
  <lan name="default">
    <node name="n1" addr="10.9.0.1"/><node name="n2" addr="10.9.0.2"/>
  </lan>
  <lan name="repli" console="off">
    <node name="n1" addr="10.9.1.1"/><node name="n2" addr="10.9.1.2"/>
  </lan>
</lans></cluster>
"""

MIRROR = """<!DOCTYPE safe>
<safe>
  <macro name="DATA" value="{data}"/>
  <service mode="mirror" maxloop="{maxloop}">
    <heart><heartbeat name="default" ident="flow"/>{heartbeat}</heart>
    <rfs nbrei="{nbrei}" locktimeout="{locktimeout}">
      <replicated dir="%DATA%" mode="read_only"/>
    </rfs>
    <vip><interface_list><interface><real_interface>
      <virtual_addr addr="{vip}"/>
    </real_interface></interface></interface_list></vip>
    <user/>
  </service>
</safe>
"""


class Server:
    """SAFE, SAFEVAR and application data of one server in a directory of the test."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.data = root / "data" / "db"
        self.data.mkdir(parents=True)
        (self.data / "rows").write_text("one row")

    def write(self, module: str = "AM", number: int = 1, **values: object) -> None:
        paths = ModulePaths(module)
        paths.conf_dir.mkdir(parents=True, exist_ok=True)
        paths.bin_dir.mkdir(parents=True, exist_ok=True)
        paths.var.mkdir(parents=True, exist_ok=True)
        paths.id_file.write_text(f"{number}\n")
        defaults: dict[str, object] = {
            "data": self.data,
            "maxloop": 3,
            "nbrei": 3,
            "locktimeout": 100,
            "vip": "10.9.0.9",
            "heartbeat": "",
        }
        paths.userconfig.write_text(MIRROR.format(**(defaults | values)))

    def script(self, name: str, body: str, module: str = "AM", mode: int = 0o755) -> None:
        path = ModulePaths(module).bin_dir / name
        path.write_text("#!/bin/sh\n" + body)
        path.chmod(mode)

    @property
    def backing(self) -> Path:
        return self.data.with_name("db_For_SafeKit_Replication")


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    monkeypatch.setenv("SAFE", str(tmp_path / "safe"))
    monkeypatch.setenv("SAFEVAR", str(tmp_path / "var"))
    monkeypatch.setenv("SAFENODE", "n1")
    cluster = tmp_path / "var" / "cluster"
    cluster.mkdir(parents=True)
    (cluster / "cluster.xml").write_text(CLUSTER)
    config, _ = load_cluster_xml(cluster / "cluster.xml")
    (cluster / "cluster.json").write_text(to_json(config))
    made = Server(tmp_path)
    made.write()
    return made


def tree(root: Path) -> dict[str, str]:
    """Everything below a directory but our own locks: names, link targets, contents."""
    found = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if path.is_symlink():
            found[name] = f"-> {os.readlink(path)}"
        elif path.is_file() and not path.name.endswith("lock"):
            found[name] = path.read_text()
    return found


def test_first_configuration_makes_everything_ready(server: Server) -> None:
    server.script("start_prim", "echo start\n", mode=0o644)
    server.script("helper", "echo help\n", mode=0o640)
    result = configuration.apply("AM")
    paths = ModulePaths("AM")
    assert result.first and result.full_required and result.converted == (str(server.data),)
    assert os.readlink(paths.active) == ".AM/1"
    assert os.access(paths.userbin / "start_prim", os.X_OK), "user scripts become executable"
    assert (paths.userbin / "helper").stat().st_mode & 0o777 == 0o640, "other files keep their mode"
    active = from_json(ModuleConfig, paths.active_json.read_bytes())
    assert active == result.config and active.rfs is not None and active.rfs.replicated[0].dir == str(server.data)
    assert os.readlink(server.data) == "db_For_SafeKit_Replication"
    assert (server.data / "rows").read_text() == "one row"
    assert (paths.rfs / "full_required").read_bytes() == b""
    assert resources.load(paths.resources)["rfs.uptodate"].value == "down"
    assert configuration.active_stamp("AM").signature == configuration.current_signature("AM").signature


CRONTAB = """#!/bin/sh
# crontab -u USER -l|-  as cron's
[ "$2" = safekit ] || exit 9
case $3 in
-l) [ -e "{0}/tab" ] || {{ echo "no crontab for $2" >&2; exit 1; }}; cat "{0}/tab" ;;
-) [ ! -e "{0}/full" ] || {{ echo "tmp.x: No space left on device" >&2; exit 1; }}; cat > "{0}/tab" ;;
esac
"""


def test_a_scheduled_synchronisation_comes_and_goes_with_the_configuration(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RFS-001: the entry is in the crontab of user safekit, and a configuration that fails leaves the former one."""
    place, tab = tmp_path / "cron", tmp_path / "cron" / "tab"
    place.mkdir()
    (place / "crontab").write_text(CRONTAB.format(place))
    (place / "crontab").chmod(0o755)

    def schedule(text: str) -> None:
        path = ModulePaths("AM").userconfig
        server.write()
        path.write_text(path.read_text().replace("<rfs ", f"<rfs {text} "))

    schedule('syncat="01 0 * * *"')
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ConfigureError, match="install cron"):
        configuration.apply("AM")
    assert not ModulePaths("AM").active.exists() and not server.data.is_symlink(), "nothing is changed"
    monkeypatch.setenv("PATH", f"{place}:/usr/bin:/bin")
    tab.write_text("5 4 * * * others\n")
    configuration.apply("AM")
    first = tab.read_text()
    assert first.startswith("5 4 * * * others\n") and "\n01 0 * * * [ -x " in first and " -m AM -r rfs.syncat " in first
    schedule('syncat="@weekly"')
    server.script("config", "exit 3\n")
    with pytest.raises(ConfigureError, match="status 3"):
        configuration.apply("AM")
    assert tab.read_text() == first
    (place / "full").touch()
    server.script("config", "exit 0\n")
    with pytest.raises(ConfigureError, match=r"No space left on device.*nothing is changed"):
        configuration.apply("AM")
    (place / "full").unlink()
    configuration.apply("AM")
    assert "\n0 0 * * 0 [ -x " in tab.read_text() and tab.read_text().count("rfs.syncat") == 1
    configuration.deconfig("AM")
    assert tab.read_text() == "5 4 * * * others\n"
    schedule('syncat="every day"')
    with pytest.raises(ConfigError, match="five fields"):
        configuration.apply("AM")


PROGRAMS = """<errd><proc name="a" class="mine" action="repair"/><proc name="b" action="stop" class="prim"/></errd>
    <check><custom ident="disk" when="prim" exec="diskcheck"/><custom ident="far" when="prim" exec="/no/such"/></check>
    <failover><![CDATA[d: if (custom.disk == down || custom.far == down) then restart();]]></failover>"""


def test_programs_of_the_configuration_are_there_and_become_executable(server: Server) -> None:
    server.write()
    path = ModulePaths("AM").userconfig
    path.write_text(path.read_text().replace("<user/>", "<user/>" + PROGRAMS))
    server.script("diskcheck", "exit 0\n", mode=0o644)
    missing = [f.message for f in configuration.confcheck("AM").warnings if "there is no program" in f.message]
    assert [text.split()[4] for text in missing] == [f"{ModulePaths('AM').bin_dir / 'repair'};", "/no/such;"]
    server.script("repair", "exit 0\n", mode=0o600)
    configuration.apply("AM")
    for name in ("diskcheck", "repair"):
        assert os.access(ModulePaths("AM").userbin / name, os.X_OK), name


def test_signature_follows_files_and_not_modes(server: Server) -> None:
    server.script("start_prim", "echo start\n")
    before = configuration.current_signature("AM").signature
    (ModulePaths("AM").bin_dir / "start_prim").chmod(0o600)
    assert configuration.current_signature("AM").signature == before
    server.script("start_prim", "echo other\n")
    assert configuration.current_signature("AM").signature != before


def test_a_stopped_module_is_fully_resynchronised_after_each_configuration(server: Server) -> None:
    configuration.apply("AM")
    (ModulePaths("AM").rfs / "full_required").unlink()
    with_lock = ModulePaths("AM").var / "resources"
    with_lock.write_text(with_lock.read_text().replace(" down ", " up "))
    result = configuration.apply("AM")
    assert not result.first and result.full_required and result.converted == ()
    assert (ModulePaths("AM").rfs / "full_required").exists()
    assert resources.load(ModulePaths("AM").resources)["rfs.uptodate"].value == "up"


def test_only_the_last_three_configurations_stay(server: Server) -> None:
    for maxloop in range(5):
        server.write(maxloop=maxloop)
        assert configuration.apply("AM").number == maxloop + 1
    assert store.numbers(ModulePaths("AM").active_store) == (3, 4, 5)
    copies = sorted(p.name for p in (ModulePaths("AM").root.parent / "lastconfig").iterdir())
    assert 1 <= len(copies) <= 3 and all(name.startswith("AM_") for name in copies)
    assert configuration.list_modules() == ("AM",)


def test_changed_directories_are_turned_round_and_recorded(server: Server) -> None:
    configuration.apply("AM")
    (ModulePaths("AM").rfs / "full_required").unlink()
    other = server.root / "data" / "other"
    other.mkdir()
    server.write(data=other)
    result = configuration.apply("AM")
    assert result.full_required and result.converted == (str(other),) and result.restored == (str(server.data),)
    assert server.data.is_dir() and not server.data.is_symlink() and not server.backing.exists()
    assert (server.data / "rows").read_text() == "one row"
    assert (ModulePaths("AM").rfs / "full_required").exists()


def test_config_script_gets_its_environment_and_its_failure_undoes_everything(server: Server) -> None:
    server.script("config", 'echo "$SAFEMODULE $SAFEUSERBIN $SAFE $SAFEVAR" > "$SAFEVAR/seen"\n')
    configuration.apply("AM")
    seen = (server.root / "var" / "seen").read_text().split()
    assert seen[:2] == ["AM", str(ModulePaths("AM").userbin)]
    other = server.root / "data" / "other"
    other.mkdir()
    before = tree(server.root / "safe" / "private"), tree(server.root / "data"), tree(server.root / "var")
    server.write(data=other)
    server.script("config", "exit 7\n")
    with pytest.raises(ConfigureError, match="failed with status 7"):
        configuration.apply("AM")
    assert before == (tree(server.root / "safe" / "private"), tree(server.root / "data"), tree(server.root / "var"))
    assert other.is_dir() and not other.is_symlink()


@pytest.mark.parametrize("fail_at", range(1, 14))
def test_a_disk_error_at_any_step_changes_nothing(
    server: Server, monkeypatch: pytest.MonkeyPatch, fail_at: int
) -> None:
    """Every fsync of an application fails in turn; the last ones are those of the swap of the link."""
    configuration.apply("AM")
    (ModulePaths("AM").rfs / "full_required").unlink()
    server.data.unlink()
    server.backing.rename(server.data)
    before = tree(server.root / "safe" / "private"), tree(server.root / "data")
    server.write(data=server.data, maxloop=4)
    server.script("start_prim", "echo start\n")
    real, calls = os.fsync, 0

    def failing(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls == fail_at:
            raise OSError(5, "Input/output error")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", failing)
    try:
        result = configuration.apply("AM")
    except ConfigureError as error:
        assert "Input/output error" in str(error) and "nothing is changed" in str(error)
        assert before == (tree(server.root / "safe" / "private"), tree(server.root / "data"))
        assert configuration.active("AM").service.maxloop == 3
    else:
        assert calls < fail_at, "an error of the disk was swallowed"
        assert result.config.service.maxloop == 4


@pytest.mark.parametrize("stop_at", range(1, 16))
def test_a_power_cut_at_any_step_leaves_the_old_or_the_new_configuration(server: Server, stop_at: int) -> None:
    """The process ends without any undoing at its nth sync, rename or symlink; then `config` runs again."""
    configuration.apply("AM")
    other = server.root / "data" / "other"
    other.mkdir()
    (other / "rows").write_text("other rows")
    server.write(data=other, maxloop=4)
    child = os.fork()
    if child == 0:
        left = stop_at

        def counted(real: Callable[..., None]) -> Callable[..., None]:
            def call(*arguments: object, **options: object) -> None:
                nonlocal left
                left -= 1
                if left == 0:
                    os._exit(9)
                real(*arguments, **options)

            return call

        for name in ("fsync", "rename", "symlink"):
            setattr(os, name, counted(getattr(os, name)))
        try:
            configuration.apply("AM")
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) in (0, 9)
    found = configuration.active("AM")
    assert found.service.maxloop in (3, 4), "a configuration is active, whole"
    assert found.rfs is not None and found.rfs.replicated[0].dir == str(
        server.data if found.service.maxloop == 3 else other
    )
    if found.service.maxloop == 4:
        assert (other / "rows").read_text() == "other rows"
        assert (ModulePaths("AM").rfs / "full_required").exists()
    result = configuration.apply("AM")
    assert result.config.service.maxloop == 4 and (other / "rows").read_text() == "other rows"
    assert os.readlink(other) == "other_For_SafeKit_Replication"
    assert server.data.is_dir() and not server.data.is_symlink(), "what is replicated no more is turned back"
    assert (server.data / "rows").read_text() == "one row", "no data is lost on the way"


@contextlib.contextmanager
def small_disk(place: Path) -> Iterator[None]:
    """A file system of 256 KiB on a directory."""
    place.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_full_disk_is_told_with_figures_and_changes_nothing(server: Server, tmp_path: Path) -> None:
    with small_disk(tmp_path / "safe" / "private"):
        configuration.apply("AM")
        before = tree(tmp_path / "safe" / "private"), tree(tmp_path / "data")
        server.write(maxloop=9)
        (ModulePaths("AM").bin_dir / "big").write_bytes(b"x" * 400_000)
        with pytest.raises(ConfigureError) as caught:
            configuration.apply("AM")
        text = str(caught.value)
        assert "No space left on device" in text and "bytes" in text and "nothing is changed" in text
        assert "run safekit config -m AM again" in caught.value.next_step
        assert before == (tree(tmp_path / "safe" / "private"), tree(tmp_path / "data"))
        (ModulePaths("AM").bin_dir / "big").unlink()
        assert configuration.apply("AM").config.service.maxloop == 9


def test_mistakes_are_all_told_before_anything_changes(server: Server) -> None:
    server.write(heartbeat='<heartbeat name="nolan"/>', data=server.root / "missing")
    with pytest.raises(ConfigError) as caught:
        configuration.apply("AM")
    text = str(caught.value)
    assert "userconfig.xml:5: <heartbeat name>:" in text and "not a lan of the cluster" in text
    assert "userconfig.xml:7: <replicated dir>:" in text and "does not exist on this node" in text
    assert not ModulePaths("AM").active.exists() and not ModulePaths("AM").active_store.exists()


def test_running_module_takes_dynamic_attributes_only(server: Server) -> None:
    configuration.apply("AM")
    server.write(maxloop=5, nbrei=6, heartbeat='<heartbeat name="repli"/>')
    result = configuration.apply("AM", "ALONE")
    assert result.config.service.maxloop == 5 and result.config.heart is not None
    assert [beat.name for beat in result.config.heart.heartbeats] == ["default", "repli"]
    server.write(maxloop=6, locktimeout=7, vip="10.9.0.10")
    with pytest.raises(ConfigError) as caught:
        configuration.apply("AM", "WAIT")
    told = {(f.line, f.element) for f in caught.value.findings if f.severity == "error"}
    assert told == {(6, "rfs locktimeout"), (10, "virtual_addr addr")}
    assert 'from "100" to "7"' in str(caught.value) and "safekit stop -m AM" in str(caught.value)
    assert configuration.active("AM").service.maxloop == 5
    with pytest.raises(ConfigureError, match="PRIM"):
        configuration.apply("AM", "PRIM")


def test_a_running_module_keeps_its_other_server(server: Server) -> None:
    configuration.apply("AM")
    xml = server.root / "var/cluster/cluster.xml"
    other = '<lan name="other" console="off"><node name="n1" addr="10.9.2.1"/><node name="n3" addr="10.9.2.3"/></lan>'
    text = CLUSTER.replace("</lans>", other + "</lans>").replace(
        '<node name="n2" addr="10.9.0.2"/>', '<node name="n2" addr="10.9.0.2"/><node name="n3" addr="10.9.0.3"/>'
    )
    xml.write_text(text)
    (server.root / "var/cluster/cluster.json").write_text(to_json(load_cluster_xml(xml)[0]))
    written = ModulePaths("AM").userconfig.read_text()
    ModulePaths("AM").userconfig.write_text(written.replace('name="default" ident', 'name="repli" ident'))
    configuration.apply("AM")
    ModulePaths("AM").userconfig.write_text(written.replace('name="default" ident', 'name="other" ident'))
    with pytest.raises(ConfigError, match="the other server would be n3, not n2"):
        configuration.apply("AM", "ALONE")
    configuration.apply("AM")


@pytest.mark.parametrize("state", ["PRIM", "SECOND", "UP"])
def test_the_key_of_a_module_changes_in_any_green_state(server: Server, state: str) -> None:
    write_key(new_key())
    configuration.apply("AM")
    with pytest.raises(ConfigureError, match=f"is {state}"):
        configuration.apply("AM", state)  # nothing has changed
    until = give_module_key("AM", date(2028, 2, 29))
    assert until == date(2048, 2, 28)
    assert configuration.apply("AM", state).config.signature == configuration.current_signature("AM").signature
    assert module_key("AM") is not None and valid_until("AM") == until, "twenty years (10.4)"
    give_module_key("AM")
    server.script("another", "echo new\n")
    with pytest.raises(ConfigureError, match=f"is {state}"):
        configuration.apply("AM", state)
    (ModulePaths("AM").bin_dir / "another").unlink()
    configuration.apply("AM", state)
    keys = wire_keys("AM")
    assert keys[0] == module_key("AM") and len(keys) == 3, "the keys before it open for a while"
    assert take_module_key("AM")
    configuration.apply("AM", state)
    assert wire_keys("AM")[0] == cluster_key() and valid_until("AM") is None


def test_scripts_are_copied_by_a_dynamic_configuration(server: Server) -> None:
    configuration.apply("AM")
    server.script("stop_prim", "echo new\n")
    configuration.apply("AM", "ALONE")
    assert "new" in (ModulePaths("AM").userbin / "stop_prim").read_text()


def test_two_modules_share_neither_directory_nor_address(server: Server) -> None:
    configuration.apply("AM")
    server.write("BM", 2, data=server.data / "below")
    with pytest.raises(ConfigError) as caught:
        configuration.apply("BM")
    text = str(caught.value)
    assert f"overlaps with {server.data} of the module AM" in text
    assert "10.9.0.9 is a virtual address of the module AM already" in text
    second = server.root / "data" / "second"
    second.mkdir()
    server.write("BM", 2, data=second, vip="10.9.0.8")
    assert configuration.apply("BM").config.heart.heartbeats[0].port == 8889  # type: ignore[union-attr]


def test_address_without_a_network_here_is_a_warning(server: Server) -> None:
    result = configuration.apply("AM")
    (warning,) = [each for each in result.warnings if each.element == "virtual_addr addr"]
    assert (warning.line, warning.element) == (10, "virtual_addr addr")
    assert "10.9.0.9: no interface is in its network" in str(warning)


def test_mount_point_is_refused_with_the_procedure_and_accepted_after_it(server: Server) -> None:
    with small_disk(server.data):
        with pytest.raises(ConfigError) as caught:
            configuration.apply("AM")
        assert "Device or resource busy" in str(caught.value)
        for step in ("umount", "/etc/fstab", str(server.backing)):
            assert step in str(caught.value)
    configuration.apply("AM")
    with small_disk(server.backing):
        assert configuration.apply("AM").converted == ()
        with pytest.raises(ConfigureError, match="Device or resource busy"):
            configuration.deconfig("AM")
        assert configuration.active("AM").name == "AM" and server.data.is_symlink()
    configuration.deconfig("AM")
    assert server.data.is_dir() and not server.data.is_symlink()


def test_directory_of_an_image_is_refused_with_the_way_out(server: Server) -> None:
    """The lower layer of an overlay, as in a container: the kernel does not rename its directories."""
    place = server.root / "layers"
    for name in ("lower/db", "upper", "work", "merged"):
        (place / name).mkdir(parents=True)
    layers = f"lowerdir={place}/lower,upperdir={place}/upper,workdir={place}/work,redirect_dir=off"
    made = subprocess.run(["mount", "-t", "overlay", "-o", layers, "overlay", str(place / "merged")], check=False)
    assert made.returncode == 0
    try:
        server.write(data=place / "merged" / "db")
        with pytest.raises(ConfigureError, match="cannot be renamed; run cp -a"):
            configuration.apply("AM")
        assert (place / "merged" / "db").is_dir() and not ModulePaths("AM").active.exists()
        (place / "merged" / "db").rmdir()
        (place / "merged" / "db").mkdir()
        assert configuration.apply("AM").converted == (str(place / "merged" / "db"),)
    finally:
        subprocess.run(["umount", str(place / "merged")], check=True)


def test_link_that_a_crash_took_away_is_made_again(server: Server) -> None:
    configuration.apply("AM")
    server.data.unlink()
    server.data.mkdir()
    assert configuration.apply("AM").converted == (str(server.data),)
    assert (server.data / "rows").read_text() == "one row"
    server.data.unlink()
    server.data.mkdir()
    (server.data / "stray").write_text("written beside the data")
    with pytest.raises(ConfigError, match="hold data"):
        configuration.apply("AM")


def test_deconfig_gives_the_directories_back_and_the_next_config_is_the_first(server: Server) -> None:
    server.script("deconfig", 'echo "$SAFEMODULE" > "$SAFEVAR/undone"\n')
    configuration.apply("AM")
    with pytest.raises(ConfigureError, match="safekit stop"):
        configuration.deconfig("AM", "ALONE")
    assert configuration.deconfig("AM") == ()
    assert server.data.is_dir() and not server.data.is_symlink() and (server.data / "rows").exists()
    assert not ModulePaths("AM").active.exists() and not ModulePaths("AM").active_store.exists()
    assert (server.root / "var" / "undone").read_text() == "AM\n"
    with pytest.raises(ConfigureError, match="not configured"):
        configuration.deconfig("AM")
    assert configuration.apply("AM").first


def test_confcheck_changes_nothing_and_runs_its_script(server: Server) -> None:
    server.script("confcheck", "exit 3\n")
    before = tree(server.root)
    assert configuration.confcheck("AM").script_status == 3
    assert tree(server.root) == before


def test_what_is_missing_is_named_with_the_next_step(server: Server) -> None:
    with pytest.raises(ConfigureError, match="safekit module install"):
        configuration.apply("NOBODY")
    (server.root / "var" / "cluster" / "cluster.json").unlink()
    with pytest.raises(ConfigureError, match="safekit cluster config"):
        configuration.apply("AM")
