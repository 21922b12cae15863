"""Spot machines where there are any, machines on demand where there are none: Ray's provider on a mocked EC2."""

import copy
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from botocore.exceptions import ClientError
from moto import mock_aws
from ray.autoscaler._private.aws import node_provider, utils
from ray.autoscaler._private.util import prepare_config
from ray.autoscaler.node_launch_exception import NodeLaunchException

from diffseglung_ray.spot import MARKET, SpotThenOnDemand

CLUSTER = yaml.safe_load((Path(__file__).parents[3] / "cluster.yaml").read_text())
TAGS = {"ray-node-kind": "worker", "ray-launch-config": "none", "ray-user-node-type": "gpu"}


@pytest.fixture
def provider(monkeypatch: pytest.MonkeyPatch) -> Iterator[SpotThenOnDemand]:
    """The provider of cluster.yaml, in an account of its own."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setattr(node_provider, "BOTO_CREATE_MAX_RETRIES", 1)
    utils.resource_cache.cache_clear()  # a client kept from another test still has its hooks
    with mock_aws():
        yield SpotThenOnDemand(CLUSTER["provider"], CLUSTER["cluster_name"])


def refuse(provider: SpotThenOnDemand, code: str, spot_only: bool = True) -> list[dict[str, Any]]:
    """Let EC2 refuse spot machines (or all) with this code; every request that it heard."""
    heard: list[dict[str, Any]] = []

    def ask(params: dict[str, Any], **_: Any) -> None:
        heard.append(params)
        if MARKET in params or not spot_only:
            raise ClientError({"Error": {"Code": code, "Message": "none to be had"}}, "RunInstances")

    events = provider.ec2_fail_fast.meta.client.meta.events
    events.register("provide-client-params.ec2.RunInstances", ask)
    return heard


def start(provider: SpotThenOnDemand) -> None:
    subnet = boto3.client("ec2", CLUSTER["provider"]["region"]).describe_subnets()["Subnets"][0]["SubnetId"]
    config = CLUSTER["available_node_types"]["gpu"]["node_config"] | {
        "SubnetIds": [subnet],
        "ImageId": "ami-12c6146b",
    }
    for theirs in ("IamInstanceProfile", "SecurityGroupIds"):  # the mocked account has none
        config.pop(theirs)
    provider.create_node_with_resources_and_labels(config, TAGS, 1, {}, {})


def running(provider: SpotThenOnDemand) -> list[str]:
    """The lifecycle of each machine: spot, or on-demand."""
    return [node.instance_lifecycle or "on-demand" for node in provider.ec2.instances.all()]


def test_a_machine_comes_from_the_spot_market(provider: SpotThenOnDemand) -> None:
    start(provider)
    assert running(provider) == ["spot"]


def test_where_the_market_has_none_it_comes_on_demand(provider: SpotThenOnDemand) -> None:
    heard = refuse(provider, "InsufficientInstanceCapacity")
    start(provider)
    assert [MARKET in request for request in heard] == [True, False]
    assert running(provider) == ["on-demand"]


def test_a_wrong_request_is_not_made_again_at_the_full_price(provider: SpotThenOnDemand) -> None:
    heard = refuse(provider, "UnauthorizedOperation")
    with pytest.raises(NodeLaunchException, match="UnauthorizedOperation"):
        start(provider)
    assert len(heard) == 1
    assert running(provider) == []


def test_where_there_is_none_at_any_price_ray_is_told(provider: SpotThenOnDemand) -> None:
    refuse(provider, "InsufficientInstanceCapacity", spot_only=False)
    with pytest.raises(NodeLaunchException, match="InsufficientInstanceCapacity"):
        start(provider)


def test_ray_sets_up_aws_with_the_files_own_roles_and_closed_group(
    provider: SpotThenOnDemand, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))  # Ray keeps a key of its own there
    region = CLUSTER["provider"]["region"]
    ec2, iam = (boto3.client(service, region) for service in ("ec2", "iam"))
    vpc = ec2.describe_vpcs()["Vpcs"][0]["VpcId"]
    group = ec2.create_security_group(GroupName="closed", Description="closed", VpcId=vpc)["GroupId"]
    config = prepare_config(copy.deepcopy(CLUSTER))
    for kind in config["available_node_types"].values():
        kind["node_config"]["SecurityGroupIds"] = [group]
        with suppress(iam.exceptions.EntityAlreadyExistsException):
            iam.create_instance_profile(InstanceProfileName=kind["node_config"]["IamInstanceProfile"]["Name"])
    made = provider.bootstrap_config(provider.fillout_available_node_types_resources(config))
    asked, got = CLUSTER["available_node_types"], made["available_node_types"]
    assert iam.list_roles()["Roles"] == []
    for name, kind in got.items():
        assert kind["node_config"]["SecurityGroupIds"] == [group]
        assert kind["node_config"]["IamInstanceProfile"] == asked[name]["node_config"]["IamInstanceProfile"]
        assert kind["resources"].items() >= asked[name]["resources"].items()
        assert len(kind["node_config"]["SubnetIds"]) == len(
            CLUSTER["provider"]["availability_zone"].split(",")
        )
    (ours,) = ec2.describe_security_groups(GroupIds=[group])["SecurityGroups"]
    assert ours["IpPermissions"] == [], "Ray has opened what the owner had closed"
    assert {one["GroupName"] for one in ec2.describe_security_groups()["SecurityGroups"]} == {
        "default",
        "closed",
    }
