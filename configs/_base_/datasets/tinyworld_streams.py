"""Questions about TinyWorld's streams (python tools/make_streams.py --out data/tinyworld_streams)."""

from flmm_detseg.datasets import QuestionDataset

streams_train = dict(
    type=QuestionDataset,
    file="data/tinyworld_streams/train.jsonl",
    image_dir="data/tinyworld_streams",
)
streams_eval = dict(
    streams=dict(
        type=QuestionDataset,
        file="data/tinyworld_streams/val.jsonl",
        image_dir="data/tinyworld_streams",
    )
)
