"""Phrases that name something in TinyWorld's pictures or nothing (flmm-detseg data presence --out data/tinyworld_presence)."""

from flmm_detseg.datasets import ImageMix, ImageSampler, JSONLDataset, collate_samples

_presence = dict(type=JSONLDataset, allow_empty=True, image_dir="data/tinyworld_presence")
presence_train = dict(_presence, file="data/tinyworld_presence/train.jsonl", name="train")
presence_val = dict(_presence, file="data/tinyworld_presence/val.jsonl", name="val")
presence_test = dict(_presence, file="data/tinyworld_presence/test.jsonl", name="test")
# Eight images, six texts about each: an image is read once for all of them.
train_dataloader = dict(
    batch_size=48,
    num_workers=0,
    sampler=dict(type=ImageSampler),
    collate_fn=dict(type=collate_samples),
    dataset=dict(type=ImageMix, datasets=[presence_train], weights=[1], per_image=6),
)
presence_eval = dict(
    presence_test=presence_test,
    presence_captions=dict(_presence, file="data/tinyworld_presence/test_captions.jsonl", name="captions"),
)
