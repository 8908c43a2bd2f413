"""How clients are divided among the models of a clustered algorithm."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from fedsim.algorithms.ifca import CHANGED, CLUSTER
from fedsim.core.metrics import Measure, Metric, View
from fedsim.core.registry import register

_SHARE = {"unit": "share", "figure": "other", "brief": ""}


@register.metric("clusters")
@dataclass(frozen=True, kw_only=True)
class Clusters(Measure):
    """What the clients of ``ifca`` chose, of those that have taken part and do not attack.

    ``clusters_used`` models were chosen by somebody, in the last round of each; ``cluster_largest`` is the share of
    clients that chose the model that most did. ``cluster_changed`` is the share of the last round's clients that chose
    another model than in their round before.
    """

    of_state: ClassVar[tuple[str, ...]] = (CLUSTER, CHANGED)
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("clusters_used", "clusters that have clients", "count", figure="other", brief=""),
        Metric("cluster_largest", "share of clients in the largest cluster", **_SHARE),  # type: ignore[arg-type]
        Metric("cluster_changed", "share of clients that changed their cluster", **_SHARE),  # type: ignore[arg-type]
    )

    def evaluate(self, view: View) -> Mapping[str, float]:
        chosen, changed = view.state(CLUSTER).squeeze(-1), view.state(CHANGED)
        chosen = chosen[torch.as_tensor(view.honest, device=chosen.device)]
        sizes = torch.unique(chosen[chosen >= 0], return_counts=True)[1]
        largest = float(sizes.max()) / float(sizes.sum()) if len(sizes) else 0.0
        return {"clusters_used": float(len(sizes)), "cluster_largest": largest, "cluster_changed": float(changed[0])}
