"""What the tiny SAM is trained on: TinyWorld masks and the prompts made from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from flmm_detseg.datasets.tinyworld import Scene, make_scene
from flmm_detseg.ops.boxes import masks_to_boxes, scale_boxes
from flmm_detseg.ops.masks import resize_maps
from flmm_detseg.refiners import SAMRefiner

PROMPT_KINDS = ("box", "mask", "point", "box+mask")
# The refiner of F-LMM always gives box and mask: most of the training looks like that.
KIND_SHARES = (0.2, 0.25, 0.15, 0.4)
NUM_POINTS = 3
# Most scenes are square as in the data sets; the others teach the model about padding.
IMAGE_SIZES = ((112, 112), (112, 112), (112, 112), (112, 84), (84, 112))


@dataclass(frozen=True)
class PromptedMasks:
    """Masks of one image and everything a prompt can be made of; frame: SAM's padded square of side S.

    Attributes:
        image: RGB uint8 ``[H, W, 3]``.
        masks: Targets, bool ``[K, H, W]``.
        coarse_logits: Degraded masks as a mask head would give them, float32 ``[K, h, w]``.
        mask_logits: The same as SAM's mask prompt, ``[K, 1, m, m]``.
        coarse_boxes: Boxes of the degraded masks, ``[K, 4]``.
        boxes: Jittered true boxes, ``[K, 4]``.
        points: Points inside the masks, ``[K, NUM_POINTS, 2]`` (x, y).
    """

    image: np.ndarray
    masks: Tensor
    coarse_logits: Tensor
    mask_logits: Tensor
    coarse_boxes: Tensor
    boxes: Tensor
    points: Tensor


def prompted_scene(
    refiner: SAMRefiner,
    seed: int,
    index: int,
    split: str,
    generator: torch.Generator,
    max_masks: int | None = None,
) -> PromptedMasks:
    """One scene with its masks and prompts.

    Args:
        refiner: Gives the way from coarse logits to SAM's frame.
        seed: Of the world.
        index: Of the scene; also decides its size.
        split: Of the world.
        generator: Random numbers of the prompts.
        max_masks: Random choice of at most so many masks; None keeps all.

    Returns:
        Image, masks, coarse logits and prompts of the scene.
    """
    scene = make_scene(seed, index, split, IMAGE_SIZES[index % len(IMAGE_SIZES)])
    masks = scene_masks(scene, generator)
    if max_masks is not None and len(masks) > max_masks:
        masks = masks[torch.randperm(len(masks), generator=generator)[:max_masks]]
    size = (scene.image.shape[0], scene.image.shape[1])
    coarse = degrade(masks, generator)
    prompt = refiner.make_prompt(coarse, size)
    input_size = refiner.input_size(size)
    return PromptedMasks(
        image=scene.image,
        masks=masks,
        coarse_logits=coarse,
        mask_logits=prompt.mask_logits,
        coarse_boxes=prompt.boxes_xyxy,
        boxes=scale_boxes(_jitter(masks_to_boxes(masks), size, generator), size, input_size),
        points=_points(masks, generator) * (input_size[0] / size[0]),
    )


def scene_masks(scene: Scene, generator: torch.Generator) -> Tensor:
    """Objects, stuff regions and (as for plural phrases) a union of objects; bool ``[K, H, W]``."""
    things = [torch.from_numpy(item.mask) for item in scene.objects]
    masks = [*things, *(torch.from_numpy(region.mask) for region in scene.stuff)]
    if len(things) > 1:
        count = int(torch.randint(2, min(3, len(things)) + 1, (), generator=generator))
        chosen = torch.randperm(len(things), generator=generator)[:count]
        masks.append(torch.stack([things[i] for i in chosen]).any(0))
    return torch.stack([mask for mask in masks if mask.any()])


def degrade(masks: Tensor, generator: torch.Generator, side: int = 64) -> Tensor:
    """Coarse logits as from attention: a coarse grid, shifted, noisy, leaking into another mask, of random
    contrast.

    Args:
        masks: bool ``[K, H, W]``.
        generator: Random numbers.
        side: Longer side of the result.

    Returns:
        float32 ``[K, h, w]``.
    """

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(len(masks), 1, 1, generator=generator) * (high - low) + low

    height, width = masks.shape[-2:]
    longer = max(height, width)
    cells = int(torch.randint(10, 24, (), generator=generator))
    shift = torch.randint(-3, 4, (2,), generator=generator).tolist()
    grid = (max(2, round(cells * height / longer)), max(2, round(cells * width / longer)))
    coverage = F.interpolate(masks[:, None].float().roll(shift, (-2, -1)), size=grid, mode="area")[:, 0]
    leak = coverage[torch.randperm(len(masks), generator=generator)]
    coverage = torch.maximum(coverage, leak * uniform(0.0, 0.7) * (uniform(0, 1) < 0.4))
    coverage = coverage + 0.2 * uniform(0, 1) * torch.randn(coverage.shape, generator=generator)
    logits = uniform(1.5, 7.0) * (2 * coverage - uniform(0.7, 1.2))
    size = (round(side * height / longer), round(side * width / longer))
    return resize_maps(logits, size)


def encode_prompts(
    refiner: SAMRefiner, scenes: Sequence[PromptedMasks], kinds: Sequence[str]
) -> tuple[Tensor, ...]:
    """Prompt embeddings of all masks of some scenes, in order.

    Args:
        refiner: Holds the prompt encoder.
        scenes: N masks in all.
        kinds: One of ``PROMPT_KINDS`` per mask.

    Returns:
        ``(sparse [N, T, D], sparse_mask bool [N, T], dense [N, D, e, e])``.
    """
    encoder = refiner.model.prompt_encoder
    mask_logits, coarse_boxes, boxes, points = (
        torch.cat([getattr(scene, name) for scene in scenes])
        for name in ("mask_logits", "coarse_boxes", "boxes", "points")
    )
    longest = NUM_POINTS + 1  # SAM adds a padding point where no box is given
    sparse = boxes.new_zeros(len(boxes), longest, refiner.prompt_dim)
    sparse_mask = torch.zeros(len(boxes), longest, dtype=torch.bool)
    dense = boxes.new_zeros(len(boxes), refiner.prompt_dim, *encoder.image_embedding_size)
    for kind in PROMPT_KINDS:
        rows = torch.tensor([index for index, name in enumerate(kinds) if name == kind], dtype=torch.long)
        if len(rows) == 0:
            continue
        labels = torch.ones(len(rows), NUM_POINTS, dtype=torch.long)
        tokens, maps = encoder(
            points=(points[rows], labels) if kind == "point" else None,
            boxes={"box": boxes, "box+mask": coarse_boxes}[kind][rows] if "box" in kind else None,
            masks=mask_logits[rows] if "mask" in kind else None,
        )
        tokens = F.pad(tokens, (0, 0, 0, longest - tokens.shape[1]))
        num_tokens = {"box": 2, "box+mask": 2, "mask": 0, "point": longest}[kind]
        sparse = sparse.index_copy(0, rows, tokens)
        dense = dense.index_copy(0, rows, maps)
        sparse_mask[rows, :num_tokens] = True
    return sparse, sparse_mask, dense


def choose_kinds(count: int, generator: torch.Generator) -> list[str]:
    """Random prompt kinds in the shares of ``KIND_SHARES``."""
    picks = torch.multinomial(torch.tensor(KIND_SHARES), count, replacement=True, generator=generator)
    return [PROMPT_KINDS[pick] for pick in picks.tolist()]


def _jitter(boxes: Tensor, size: tuple[int, int], generator: torch.Generator, share: float = 0.08) -> Tensor:
    extent = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
    moved = boxes + share * extent * torch.randn(boxes.shape, generator=generator).clamp(-2, 2)
    return moved.clamp(min=0).minimum(boxes.new_tensor([size[1], size[0], size[1], size[0]]))


def _points(masks: Tensor, generator: torch.Generator) -> Tensor:
    picks = torch.multinomial(masks.flatten(1).float(), NUM_POINTS, replacement=True, generator=generator)
    width = masks.shape[-1]
    return torch.stack([picks % width, picks // width], dim=-1) + 0.5
