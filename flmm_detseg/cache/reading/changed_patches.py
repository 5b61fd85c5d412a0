"""Training for level L3: the background differs from the image in some patches, which are recomputed."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from flmm_detseg.cache.reading.layout import PromptLayout
from flmm_detseg.cache.reading.prompt_parts import PartitionedInputs, PromptParts, with_partition
from flmm_detseg.cache.reading.reader import GroupReader
from flmm_detseg.errors import ConfigError
from flmm_detseg.structures.partition import OBJ


def check_share(share: Sequence[float] | None, layout: PromptLayout) -> tuple[float, float] | None:
    """Reads the setting ``stale_share``.

    Args:
        share: Least and largest share of a background's patches; None: off.
        layout: Of the model.

    Returns:
        The two shares, in [0, 1]; None: off.

    Raises:
        ConfigError: Not two shares in order, or a layout of which nothing is cached.
    """
    if share is None:
        return None
    if len(share) != 2 or not 0 <= share[0] <= share[1] <= 1:
        raise ConfigError(
            f"`stale_share` is {share!r}; give the least and the largest share, like (0.0, 0.05)"
        )
    if layout.order == "image":
        raise ConfigError("`stale_share` is for order='background': in image order no background is reused")
    return float(share[0]), float(share[1])


def see_groups(
    model: GroupReader,
    inputs: Sequence[PartitionedInputs],
    layers: Collection[int],
    num_tokens: Sequence[int],
    share: tuple[float, float] | None,
) -> tuple[list[PromptParts], dict[int, Tensor], Tensor]:
    """Splits a batch and runs the vision tower over its groups; in training some patches have changed.

    At a changed patch the stored background showed something else: here another patch of the same image. The background
    is read with it, as a stored one would be; the patch itself is an additional object token at its own position.

    Args:
        model: Of the samples.
        inputs: Prepared samples.
        layers: Wanted hidden states.
        num_tokens: Tokens of the longest sample that shares the image, in the LMM's own sequence, of each.
            The changed patches are added to each of them, so all must have room.
        share: From :func:`check_share`.

    Returns:
        The prompts; hidden states ``[B, N, D]`` per layer; those of the feature layer to take backgrounds from.
    """
    layer = model.feature_layer
    if share is None or not model.training:
        parts = [model.prompt_parts(item) for item in inputs]
        states = model.group_states(inputs, layers)
        return parts, states, states[layer]
    changed = [_draw(model, item, share, count) for item, count in zip(inputs, num_tokens, strict=True)]
    parts = [model.prompt_parts(item, changed=found) for item, found in zip(inputs, changed, strict=True)]
    now = [_as_objects(item, found) for item, found in zip(inputs, changed, strict=True)]
    stored = [_as_stored(model, item, found) for item, found in zip(inputs, changed, strict=True)]
    return parts, model.group_states(now, layers), model.group_states(stored, (layer,))[layer]


def _draw(model: GroupReader, item: PartitionedInputs, share: tuple[float, float], num_tokens: int) -> Tensor:
    """Random patches of the background, int64, ascending; no more than fit into the sequence."""
    background = torch.from_numpy(item.partition.background)
    least, most = share
    count = round(len(background) * (least + (most - least) * float(torch.rand(()))))
    longer = num_tokens - len(item.input_ids)
    room = model.layout.max_length - model.prompt_parts(item).plan.length - longer
    chosen = torch.randperm(len(background))[: max(0, min(count, room))]
    return background[chosen].sort().values


def _as_objects(item: PartitionedInputs, changed: Tensor) -> PartitionedInputs:
    """The image itself; changed patches are objects: the tower reads them with these, not with the background."""
    group = item.partition.group.copy()
    group[changed.numpy()] = OBJ
    return with_partition(item, replace(item.partition, group=group))


def _as_stored(model: GroupReader, item: PartitionedInputs, changed: Tensor) -> PartitionedInputs:
    """The image as it was stored: at each changed patch it shows another of its patches."""
    side, cols, count = model.patch_size, model.vision_grid[1], model.layout.num_patches
    pixels = item.pixel_values.clone()
    # Never the patch itself.
    sources = (changed + torch.randint(1, count, (len(changed),))) % count
    for target, source in zip(changed.tolist(), sources.tolist(), strict=True):
        (to_row, to_col), (row, col) = divmod(target, cols), divmod(source, cols)
        pixels[:, to_row * side : (to_row + 1) * side, to_col * side : (to_col + 1) * side] = (
            item.pixel_values[:, row * side : (row + 1) * side, col * side : (col + 1) * side]
        )
    return item.with_pixels(pixels)
