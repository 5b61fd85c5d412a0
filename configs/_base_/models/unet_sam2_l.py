"""F-LMM's head with SAM 2.1 (Hiera-L) in the place of SAM ViT-L; the same prompts."""

from flmm_detseg.heads import PhraseGroundingHead, UNetHead
from flmm_detseg.refiners import SAM2Refiner

phrase_grounding_sam2 = dict(
    type=PhraseGroundingHead,
    mask_head=dict(type=UNetHead, base_channels=64, upsample_input=64),
    sam=dict(
        type=SAM2Refiner.from_pretrained,
        variant="hiera_large",
        checkpoint="facebook/sam2.1-hiera-large",
        use_text=True,
        use_mask=True,
        use_box=True,
    ),
    target_resolution="processor",
)
