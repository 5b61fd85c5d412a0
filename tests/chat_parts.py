"""A grounder on tiny random models that has something to say."""

from __future__ import annotations

import tiny
import torch
from sam_parts import SIZES

from flmm_detseg import Grounder
from flmm_detseg.heads import PhraseGroundingHead, UNetHead
from flmm_detseg.lmms.lmm import LMM
from flmm_detseg.models import GroundingLMM
from flmm_detseg.refiners import SAMRefiner, build_sam


@torch.no_grad()
def speaks_nouns(lmm: LMM) -> None:
    """Lets it speak nouns only: its answers have noun phrases, whatever a release of transformers draws."""
    nouns = tiny.tiny_tokenizer().convert_tokens_to_ids(["star", "ring", "square", "circle"])
    silent = torch.ones(lmm.model.lm_head.weight.shape[0], dtype=torch.bool)
    silent[nouns] = False
    lmm.model.lm_head.weight[silent] = 0


@torch.no_grad()
def speaking_grounder() -> Grounder:
    """Speaks nouns only."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        lmm = tiny.tiny_llava()
        speaks_nouns(lmm)
        unet = UNetHead(lmm.attention_channels, base_channels=8, num_stages=3, upsample_input=16)
        sam = SAMRefiner(build_sam(SIZES))
        head = PhraseGroundingHead(unet, sam, lmm.num_layers, lmm.hidden_size, text_dim=16)
        for name, parameter in head.named_parameters():
            if parameter.ndim > 1 and "image_encoder" not in name:
                parameter.mul_(2)
        return Grounder(GroundingLMM(lmm=lmm, heads={"phrase": head}))
