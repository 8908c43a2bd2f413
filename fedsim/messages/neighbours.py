"""Rules of a graph's nodes that weigh each neighbour's message as a whole, by how far it is from the node's own.

All are ``x_i + sum_j a_ij (x_j - x_i)`` with numbers a_ij that depend on distances and on the weights w_ij of the
links. f is how many attackers a node is to tolerate among its neighbours, b_i the sum of the f largest w_ij. Messages
that are not finite are dropped and count against f.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from fedsim.core.registry import register
from fedsim.messages.distances import exponents, lengths, ranks
from fedsim.messages.graph_rules import GraphRule
from fedsim.messages.heard import Near
from fedsim.messages.ordering import ordered

Tolerated = Annotated[int, Field(ge=0)]
_FAINT = 2.0**-100
_SLACK = 1e-12  # sums of weights that are equal but for rounding


class Weighing(GraphRule):
    """Base of these rules."""

    @abstractmethod
    def factors(self, near: Near) -> Tensor:
        """a_ij of every receiver and neighbour, ``[r, n]`` in float64."""

    def combine(self, near: Near) -> Tensor:
        a, differences = self.factors(near), near.differences
        if bool(((a > 0) & (a < _FAINT)).any()):  # float32 cannot hold what shortens so long a difference
            differences = differences.double()
        a = a.to(differences.dtype)
        return near.own + torch.bmm(a.unsqueeze(1), differences).squeeze(1)


@register.aggregator("nna")
@dataclass(frozen=True, kw_only=True)
class NearestNeighbourAveraging(Weighing):
    """Mean of the ``n + 1 - f`` messages nearest to a node's own, which is one of them (NNA, arXiv 2209.10931).

    Weights of links are not used. A node that hears fewer than f keeps its own.

    Parameters
    ----------
    f : attackers to be tolerated among a node's neighbours.
    """

    f: Tolerated

    weighs: ClassVar[bool] = False

    def factors(self, near: Near) -> Tensor:
        kept = max(near.degree - max(self.f - near.lost, 0), 0)
        a = torch.zeros_like(near.distances)
        return a.scatter_(1, near.order[:, :kept], 1.0 / (kept + 1))


class Clipping(Weighing):
    """Base of the rules that shorten differences: ``x_i + sum_j w_ij clip(x_j - x_i, tau_i)``."""

    @abstractmethod
    def bounds(self, near: Near) -> Tensor:
        """tau_i, ``[r]`` in float64."""

    def factors(self, near: Near) -> Tensor:
        tau = self.bounds(near).unsqueeze(1)
        return near.weights * torch.where(near.distances <= tau, 1.0, tau / near.distances)


@register.aggregator("clipped_gossip")
@dataclass(frozen=True, kw_only=True)
class ClippedGossip(Clipping):
    """``x_i + sum_j w_ij clip(x_j - x_i, tau)`` (ClippedGossip, arXiv 2202.01545).

    Parameters
    ----------
    tau : the longest difference that counts in full. ``adaptive``, as in the authors' code: the second largest distance
        of the node's neighbours.
    """

    tau: Annotated[float, Field(gt=0)] | Literal["adaptive"] = "adaptive"

    def bounds(self, near: Near) -> Tensor:
        if self.tau == "adaptive":
            ordered = near.distances.sort(dim=1).values
            return ordered[:, max(near.degree - 2, 0)]
        return torch.full_like(near.distances[:, 0], self.tau)


@dataclass(frozen=True, kw_only=True)
class ByWeight(Clipping):
    """Base of the rules that take f for a weight: b_i, the sum of the node's f largest w_ij.

    Parameters
    ----------
    f : attackers to be tolerated among a node's neighbours.
    """

    f: Tolerated

    def budget(self, near: Near) -> Tensor:
        """b_i, ``[r, 1]``."""
        most = min(max(self.f - near.lost, 0), near.degree)
        return near.weights.sort(dim=1, descending=True).values[:, :most].sum(1, keepdim=True)

    def nearest(self, near: Near) -> tuple[Tensor, Tensor, Tensor]:
        """Weights and distances, the nearest neighbour first, and the running sums of the weights, ``[r, n]`` each."""
        w = near.weights.gather(1, near.order)
        return w, near.distances.gather(1, near.order), w.cumsum(1)


@register.aggregator("cs_he")
@dataclass(frozen=True, kw_only=True)
class ClippedSumHe(ByWeight):
    """Clipped differences with the bound of He et al.: ``tau_i^2 = sum w_ij |x_j - x_i|^2 / b_i`` over the nearest
    neighbours whose weights sum to all but b_i (arXiv 2202.01545, in the form of 2410.10418's code)."""

    def bounds(self, near: Near) -> Tensor:
        b = self.budget(near)
        w, distances, sums = self.nearest(near)
        within = sums <= sums[:, -1:] - b + _SLACK
        distances = torch.where(within, distances, 0.0)
        unit = exponents(distances)  # squares of the distances themselves may be infinite
        squares = (w * (distances / unit).square()).sum(1, keepdim=True)
        return torch.where(b > 0, (squares / b).sqrt() * unit, torch.inf).squeeze(1)


@register.aggregator("cs_plus")
@dataclass(frozen=True, kw_only=True)
class ClippedSumPlus(ByWeight):
    """Differences clipped at the largest distance up to which the nearest neighbours' weights sum to at most all but
    ``2 b_i``; at 0 where there is none (CS+, arXiv 2410.10418)."""

    def bounds(self, near: Near) -> Tensor:
        b = self.budget(near)
        _, distances, sums = self.nearest(near)
        within = sums <= sums[:, -1:] - 2 * b + _SLACK
        largest = torch.where(within, distances, 0.0).amax(1, keepdim=True)
        return torch.where(b > 0, largest, torch.inf).squeeze(1)


@register.aggregator("gts")
@dataclass(frozen=True, kw_only=True)
class GossipTrimmedSum(ByWeight):
    """The weighted sum without the farthest neighbours of total weight b_i, one of them in part (GTS, arXiv
    2410.10418)."""

    def bounds(self, near: Near) -> Tensor:
        return torch.full_like(near.distances[:, 0], torch.inf)

    def factors(self, near: Near) -> Tensor:
        w, _, sums = self.nearest(near)
        left = sums[:, -1:] - self.budget(near) - (sums - w)
        left = torch.where(left > _SLACK, left, 0.0)  # what rounding leaves would count, of a huge message
        return torch.zeros_like(w).scatter_(1, near.order, torch.minimum(left, w))


@register.aggregator("ios")
@dataclass(frozen=True, kw_only=True)
class IterativeOutlierScissor(Weighing):
    """f times: the neighbour farthest from the weighted mean of those that are left is dropped (IOS, arXiv
    2206.04568). What remains is the weighted mean of the rest, their weights scaled to 1; nobody drops itself.

    Parameters
    ----------
    f : attackers to be tolerated among a node's neighbours.
    """

    f: Tolerated

    def factors(self, near: Near) -> Tensor:
        own = 1.0 - near.weights.sum(1, keepdim=True)
        left = near.weights.clone()
        kept = torch.ones_like(left, dtype=torch.bool)

        def scaled() -> Tensor:
            return left / (own + left.sum(1, keepdim=True))

        for _ in range(min(max(self.f - near.lost, 0), near.degree)):
            a = scaled().to(near.differences.dtype)
            centre = torch.bmm(a.unsqueeze(1), near.differences)
            distances = torch.where(kept, lengths(near.differences - centre), 0.0)
            far = torch.where(kept, ranks(distances), -1.0).argmax(1, keepdim=True)
            left.scatter_(1, far, 0.0)
            kept.scatter_(1, far, False)
        return scaled()


@register.aggregator("bridge")
@dataclass(frozen=True, kw_only=True)
class Bridge(GraphRule):
    """Per coordinate the f smallest and f largest of the neighbours' values are dropped; the mean of what is left and a
    node's own (BRIDGE-T, arXiv 1908.08098).

    Weights of links are not used. Where a node hears fewer than 2 f + 1, f is half of what it hears.

    Parameters
    ----------
    f : attackers to be tolerated among a node's neighbours.
    """

    f: Tolerated

    weighs: ClassVar[bool] = False

    def combine(self, near: Near) -> Tensor:
        n = near.degree
        f = min(max(self.f - near.lost, 0), n // 2)
        kept = ordered(near.values, dim=1)[:, f : n - f]
        return (near.own + kept.sum(1)) / (n - 2 * f + 1)
