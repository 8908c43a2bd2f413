"""Attacks that tell every neighbour something else, made of the graph and of what the neighbour hears."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from fedsim.core.arrays import Floats, Ints
from fedsim.core.job import RunFacts
from fedsim.core.registry import register
from fedsim.core.types import NonNegative
from fedsim.messages.attack import Attack
from fedsim.messages.base import Arrived
from fedsim.messages.heard import Heard
from fedsim.messages.target import Target, present, taken

_DENSE = 1500  # nodes up to which all eigenvectors are computed


@dataclass(frozen=True, kw_only=True)
class EdgeAttack(Attack):
    """Base of attacks that tell every neighbour something else."""

    on_edges: ClassVar[bool] = True

    def messages(self, honest: Tensor, own: Tensor, key: str, arrived: Arrived, run: RunFacts) -> Tensor:
        """Under a server there are no neighbours: their own message."""
        return own


@register.attack("dissensus")
@dataclass(frozen=True, kw_only=True)
class Dissensus(EdgeAttack):
    """``x_i - eps sum_honest w_ij (x_j - x_i) / sum_attackers w_ij`` to node i (He, Karimireddy & Jaggi, arXiv
    2202.01545).

    With ``eps: 1`` plain gossip leaves the node where it is; with more it drives it away from its honest neighbours.
    """

    eps: NonNegative = 1.5

    def tell(self, target: Target, key: str, arrived: Arrived, run: RunFacts) -> Tensor:
        x, known = target.known[target.own], target.known
        weights = torch.as_tensor(target.weights, dtype=x.dtype, device=x.device)
        pull = weights @ (known - x)  # its own difference is 0
        return (x - self.eps / float(target.evil_weights.sum()) * pull).expand_as(target.evil)


@register.attack("spectral")
@dataclass(frozen=True, kw_only=True)
class Spectral(EdgeAttack):
    """``x_i + scale v_i (v' X)`` to node i, with the Fiedler vector v of the honest nodes' graph (Gaucher, Dieuleveut &
    Hendrikx, arXiv 2410.10418).

    v is the direction in which the graph is slowest to agree; X are the messages of all honest nodes.
    """

    scale: NonNegative = 1.0

    sees_all: ClassVar[bool] = True

    def said(self, heard: Heard, entries: Ints, arrived: Arrived, run: RunFacts) -> Tensor:
        assert run.links is not None
        links = np.ascontiguousarray(run.links)
        slowest = fiedler(links.tobytes(), run.num_clients, tuple(self.attacking(run).tolist()))
        honest, _ = present(heard, self.attacking(run))
        rows = heard.rows[entries]
        x = taken(heard, heard.own[rows])
        v = torch.as_tensor(slowest, dtype=x.dtype, device=x.device)
        along = v[torch.as_tensor(heard.nodes[honest])] @ taken(heard, honest)
        return x + self.scale * v[torch.as_tensor(heard.receivers[rows])].unsqueeze(1) * along


@lru_cache(maxsize=4)
def fiedler(links: bytes, n: int, attackers: tuple[int, ...]) -> Floats:
    """The unit eigenvector of the second smallest eigenvalue of the Laplacian of a graph without its `attackers`, 0 at
    these, ``[n]``; `links` are the bytes of an array ``[E, 2]`` of int64."""
    from scipy import sparse
    from scipy.sparse.linalg import eigsh

    ends = np.frombuffer(links, dtype=np.int64).reshape(-1, 2)
    honest = np.setdiff1d(np.arange(n), attackers)
    ends = ends[~np.isin(ends, attackers).any(1)]
    one = np.ones(len(ends))
    joined: Any = sparse.coo_array((one, (ends[:, 0], ends[:, 1])), shape=(n, n)).tocsr()
    joined = (joined + joined.T).astype(bool).astype(np.float64)[honest][:, honest]
    laplacian = sparse.diags_array(np.asarray(joined.sum(axis=1)).reshape(-1)) - joined
    found = np.zeros(n)
    if len(honest) <= _DENSE:
        found[honest] = np.linalg.eigh(laplacian.toarray())[1][:, 1] if len(honest) > 1 else 0.0
    else:  # shifted a little, so that the matrix can be factored
        vectors = eigsh(laplacian.tocsc(), k=2, sigma=-1e-3, v0=np.cos(np.arange(len(honest))))[1]
        found[honest] = vectors[:, 1]
    return found
