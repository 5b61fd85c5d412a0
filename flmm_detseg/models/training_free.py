"""From an unmodified LMM to a model that grounds phrases, without a config and without training."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import torch
from mmengine.logging import print_log

from flmm_detseg.heads.attention_mask_head import AttentionMaskHead
from flmm_detseg.heads.phrase_head import PhraseGroundingHead
from flmm_detseg.lmms.load_lmm import load_lmm
from flmm_detseg.models.grounding_lmm import GroundingLMM
from flmm_detseg.refiners import Refiner
from flmm_detseg.refiners.load_refiner import load_refiner
from flmm_detseg.structures.head_ranking import RANKING_NAME
from flmm_detseg.utils.paths import find, is_file


def training_free_model(
    lmm: str,
    *,
    ranking: str | Path | None = None,
    heads: int = 3,
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
        heads: How many of the ranking's best heads; without a ranking it is not used.
        refiner: What :func:`~flmm_detseg.refiners.load_refiner.load_refiner` takes, or a refiner without text prompts;
            None: masks are as coarse as the LMM's patches.
        dtype: Of the LMM's weights; None: bfloat16 on a GPU, float32 without.
        device: For example ``"cuda:0"``; None takes the GPU when there is one.
        prompt_template: Of LLaVA and LLaVA-NeXT, ``"vicuna"`` or ``"mistral"``; None: the latter for
            LLaVA-NeXT over Mistral, else the former. Other families have their own.
        max_length: Longest sequence in tokens; None: what the language model was built for.

    Returns:
        The model in eval mode on its device.

    Raises:
        ConfigError: No such model, or none of a family that is known; the ranking is none, is of a model with
            other numbers of layers or heads (its name is not looked at), or has fewer heads; the refiner takes text.
        CheckpointError: Weights are absent, damaged, or do not fit.
    """
    sam = load_refiner(str(refiner)) if isinstance(refiner, str | Path) else refiner
    if ranking is None:
        beside = find(lmm) / RANKING_NAME
        ranking = beside if is_file(beside) else None
    rows: dict[str, Any] = {}
    if ranking is not None:
        rows = {"heads": f"top:{heads}", "ranking": str(ranking)}
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
    # The file was checked when the adapter was built.
    elif Path(of := json.loads(find(ranking).read_text(encoding="utf-8"))["lmm"]).name != Path(lmm).name:
        print_log(
            f"the ranking {ranking} was made for {of}, this LMM is {lmm}: as many layers and heads, perhaps "
            f"not the same ones. Its own: flmm-detseg rank-heads --lmm {lmm} --phrases FILE --image-dir DIR --out FILE",
            "current",
            logging.WARNING,
        )
    mask_head = AttentionMaskHead(adapter.attention_channels)
    head = PhraseGroundingHead(mask_head, sam, adapter.num_layers, adapter.hidden_size)
    return GroundingLMM(adapter, {"phrase": head}).to(adapter.device).eval()
