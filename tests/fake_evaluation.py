"""Evaluates a stand-in for the model in this process; also a program, for launches of several processes.

python fake_evaluation.py FOLDER WORK_DIR [--batch-size N]
"""

from __future__ import annotations

import argparse
import hashlib
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fake_predictions import make_prediction
from mmengine.config import Config
from torch import nn

from flmm_detseg.datasets import RefCOCODataset
from flmm_detseg.engine.evaluation.evaluate import build_datasets, evaluate_model
from flmm_detseg.engine.evaluation.phrases import REFCOCO, PhraseOptions
from flmm_detseg.structures import Prediction, Sample
from flmm_detseg.utils.cli import run_tool


class StandIn(nn.Module):
    """Predicts a deterministic disturbance of the target; reads the phrase, so that wrong ones do worse.

    Args:
        kill_after: Batches after which the process is killed, as by a power cut.
        weight: A weight, for the fingerprint.
    """

    def __init__(self, kill_after: int | None = None, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))
        self.kill_after = kill_after
        self.batches: list[list[str]] = []

    def predict(self, samples: list[Sample]) -> list[Prediction]:
        if self.kill_after is not None and len(self.batches) >= self.kill_after:
            os.kill(os.getpid(), signal.SIGKILL)
        self.batches.append([sample.record_id for sample in samples])
        return [self._predict_one(sample) for sample in samples]

    def _predict_one(self, sample: Sample) -> Prediction:
        digest = hashlib.sha256(sample.record_id.encode()).digest()
        noise = np.random.default_rng(list(digest[:4])).normal(size=sample.masks.shape)
        image_number = str(int(Path(sample.image_id).stem.split("_")[-1]))
        knows = np.array(
            [f"of image {image_number} " in sample.phrase_text(k) for k in range(len(sample.phrases))]
        )
        signal_ = (sample.masks - 0.5) * np.where(knows, 3.0, 0.1)[:, None, None]
        logits = torch.from_numpy(signal_ + noise).float()
        coarse = logits[:, ::2, ::2].contiguous()
        return make_prediction(sample.record_id, coarse, logits, sample.image_size)


def run(folder: Path, work_dir: Path, model: StandIn | None = None, **options: Any) -> dict[str, Any] | None:
    files = {
        "refs_file": str(folder / "refs(unc).p"),
        "instances_file": str(folder / "instances.json"),
        "image_dir": str(folder / "images"),
    }
    entries = {
        f"refcoco_{split}": dict(type=RefCOCODataset, split=split, sentences="all", layout="split", **files)
        for split in ("val", "testA")
    }
    settings = PhraseOptions(config="fake.py", work_dir=str(work_dir), **options)
    datasets = build_datasets(Config({"refcoco_eval": entries}), settings, REFCOCO)
    return evaluate_model(
        model or StandIn(), datasets, settings, REFCOCO, {"config": "fake", "checkpoint": None}
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("work_dir", type=Path)
    parser.add_argument("--batch-size", type=int, default=4)
    args = parser.parse_args()
    run_tool(lambda: run(args.folder, args.work_dir, batch_size=args.batch_size))
