"""Nodes of an autoscaling cluster that are processes on this machine, where the spot market has nothing to sell."""

from typing import Any

from ray.autoscaler._private.fake_multi_node.node_provider import FakeMultiNodeProvider
from ray.autoscaler.node_launch_exception import NodeLaunchException

from diffseglung_ray.spot import MARKET, OnDemandWhereNoSpot


class NoSpotHere(FakeMultiNodeProvider):
    """Ray's provider for tests, which refuses spot machines as EC2 does where there are none."""

    def create_node_with_resources_and_labels(
        self, node_config: dict[str, Any], tags: Any, count: int, resources: dict[str, float], labels: Any
    ) -> None:
        if MARKET in node_config:
            raise NodeLaunchException("InsufficientInstanceCapacity", "no spot machine here", None)
        # Ray's provider would hand memory on as a custom resource, and is refused; each process finds its own.
        resources = {name: count for name, count in resources.items() if name != "memory"}
        super().create_node_with_resources_and_labels(node_config, tags, count, resources, labels)


class LocalNodes(OnDemandWhereNoSpot, NoSpotHere):
    """The same behind our own second try."""
