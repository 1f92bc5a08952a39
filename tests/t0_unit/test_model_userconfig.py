"""userconfig.xml: what is accepted, and every mistake with its line."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

import pytest

from safekit.model.checks import UNSUPPORTED
from safekit.model.cluster import load_cluster_xml
from safekit.model.findings import ConfigError, Finding
from safekit.model.module import Loaded, load_module
from safekit.model.types import ClusterConfig, Farm, FarmLan, Heartbeat, IpCheck, ModuleConfig, Rfs, SplitbrainCheck

CLUSTER = """<cluster><lans>
  <lan name="net3"><node name="node1" addr="10.1.0.2"/><node name="node2" addr="10.1.0.3"/>
    <node name="node3" addr="10.1.0.4"/></lan>
  <lan name="default" console="off"><node name="node1" addr="192.168.1.1"/><node name="node2" addr="192.168.1.2"/></lan>
  <lan name="repli" console="off"><node name="node1" addr="10.0.0.2"/><node name="node2" addr="10.0.0.3"/></lan>
  <lan name="public" console="off" framework="off">
    <node name="node1" addr="172.16.0.1"/><node name="node2" addr="172.16.0.2"/></lan>
</lans></cluster>"""


@pytest.fixture
def cluster(tmp_path: Path) -> ClusterConfig:
    path = tmp_path / "cluster.xml"
    path.write_text(CLUSTER)
    return load_cluster_xml(path)[0]


class Loader:
    def __init__(self, directory: Path, cluster: ClusterConfig) -> None:
        self.path = directory / "userconfig.xml"
        self.cluster = cluster

    def load(self, text: str, *, refuse_unsupported: bool = False, **environment: str) -> Loaded:
        self.path.write_text(dedent(text).lstrip("\n"))
        return load_module(
            self.path, "AM", 1, self.cluster, environment=environment, refuse_unsupported=refuse_unsupported
        )

    def config(self, text: str, **environment: str) -> ModuleConfig:
        return self.load(text, refuse_unsupported=False, **environment).config

    def mistakes(self, text: str, *, refuse_unsupported: bool = False) -> list[tuple[int, str, str]]:
        """Line, element and message of every error."""
        with pytest.raises(ConfigError) as caught:
            self.load(text, refuse_unsupported=refuse_unsupported)
        return [(f.line, f.element, f.message) for f in caught.value.findings if f.severity == "error"]

    def warnings(self, text: str) -> list[tuple[int, str]]:
        return [(f.line, f.element) for f in self.load(text).warnings]


@pytest.fixture
def loader(tmp_path: Path, cluster: ClusterConfig) -> Loader:
    return Loader(tmp_path, cluster)


def mirror(inside: str, heart: str = '<heart><heartbeat name="default"/></heart>') -> str:
    """A mirror module whose `inside` begins on line 4."""
    return f'<!DOCTYPE safe>\n<safe>\n<service mode="mirror">{heart}\n{inside}\n</service>\n</safe>\n'


def farm(inside: str) -> str:
    """A farm module whose `inside` begins on line 3."""
    return f'<safe>\n<service mode="farm"><farm><lan name="net3"/></farm>\n{inside}\n</service></safe>\n'


# ----------------------------------------------------------------------------- accepted


def test_generic_mirror_of_the_guide(loader: Loader) -> None:
    loaded = loader.load(
        """
        <!-- Mirror -->
        <!DOCTYPE safe>
        <safe>
           <service mode="mirror" defaultprim="alone" maxloop="3" loop_interval="24" failover="on">
              <heart pulse="700" timeout="30000">
                 <heartbeat name="default" ident="flow"/>
              </heart>
              <rfs async="second" acl="off" locktimeout="100" nbrei="3" iotimeout="300">
                 <replicated dir="/test1replicated" mode="read_only"/>
                 <replicated dir="/test2replicated/"/>
              </rfs>
              <vip>
                 <interface_list>
                    <interface check="on" arpreroute="on">
                       <real_interface>
                          <virtual_addr addr="192.168.4.10" where="one_side_alias"/>
                       </real_interface>
                    </interface>
                 </interface_list>
              </vip>
              <user nicestoptimeout="300" forcestoptimeout="300" logging="userlog"/>
           </service>
        </safe>
        """,
        refuse_unsupported=True,
    )
    config = loaded.config
    assert [(f.line, f.element) for f in loaded.warnings] == [(8, "rfs iotimeout")]
    assert config.heart is not None and config.heart.heartbeats == (Heartbeat("default", "flow", 8888),)
    assert config.rfs is not None
    assert (config.rfs.flow, config.rfs.port) == ("default", 5600)
    assert [(r.dir, r.read_only) for r in config.rfs.replicated] == [
        ("/test1replicated", True),
        ("/test2replicated", False),
    ]
    assert config.rfs.backing(config.rfs.replicated[0]) == "/test1replicated_For_SafeKit_Replication"
    assert config.vip is not None and config.vip.interfaces[0].arpreroute and config.vip.interfaces[0].kind == "real"
    assert config.vip.tcpreset and config.vip.interfaces[0].arpelapse == 1200
    assert config.user is not None and config.user.userlogsize_kb == 2048
    assert config.nodes(loader.cluster) == ("node1", "node2") and config.peer(loader.cluster, "node1") == "node2"


def test_documented_defaults_of_rfs(loader: Loader) -> None:
    rfs = loader.config(mirror('<rfs><replicated dir="/d"/></rfs>')).rfs
    assert rfs is not None
    assert rfs == Rfs(replicated=rfs.replicated, flow="default", port=5600)
    assert (rfs.async_mode, rfs.locktimeout, rfs.sendtimeout, rfs.nbrei, rfs.reitimeout) == ("second", 100, 30, 3, 150)
    assert (rfs.checktime, rfs.checkintv, rfs.reiallowedbw, rfs.cache) == (220000, 120, None, "none")


@pytest.mark.parametrize(
    ("attributes", "reipacketsize", "zone"),
    [
        ('packetsize="65536"', 65536, 8388608),
        ('packetsize="16777216"', 8388608, 8388608),
        ('reipacketsize="1048576"', 1048576, 1048576),
        ('packetsize="65536" reipacketsize="32768" ruzone_blocksize="65536"', 32768, 65536),
    ],
)
def test_packet_and_zone_sizes_follow_each_other(
    loader: Loader, attributes: str, reipacketsize: int, zone: int
) -> None:
    rfs = loader.config(mirror(f'<rfs {attributes}><replicated dir="/d"/></rfs>')).rfs
    assert rfs is not None and (rfs.reipacketsize, rfs.ruzone_blocksize) == (reipacketsize, zone)


@pytest.mark.parametrize(
    ("attributes", "told"),
    [
        ('packetsize="65536" reipacketsize="131072"', "131072 is more than packetsize; expected at most 65536"),
        ('ruzone_blocksize="12000000"', "12000000 is not a multiple of reipacketsize; expected a multiple of 8388608"),
        ('reipacketsize="65536" ruzone_blocksize="32768"', "32768 is not a multiple of reipacketsize"),
        ('reiallowedbw="0"', '"0" is not valid; expected a whole number from 1 to'),
        ('sendtimeout="0"', '"0" is not valid; expected a whole number of seconds from 1 to'),
        ('nbrei="0"', '"0" is not valid; expected a whole number from 1 to 64'),
        ('namespacepolicy="2"', '"2" is not valid; expected 0, 1, 3 or 4'),
        ('async="both"', '"both" is not valid; expected "second" or "none"'),
        ('acl="yes"', '"yes" is not valid; expected "on" or "off"'),
        ('mountoversuffix="/data"', "is not valid; expected the end of a directory name"),
    ],
)
def test_attributes_of_rfs_out_of_their_range(loader: Loader, attributes: str, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        loader.config(mirror(f'<rfs {attributes}><replicated dir="/d"/></rfs>'))
    assert told in str(caught.value)


def test_dedicated_replication_network(loader: Loader) -> None:
    heart = (
        '<heart pulse="100" timeout="1000"><heartbeat name="default"/><heartbeat name="repli" ident="flow"/></heart>'
    )
    inside = (
        '<rfs><replicated dir="/d"><notreplicated path="file1"/><notreplicated path="./a//b/"/>'
        '<notreplicated regexpath=".*[[:digit:]]\\.tmp"/></replicated></rfs>'
    )
    config = loader.config(mirror(inside, heart))
    assert config.rfs is not None and config.rfs.flow == "repli"
    assert config.rfs.replicated[0].notreplicated_paths == ("file1", "a/b")
    assert config.rfs.replicated[0].notreplicated_regex == (r".*[[:digit:]]\.tmp",)
    assert config.heart is not None and {b.pulse_ms for b in config.heart.heartbeats} == {100}
    assert [b.ident for b in config.heart.heartbeats] == ["default", "flow"]


def test_first_heartbeat_carries_the_flow_and_flow_element_wins(loader: Loader) -> None:
    heart = '<heart><heartbeat name="repli"/><heartbeat name="default"/></heart>'
    rfs = loader.config(mirror('<rfs><replicated dir="/d"/></rfs>', heart)).rfs
    assert rfs is not None and rfs.flow == "repli"
    rfs = loader.config(mirror('<rfs><flow name="default"/><replicated dir="/d"/></rfs>', heart)).rfs
    assert rfs is not None and rfs.flow == "default"


def test_macros_then_environment(loader: Loader) -> None:
    text = """
        <safe>
          <macro name="A" value="one"/>
          <macro name="B" value="%A%-%ENV%"/>
          <service mode="mirror"><heart><heartbeat name="default"/></heart>
            <user>
              <var name="X" value="%B%"/><var name="Y" value="100% of %A% %not an identifier% 50%"/>
              <var name="Z" value="%FROM_ENV%"/>
            </user>
          </service>
        </safe>
    """
    user = loader.config(text, A="hidden", ENV="two", FROM_ENV="%A%").user
    assert user is not None
    assert dict(user.vars) == {"X": "one-two", "Y": "100% of one %not an identifier% 50%", "Z": "%A%"}


def test_farm_with_every_kind_of_balancing(loader: Loader) -> None:
    config = loader.config(
        farm(
            """<vip><interface_list><interface arpreroute="on"><virtual_interface type="vmac_invisible">
            <virtual_addr addr="192.168.1.50" where="alias"/></virtual_interface></interface></interface_list>
            <loadbalancing_list><group name="udpservices"><cluster><host name="node1" power="1"/><host name="node2"/>
            </cluster><rule port="53" proto="udp" filter="on_ipid"/><rule proto="tcp" filter="on_addr"/></group>
            </loadbalancing_list></vip><user/>"""
        )
    )
    assert config.farm is not None and (config.farm.port, config.farm.pulse_ms) == (4803, 1000)
    assert config.vip is not None and config.vip.interfaces[0].kind == "vmac_invisible"
    group = config.vip.groups[0]
    assert [(h.name, h.power) for h in group.hosts] == [("node1", 1), ("node2", 1)]
    assert [(r.port, r.proto, r.filter, r.virtual_addr) for r in group.rules] == [
        (53, "udp", "on_ipid", None),
        (None, "tcp", "on_addr", None),
    ]


def test_checkers_errd_vhost_failover(loader: Loader) -> None:
    config = loader.config(
        mirror(
            """<check><tcp ident="R1test" when="prim"><to addr="R1" port="80"/></tcp><ping ident="p"><to
            addr="10.0.0.9" interval="3"/></ping><intf ident="test_eth0"><to local_addr="192.168.1.10"/></intf>
            <ip ident="ip_check"><to addr="192.168.1.10"/></ip><custom ident="c" when="pre" exec="mychecker" arg="a b"/>
            <module name="other"/><module name="m2"><to addr="M1host" port="9453" secure="on"/></module><splitbrain
            ident="SBtest" exec="ping"
            arg="192.168.1.100"/></check>
            <vhost><virtualhostname name="vhostname" envfile="vhostenv"/></vhost>
            <errd><proc name="oracle" nameregex="oracle_.*" atleast="1" action="restart" class="prim"/></errd><user/>
            <failover period="1000" handle_time="3000"><![CDATA[
              fw: if (tcp.R1test == down && local.rfs.uptodate == up) then wait();
            ]]></failover>"""
        )
    )
    check = config.check
    assert (check.tcp[0].addr, check.tcp[0].port, check.tcp[0].interval, check.tcp[0].timeout) == ("R1", 80, 10, 5)
    assert check.ping[0].interval == 3 and check.ping[0].when == "pre"
    assert check.ip == (IpCheck("ip_check", "192.168.1.10"),)
    assert [(m.ident, m.addr, m.port, m.secure) for m in check.module] == [
        ("other_127.0.0.1", "127.0.0.1", 9010, False),
        ("m2_M1host", "M1host", 9453, True),
    ]
    assert check.splitbrain == SplitbrainCheck("SBtest", "192.168.1.100")
    assert config.errd is not None and config.errd.polltimer == 30
    assert (config.errd.procs[0].nameregex, config.errd.procs[0].proc_class) == ("oracle_.*", "prim")
    assert config.vhost[0].when == "prim"
    assert config.failover.rules.lstrip().startswith("fw: if (tcp.R1test == down &&")
    assert config.failover.handle_time_ms == 3000
    assert config.failover.rules_line == 13


def test_old_syntax_finds_its_lan(loader: Loader) -> None:
    heart = '<heart><heartbeat><server addr="10.0.0.2"/><server addr="10.0.0.3"/></heartbeat></heart>'
    config = loader.config(mirror('<rfs><replicated dir="/d"/></rfs>', heart))
    assert config.heart is not None and config.heart.heartbeats == (Heartbeat("repli", "0", 8888),)
    assert config.rfs is not None and config.rfs.flow == "repli"


def test_lans_of_a_farm_by_name_or_as_before_7_2(loader: Loader) -> None:
    old = '<lan><node name="node1" addr="10.1.0.2"/><node name="node2" addr="10.1.0.3"/></lan>'
    attributes = 'port="4999" pulse="300" mlost_count="4" slost_count="7"'

    def of(lans: str) -> Farm | None:
        text = f'<safe><service mode="farm"><farm {attributes}>{lans}</farm><user/></service></safe>'
        return loader.config(text).farm

    assert of('<lan name="net3"/>') == of(old) == Farm(4999, (FarmLan("net3"),), 300, 4, 7)
    for wrong, says in (
        ('<lan name="unknown"/>', "unknown"),
        ("", "lan"),
        (old + '<lan name="default"/>', "mixed in one file"),
        (old.replace("10.1.0.3", "10.9.9.9"), "no lan of the cluster has the addresses"),
    ):
        with pytest.raises(ConfigError, match=says):
            of(wrong)


def test_sections_may_come_in_any_order_and_encodings(loader: Loader) -> None:
    loader.path.write_bytes(
        '<?xml version="1.0" encoding="ISO-8859-1"?><safe><service mode="mirror"><user><var name="V" value="é"/></user>'
        '<heart><heartbeat name="default"/></heart></service></safe>'.encode("latin-1")
    )
    config = load_module(loader.path, "AM", 1, loader.cluster, environment={}).config
    assert config.user is not None and config.user.vars == (("V", "é"),)
    loader.path.write_text(mirror("<user/>"), encoding="utf-16")
    assert load_module(loader.path, "AM", 1, loader.cluster, environment={}).config.user is not None


# ------------------------------------------------------------------------------ refused


def golden() -> list[tuple[str, str, list[str]]]:
    """The cases of the golden file: title, file, findings."""
    found = []
    for case in Path(__file__).with_suffix(".golden").read_text().split("\n== ")[1:]:
        title, _, rest = case.partition("\n")
        text, _, findings = rest.partition("\n--\n")
        found.append((title, text, findings.strip().splitlines()))
    return found


@pytest.mark.parametrize(("text", "expected"), [case[1:] for case in golden()], ids=[case[0] for case in golden()])
def test_every_mistake_has_its_line(loader: Loader, text: str, expected: list[str]) -> None:
    told = [f"{line} <{element}>: {message}" for line, element, message in loader.mistakes(text)]
    assert sorted(told) == sorted(expected)


def test_golden_file_is_read() -> None:
    assert len(golden()) >= 25


MALFORMED = [
    ("<safe>\n<service mode=”mirror”/></safe>", 2, "typographic quotation marks"),
    ("<safe>\n<service>\n</safe>", 3, "tag mismatch"),
    ("", 1, "empty"),
    ('<!DOCTYPE safe [<!ENTITY a "x">]>\n<safe/>', 1, "entities are not allowed"),
    ('<!DOCTYPE safe [\n<!ENTITY % a SYSTEM "file:///etc/passwd">]>\n<safe/>', 2, "entities are not allowed"),
    ("<!DOCTYPE safe [<!ELEMENT safe ANY>]>\n<safe/>", 1, "declarations"),
    ('<!DOCTYPE safe SYSTEM "http://example.invalid/x.dtd">\n<safe/>', 1, "external file"),
    ("<a>" * 100, 1, "nested deeper"),
    ("<safe>\n&undefined;</safe>", 2, "undefined"),
    ("<safe>" + "<macro/>\n" * 21000 + "</safe>", 20000, "more than 20000 elements"),
    ("<safe>" + "x" * (1 << 20) + "</safe>", 0, "larger than"),
]


@pytest.mark.parametrize(("text", "line", "part"), MALFORMED, ids=[part for _, _, part in MALFORMED])
def test_hostile_and_malformed_files(loader: Loader, text: str, line: int, part: str) -> None:
    (mistake,) = loader.mistakes(text)
    assert mistake[0] == line and part in mistake[2].lower()


def test_missing_file(loader: Loader, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load_module(tmp_path / "nothing.xml", "AM", 1, loader.cluster)


def test_findings_read_as_file_line_element(loader: Loader) -> None:
    finding = Finding("/x/userconfig.xml", 7, "rfs nbrei", '"0" is not valid; expected 1 to 64')
    assert str(finding) == '/x/userconfig.xml:7: <rfs nbrei>: "0" is not valid; expected 1 to 64'


def test_warnings_do_not_refuse(loader: Loader) -> None:
    text = mirror(
        '<rfs iotimeout="5" allocthreshold="1"\n nfsbox_options="cross" namespacepolicy="3" nbremconn="4"'
        ' packetsize="65536">'
        '<replicated dir="/d"/></rfs>',
        '<heart><heartbeat name="default" pulse="700" timeout="1000"/></heart>',
    ).replace('mode="mirror"', 'mode="mirror" defaultprim="somehost"')
    assert sorted(loader.warnings(text)) == [
        (3, "heartbeat timeout"),
        (3, "service defaultprim"),
        (4, "rfs allocthreshold"),
        (4, "rfs iotimeout"),
        (5, "rfs namespacepolicy"),
        (5, "rfs nbremconn"),
        (5, "rfs nfsbox_options"),
        (5, "rfs packetsize"),
    ]
    assert (3, "heartbeat ident") in loader.warnings(
        mirror("<user/>", '<heart><heartbeat name="default" ident="flow"/></heart>')
    )


def test_defaultprim_accepts_node_names_in_any_case(loader: Loader) -> None:
    for value in ("alone", "lastprim", "node1", "NODE2"):
        text = mirror("<user/>").replace('mode="mirror"', f'mode="mirror" defaultprim="{value}"')
        assert loader.load(text).warnings == ()


EACH_UNSUPPORTED = {
    "service.mode": [farm("<user/>"), '<safe><service mode="light"><user/></service></safe>'],
    "errd": [mirror('<errd><proc name="a" class="prim"/></errd><user/>')],
    "check": [mirror('<check><ping ident="p"><to addr="10.0.0.1"/></ping></check>')],
    "vhost": [mirror('<vhost><virtualhostname name="v" envfile="e"/></vhost>')],
    "failover.rules": [mirror("<failover>a: if (ping.x == down) then wait();</failover>")],
    "failover.extends": [mirror('<failover extends="no"/>')],
    "vip": [
        mirror(
            '<vip><interface_list><interface><virtual_interface type="vmac_invisible"><virtual_addr addr="10.0.0.9"/>'
            "</virtual_interface></interface></interface_list></vip>"
        )
    ],
    "rfs.scripts": [mirror('<rfs scripts="on"/>')],
}


def test_what_is_not_supported_yet_is_said_and_parses_already(loader: Loader) -> None:
    for _, path, what in UNSUPPORTED:
        told = []
        for text in EACH_UNSUPPORTED[path]:
            loader.load(text)  # parses and validates
            told += [message for _, _, message in loader.mistakes(text, refuse_unsupported=True)]
        assert any(what in message and "not supported by this release yet" in message for message in told), path
