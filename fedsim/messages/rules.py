"""Everything that a scenario's ``aggregator.name`` can stand for; importing this module registers it."""

from fedsim.messages import aggregators, neighbours, robust, selection

__all__ = ["aggregators", "neighbours", "robust", "selection"]
