"""TinyWorld's phrases that name something or nothing, as files: pictures, and one JSON object a line.

Read by :class:`~flmm_detseg.datasets.JSONLDataset`; what a presence head is trained, calibrated and measured on.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from flmm_detseg.datasets.tinyworld.absent_phrases import PresenceText, presence_texts
from flmm_detseg.datasets.tinyworld.render import make_scene
from flmm_detseg.datasets.tinyworld.scene import Scene
from flmm_detseg.errors import ConfigError
from flmm_detseg.utils.rle import encode_rle
from flmm_detseg.utils.whole_files import dump_json, new_folder, read_json

MANIFEST = "presence.json"
# Split of the world's random streams, and the first scene there: no two splits share one.
_SCENES = {"train": ("train", 0), "val": ("val", 0), "test": ("val", 1_000_000)}


@dataclass(frozen=True)
class PresenceSpec:
    """What decides the bytes of the files: scenes by split, and the seed (not 0, the tiny models' own world).

    Raises:
        ConfigError: A split would have no scene.
    """

    train: int = 6000
    val: int = 400
    test: int = 500
    seed: int = 15

    def __post_init__(self) -> None:
        for split in _SCENES:
            if getattr(self, split) < 1:
                raise ConfigError(f"`{split}` is {getattr(self, split)}; every split needs a scene")


def write_presence(out: Path, spec: PresenceSpec, progress: bool = True) -> dict[str, Any]:
    """Writes ``train.jsonl``, ``val.jsonl``, ``val_captions.jsonl``, the same of ``test``, and their pictures.

    Args:
        out: Folder to write; new, empty, or holding these very files (then nothing is done).
        spec: How many scenes, and the seed.
        progress: Show a progress bar.

    Returns:
        The specification, per split the number of texts and of phrases by form and absence, and ``"written"``.

    Raises:
        ConfigError: The folder holds something else.
        DataError: Its list of what was written is damaged.
    """
    manifest = out / MANIFEST
    if manifest.is_file():
        found = read_json(manifest, f"remove {out}, run again")
        if not isinstance(found, dict) or found.get("spec") != asdict(spec):
            raise ConfigError(f"{out} holds other scenes ({manifest}); remove it or name another --out")
        return {**found, "written": False}
    if out.exists() and any(out.iterdir()):
        raise ConfigError(f"{out} is not empty and holds no finished files (no {MANIFEST}); remove it first")
    with new_folder(out) as folder:
        facts = _write_presence(folder, spec, progress)
    return {**facts, "written": True}


def _write_presence(out: Path, spec: PresenceSpec, progress: bool) -> dict[str, Any]:
    facts: dict[str, Any] = {"spec": asdict(spec)}
    for split, (stream, first) in _SCENES.items():
        (out / split).mkdir()
        counts: Counter[str] = Counter()
        # Captions apart where they are measured: most of what they name is there.
        lines: dict[str, list[dict[str, Any]]] = {name: [] for name in _files(split)}
        for index in tqdm(range(getattr(spec, split)), desc=split, unit="scene", disable=not progress):
            scene = make_scene(spec.seed, first + index, stream)
            name = f"{split}/{index:06d}.png"
            Image.fromarray(scene.image).save(out / name)
            for number, text in enumerate(presence_texts(scene, spec.seed)):
                file = _files(split)[-1 if text.form == "caption" else 0]
                identity = {"id": f"{index:06d}-{number}-{text.form}", "image": name}
                lines[file].append({**identity, **_line(scene, text)})
                counts.update(f"{text.form}: {phrase.absent or 'present'}" for phrase in text.phrases)
        for file, entries in lines.items():
            (out / file).write_text("".join(dump_json(line) + "\n" for line in entries))
        facts[split] = {"texts": sum(map(len, lines.values())), "phrases": dict(sorted(counts.items()))}
    # Last: a folder without it was not finished.
    (out / MANIFEST).write_text(dump_json(facts, indent=1))
    return facts


def _files(split: str) -> tuple[str, ...]:
    """Files of a split: of expressions, and of captions where these are apart."""
    return ("train.jsonl",) if split == "train" else (f"{split}.jsonl", f"{split}_captions.jsonl")


def _line(scene: Scene, text: PresenceText) -> dict[str, Any]:
    phrases = []
    for phrase in text.phrases:
        parts = [scene.objects[number - 1].mask for number in phrase.object_ids]
        parts += [region.mask for region in scene.stuff if region.region_id in phrase.region_ids]
        named: dict[str, Any] = {"mask": None, "absent": phrase.absent}
        if parts:
            named = {"mask": {"rle": encode_rle(np.logical_or.reduce(parts))}}
        phrases.append({"span": list(phrase.span), **named})
    return {"caption": text.text, "phrases": phrases}
