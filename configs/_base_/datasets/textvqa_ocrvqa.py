"""Questions whose answers are read in the image: TextVQA val and OCR-VQA test, as `flmm-detseg data` converts them.

flmm-detseg data textvqa data/textvqa/TextVQA_0.5.1_val.json --out data/textvqa/val.jsonl
flmm-detseg data ocrvqa data/ocrvqa/dataset.json --split test --out data/ocrvqa/test.jsonl --images data/ocrvqa/images --skip
"""

from flmm_detseg.datasets import QuestionDataset

short = "Answer the question using a single word or phrase."
vqa_eval = dict(
    # Ten people's answers: VQA's accuracy.
    textvqa=dict(
        type=QuestionDataset,
        file="data/textvqa/val.jsonl",
        image_dir="data/textvqa/train_images",
        prompt_suffix=short,
        name="textvqa",
        metric="vqav2",
    ),
    ocrvqa=dict(
        type=QuestionDataset,
        file="data/ocrvqa/test.jsonl",
        image_dir="data/ocrvqa/images",
        prompt_suffix=short,
        name="ocrvqa",
        metric="exact",
    ),
)
