"""More of TinyWorld's scenes (python tools/make_tinyworld.py --out data/tinyworld_large --images 12000 --seed 1).

Of another seed, so none of them is in data/tinyworld.
"""

from flmm_detseg.datasets import LLaVAInstructDataset

large_vqa_train = dict(
    type=LLaVAInstructDataset,
    file="data/tinyworld_large/llava/train.json",
    image_dir="data/tinyworld_large/coco",
    turns="all",
)
