"""GPT-2 of Hugging Face in a small size, by itself and wrapped by PEFT, for tests; nothing is downloaded."""

from __future__ import annotations

from typing import Any

from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel


def gpt2(vocabulary: int, input_shape: tuple[int, ...], dropout: float = 0.0) -> nn.Module:
    sizes: dict[str, Any] = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": input_shape[0]}
    rates = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), dropout)
    ends = dict.fromkeys(("bos_token_id", "eos_token_id"), 0)
    made: nn.Module = GPT2LMHeadModel(
        GPT2Config(vocab_size=vocabulary, attn_implementation="eager", **sizes, **rates, **ends)
    )
    return made


def adapted(vocabulary: int, input_shape: tuple[int, ...], dropout: float = 0.0) -> nn.Module:
    """The same with PEFT's LoRA in attention."""
    lora = LoraConfig(r=4, lora_alpha=8, target_modules=["c_attn", "c_proj"], lora_dropout=dropout, fan_in_fan_out=True)
    return get_peft_model(gpt2(vocabulary, input_shape), lora)
