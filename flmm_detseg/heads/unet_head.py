"""U-Net over attention stacks: the coarse mask of each phrase."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmseg.models.backbones.unet import InterpConv, UNet
from mmseg.models.utils import Upsample
from torch import Tensor, nn

from flmm_detseg.registry import MODELS
from flmm_detseg.utils.memory import give_back_memory


class Float32Upsample(Upsample):
    """mmseg's upsampling, interpolated in float32 whatever the network's precision."""

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C, h, w]`` -> ``[N, C, 2h, 2w]``, dtype kept."""
        # By the factor, not by a size that is computed from it: so it can be exported for any size.
        up = F.interpolate(
            x.float(), scale_factor=self.scale_factor, mode=self.mode, align_corners=self.align_corners
        )
        return up.to(x.dtype)


class Float32InterpConv(InterpConv):
    """mmseg's interpolate-then-convolve block with :class:`Float32Upsample`; parameter names unchanged."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        with_cp: bool,
        norm_cfg: dict[str, Any],
        act_cfg: dict[str, Any],
    ) -> None:
        super().__init__(in_channels, out_channels, with_cp=with_cp, norm_cfg=norm_cfg, act_cfg=act_cfg)
        self.interp_upsample[0] = Float32Upsample(scale_factor=2, mode="bilinear", align_corners=False)


@MODELS.register_module()
class UNetHead(UNet):
    """mmseg's U-Net with a 1x1 classifier (parameters ``encoder.*``, ``decoder.*``, ``conv_seg.*``).

    Args:
        in_channels: C of the attention stack (``LMMAdapter.attention_channels``).
        base_channels: Channels of the first stage; doubled at every stage.
        num_stages: Stages; maps are padded to multiples of ``2 ** (num_stages - 1)``.
        normalize_input: Divide every channel by its spatial sum (attention mass on the image becomes 1).
        upsample_input: Maps smaller than this are enlarged until their longer side has it; None leaves them.

    Source: F-LMM, arXiv 2406.05821, section 3.3 (mask decoder).
    """

    def __init__(
        self,
        in_channels: int,
        base_channels: int = 64,
        num_stages: int = 4,
        normalize_input: bool = True,
        upsample_input: int | None = 64,
    ) -> None:
        super().__init__(
            in_channels=in_channels,
            base_channels=base_channels,
            num_stages=num_stages,
            strides=(1,) * num_stages,
            enc_num_convs=(2,) * num_stages,
            dec_num_convs=(2,) * (num_stages - 1),
            downsamples=(True,) * (num_stages - 1),
            enc_dilations=(1,) * num_stages,
            dec_dilations=(1,) * (num_stages - 1),
            norm_cfg=dict(type=nn.GroupNorm, num_groups=1),
            upsample_cfg=dict(type=Float32InterpConv),
        )
        self.in_channels = in_channels
        self.normalize_input = normalize_input
        self.upsample_input = upsample_input
        self.conv_seg = nn.Conv2d(base_channels, 1, kernel_size=1)

    def train(self, mode: bool = True) -> UNetHead:
        """As every module's (mmseg's own returns nothing)."""
        super().train(mode)
        return self

    def forward(self, maps: Tensor) -> Tensor:
        """One logit map per attention stack.

        Args:
            maps: ``[N, C, h, w]`` in [0, 1], any float dtype.

        Returns:
            float32 ``[N, M_h, M_w]``, ``M = floor(h * s)`` with ``s = max(1, upsample_input / max(h, w))``.
        """
        maps = maps.float()
        if self.normalize_input:
            maps = maps / maps.sum((-2, -1), keepdim=True).clamp(min=1e-12)
        if self.upsample_input is not None:
            scale = max(1.0, self.upsample_input / max(maps.shape[-2:]))
            # Given as a factor: sampling positions follow it exactly, also where the size is floored.
            maps = F.interpolate(maps, scale_factor=scale, mode="bilinear", align_corners=False)
        height, width = maps.shape[-2:]
        multiple = 2 ** (self.num_stages - 1)
        maps = F.pad(maps, (0, -width % multiple, 0, -height % multiple))
        # Channels last: a quarter less time for the U-Net on CPUs, and what tensor cores want.
        maps = maps.to(self.conv_seg.weight.dtype).contiguous(memory_format=torch.channels_last)
        return self.conv_seg(self.features(maps))[:, 0, :height, :width].float()

    def features(self, maps: Tensor) -> Tensor:
        """The U-Net's last maps ``[N, base_channels, h, w]`` of maps ``[N, C, h, w]`` of a size that it can halve."""
        return super().forward(maps)[-1]

    def forward_grouped(self, stacks: Sequence[Tensor], maps_per_call: int | None = None) -> list[Tensor]:
        """Runs the stacks of a batch, those of equal size in one call.

        Sizes are not padded to a common one: GroupNorm looks at the whole map, so padding would change every
        result. Batches of square-padded images (LLaVA-1.5) have one size and so one call; where sizes differ
        (LLaVA-NeXT) ranks may call the U-Net a different number of times, which ZeRO-3 does not allow (ZeRO-1
        and -2 do).

        Args:
            stacks: Per sample ``[K_i, C, h_i, w_i]``; K_i may be 0.
            maps_per_call: Most stacks in one call, which is what memory is needed for; None for all, as always with
                autograd.

        Returns:
            Per sample float32 ``[K_i, M_h, M_w]``, in order.
        """
        groups: dict[torch.Size, list[int]] = {}
        for index, stack in enumerate(stacks):
            groups.setdefault(stack.shape[-2:], []).append(index)
        results: dict[int, Tensor] = {}
        for members in groups.values():
            counts = [stacks[index].shape[0] for index in members]
            together = stacks[members[0]] if len(members) == 1 else torch.cat([stacks[i] for i in members])
            size = len(together) if torch.is_grad_enabled() or maps_per_call is None else maps_per_call
            logits = self(together[:size])
            if size < len(together):
                # One block for all: small results between the large ones of the calls would keep memory from being
                # given back, and joining them would need it twice.
                first, logits = logits, logits.new_empty(len(together), *logits.shape[1:])
                logits[:size] = first
                for start in range(size, len(together), size):
                    give_back_memory()
                    logits[start : start + size] = self(together[start : start + size])
            results.update(zip(members, logits.split(counts)))
        return [results[index] for index in range(len(stacks))]
