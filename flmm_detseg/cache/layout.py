"""The order of a prompt: what never changes first, so that its keys and values can be kept.

``system | BG_START background BG_END | OBJ_START objects OBJ_END | question``

Everything up to ``BG_END`` is the prefix: it depends on the system text and the background alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import torch
from torch import Tensor

from flmm_detseg.cache.types import BG, OBJ, PAD, PatchPartition
from flmm_detseg.errors import ConfigError, DataError

POSITION_SCHEMES = ("packed", "raster")
LETTERBOX_POLICIES = ("background", "drop")
NUM_SEPARATORS = 4
BG_START, BG_END, OBJ_START, OBJ_END = range(NUM_SEPARATORS)


@dataclass(frozen=True)
class SequencePlan:
    """Where everything of one prompt is (CPU tensors).

    S counts system tokens, n background and m object patches, T all tokens.

    Attributes:
        position_ids: Rotary positions, int64 ``[T]``. They rise strictly with the packed scheme only.
        prefix_length: ``S + 2 + n``: tokens that depend on system text and background only.
        prompt_length: Tokens before the question, ``S + 4 + n + m``.
        columns: Sequence position of each patch, int64 ``[N]``, raster order; -1 for a patch that is not sent. A patch
            sent twice (a stale background patch, sent again) has its later copy here.
    """

    position_ids: Tensor
    prefix_length: int
    prompt_length: int
    columns: Tensor

    @property
    def length(self) -> int:
        """T."""
        return len(self.position_ids)


@dataclass(frozen=True)
class PromptLayout:
    """How groups of patches become a sequence.

    Attributes:
        num_patches: N, patches of an image.
        positions: ``"packed"``: rotary positions 0, 1, 2, ... ``"raster"``: patch i is at ``S + 2 + i`` whichever group
            it is in, so patches are as far apart as in the LMM's own training; separators and text stand where they
            stand in the packed scheme when every patch is sent.
        letterbox: ``"background"``: padding belongs to the background (it is constant). ``"drop"``: it is not encoded
            and not sent.
        max_length: Longest sequence in tokens.

    Raises:
        ConfigError: Unknown scheme or policy.
    """

    num_patches: int
    positions: str = "raster"
    letterbox: str = "background"
    max_length: int = 4096

    def __post_init__(self) -> None:
        for name, allowed in (("positions", POSITION_SCHEMES), ("letterbox", LETTERBOX_POLICIES)):
            if getattr(self, name) not in allowed:
                raise ConfigError(f"`{name}` is {getattr(self, name)!r}; allowed: {', '.join(allowed)}")

    @property
    def num_groups(self) -> int:
        """Groups the vision tower keeps apart: dropped padding is one of its own."""
        return 3 if self.letterbox == "drop" else 2

    def groups(self, partition: PatchPartition) -> Tensor:
        """Group of each patch as the vision tower sees it, int64 ``[N]``."""
        group = torch.from_numpy(partition.group.astype(np.int64))
        return group if self.letterbox == "drop" else torch.where(group == PAD, BG, group)

    def background(self, partition: PatchPartition) -> Tensor:
        """Patches of the prefix, int64 ``[n]``, ascending."""
        return (self.groups(partition) == BG).nonzero().flatten()

    def objects(self, partition: PatchPartition) -> Tensor:
        """Patches that are always sent anew, int64 ``[m]``, ascending."""
        return (self.groups(partition) == OBJ).nonzero().flatten()

    def num_tokens(self, num_system: int, num_background: int, num_objects: int, num_text: int) -> int:
        """T of a prompt."""
        return num_system + NUM_SEPARATORS + num_background + num_objects + num_text

    def plan(
        self, num_system: int, background: Tensor, objects: Tensor, num_text: int, record_id: str = "request"
    ) -> SequencePlan:
        """Lays a prompt out.

        Args:
            num_system: S.
            background: Patches of the prefix, int64 ``[n]``.
            objects: Other patches, int64 ``[m]``; may repeat patches of the background (stale ones).
            num_text: Tokens of question and answer.
            record_id: Named in errors.

        Raises:
            DataError: Longer than ``max_length``: no group is ever cut.
        """
        length = self.num_tokens(num_system, len(background), len(objects), num_text)
        if length > self.max_length:
            raise DataError(
                f"{record_id}: the prompt has {length} tokens, `max_length` is {self.max_length}; image tokens are "
                "never cut: shorten the text, or raise `max_length`"
            )
        start, end = num_system + 1, num_system + 1 + len(background)
        object_start = end + 2
        prompt_length = object_start + len(objects) + 1
        columns = torch.full((self.num_patches,), -1, dtype=torch.int64)
        columns[background] = start + torch.arange(len(background))
        columns[objects] = object_start + torch.arange(len(objects))
        if self.positions == "packed":
            positions = torch.arange(length)
        else:
            first = num_system + 2
            after = first + self.num_patches
            positions = torch.cat(
                [
                    torch.arange(num_system + 1),
                    first + background,
                    torch.tensor([num_system + 1, after]),
                    first + objects,
                    after + 1 + torch.arange(num_text + 1),
                ]
            )
        return SequencePlan(positions, end + 1, prompt_length, columns)

    def prefix_key(self, system_ids: Tensor, separators: Tensor) -> str:
        """Names everything of a prefix but its background: hash of layout, system text and separators.

        Args:
            system_ids: int64 ``[S]``.
            separators: ``[4, d]``.
        """
        digest = blake2b(digest_size=16)
        digest.update(repr((self.num_patches, self.positions, self.letterbox)).encode())
        for tensor in (system_ids, separators.detach()):
            digest.update(repr((tensor.dtype, tuple(tensor.shape))).encode())
            digest.update(tensor.cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


def only_sent(values: Tensor, plan: SequencePlan) -> Tensor:
    """Sets values ``[..., N]`` of patches that were not sent to 0."""
    return values * (plan.columns >= 0).to(values)
