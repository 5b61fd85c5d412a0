"""The same head with a narrower U-Net and the tiny SAM of this repository."""

from flmm_detseg.heads import PhraseGroundingHead, UNetHead
from flmm_detseg.refiners import SAMRefiner

phrase_grounding = dict(
    type=PhraseGroundingHead,
    mask_head=dict(type=UNetHead, base_channels=32, num_stages=3, upsample_input=56),
    sam=dict(
        type=SAMRefiner.from_pretrained,
        checkpoint="data/models/tiny_sam",
        use_text=True,
        use_mask=True,
        use_box=True,
    ),
    text_dim=64,
    target_resolution="processor",
)
