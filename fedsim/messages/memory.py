"""The compressor of an algorithm that is made for one: the scenario's ``compression``, and what clients remember.

EF21 (Richtarik et al., arXiv 2106.05203), CHOCO-SGD (Koloskova et al., arXiv 1902.00340), BEER (Zhao et al., arXiv
2201.13320) and DeepSqueeze (Tang et al., arXiv 1907.07346) differ in what they compress and in what they make of it.
What a client remembers of what it sent is one of three things (`fed_back`), so it is here, and the algorithms are a few
lines each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedsim.core.job import Job, RunFacts
from fedsim.core.types import Message, State
from fedsim.messages.base import MessageTransform
from fedsim.messages.compressors import Compressor, Remembers, Whole, fed_back


@dataclass(frozen=True, kw_only=True)
class OwnCompressor(MessageTransform):
    """What an algorithm with ``needs.compression`` does to its messages.

    An unbiased compressor is divided by 1 + omega, which makes it contractive: without, what is fed back would grow.

    Parameters
    ----------
    compressor : C.
    remembers : what clients keep; see `fed_back`.
    scales : one number per client: client i compresses v / scale_i, and its message counts scale_i times (EF21-W).
        Empty: 1 for all.
    whole_first : the message of the first round is not compressed.
    """

    compressor: Compressor
    remembers: Remembers
    scales: Sequence[float] = ()
    whole_first: bool = False

    keeps_idle: ClassVar[bool] = True

    def alpha(self, d: int) -> float | None:
        """How contractive it is on d numbers; None where the compressor does not say."""
        alpha, omega = self.compressor.alpha(d), self.compressor.omega(d)
        return alpha if alpha is not None or omega is None else 1 / (1 + omega)

    def check(self, form: Message, run: RunFacts) -> None:
        self.compressor.check(form, run)

    def fresh(self, form: Message) -> State:
        if self._exact:
            return {}
        return {k: torch.zeros_like(form[k]) for k in self.compressor.vectors(form)}

    def send(self, message: Message, kept: State, job: Job, run: RunFacts) -> tuple[Message, State]:
        if self._exact:
            return message, kept
        sent, after = dict(message), dict(kept)
        for place, k in enumerate(self.compressor.vectors(message)):

            def compress(v: Tensor, place: int = place) -> Tensor:
                return self._compressed(v, job, run, place)

            scale = self._scale(message[k], job)
            v = message[k] if scale is None else message[k] / scale
            made, after[k] = fed_back(self.remembers, v, kept[k], compress)
            sent[k] = made if scale is None else scale * made
        return sent, after

    def row_bytes(self, form: Message) -> int:
        return self.compressor.row_bytes(form)

    def facts(self, form: Message) -> Mapping[str, str]:
        said = {k: v for k, v in self.compressor.facts(form).items() if k != "note"}
        d = max((v.shape[-1] for v in form.values()), default=1)
        if self.compressor.alpha(d) is None and (alpha := self.alpha(d)) is not None:
            said["divided by 1 + omega"] = f"alpha {alpha:.4g}"
        if self.scales:
            said["weights by smoothness"] = f"{min(self.scales):.4g} to {max(self.scales):.4g} times the mean"
        return said

    def first_bytes(self, form: Message) -> int | None:
        return Whole().row_bytes(form) if self.whole_first else None

    @property
    def _exact(self) -> bool:
        """Nothing is lost, so that there is nothing to remember: what is sent is the message itself, bit for bit."""
        return isinstance(self.compressor, Whole) and self.remembers != "differences"

    def _compressed(self, v: Tensor, job: Job, run: RunFacts, place: int) -> Tensor:
        c = self.compressor.drawing(v, job, run, place)
        omega = self.compressor.omega(v.shape[-1])
        if omega is not None and self.compressor.alpha(v.shape[-1]) is None:
            c = c / (1 + omega)
        if self.whole_first:
            first = torch.as_tensor(job.rounds == 1, device=v.device).unsqueeze(1)
            c = torch.where(first, v, c)
        return c

    def _scale(self, v: Tensor, job: Job) -> Tensor | None:
        """Scales of the clients of `job`, ``[m, 1]``."""
        if not len(self.scales):
            return None
        scales = torch.as_tensor(self.scales, dtype=v.dtype, device=v.device)
        return scales[torch.as_tensor(job.clients, device=v.device)].unsqueeze(1)
