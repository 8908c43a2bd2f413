"""What papers and other projects call things that have another name here, or that are no part of their own."""

from __future__ import annotations

import re
from collections.abc import Sequence

_WORDS = {
    **dict.fromkeys(("learning_rate", "step_size", "eta"), ("lr",)),
    **dict.fromkeys(("epochs", "num_epochs", "local_ep"), ("local_epochs",)),
    **dict.fromkeys(("batch", "batchsize", "bs"), ("batch_size",)),
    **dict.fromkeys(("num_clients", "n_clients", "num_users", "num_nodes"), ("clients", "nodes")),
    **dict.fromkeys(("num_rounds", "comm_rounds", "global_rounds", "n_rounds"), ("rounds",)),
    **dict.fromkeys(("fraction_fit", "frac", "client_fraction"), ("fraction",)),
    **dict.fromkeys(("strategy", "method"), ("algorithm",)),
    **dict.fromkeys(("r", "lora_r"), ("rank",)),
}
"""Words of other projects for keys, which no spelling leads to ours, and what they are called here."""

_PARTS = {
    "FedFix": "participation: {mode: fixed_interval}",
    "FedBuff": "participation: {mode: fedbuff}",
    "FedAvgM": "algorithm: {name: fedavg, server_momentum: 0.9}",
    "FedSGD": "algorithm: {name: fedavg, local_steps: 1, batch_size: full}",
    "Local SGD": "algorithm: {name: fedavg}",
    "FedOpt": "algorithm: {name: fedadam}, fedyogi or fedadagrad",
    "q-FedAvg": "algorithm: {name: qffl}",
    "DP-SGD": "privacy: {mechanism: dp_sgd}",
    "DP-FedAvg": "privacy: {mechanism: dp_fedavg}",
    "DP-FTRL": "privacy: {mechanism: dp_ftrl}",
    "LDP": "privacy: {mechanism: local_dp}",
    "DP-GD": "algorithm: {name: diff2, restart_every: 1} with privacy: {mechanism: gaussian}",
    **dict.fromkeys(("D-PSGD", "Decentralized SGD", "DSGD", "Gossip SGD"), "algorithm: {name: dpsgd}"),
    "DFedAvgM": "algorithm: {name: dfedavg, momentum: 0.9}",
    **dict.fromkeys(("Push-Sum", "Stochastic Gradient Push"), "algorithm: {name: sgp}"),
    **dict.fromkeys(("DIGing", "DSGT"), "algorithm: {name: gradient_tracking}"),
    "CHOCO-SGD": "algorithm: {name: choco}",
    "A2CiD2": "algorithm: {name: acid}",
    "FedPer": "model: {personal: [HEAD]}, HEAD the name of a sub-module",
    "FedRep": "model: {personal: [HEAD]} with phases in algorithm.train",
    "FedBABU": "model: {personal: [HEAD]} with a phase of the shared parameters in algorithm.train",
    "LG-FedAvg": "model: {personal: [BODY]}, BODY the name of a sub-module",
    "FedBN": "model: {batch_norm: local}",
    "RFA": "aggregator: {name: geometric_median}",
}
"""What the field calls a method, and how a scenario says it."""


def underscored(name: str) -> str:
    """A name in lower case, its parts joined as names here are: ``dp_sgd`` of ``DP-SGD``, which is not ``D-PSGD``."""
    return re.sub(r"[-_ ]+", "_", name).casefold()


def called_here(name: str, allowed: Sequence[str]) -> str | None:
    """`` (did you mean 'x'?)`` for the allowed name that one from elsewhere stands for, or how a scenario says it.

    Neither case nor hyphens matter. Where they are all that tells two names apart, the one with the same parts counts.
    """
    for plain in (underscored, _without_parts):
        alike = [word for word in allowed if plain(word) == plain(name)]
        if alike:
            return _meant(alike[0])
        known = next((method for method in _PARTS if plain(method) == plain(name)), None)
        if known is not None:
            return f" ({known} is {_PARTS[known]})"
    ours = [word for word in _WORDS.get(name, ()) if word in allowed]
    scheme = _without_parts(name).removesuffix("partitioner")  # as flwr-datasets calls its classes
    if scheme != _without_parts(name):
        ours = [word for word in allowed if _without_parts(word) == scheme]
    return _meant(ours[0]) if ours else None


def _without_parts(name: str) -> str:
    return underscored(name).replace("_", "")


def _meant(word: str) -> str:
    return f" (did you mean '{word}'?)"
