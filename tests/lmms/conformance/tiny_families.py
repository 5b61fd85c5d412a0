"""Tiny random models of every family: each ``tiny_NAME.py`` beside this file builds one, nothing else names it."""

from __future__ import annotations

import importlib
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import PreTrainedTokenizerBase

from flmm_detseg.lmms.family import LEAVES
from flmm_detseg.lmms.lmm import LMM

CORPUS = [
    "USER: Please describe the image. ASSISTANT: a red circle left of a blue square",
    "the dog sits on the green grass near a small white house",
    "Where is the big yellow triangle? It is at the top.",
] * 20
FAMILIES = sorted(path.stem.removeprefix("tiny_") for path in Path(__file__).parent.glob("tiny_*.py"))
FAMILIES.remove("families")


def build(family: str, **arguments) -> LMM:
    """A tiny adapter of a family; arguments as of ``from_config``."""
    torch.manual_seed(0)
    lmm = importlib.import_module(f"tiny_{family}").build(**arguments)
    lively(lmm)
    return lmm


@torch.no_grad()
def lively(lmm: LMM) -> None:
    """Larger weights: the usual tiny ones leave attention nearly uniform, and tests pass by accident."""
    generator = torch.Generator().manual_seed(1)
    for name, weight in lmm.model.named_parameters():
        if weight.ndim >= 2 and "lora_" not in name:
            scale = 0.3 if "embed" in name else 1.0 / weight.shape[-1] ** 0.5
            weight.copy_(scale * torch.randn(weight.shape, generator=generator))


def tokenizer(kind: type[PreTrainedTokenizerBase], special: list[str], **names: str):
    """A small byte-level tokenizer.

    Args:
        kind: Of transformers.
        special: Further special tokens, in the order of their ids, from 4 on.
        names: Special tokens that processors ask for by name.
    """
    words = Tokenizer(models.BPE(unk_token=None))
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokens = ["<pad>", "<s>", "</s>", "<unk>", *special]
    words.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=500, special_tokens=tokens, initial_alphabet=alphabet, show_progress=False
        ),
    )
    return kind(
        tokenizer_object=words,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        model_input_names=["input_ids", "attention_mask"],
        extra_special_tokens=names,
    )


LLAMA = dict(
    vocab_size=600,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=2048,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
)


def blind(lmm: LMM) -> None:
    """Blocks of the towers no longer look at other patches."""
    targets = lmm.facts.lora_targets.get("vision", LEAVES)
    leaves = set(targets["attention"]) - set(targets["qkv"])
    for path in lmm.facts.parts["vision"]:
        for name, module in lmm.model.get_submodule(path).named_modules():
            if isinstance(module, nn.Linear) and name.rpartition(".")[2] in leaves:
                nn.init.zeros_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
