"""Machines from the spot market, and on-demand ones where it has none: the node provider of `cluster.yaml`."""

from __future__ import annotations

import logging
from typing import Any

from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler.node_launch_exception import NodeLaunchException

logger = logging.getLogger(__name__)

MARKET = "InstanceMarketOptions"
# What EC2 says where there is no spot machine to be had; a wrong request would be as wrong on demand.
NO_SPOT_MACHINE = frozenset(
    {
        "InsufficientInstanceCapacity",
        "InsufficientCapacity",
        "MaxSpotInstanceCountExceeded",
        "SpotMaxPriceTooLow",
        "Unsupported",
    }
)


class OnDemandWhereNoSpot:
    """Goes before a provider of EC2 machines: a request for spot that is refused is made again without."""

    def create_node_with_resources_and_labels(
        self,
        node_config: dict[str, Any],
        tags: dict[str, str],
        count: int,
        resources: dict[str, float],
        labels: dict[str, str],
    ) -> dict[str, Any] | None:
        """Start `count` machines. Errors: NodeLaunchException, where there is none at the full price either."""
        create = super().create_node_with_resources_and_labels  # type: ignore[misc]
        try:
            return create(node_config, tags, count, resources, labels)
        except NodeLaunchException as refusal:
            if MARKET not in node_config or refusal.category not in NO_SPOT_MACHINE:
                raise
            logger.warning("no spot machine (%s): %d on demand instead", refusal.category, count)
        on_demand = {key: value for key, value in node_config.items() if key != MARKET}
        return create(on_demand, tags, count, resources, labels)


class SpotThenOnDemand(OnDemandWhereNoSpot, AWSNodeProvider):
    """Ray's provider for AWS, which by itself would ask for the same spot machines again and again."""
