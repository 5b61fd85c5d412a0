"""TinyWorld's questions that point at objects (python tools/make_tinyworld.py --out data/tinyworld --images 2500)."""

from flmm_detseg.datasets import QuestionDataset

regions_train = dict(
    type=QuestionDataset,
    file="data/tinyworld/regions/train.jsonl",
    image_dir="data/tinyworld/coco",
)
regions_eval = dict(
    regions_val=dict(
        type=QuestionDataset,
        file="data/tinyworld/regions/val.jsonl",
        image_dir="data/tinyworld/coco",
    )
)
