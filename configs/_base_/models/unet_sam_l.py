"""F-LMM's head: U-Net on the attention stack, SAM ViT-L with mask, box and text prompts."""

from flmm_detseg.heads import PhraseGroundingHead, UNetHead
from flmm_detseg.refiners import SAMRefiner

phrase_grounding = dict(
    type=PhraseGroundingHead,
    mask_head=dict(type=UNetHead, base_channels=64, upsample_input=64),
    sam=dict(
        type=SAMRefiner.from_pretrained,
        variant="vit_l",
        checkpoint="data/models/sam_vit_l_0b3195.pth",
        use_text=True,
        use_mask=True,
        use_box=True,
    ),
    target_resolution="processor",
)
