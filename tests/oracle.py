"""Reference numbers of the original F-LMM as our structures (see the README beside the files).

``FLMM_ORACLE_DIR`` names the folder, default ``../shared/oracles`` beside the repository. Every ``*.pt`` file
in it is used; its ``kind`` says which family it is.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tiny import one_image
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from flmm_detseg.lmms import LlavaAdapter, LlavaNextAdapter, ProcessorSettings
from flmm_detseg.structures import GroundingBatch, LMMInputs, Phrase, Sample

_ROOT = Path(__file__).resolve().parents[1]
ORACLE_DIR = Path(os.environ.get("FLMM_ORACLE_DIR") or _ROOT.parent / "shared" / "oracles")
SKIP_REASON = f"no folder {ORACLE_DIR} with reference numbers (FLMM_ORACLE_DIR)"
FAMILIES = {
    "llava": (LlavaAdapter, LlavaForConditionalGeneration, LlavaConfig),
    "next": (LlavaNextAdapter, LlavaNextForConditionalGeneration, LlavaNextConfig),
}
# Side the mask head's input is brought to. The files' own field was overwritten by a picture while they were
# made.
UPSAMPLE_INPUT = {"llava": 60, "next": 64}


@dataclass(frozen=True)
class Oracle:
    """One reference file.

    Attributes:
        path: Of the file.
        kind: ``"llava"`` or ``"next"``.
        data: Everything in it: config, state_dict, samples, outputs, loss, grads, ...
    """

    path: Path
    kind: str
    data: Mapping[str, Any]

    @property
    def upsample_input(self) -> int:
        """The mask head's ``upsample_input``."""
        value = self.data["config"]["unet"].get("upsample_input")
        return value if isinstance(value, int) else UPSAMPLE_INPUT[self.kind]

    def parameters(self, prefix: str) -> dict[str, Tensor]:
        """Tensors of the state dict below ``prefix`` (with its dot), prefix removed."""
        return {
            key[len(prefix) :]: value
            for key, value in self.data["state_dict"].items()
            if key.startswith(prefix)
        }


def oracle_paths() -> list[Path]:
    """All reference files."""
    return sorted(ORACLE_DIR.glob("*.pt"))


@lru_cache(maxsize=2)
def load_oracle(path: Path) -> Oracle:
    """Reads a file and says which family it is."""
    data = torch.load(path, weights_only=True)
    kind = {"llava_next": "next"}.get(data["kind"], data["kind"])
    assert kind in FAMILIES, f"{path}: unknown kind {data['kind']!r}"
    return Oracle(path, kind, data)


def _lmm_config(oracle: Oracle) -> LlavaConfig | LlavaNextConfig:
    config = oracle.data["config"]
    fields = dict(
        vision_config=CLIPVisionConfig(**config["vision_config"]),
        text_config=LlamaConfig(**{"tie_word_embeddings": False, **config["text_config"]}),
        image_token_index=config["image_token_index"],
        vision_feature_layer=config.get("vision_feature_layer", -2),
        vision_feature_select_strategy=config.get("vision_feature_select_strategy", "default"),
        projector_hidden_act=config.get("projector_hidden_act", "gelu"),
        tie_word_embeddings=False,
    )
    if oracle.kind == "next":
        fields["image_grid_pinpoints"] = [[int(h), int(w)] for h, w in config["image_grid_pinpoints"]]
    return FAMILIES[oracle.kind][2](**fields)


def rename_lmm_keys(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """LMM keys of transformers <= 4.51 -> those of >= 4.52."""
    renamed = {}
    for key, value in state.items():
        if key.endswith(("position_ids", "inv_freq")):
            continue
        if key.startswith("language_model.model."):
            key = "model.language_model." + key.removeprefix("language_model.model.")
        elif key.startswith("language_model.lm_head."):
            key = key.removeprefix("language_model.")
        elif key.startswith(("vision_tower.", "multi_modal_projector.", "image_newline")):
            key = "model." + key
        renamed[key] = value
    return renamed


def _tokenizer(vocab_size: int, image_token_id: int) -> PreTrainedTokenizerFast:
    """The reference has ids, no text: any tokenizer with the image token in its place does."""
    vocab = {"<image>" if index == image_token_id else f"t{index}": index for index in range(vocab_size)}
    core = Tokenizer(WordLevel(vocab, unk_token="t3"))
    core.add_special_tokens([AddedToken("<image>", special=True, normalized=False)])
    return PreTrainedTokenizerFast(tokenizer_object=core)


def build_adapter(
    oracle: Oracle,
    *,
    merge: str = "mean",
    layers: list[int] | None = None,
    attention: str = "rows",
    frozen: bool = True,
) -> LlavaAdapter | LlavaNextAdapter:
    """Our adapter with the reference's weights, loaded strictly."""
    adapter_class, model_class, _ = FAMILIES[oracle.kind]
    config = _lmm_config(oracle)
    model = model_class(config)
    model.load_state_dict(rename_lmm_keys(oracle.parameters("llava.")), strict=True)
    tokenizer = _tokenizer(config.text_config.vocab_size, config.image_token_index)
    processor = adapter_class.family_class(config).build_processor(tokenizer, ProcessorSettings())
    return adapter_class(
        model.eval(), processor, merge=merge, layers=layers, attention=attention, frozen=frozen
    )


def build_inputs(oracle: Oracle, adapter: LlavaAdapter | LlavaNextAdapter, index: int) -> LMMInputs:
    """Inputs of one reference sample: its ids, mask ids and pixels, with our geometry of its image."""
    sample = oracle.data["samples"][index]
    _, grid = adapter.processor.process_image(sample["image"].numpy())
    ids, mask_ids, labels = (
        sample["input_ids"].flatten(),
        sample["mask_ids"].flatten(),
        sample["labels"].flatten(),
    )
    is_image = ids == oracle.data["config"]["image_token_index"]
    repeats = torch.where(is_image, grid.num_tokens, 1)
    mask_ids = mask_ids.masked_fill(is_image, -1).repeat_interleave(repeats)
    labels = labels.masked_fill(is_image, -100).repeat_interleave(repeats)
    pixels = sample["pixel_values"]
    num_phrases = len(sample["masks"])
    return LMMInputs(
        input_ids=ids.repeat_interleave(repeats),
        phrase_tokens=mask_ids == torch.arange(num_phrases)[:, None],
        labels=labels,
        image_mask=is_image.repeat_interleave(repeats),
        prefix_length=int((labels != -100).nonzero()[0]),
        images=one_image(pixels[0] if pixels.ndim == (5 if oracle.kind == "next" else 4) else pixels, grid),
        record_id=f"{oracle.path.stem}/{index}",
    )


def build_batch(oracle: Oracle, adapter: LlavaAdapter | LlavaNextAdapter) -> GroundingBatch:
    """All reference samples; ``Sample.masks`` are the targets at image size, the text is not known."""
    samples = [
        Sample(
            record_id=f"{oracle.path.stem}/{index}",
            image=np.ascontiguousarray(sample["image"].numpy()),
            text="",
            phrases=tuple(Phrase(spans=()) for _ in sample["gt_masks"]),
            masks=sample["gt_masks"].bool().numpy(),
        )
        for index, sample in enumerate(oracle.data["samples"])
    ]
    return GroundingBatch(samples, [build_inputs(oracle, adapter, index) for index in range(len(samples))])
