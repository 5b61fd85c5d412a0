"""The reference's mask head and refiner as our parts, its weights loaded strictly."""

from __future__ import annotations

from dataclasses import replace

import torch
from oracle import Oracle
from torch import Tensor

from flmm_detseg.heads import PhraseGroundingHead, UNetHead
from flmm_detseg.refiners import SAMRefiner, SamSizes, TextPrompt, build_sam
from flmm_detseg.structures import GroundingBatch

PREFIXES = ("mask_head.", "sam.", "text_proj.", "text_layer_weights")


def sam_sizes(oracle: Oracle) -> SamSizes:
    """Sizes of the reference's SAM."""
    config = oracle.data["config"]["sam"]
    return SamSizes(
        embed_dim=config["encoder_embed_dim"],
        depth=config["encoder_depth"],
        num_heads=config["encoder_num_heads"],
        global_attn_indexes=tuple(config["encoder_global_attn_indexes"]),
        image_size=config["image_size"],
        patch_size=config["vit_patch_size"],
        window_size=config["encoder_window_size"],
        prompt_dim=config["prompt_embed_dim"],
        mask_in_chans=config["mask_in_chans"],
        decoder_depth=config["decoder_depth"],
        decoder_num_heads=config["decoder_num_heads"],
        decoder_mlp_dim=config["decoder_mlp_dim"],
        iou_hidden_dim=config["iou_head_hidden_dim"],
    )


def build_head(oracle: Oracle) -> PhraseGroundingHead:
    """Our head with the reference's weights, in evaluation mode."""
    config = oracle.data["config"]
    unet = config["unet"]
    mask_head = UNetHead(
        in_channels=config["in_channels"],
        base_channels=unet["base_channels"],
        num_stages=unet["num_stages"],
        normalize_input=unet["normalize_input"],
        upsample_input=oracle.upsample_input,
    )
    wrapper = config["sam_wrapper"]
    sam = SAMRefiner(
        build_sam(sam_sizes(oracle)),
        use_text=wrapper["use_text"],
        use_mask=wrapper["use_mask"],
        use_box=wrapper["use_box"],
        multimask_output=wrapper["multimask_output"],
    )
    text = config["text_config"]
    head = PhraseGroundingHead(
        mask_head,
        sam,
        text["num_hidden_layers"],
        text["hidden_size"],
        text_dim=config["sam"]["prompt_embed_dim"],
    )
    weights = {key: value for key, value in oracle.data["state_dict"].items() if key.startswith(PREFIXES)}
    head.load_state_dict(weights, strict=True)
    return head.eval()


def reference_text(oracle: Oracle, index: int) -> TextPrompt:
    """The reference's own text tokens of a sample."""
    per_phrase = oracle.data["outputs"][index]["text_embeds"]
    phrase_ids = torch.arange(len(per_phrase)).repeat_interleave(
        torch.tensor([len(part) for part in per_phrase])
    )
    return TextPrompt(torch.cat(list(per_phrase)), phrase_ids)


def with_reference_targets(oracle: Oracle, batch: GroundingBatch) -> GroundingBatch:
    """The batch with the reference's targets (already at processor size) in place of the original masks."""
    samples = [
        replace(sample, masks=theirs["masks"].bool().numpy())
        for sample, theirs in zip(batch.samples, oracle.data["samples"], strict=True)
    ]
    return GroundingBatch(samples, batch.inputs)


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    """Relative L2 error."""
    return float((ours - theirs).norm() / theirs.norm())
