"""The order of a prompt: what never changes stands first, so that its keys and values can be cached.

``system | BG_START background BG_END | OBJ_START objects OBJ_END | question``

Everything up to ``BG_END`` is the prefix: it depends on the system text and the background alone. (The order ``image``,
for studies, leaves patches and text where the LLaVA has them; nothing of it can be cached.)
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import torch
from torch import Tensor

from flmm_detseg.errors import ConfigError, DataError
from flmm_detseg.structures.partition import BG, OBJ, PAD, PatchPartition

POSITION_SCHEMES = ("packed", "raster")
LETTERBOX_POLICIES = ("background", "drop")
ORDERS = ("background", "image")
NUM_SEPARATORS = 4


@dataclass(frozen=True)
class SequencePlan:
    """Where everything of one prompt is (CPU tensors).

    S counts system tokens, n background tokens (patches, or what they were compressed to), m object patches, T all
    tokens.

    Attributes:
        position_ids: Rotary positions, int64 ``[T]``. They rise strictly with the packed scheme only.
        prefix_length: ``S + 2 + n``: tokens that depend on system text and background only (S in image order).
        prompt_length: Tokens before the question, ``S + 4 + n + m``.
        columns: Sequence position of each patch, int64 ``[N]``, raster order; -1 for a patch that is not sent (dropped,
            or compressed). For a changed background patch, which stands twice, the recomputed copy.
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
        compressed: Tokens that a background was compressed to, spread evenly over the image's positions in the raster
            scheme (an object patch may have the same position as one of them); 0: its patches are sent.
        order: ``"background"``: background first, between separators. ``"image"``: patches in raster order, no
            separators.

    Raises:
        ConfigError: Unknown scheme, policy or order, or compression in image order.
    """

    num_patches: int
    positions: str = "raster"
    letterbox: str = "background"
    max_length: int = 4096
    compressed: int = 0
    order: str = "background"

    def __post_init__(self) -> None:
        known = {"positions": POSITION_SCHEMES, "letterbox": LETTERBOX_POLICIES, "order": ORDERS}
        for name, allowed in known.items():
            if getattr(self, name) not in allowed:
                raise ConfigError(f"`{name}` is {getattr(self, name)!r}; allowed: {', '.join(allowed)}")
        if self.compressed and self.order == "image":
            raise ConfigError(
                "`order`='image' leaves patches where they are; a background cannot be compressed"
            )

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
        """Patches that are computed for every request, int64 ``[m]``, ascending."""
        return (self.groups(partition) == OBJ).nonzero().flatten()

    def num_tokens(self, num_system: int, num_background: int, num_objects: int, num_text: int) -> int:
        """T of a prompt; ``num_background`` counts patches."""
        if self.compressed and num_background:
            num_background = self.compressed
        separators = NUM_SEPARATORS if self.order == "background" else 0
        return num_system + separators + num_background + num_objects + num_text

    def fusion_positions(self, background: Tensor, objects: Tensor, num_question: int) -> Tensor:
        """Rotary positions in pre-fusion's own layers, int64 ``[n + m + question]`` (n patches, compressed or not)."""
        if self.positions == "packed":
            return torch.arange(len(background) + len(objects) + num_question)
        return torch.cat([background, objects, self.num_patches + torch.arange(num_question)])

    def plan(
        self, num_system: int, background: Tensor, objects: Tensor, num_text: int, record_id: str = "request"
    ) -> SequencePlan:
        """Lays a prompt out.

        Args:
            num_system: S.
            background: Patches of the prefix, int64 ``[n]``.
            objects: Other patches, int64 ``[m]``; may repeat patches of the background (changed ones).
            num_text: Tokens of question and answer.
            record_id: Named in errors.

        Returns:
            Positions and places of all T tokens (CPU).

        Raises:
            DataError: Longer than ``max_length``: no group is ever cut.
        """
        length = self.num_tokens(num_system, len(background), len(objects), num_text)
        if length > self.max_length:
            raise DataError(
                f"{record_id}: the prompt has {length} tokens, `max_length` is {self.max_length}; image tokens are "
                "never cut: shorten the text, or raise `max_length`"
            )
        columns = torch.full((self.num_patches,), -1, dtype=torch.int64)
        if self.order == "image":
            return self._image_order(num_system, torch.cat([background, objects]), num_text, columns)
        places = background
        if self.compressed and len(background):
            places = (2 * torch.arange(self.compressed) + 1) * self.num_patches // (2 * self.compressed)
        start, end = num_system + 1, num_system + 1 + len(places)
        object_start = end + 2
        prompt_length = object_start + len(objects) + 1
        if not self.compressed:
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
                    first + places,
                    torch.tensor([num_system + 1, after]),
                    first + objects,
                    after + 1 + torch.arange(num_text + 1),
                ]
            )
        return SequencePlan(positions, end + 1, prompt_length, columns)

    def _image_order(self, num_system: int, sent: Tensor, num_text: int, columns: Tensor) -> SequencePlan:
        sent = sent.sort().values
        columns[sent] = num_system + torch.arange(len(sent))
        length = num_system + len(sent) + num_text
        positions = torch.arange(length)
        if self.positions == "raster":
            text = num_system + self.num_patches + torch.arange(num_text)
            positions = torch.cat([torch.arange(num_system), num_system + sent, text])
        return SequencePlan(positions, num_system, num_system + len(sent), columns)

    def prefix_key(self, system_ids: Tensor, separators: Tensor) -> str:
        """Names everything of a prefix but its background: hash of layout, system text and separators.

        Args:
            system_ids: int64 ``[S]``.
            separators: ``[4, d]``.

        Returns:
            Hex digits; other separators, layouts or system texts have other ones.
        """
        digest = blake2b(digest_size=16)
        digest.update(repr((self.num_patches, self.positions, self.letterbox, self.compressed)).encode())
        for tensor in (system_ids, separators.detach()):
            digest.update(repr((tensor.dtype, tuple(tensor.shape))).encode())
            digest.update(tensor.cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


def only_sent(values: Tensor, plan: SequencePlan) -> Tensor:
    """Sets values ``[..., N]`` of patches that were not sent to 0."""
    return values * (plan.columns >= 0).to(values)
