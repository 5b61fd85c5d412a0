"""Training runs on tiny parts: the tiny recipe's own schedule, hooks and logs; only model and data are smaller."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from dataset_files import write_png, write_refcoco
from mmengine.config import Config

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "configs" / "tiny" / "frozen_tiny_llava_refcoco_png.py"
MODEL = dict(
    type="flmm_detseg.models.GroundingLMM",
    lmm=dict(type="tiny.tiny_llava"),
    heads=dict(
        phrase=dict(
            type="flmm_detseg.heads.PhraseGroundingHead",
            mask_head=dict(
                type="flmm_detseg.heads.UNetHead", base_channels=8, num_stages=3, upsample_input=16
            ),
            sam=dict(type="sam_parts.make_refiner"),
            text_dim=16,
        )
    ),
)


def write_config(
    folder: Path,
    *,
    max_iters: int = 10,
    batch_size: int = 4,
    interval: int = 4,
    name: str = "tiny_run",
    **changes: Any,
) -> Path:
    """Writes a config with data of its own; ``changes`` are dotted keys with ``__`` for dots."""
    data = folder / "data"
    refcoco = dict(
        type="flmm_detseg.datasets.RefCOCODataset",
        **(write_refcoco(data / "refcoco", num_images=10) if not data.exists() else _refcoco_files(data)),
        split="val",
    )
    png = dict(
        type="flmm_detseg.datasets.PNGDataset",
        **(write_png(data / "png", num_images=7) if not (data / "png").exists() else _png_files(data)),
    )
    config = Config.fromfile(RECIPE)
    config.model = MODEL
    config.train_dataloader.batch_size = batch_size
    # 9 + 7 samples of two and of three phrases: whole batches of four, of which processes get unequal shares.
    config.train_dataloader.dataset = dict(type="flmm_detseg.datasets.ConcatMix", datasets=[refcoco, png])
    config.val_dataloader.dataset = dict(refcoco, split="testA", sentences="first")
    config.train_cfg.update(max_iters=max_iters, val_interval=max_iters)
    config.default_hooks.checkpoint.update(interval=interval, max_keep_ckpts=-1)
    config.default_hooks.logger.interval = 1
    config.log_processor.window_size = 1  # raw losses, not their running mean
    config.custom_hooks[1].update(interval=max_iters, num_images=1)
    config.merge_from_dict({key.replace("__", "."): value for key, value in changes.items()})
    path = folder / f"{name}.py"
    config.dump(path)
    return path


def _refcoco_files(data: Path) -> dict[str, str]:
    root = data / "refcoco"
    return dict(
        refs_file=str(root / "refs(unc).p"),
        instances_file=str(root / "instances.json"),
        image_dir=str(root / "images"),
    )


def _png_files(data: Path) -> dict[str, str]:
    root = data / "png"
    return dict(
        narratives_file=str(root / "png_coco_val2017.json"),
        panoptic_json=str(root / "panoptic_val2017.json"),
        panoptic_dir=str(root / "panoptic"),
        image_dir=str(root / "images"),
    )


def losses(work_dir: Path) -> dict[int, float]:
    """Logged training loss by iteration, over all starts of a run; a later start overrides an earlier one."""
    found: dict[int, float] = {}
    for log in sorted(work_dir.glob("*/vis_data/scalars.json"), key=lambda path: path.stat().st_mtime):
        for line in log.read_text().splitlines():
            row = json.loads(line) if line.endswith("}") else {}
            if "loss" in row:
                found[int(row.get("iter", row["step"]))] = row["loss"]
    return found


def environment() -> dict[str, str]:
    """Of child processes: one compute thread, no GPU, no launcher variables of ours."""
    ours = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    kept = {key: value for key, value in os.environ.items() if key not in ours}
    return {**kept, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "-1"}


def train_command(config: Path, work_dir: Path, *arguments: str, processes: int = 1) -> list[str]:
    """Command line of ``tools/train.py``, under torchrun for several processes."""
    launch = [sys.executable]
    if processes > 1:
        launch += ["-m", "torch.distributed.run", f"--nproc_per_node={processes}", "--master_port=0"]
        launch += ["--rdzv_backend=c10d", "--rdzv_endpoint=localhost:0"]
        arguments = (*arguments, "--launcher", "pytorch")
    return [*launch, str(ROOT / "tools" / "train.py"), str(config), "--work-dir", str(work_dir), *arguments]
