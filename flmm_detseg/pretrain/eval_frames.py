"""Free-running evaluation of a tiny LLaVA on frames of held-out streams."""

from __future__ import annotations

import torch
import torch.distributed as dist
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

from flmm_detseg.errors import DataError
from flmm_detseg.pretrain.eval_llava import answer, image_side, normalise_answer
from flmm_detseg.pretrain.llava_frames import FRAME_KINDS, frame_turns, stream_frames


def evaluate_frames(
    model: LlavaForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    *,
    seed: int,
    items: int,
    rank: int = 0,
    world: int = 1,
) -> dict[str, float]:
    """Free-running accuracy on frames of validation streams, per kind of :data:`FRAME_KINDS`.

    Args:
        model: Tiny LLaVA (any training mode; put in eval mode).
        tokenizer: Its tokenizer.
        seed: World seed.
        items: Questions of every kind; a frame gives one of each that it has.
        rank: This process.
        world: Number of processes; each takes its share.

    Returns:
        Shares in [0, 1] by kind, rounded to 4 digits; the same in all processes.

    Raises:
        DataError: The frames drawn have too few questions of a kind.
    """
    model.eval()
    side = image_side(model)
    # Three frames of ten have no clock, half have no score.
    frames = stream_frames(seed, 0, 5 * items, side, "val")
    sums = torch.zeros(len(FRAME_KINDS), 2, dtype=torch.float64)
    for number, kind in enumerate(FRAME_KINDS):
        asked = [
            (frame.scene.image, turn[1], turn[2])
            for index, frame in enumerate(frames)
            for turn in list(t for t in frame_turns(frame, index) if t[0] == kind)[:1]
        ][:items]
        if len(asked) < items:
            raise DataError(
                f"{len(frames)} frames give only {len(asked)} questions of kind {kind}, not {items}"
            )
        asked = asked[rank::world]
        answers = answer(model, tokenizer, [a[0] for a in asked], [a[1] for a in asked], max_new_tokens=8)
        sums[number, 0] = sum(
            normalise_answer(given) == normalise_answer(wanted)
            for given, (_, _, wanted) in zip(answers, asked, strict=True)
        )
        sums[number, 1] = len(asked)
    if world > 1:
        dist.all_reduce(sums)
    return {
        kind: round(right / total, 4) for kind, (right, total) in zip(FRAME_KINDS, sums.tolist(), strict=True)
    }
