"""What travels takes the bits that are counted, to the byte, and unpacked it is what was compressed, bit for bit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.core.errors import RunError
from fedsim.core.job import Job, RunFacts
from fedsim.messages.base import Pipeline
from fedsim.messages.compressor import Compressor
from fedsim.messages.compressors import QSGD, Natural, RandK, Sign, TopK, Whole
from fedsim.messages.memory import OwnCompressor
from fedsim.messages.wire import Packing, opened, travelling, wired

RUN = RunFacts(3, 7)
MADE = [
    Whole(), TopK(k=1), TopK(fraction=0.3), TopK(fraction=1.0), RandK(k=1), RandK(fraction=0.4, scaled=True), Sign(),
    QSGD(levels=1), QSGD(levels=3, contractive=True), QSGD(levels=15), QSGD(levels=100), Natural(),
]  # fmt: skip


def _job(m: int, number: int = 2) -> Job:
    return Job(np.arange(m), np.full(m, number), np.ones(m, dtype=np.int64), {})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("compressor", MADE, ids=repr)
@settings(max_examples=25, deadline=None)
@given(
    d=st.integers(1, 40),
    scale=st.sampled_from([1e-42, 1e-30, 1.0, 1e15]),
    zeros=st.sampled_from([0.0, 0.5, 1.0]),
    seed=st.integers(0, 99),
)
def test_the_round_trip_is_exact(
    compressor: Compressor, dtype: torch.dtype, d: int, scale: float, zeros: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    v = (scale * torch.randn(3, d, generator=generator, dtype=torch.float64)).to(dtype)
    v = torch.where(torch.rand(3, d, generator=generator) < zeros, torch.zeros_like(v), v)
    u = torch.rand(3, d, generator=generator, dtype=torch.float64).to(dtype)
    packed = compressor.pack(v, u)
    assert packed.dtype == torch.uint8
    assert packed.shape == (3, -(-compressor.bits(d, 8 * v.element_size()) // 8))
    assert torch.equal(compressor.unpack(packed, v, u), compressor(v, u))


LINKS: list[Packing] = [
    *MADE,
    TopK(k=2, feedback="ef14"),
    QSGD(levels=2, contractive=True, feedback="ef14"),
    *(
        OwnCompressor(compressor=c, remembers="differences", scales=scales, whole_first=first)
        for c in (TopK(k=2), QSGD(levels=4), Natural(), Whole())
        for scales in ((), tuple(0.5 + i for i in range(7)))
        for first in (False, True)
    ),
]


@pytest.mark.parametrize("link", LINKS, ids=repr)
def test_what_arrives_is_what_a_simulation_hands_on(link: Packing) -> None:
    """Over some rounds with what clients keep; a number per client travels as it is."""
    form = {"delta": torch.zeros(1, 11), "norm": torch.zeros(1, 1)}
    pipeline = Pipeline((link,), RUN)
    client = wired(pipeline)
    kept, kept_too = ({k: v.expand(7, -1) for k, v in pipeline.fresh(form).items()} for _ in range(2))
    for number in (1, 2, 3):
        generator = torch.Generator().manual_seed(number)
        message = {k: torch.randn(7, v.shape[-1], generator=generator) for k, v in form.items()}
        arrives, kept = pipeline.send(message, kept, _job(7, number))
        travels, kept_too = client.send(message, kept_too, _job(7, number))
        wanted = travelling(pipeline, form, number)
        assert {k: (v.dtype, v.shape[1]) for k, v in travels.items()} == {
            k: (v.dtype, v.shape[1]) for k, v in wanted.items()
        }
        size = sum(v[0].numel() * v.element_size() for v in travels.values())
        assert size == pipeline.row_bytes(form, first=number == 1)
        back = opened(pipeline, travels, form, _job(7, number))
        assert all(torch.equal(back[k], arrives[k]) for k in form)
        assert kept.keys() == kept_too.keys()
        assert all(torch.equal(kept[k], kept_too[k]) for k in kept)


@pytest.mark.parametrize(
    "compressor,v",
    [
        (TopK(k=2), torch.tensor([[0xFF] * 9], dtype=torch.uint8)),  # values, and two places that are the same
        (TopK(k=3), torch.tensor([[0] * 12 + [0xF8]], dtype=torch.uint8)),  # five of five places marked
        (QSGD(levels=4), torch.tensor([[0xFF] * 7], dtype=torch.uint8)),  # levels of 7
    ],
    ids=lambda v: repr(v) if isinstance(v, Compressor) else "",
)
def test_bytes_that_no_compressor_makes_are_refused(compressor: Compressor, v: torch.Tensor) -> None:
    like = torch.zeros(1, 5)
    assert v.shape[1] == -(-compressor.bits(5, 32) // 8)
    with pytest.raises(ValueError, match=r"marked|rising|above"):
        compressor.unpack(v, like, torch.zeros(1, 5))


def test_somebodys_compressor_need_not_say_how_it_travels() -> None:
    assert all(c.packs for c in MADE)
    assert not Compressor.packs
    with pytest.raises(RunError, match="does not say how"):
        Compressor.pack(replace(Sign()), torch.zeros(1, 3), torch.zeros(1, 0))
