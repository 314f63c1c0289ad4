"""Tiny transformers models with every parameter at random, saved as a user would have them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertModel,
    Gemma2Config,
    Gemma2ForCausalLM,
    GemmaConfig,
    GemmaForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    OlmoConfig,
    OlmoForCausalLM,
    OPTConfig,
    OPTForCausalLM,
)

VOCABULARY, LAYERS = 97, 2
SIDE_FILE = '{"not": "parsed"}  \n\n\t\u00e9\r\n'.encode("utf-16")
COMMON: dict[str, Any] = dict(vocab_size=VOCABULARY, num_hidden_layers=LAYERS, max_position_embeddings=32)
SPECIAL: dict[str, Any] = dict(pad_token_id=1, bos_token_id=2, eos_token_id=3)


def opt(projected: int = 24, **more: Any) -> nn.Module:
    sizes = dict(hidden_size=24, ffn_dim=40, num_attention_heads=4, word_embed_proj_dim=projected)
    return OPTForCausalLM(OPTConfig(**COMMON, **SPECIAL, **sizes, **more))


def neox(parallel: bool = True, **more: Any) -> nn.Module:
    sizes = dict(hidden_size=24, intermediate_size=40, num_attention_heads=3, rotary_pct=0.5)
    return GPTNeoXForCausalLM(
        GPTNeoXConfig(**COMMON, **SPECIAL, **sizes, use_parallel_residual=parallel, **more)
    )


def olmo(**more: Any) -> nn.Module:
    sizes = dict(hidden_size=24, intermediate_size=40, num_attention_heads=4, num_key_value_heads=2)
    return OlmoForCausalLM(OlmoConfig(**COMMON, **SPECIAL, **sizes, **more))


def gemma(**more: Any) -> nn.Module:
    sizes = dict(
        hidden_size=24, intermediate_size=40, num_attention_heads=4, num_key_value_heads=2, head_dim=8
    )
    return GemmaForCausalLM(GemmaConfig(**COMMON, **SPECIAL, **sizes, **more))


def gemma2(**more: Any) -> nn.Module:
    sizes = dict(
        hidden_size=24, intermediate_size=40, num_attention_heads=4, num_key_value_heads=2, head_dim=8
    )
    return Gemma2ForCausalLM(
        Gemma2Config(**COMMON, **SPECIAL, **sizes, query_pre_attn_scalar=8, sliding_window=4, **more)
    )


def llama(key_values: int = 4, **more: Any) -> nn.Module:
    sizes = dict(hidden_size=48, intermediate_size=56, num_attention_heads=4, num_key_value_heads=key_values)
    return LlamaForCausalLM(LlamaConfig(**COMMON, **SPECIAL, **sizes, **more))


def bert(head: bool = False) -> nn.Module:
    sizes = dict(hidden_size=24, intermediate_size=40, num_attention_heads=4)
    config = BertConfig(**COMMON, pad_token_id=1, type_vocab_size=2, **sizes)
    return BertForMaskedLM(config) if head else BertModel(config)


def save(module: nn.Module, folder: Path, dtype: torch.dtype = torch.float32, seed: int = 0) -> Path:
    """Every parameter at random, norm weights around one; with a side file that is no JSON at all."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            values = 0.3 * torch.randn(parameter.shape, generator=generator)
            norm = parameter.ndim == 1 and name.endswith("weight")
            parameter.copy_(values + 1 if norm else values)
    module.to(dtype).save_pretrained(folder)
    (folder / "tokenizer.json").write_bytes(SIDE_FILE)
    return folder


def ids() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(7)
    mask = torch.ones(3, 11, dtype=torch.long)
    mask[1, 9:] = 0
    mask[2, 8:] = 0  # shorter than a sliding window: stock attention over padding alone is NaN
    return {"input_ids": torch.randint(4, VOCABULARY, (3, 11), generator=generator), "attention_mask": mask}


def answer(folder: Path, model_class: type[Any], field: str, dtype: torch.dtype = torch.float64) -> Tensor:
    """What stock transformers computes from a folder, at the positions that are no padding."""
    model = model_class.from_pretrained(folder, dtype=dtype).eval()
    inputs = ids()
    with torch.no_grad():
        out = getattr(model(**inputs), field)
    return out[inputs["attention_mask"].bool()].double()
