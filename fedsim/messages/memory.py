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
from fedsim.core.returned import like as as_given
from fedsim.core.types import Message, State
from fedsim.messages.compressor import Compressor, Remembers, fed_back
from fedsim.messages.compressors import Whole
from fedsim.messages.wire import Packing


@dataclass(frozen=True, kw_only=True)
class OwnCompressor(Packing):
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

    def vectors(self, form: Message) -> list[str]:
        return self.compressor.vectors(form)

    def transmitted(
        self, message: Message, kept: State, job: Job, run: RunFacts, pack: bool = False
    ) -> tuple[Message, Message, State]:
        sent, packed, after = dict(message), dict(message), dict(kept)
        for place, k in enumerate(self.vectors(message)):
            scale, v = self._scale(message[k], job), message[k]
            u, seen = self.compressor.draws_for(v, job, run, place), list[Tensor]()

            def compress(change: Tensor, u: Tensor = u, seen: list[Tensor] = seen) -> Tensor:
                seen.append(change)
                return self._first_whole(
                    change,
                    self._divided(as_given(self.compressor(change, u), change, self.compressor, "__call__")),
                    job,
                )

            if self._exact:
                seen.append(v)
            else:
                made, after[k] = fed_back(self.remembers, v if scale is None else v / scale, kept[k], compress)
                sent[k] = made if scale is None else scale * made
            if pack:
                packer = Whole() if self._is_whole(int(job.rounds[0])) else self.compressor
                packed[k] = packer.pack(seen[0], u)
        return sent, packed, after

    def arrived(self, packed: Message, form: Message, job: Job, run: RunFacts) -> Message:
        sent = dict(packed)
        for place, k in enumerate(self.vectors(form)):
            like = form[k].expand(len(job.clients), -1)
            u = self.compressor.draws_for(like, job, run, place)
            if self._is_whole(int(job.rounds[0])):
                c = Whole().unpack(packed[k], like, u)
            else:
                c = self._divided(self.compressor.unpack(packed[k], like, u))
            scale = self._scale(like, job)
            sent[k] = c if scale is None else scale * c
        return sent

    def vector_bytes(self, v: Tensor, round: int) -> int:
        return (Whole() if self._is_whole(round) else self.compressor).vector_bytes(v, round)

    def facts(self, form: Message) -> Mapping[str, str]:
        said = {k: v for k, v in self.compressor.facts(form).items() if k != "note"}
        d = max((v.shape[-1] for v in form.values()), default=1)
        if self.compressor.alpha(d) is None and (alpha := self.alpha(d)) is not None:
            said["divided by 1 + omega"] = f"alpha {alpha:.4g}"
        if self.scales:
            said["weights by smoothness"] = f"{min(self.scales):.4g} to {max(self.scales):.4g} times the mean"
        return said

    @property
    def _exact(self) -> bool:
        """Nothing is lost, so that there is nothing to remember: what is sent is the message itself, bit for bit."""
        return isinstance(self.compressor, Whole) and self.remembers != "differences"

    def _is_whole(self, round: int) -> bool:
        return self.whole_first and round == 1

    def _first_whole(self, v: Tensor, c: Tensor, job: Job) -> Tensor:
        """`c`, but v itself in rows of the first round where that is not compressed."""
        if not self.whole_first:
            return c
        return torch.where(torch.as_tensor(job.rounds == 1, device=v.device).unsqueeze(1), v, c)

    def _divided(self, c: Tensor) -> Tensor:
        """Of an unbiased compressor C / (1 + omega)."""
        omega = self.compressor.omega(c.shape[-1])
        return c if not omega or self.compressor.alpha(c.shape[-1]) is not None else c / (1 + omega)

    def _scale(self, v: Tensor, job: Job) -> Tensor | None:
        """Scales of the clients of `job`, ``[m, 1]``."""
        if not len(self.scales):
            return None
        scales = torch.as_tensor(self.scales, dtype=v.dtype, device=v.device)
        return scales[torch.as_tensor(job.clients, device=v.device)].unsqueeze(1)
