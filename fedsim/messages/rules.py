"""Everything that a scenario's ``aggregator.name`` can stand for; importing this module registers it."""

from fedsim.messages import aggregators, anchored, neighbours, robust, selection

__all__ = ["aggregators", "anchored", "neighbours", "robust", "selection"]
