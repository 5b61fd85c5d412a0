"""Model card of the tiny SAM."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flmm_detseg.datasets.tinyworld import TINYWORLD_VERSION
from flmm_detseg.pretrain.tiny_sam import PROMPT_KINDS
from flmm_detseg.utils.whole_files import write_json

_MEANING = {
    "box": "true box, corners moved by about 8 % of its sides",
    "mask": "degraded mask (logits of a coarse, shifted, noisy, leaking grid)",
    "point": "three points inside the mask",
    "box+mask": "degraded mask and its own box, as in F-LMM's refiner",
}
_CARD = """# Tiny SAM

segment-anything's own classes at a small size ({parameters:,} parameters), trained from nothing on TinyWorld
(version {version}). `config.json` holds the sizes, `model.safetensors` the weights (float16) under
segment-anything's parameter names. Load: `SAMRefiner.from_pretrained(checkpoint="data/models/tiny_sam")`.

It has seen masks of objects, background regions and unions of objects of TinyWorld's training split; nothing
of the held-out splits and no other picture. It is made for TinyWorld and of no use on photographs.

Made by `{command}` in {minutes} minutes (wall clock) on {threads} CPU
thread(s): {steps} steps of {batch_size} scenes,
seed {seed}, Muon at {muon_lr} (matrices of the transformers) and AdamW at {lr} (the rest); averaged weights
are stored.

Mean IoU over all masks of {eval_scenes} held-out scenes (split `val`), single mask output, threshold 0.5:

| prompt | trained | random weights |
|---|---|---|
{rows}
| none: the degraded mask itself | {coarse} | |

All figures: `figures.json`.
"""


def write_sam_card(out_dir: str, figures: Mapping[str, Any]) -> None:
    """Writes ``README.md`` and ``figures.json`` beside the weights.

    Args:
        out_dir: Folder of the weights.
        figures: What ``train_tiny_sam`` returned.
    """
    settings = {
        name: value for name, value in figures["settings"].items() if name not in ("out_dir", "work_dir")
    }
    rows = [
        f"| {kind}: {_MEANING[kind]} | {figures['iou'][kind]:.3f} | {figures['random_iou'][kind]:.3f} |"
        for kind in PROMPT_KINDS
    ]
    card = _CARD.format(
        **settings,
        parameters=figures["parameters"],
        version=TINYWORLD_VERSION,
        minutes=figures["minutes"],
        command=f"python tools/pretrain_tiny_sam.py --steps {settings['steps']} --seed {settings['seed']}",
        rows="\n".join(rows),
        coarse=f"{figures['iou']['coarse']:.3f}",
    )
    folder = Path(out_dir)
    (folder / "README.md").write_text(card, encoding="utf-8")
    stored = {**figures, "settings": settings, "tinyworld_version": TINYWORLD_VERSION}
    write_json(folder / "figures.json", stored, indent=2)
