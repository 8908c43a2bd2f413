"""What an algorithm needs of the run around it, said in one place; scenarios are checked against it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Indicator = Literal["sporadic", "always"]
"""Whether a scenario's probabilities decide, or everything always happens."""

Memory = Literal["differences", "copies", "errors"]
"""What is remembered of compressed messages."""


@dataclass(frozen=True, kw_only=True)
class Needs:
    """Said once per class, ``needs: ClassVar[Needs] = Needs(...)``; a subclass changes its parent's by `replace`.

    Parameters
    ----------
    modes, why : participation modes under which a server algorithm makes sense (None: all), and why not the others.
    everyone : why all clients have to take part in every round, where they have to.
    arrival_weights : the only `weights` of a clocked participation that make sense, where there is only one.
    begins_with_everybody : whether all clients take part in the first round, whatever the cohorts of the others.
    through_aggregate : whether all that moves the state went through `aggregate`. Where it did not, a robust aggregator
        would protect nothing and is refused.
    steps : what is made of local steps: ``any`` solver may take them; ``round``, one that remembers nothing of the
        last round; ``linear``, one that knows the sum of its steps' weights, by which changes are divided; ``own``, the
        algorithm takes them by a rule of its own.
    compute, links : on a graph, whether the scenario's probabilities decide who computes and which links fire.
    linear_mixing : why nodes, or the server, have to mix by weighted sums, where they have to; a rule that drops or
        clips messages is then refused.
    no_merge : on a graph, why its nodes cannot just take the mean of all models, where they cannot.
    columns : whether a mixing matrix will do whose columns alone sum to 1: what every node sends, not what it hears. A
        lost message's share then stays with its sender.
    symmetric : whether the mixing matrix must be symmetric, so that a directed graph is refused.
    compression : what clients remember of what they sent, where the scenario's ``compression`` is the algorithm's own
        compressor: ``differences``, they send C(v - h) and the server adds it up; ``copies``, neighbours know
        h + C(v - h) of each other; ``errors``, they send C(e + v) and keep the rest. None: it has no compressor.
    own_size : whether its messages travel in less than their tensors take (`Algorithm.message_size`).
    alone : why a message stands by itself, so that nothing may stand in its way and it can be compared with no other,
        where it does: then privacy, compression, attackers and robust rules are refused.
    continuous_time : whether a node's work and a link's mixing make sense one at a time, without a round (``mode:
        poisson``).
    adversary : whether clients train on inputs that are attacked, so that a section ``adversary`` has to be there.
    personal : whether parts of a model may stay with clients (``model.personal``). Clients then see whole models, and
        the server or the nodes of a graph vectors of what is shared; of what is broadcast ``x`` alone is made whole.
    own_models : whether clients train models of their own beside the common one. Models that carry more than parameters
        are then refused, for the common one's statistics would be taken of both.
    flows : whether a node's state changes between its events, too (`Algorithm.flow`), which takes ``mode: poisson``.
    """

    modes: tuple[str, ...] | None = None
    why: str = ""
    everyone: str | None = None
    arrival_weights: str | None = None
    begins_with_everybody: bool = False
    through_aggregate: bool = True
    steps: Literal["any", "round", "linear", "own"] = "any"
    compute: Indicator = "sporadic"
    links: Indicator = "sporadic"
    linear_mixing: str | None = None
    no_merge: str | None = None
    columns: bool = False
    symmetric: bool = False
    compression: Memory | None = None
    own_size: bool = False
    alone: str | None = None
    continuous_time: bool = False
    adversary: bool = False
    personal: bool = False
    own_models: bool = False
    flows: bool = False
