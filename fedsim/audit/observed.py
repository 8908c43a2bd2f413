"""What a server sees of one client in one round, and the same as a differentiable function of guessed examples."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import grad, vmap

from fedsim.algorithms.base import Algorithm, Effort
from fedsim.audit.base import supervised
from fedsim.clients.round import begin
from fedsim.core.errors import InputError
from fedsim.core.job import Job
from fedsim.core.oracle import Oracle
from fedsim.core.types import Message, clip_norm
from fedsim.messages.base import Pipeline
from fedsim.messages.compressor import Compressor
from fedsim.models.layout import call, layout, views
from fedsim.models.losses import Loss
from fedsim.scenario.sections import Scenario


class Observed(Mapping[str, Tensor]):
    """The gradient that a client's message tells, by the names of the model's parameters, and what is known about it.

    The mapping's values are the mean gradient for one step of gradient descent; after several local steps, what the
    client moved over the learning rate and the number of steps. `replay` says what other examples would have given.

    Attributes
    ----------
    message : ``[d]``, what the server got, in float64.
    images : how many examples the client holds.
    shape : of one example.
    box : the smallest and the largest value of the training data.
    num_classes : None for regression.
    clip : the bound on each example's gradient, or on the whole message, that the attacker knows of.
    """

    def __init__(
        self, gradient: Tensor, message: Tensor, replay: Replay, shape: tuple[int, ...], box: tuple[float, float],
        num_classes: int | None, images: int, clip: float | None,
    ) -> None:  # fmt: skip
        self.message, self.replay, self.shape, self.box = message, replay, shape, box
        self.num_classes, self.images, self.clip = num_classes, images, clip
        self._named = views(gradient, layout(replay.module))

    def __getitem__(self, name: str) -> Tensor:
        return self._named[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._named)

    def __len__(self) -> int:
        return len(self._named)


@dataclass(frozen=True)
class Replay:
    """The client's local work on guessed examples, by the algorithm's own code: ``[b, *shape]``, labels to ``[d]``.

    Labels are classes ``[b]``, or, for an attacker who optimises them too, logits of soft labels ``[b, k]``. The
    result can be differentiated by both. It knows of clipping and of compression, but nobody can replay noise.
    """

    algorithm: Algorithm
    module: nn.Module
    loss: Loss
    received: Message
    kept: Message
    lr: Tensor
    batches: tuple[Tensor, ...]
    """Positions of the examples in each local step's minibatch."""
    key: str
    example_clip: float | None = None
    denominator: float | None = None
    message_clip: float | None = None
    compressed: Callable[[Tensor], Tensor] | None = None
    """What compression would have made of a message ``[1, d]``, as far as that can be differentiated."""

    def __call__(self, inputs: Tensor, labels: Tensor) -> Tensor:
        local = {k: v.expand(1, -1) for k, v in self.algorithm.start(self.received, self.kept).items()}
        for batch in self.batches:
            oracle = _Guess(self, inputs[batch], labels[batch])
            local = self.algorithm.local_step(oracle, local, self.received, self.kept)
        steps = torch.full_like(self.lr, len(self.batches))
        message, _, _ = self.algorithm.message(local, self.received, self.kept, Effort(steps, self.lr))
        sent = message[self.key]
        sent = sent if self.message_clip is None else clip_norm(sent, self.message_clip)
        return (sent if self.compressed is None else self.compressed(sent))[0]


class _Guess(Oracle):
    """The oracle of a guess: gradients that can be differentiated by the examples."""

    def __init__(self, replay: Replay, inputs: Tensor, labels: Tensor) -> None:
        super().__init__(replay.lr)
        self.replay, self.inputs, self.labels = replay, inputs, labels

    @property
    def samples(self) -> Tensor:
        return torch.full_like(self.lr, len(self.inputs))

    def grad(self, x: Tensor) -> Tensor:
        r = self.replay
        if r.example_clip is not None:
            return self.clipped_sum(x, r.example_clip) / (r.denominator or len(self.inputs))
        flat = x if x.requires_grad else x.detach().requires_grad_()
        (g,) = torch.autograd.grad(self._losses(flat[0], self.inputs, self.labels).mean(), flat, create_graph=True)
        return g

    def per_sample_grad(self, x: Tensor) -> Tensor:
        def one(flat: Tensor, example: Tensor, label: Tensor) -> Tensor:
            return self._losses(flat, example.unsqueeze(0), label.unsqueeze(0)).sum()

        result: Tensor = vmap(grad(one), in_dims=(None, 0, 0))(x[0], self.inputs, self.labels)
        return result.unsqueeze(0)

    def _losses(self, flat: Tensor, inputs: Tensor, labels: Tensor) -> Tensor:
        r = self.replay
        places = layout(r.module)
        out = call(r.module, views(flat, places), places, inputs)
        if labels.dim() == 2 and labels.shape == out.shape and out.shape[-1] > 1:
            return -(torch.softmax(labels, -1) * torch.log_softmax(out, -1)).sum(-1)
        return r.loss(out, labels)


def observe(scenario: Scenario, assembly: Any, client: int, classes: int | None) -> tuple[Observed, Tensor, Tensor]:
    """The message of `client` in the first round, its examples ``[b, *shape]`` in float64 and their labels ``[b]``.

    Raises
    ------
    InputError
        The server does not see single messages, or they hold no update of the model.
    """
    task, algorithm = supervised(assembly), assembly.algorithm_of(scenario)
    if assembly.privacy.claims and assembly.privacy.ledger.claim.trust == "secagg":
        raise InputError(
            "found secagg: the server sees sums over clients only; allowed here: central or local", "privacy.trust"
        )
    if assembly.network is not None:
        raise InputError("a graph has no server that sees a client's update; allowed: a server algorithm", "algorithm")
    if algorithm.evaluates_on is not None:
        message = f"found '{scenario.names['algorithm']}', whose messages depend on a loss that no replay knows"
        raise InputError(f"{message}; allowed: an algorithm without, such as fedavg", "algorithm.name")
    clients, rounds = np.array([client]), np.array([1])
    _, epochs = algorithm.work()
    batch_size = algorithm.batch_size
    steps = algorithm.steps(task, clients, rounds, scenario.seed)
    x = task.initial()
    received = {k: v.reshape(1, -1) for k, v in begin(algorithm, algorithm.init(x)).items()}
    received = assembly.privacy.broadcast(received)
    job = Job(clients, rounds, steps, received)
    sent = assembly.worker(scenario).run(job)
    key = next((k for k in ("delta", "mean") if k in sent), None)
    if key is None:
        raise InputError(f"found messages of {', '.join(sent)}: no update of the model to invert", "algorithm.name")
    own = task.indices[task.offsets[client] : task.offsets[client + 1]]
    taken = task.plan(clients, rounds, steps, batch_size, epochs).batches
    where = {int(row): i for i, row in enumerate(own)}
    batches = tuple(
        torch.tensor([where[int(row)] for row in taken.index[0, k, : int(taken.counts[0, k])].cpu()])
        for k in range(int(steps[0]))
    )
    wide = {k: v.double() for k, v in received.items()}
    clip = getattr(assembly.privacy, "clip", None)
    clip = clip if clip is not None and np.isfinite(clip) else None
    wrapped = assembly.task is not task
    lr = torch.as_tensor(algorithm.lr_at(rounds), device=task.device, dtype=torch.float64).unsqueeze(1)
    replay = Replay(
        algorithm, copy.deepcopy(task.kernel.module).double(), task.loss, wide,
        {k: v.double() for k, v in algorithm.init_client(x.unsqueeze(0)).items()}, lr, batches, key,
        example_clip=clip if wrapped else None,
        denominator=getattr(assembly.privacy, "rate", 1.0) * len(own) if wrapped else None,
        message_clip=None if wrapped else clip, compressed=_compressed(assembly.pipeline, sent, key, job),
    )  # fmt: skip
    message = sent[key][0].double()
    gradient = message if key == "mean" else -message / (float(lr) * len(batches))
    rows = torch.as_tensor(own, device=task.device)
    inputs, labels = task.inputs[rows].double(), task.targets[rows]
    box = (float(task.inputs.min()), float(task.inputs.max()))
    known = clip if clip is not None else getattr(algorithm, "clip_norm", None) or algorithm.clip
    seen = Observed(gradient, message, replay, tuple(inputs.shape[1:]), box, classes, len(own), known)
    return seen, inputs, labels


def _compressed(pipeline: Pipeline, sent: Message, key: str, job: Job) -> Callable[[Tensor], Tensor] | None:
    """What the pipeline's compressor makes of a guess, with the draws of the message that was sent; None: it has none.

    In the first round there is nothing yet that error feedback could feed back.
    """
    for link in pipeline.links:
        if isinstance(link, Compressor) and key in (names := link.vectors(pipeline.given(link, sent))):
            draws = link.draws_for(sent[key], job, pipeline.run, names.index(key))
            return partial(link.retraced, sent=sent[key].double(), u=draws.double())
    return None
