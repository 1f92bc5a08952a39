"""Templates and recipes for clouds: AWS by cfn-lint and moto, Azure and GCP by their references and by the providers'
descriptions of their resources (docs/cloud.md)."""

from __future__ import annotations

import copy
import json
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from safekit.model import ports
from tests.t2_process.cloud_schemas import azure_problems, google_problems

boto3 = pytest.importorskip("boto3")
moto = pytest.importorskip("moto")
CHECKOUT = Path(__file__).resolve().parents[2]
CLOUD = CHECKOUT / "private/cloud"
SCHEMAS = CHECKOUT / ".cache/schemas"
needs_schemas = pytest.mark.skipif(not SCHEMAS.is_dir(), reason="no descriptions of Azure and GCP: bin/setup test")
BETWEEN = {("udp", 4800), ("udp", ports.heart_port(1)), ("udp", ports.farm_port(1)), ("tcp", ports.rfs_port(1))}
FOR_PEOPLE = {("tcp", 9010), ("tcp", 9453), ("tcp", 9001)}


def test_cfn_lint_finds_nothing() -> None:
    command = [str(Path(sys.executable).with_name("cfn-lint")), str(CLOUD / "aws.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


def aws_template() -> dict[str, Any]:
    from cfnlint.decode.cfn_yaml import load

    found: dict[str, Any] = load(str(CLOUD / "aws.yaml"))
    return found


def test_ports_of_the_security_groups() -> None:
    """CLO-007: as getports says for the first module."""
    rules = aws_template()["Resources"]["Group"]["Properties"]["SecurityGroupIngress"]
    aws = {(rule["IpProtocol"], rule["FromPort"]) for rule in rules if isinstance(rule["FromPort"], int)}
    assert aws == BETWEEN | FOR_PEOPLE | {("tcp", 22)}
    azure = json.loads((CLOUD / "azure.json").read_text())["resources"][0]["properties"]["securityRules"]
    told = {(r["properties"]["protocol"].lower(), r["properties"]["destinationPortRange"]) for r in azure}
    assert {(p, int(n)) for p, n in told if n.isdecimal()} == BETWEEN | FOR_PEOPLE | {("tcp", 22)}
    walls = json.loads((CLOUD / "gcp.tf.json").read_text())["resource"]["google_compute_firewall"].values()
    gcp = {(a["protocol"], n) for wall in walls for a in wall["allow"] for n in a["ports"]}
    assert {(p, int(n)) for p, n in gcp if n.isdecimal()} == BETWEEN | FOR_PEOPLE | {("tcp", 22)}


def test_probes_come_from_where_the_providers_send_them() -> None:
    azure = (CLOUD / "azure.json").read_text()
    assert '"AzureLoadBalancer"' in azure and "168.63.129.16" in azure
    walls = json.loads((CLOUD / "gcp.tf.json").read_text())["resource"]["google_compute_firewall"]
    # of an external passthrough balancer, which is what the configuration makes; others are asked from elsewhere
    assert walls["probes"]["source_ranges"] == ["35.191.0.0/16", "209.85.152.0/22", "209.85.204.0/22"]
    for name in ("aws.yaml", "azure.json", "gcp.tf.json"):
        assert "/var/modules/" in (CLOUD / name).read_text() and "/ready.txt" in (CLOUD / name).read_text()


@pytest.fixture
def ec2(monkeypatch: pytest.MonkeyPatch) -> Any:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "none")
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    with moto.mock_aws():
        yield boto3.client("ec2", region_name="eu-west-1")


def servers(ec2: Any) -> tuple[str, str, str, str]:
    """VPC, subnet and two instances."""
    vpc = ec2.create_vpc(CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
    subnet = ec2.create_subnet(VpcId=vpc, CidrBlock="10.0.1.0/24")["Subnet"]["SubnetId"]
    image = ec2.describe_images()["Images"][0]["ImageId"]
    made = ec2.run_instances(ImageId=image, MinCount=2, MaxCount=2, SubnetId=subnet)["Instances"]
    return vpc, subnet, made[0]["InstanceId"], made[1]["InstanceId"]


def test_the_balancer_is_taken_as_the_template_says(ec2: Any) -> None:
    """CLO-001: target group, health check, attributes and listener, by the provider's calls (moto probes nothing)."""
    elb = boto3.client("elbv2", region_name="eu-west-1")
    vpc, subnet, one, two = servers(ec2)
    told = aws_template()["Resources"]["Targets"]["Properties"]
    made = elb.create_target_group(
        Name="safekit", VpcId=vpc, Protocol=told["Protocol"], Port=80, TargetType=told["TargetType"],
        HealthCheckProtocol=told["HealthCheckProtocol"], HealthCheckPort=told["HealthCheckPort"],
        HealthCheckPath="/var/modules/mirror/ready.txt", HealthCheckIntervalSeconds=told["HealthCheckIntervalSeconds"],
        HealthyThresholdCount=told["HealthyThresholdCount"], UnhealthyThresholdCount=told["UnhealthyThresholdCount"],
    )["TargetGroups"][0]  # fmt: skip
    assert (made["HealthCheckPort"], made["HealthCheckPath"]) == ("9010", "/var/modules/mirror/ready.txt")
    elb.register_targets(TargetGroupArn=made["TargetGroupArn"], Targets=[{"Id": one}, {"Id": two}])
    balancer = elb.create_load_balancer(Name="safekit", Type="network", Subnets=[subnet])["LoadBalancers"][0]
    action = {"Type": "forward", "TargetGroupArn": made["TargetGroupArn"]}
    elb.create_listener(
        LoadBalancerArn=balancer["LoadBalancerArn"], Protocol="TCP", Port=80, DefaultActions=[action]
    )  # fmt: skip
    health = elb.describe_target_health(TargetGroupArn=made["TargetGroupArn"])["TargetHealthDescriptions"]
    assert {each["Target"]["Id"] for each in health} == {one, two}


def move(monkeypatch: pytest.MonkeyPatch, instance: str, *words: str) -> int:
    monkeypatch.setenv("AWS_INSTANCE_ID", instance)
    return int(runpy.run_path(str(CLOUD / "aws-move-address"))["main"](list(words)))


def test_a_route_follows_the_primary(ec2: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    vpc, _, one, two = servers(ec2)
    table = ec2.describe_route_tables(Filters=[{"Name": "vpc-id", "Values": [vpc]}])["RouteTables"][0]["RouteTableId"]

    def target() -> str:
        routes = ec2.describe_route_tables(RouteTableIds=[table])["RouteTables"][0]["Routes"]
        return str(next(r["NetworkInterfaceId"] for r in routes if r.get("DestinationCidrBlock") == "192.168.9.9/32"))

    def interface(instance: str) -> str:
        found = ec2.describe_instances(InstanceIds=[instance])["Reservations"][0]["Instances"][0]
        return str(found["NetworkInterfaces"][0]["NetworkInterfaceId"])

    for instance in (one, two, two, one):
        assert move(monkeypatch, instance, "route", table, "192.168.9.9/32") == 0
        assert target() == interface(instance)


def test_a_secondary_address_follows_the_primary(ec2: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """moto does not take the address away from the other instance, as AWS does: it is assigned, that is all."""
    _, _, one, two = servers(ec2)
    for instance in (one, two):
        assert move(monkeypatch, instance, "address", "10.0.1.100") == 0
        found = ec2.describe_instances(InstanceIds=[instance])["Reservations"][0]["Instances"][0]
        held = [a["PrivateIpAddress"] for a in found["NetworkInterfaces"][0]["PrivateIpAddresses"]]
        assert "10.0.1.100" in held


def test_a_refusal_fails_the_start(
    ec2: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, _, one, _ = servers(ec2)
    assert move(monkeypatch, one, "route", "rtb-00000000", "192.168.9.9/32") == 1
    assert "aws-move-address:" in capsys.readouterr().err
    assert move(monkeypatch, one, "address") == 2
    monkeypatch.setitem(sys.modules, "boto3", None)
    assert move(monkeypatch, one, "address", "10.0.1.9") == 1
    assert "apt install python3-boto3" in capsys.readouterr().err


def test_references_of_the_azure_template() -> None:
    """CLO-002: parameters, variables, names and the script. Not deployed."""
    template = json.loads((CLOUD / "azure.json").read_text())
    text = json.dumps(template["resources"]) + json.dumps(template["outputs"])
    assert set(re.findall(r"parameters\('(\w+)'\)", text)) == set(template["parameters"])
    assert set(re.findall(r"variables\('(\w+)'\)", text)) == set(template["variables"])
    made = {(r["type"], r["name"]) for r in template["resources"]}
    for kind, name in re.findall(r"resourceId\('(Microsoft\.\w+/\w+)', '([\w-]+)'\)", text):
        assert (kind, name) in made, (kind, name)
    copies = {r["copy"]["name"] for r in template["resources"] if "copy" in r}
    plain = {d for r in template["resources"] for d in r.get("dependsOn", []) if not d.startswith("[")}
    assert plain <= copies
    lines = template["variables"]["install"].format("password", "https://x/y.deb", "mirror")
    assert subprocess.run(["bash", "-n"], input=lines, text=True, capture_output=True).returncode == 0


def test_references_of_the_gcp_configuration() -> None:
    """CLO-003: variables, resources and the script. Not applied."""
    data = json.loads((CLOUD / "gcp.tf.json").read_text())
    text = json.dumps(data)
    used = set(re.findall(r"\$\{var\.(\w+)", text))
    assert used == set(data["variable"]), used ^ set(data["variable"])
    for kind, name in re.findall(r"\$\{(google_\w+)\.(\w+)\.\w+\}", text):
        assert name in data["resource"][kind], (kind, name)
    script = data["resource"]["google_compute_instance"]["server1"]["metadata_startup_script"]
    assert subprocess.run(["bash", "-n"], input=re.sub(r"\$\{var\.\w+\}", "x", script), text=True).returncode == 0


def renamed(value: Any) -> Iterator[tuple[str, Any]]:
    """Copies of a value in which one key of an object has a letter more, with that key."""
    if isinstance(value, list):
        for number, inner in enumerate(value):
            for key, changed in renamed(inner):
                yield key, [*value[:number], changed, *value[number + 1 :]]
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield key, {(k if k != key else k + "x"): v for k, v in value.items()}
            for deeper, changed in renamed(inner):
                yield f"{key}.{deeper}", {**value, key: changed}


@needs_schemas
def test_the_azure_template_is_as_azure_describes_its_resources() -> None:
    """CLO-002: names, types, enumerations, ranges, what must be there, what cannot be set; of the versions named."""
    template = json.loads((CLOUD / "azure.json").read_text())
    assert list(azure_problems(template, SCHEMAS)) == []
    for resource in template["resources"]:
        for key, properties in renamed(resource["properties"]):
            wrong = {"resources": [{**resource, "properties": properties}]}
            assert list(azure_problems(wrong, SCHEMAS)), f"{resource['type']}: {key} may have any name"


@needs_schemas
@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"access": "Allow"', '"access": "allowed"', "is none of Allow, Deny"),
        ('"priority": 100', '"priority": "100"', "is no int"),
        ('"createOption": "FromImage"', "", "createOption: is missing"),
        ('"disablePasswordAuthentication": true', '"disablePasswordAuthentication": "yes"', "is no bool"),
        ('"apiVersion": "2023-09-01"', '"apiVersion": "2019-01-01"', "no description of its version"),
        ('"securityRules": [', '"provisioningState": "Succeeded", "securityRules": [', "cannot be set"),
    ],
)
def test_the_check_of_azure_finds(old: str, new: str, said: str) -> None:
    text = re.sub(r"\s+", " ", (CLOUD / "azure.json").read_text())
    assert old in text
    assert said in "\n".join(azure_problems(json.loads(text.replace(old, new, 1)), SCHEMAS))


@needs_schemas
def test_the_gcp_configuration_is_as_the_provider_describes_its_resources() -> None:
    """CLO-003: arguments and blocks of each resource, their types, what must be there, what others read of it."""
    data = json.loads((CLOUD / "gcp.tf.json").read_text())
    assert list(google_problems(data, SCHEMAS)) == []
    for kind, made in data["resource"].items():
        for name, resource in made.items():
            for key, changed in renamed(resource):
                wrong = {"resource": {kind: {name: changed}}}
                assert list(google_problems(wrong, SCHEMAS)), f"{kind}.{name}: {key} may have any name"
    other = copy.deepcopy(data)
    other["resource"]["google_compute_region_health_check"]["ready"]["check_interval_sec"] = "often"
    assert "is no number" in "\n".join(google_problems(other, SCHEMAS))
    del other["resource"]["google_compute_instance"]["server1"]["boot_disk"]
    assert "bootDisk: is missing" in "\n".join(google_problems(other, SCHEMAS))
    wrong_text = json.dumps(data).replace("google_compute_network.net.id", "google_compute_network.net.ident")
    assert "it tells no ident" in "\n".join(google_problems(json.loads(wrong_text), SCHEMAS))
