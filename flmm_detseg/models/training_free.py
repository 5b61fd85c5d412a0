"""From an unmodified LMM to a model that grounds phrases, without a config and without training."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from mmengine.logging import print_log

from flmm_detseg.errors import ConfigError
from flmm_detseg.heads.attention_mask_head import AttentionMaskHead
from flmm_detseg.heads.phrase_head import PhraseGroundingHead
from flmm_detseg.lmms.load_lmm import load_lmm
from flmm_detseg.models.grounding_lmm import GroundingLMM
from flmm_detseg.refiners import Refiner
from flmm_detseg.refiners.load_refiner import load_refiner
from flmm_detseg.structures.head_ranking import RANKING_NAME
from flmm_detseg.utils.paths import find, is_file

# Of a ranking's best heads, where nobody says how many.
_HEADS = 3


def training_free_model(
    lmm: str,
    *,
    ranking: str | Path | None = None,
    heads: int | None = None,
    refiner: str | Path | Refiner | None = None,
    dtype: str | None = None,
    device: str | torch.device | None = None,
    prompt_template: str | None = None,
    max_length: int | None = None,
) -> GroundingLMM:
    """An LMM with :class:`~flmm_detseg.heads.AttentionMaskHead`, which is never trained.

    Args:
        lmm: Folder in hub layout, or hub name, of a model of any family in ``lmms/families``.
        ranking: File of the LMM's ranking of heads; None: ``head_ranking.json`` in its folder. Where neither is there,
            masks come from the mean of all heads, and a warning says how to make one.
        heads: How many of the ranking's best heads; None: 3. For a ranking only.
        refiner: What :func:`~flmm_detseg.refiners.load_refiner.load_refiner` takes, or a refiner without text prompts;
            None: masks are as coarse as the LMM's patches.
        dtype: Of the LMM's weights; None: bfloat16 on a GPU, float32 without.
        device: For example ``"cuda:0"``; None takes the GPU when there is one.
        prompt_template: Of LLaVA and LLaVA-NeXT, a name of its chat templates; None: ``"mistral"`` for
            LLaVA-NeXT over Mistral, else ``"vicuna"``. Other families have their own.
        max_length: Longest sequence in tokens; None: what the language model was built for.

    Returns:
        The model in eval mode on its device.

    Raises:
        ConfigError: No such model, or none of a family that is known; the ranking is none, is of a model with
            other numbers of layers or heads (another name is a warning), or has fewer heads; ``heads`` without a
            ranking; ``prompt_template`` for a family that has its own; the refiner takes text.
        CheckpointError: Weights are absent, damaged, or do not fit.
    """
    if ranking is None:
        beside = find(lmm) / RANKING_NAME
        ranking = beside if is_file(beside) else None
    if ranking is None and heads is not None:
        raise ConfigError(
            f"`heads` is {heads} (--heads), the best ones of a ranking, and {lmm} has none: give `ranking` (--ranking "
            "FILE, which flmm-detseg rank-heads writes), or leave `heads` out, which reads all heads"
        )
    sam = load_refiner(str(refiner)) if isinstance(refiner, str | Path) else refiner
    rows: dict[str, Any] = {}
    if ranking is not None:
        rows = {"heads": f"top:{_HEADS if heads is None else heads}", "ranking": str(ranking)}
    adapter = load_lmm(
        lmm, rows=rows, dtype=dtype, device=device, prompt_template=prompt_template, max_length=max_length
    )
    if ranking is None:
        print_log(
            f"{lmm} has no ranking of its attention heads: masks come from the mean of all "
            f"{len(adapter.attention_pairs)} heads. Some 50 images with a phrase each, without masks, make one: "
            f"flmm-detseg rank-heads --lmm {lmm} --phrases FILE --image-dir DIR --out ranking.json; then give "
            "ranking='ranking.json' (--ranking ranking.json)",
            "current",
            logging.WARNING,
        )
    mask_head = AttentionMaskHead(adapter.attention_channels)
    head = PhraseGroundingHead(mask_head, sam, adapter.num_layers, adapter.hidden_size)
    return GroundingLMM(adapter, {"phrase": head}).to(adapter.device).eval()
