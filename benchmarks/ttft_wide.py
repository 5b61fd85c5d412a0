"""LLaVA-7B's width for ``ttft.py``: random weights, one mask per background share, the speed-up beside the ideal."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from tqdm import tqdm
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig
from ttft_detectors import SceneDifference
from ttft_report import Request
from ttft_ways import FULL, L1_ONLY, NO_CACHE, ExactImage, FirstK, Pruned, Split, Unmodified, Way, request

from flmm_detseg.cache import BackgroundCache, CachedLMM, CacheSettings, Partitioner
from flmm_detseg.lmms import LlavaAdapter
from flmm_detseg.structures import Sample

TOKENIZER = Path(__file__).resolve().parents[1] / "data" / "models" / "tiny_llava"
QUESTION = " ".join(["is the small red star left of the large blue ring , and what is behind it ?"] * 2)
SETTINGS = CacheSettings(min_tiles=20, admission="always", max_object_share=1.0)


def wide_model(
    layers: int, vision_layers: int, quick: bool, device: str, dtype: str, partitioner: Partitioner
) -> CachedLMM:
    """LLaVA-7B's width, random weights."""
    text = dict(hidden_size=4096, intermediate_size=11008, num_attention_heads=32)
    vision = dict(hidden_size=1024, intermediate_size=4096, num_attention_heads=16, image_size=336)
    if quick:
        text = dict(hidden_size=64, intermediate_size=128, num_attention_heads=4)
        vision = dict(hidden_size=32, intermediate_size=64, num_attention_heads=2, image_size=336)
    config = LlavaConfig(
        # The last layer of the tower is never read.
        vision_config=CLIPVisionConfig(**vision, num_hidden_layers=vision_layers + 1, patch_size=14),
        text_config=LlamaConfig(
            **text, num_hidden_layers=layers, vocab_size=407, max_position_embeddings=2048
        ),
        image_token_index=4,
    )
    torch.manual_seed(0)
    with torch.device(device):
        lmm = LlavaAdapter.from_config(config, tokenizer=str(TOKENIZER), dtype=dtype)
    return CachedLMM(lmm, partitioner).to(device).eval()


@dataclass(frozen=True)
class Case:
    """One mask at 336 pixels: share f of all 576 tiles is background, letterbox included."""

    name: str
    f: float
    width: int = 336

    @property
    def boxes(self) -> list[list[int]]:
        """Objects: so many tiles, row by row from the top."""
        cols = self.width // 14
        rows, rest = divmod(round((1 - self.f) * 576), cols)
        return [[0, 0, self.width, 14 * rows], [0, 14 * rows, 14 * rest, 14 * (rows + 1)]]

    def sample(self, wallpaper: int, content: int) -> Sample:
        """A wallpaper with something in front of it, both by number."""
        image = np.random.default_rng([0, wallpaper]).integers(0, 256, (336, self.width, 3), dtype=np.uint8)
        objects = np.random.default_rng([1, content]).integers(0, 256, image.shape, dtype=np.uint8)
        for x0, y0, x1, y1 in self.boxes:
            image[y0:y1, x0:x1] = objects[y0:y1, x0:x1]
        meta = {"objects_xyxy": self.boxes, "scene": f"{self.name}/{wallpaper}"}
        return Sample(self.name, image, "", (), prompt=QUESTION, meta=meta)


CASES = (Case("f=0.5", 0.5), Case("f=0.8", 0.8), Case("f=0.9", 0.9), Case("portrait f=0.8", 0.8, width=196))


def show_before(model: CachedLMM, case: Case, wallpaper: int) -> None:
    """Where the difference of frames finds objects: another content on the wallpaper, so it knows what changes."""
    if isinstance(model.partitioner.source, SceneDifference):
        model.partitioner.source.find(case.sample(wallpaper, 10**6))


def wide_requests(
    model: CachedLMM, cases: list[Case], turns: int
) -> tuple[list[Request], dict[str, dict[str, Any]]]:
    """All ways at the model's width; every request of a turn costs what its row says, whatever came before."""
    found, sizes = [], {}
    total = sum(11 if case.width < 336 else 10 for case in cases) * turns
    with tqdm(total=total, desc="ttft 7b width") as bar:
        for case in cases:
            cache = BackgroundCache(SETTINGS)
            features = BackgroundCache(replace(SETTINGS, levels=("L1",)))
            hit_l2, hit_l1 = Split(model, cache, FULL), Split(model, features, L1_ONLY)
            exact, first_k = ExactImage(model), FirstK(model, min_equal=0.0)
            pruned = Pruned(model, hit_l2)
            show_before(model, case, 0)
            start = case.sample(0, 0)
            # Everything that a hit needs is there.
            for way in (hit_l2, hit_l1, exact, first_k, pruned):
                request(way, start, case.name, -1, max_new_tokens=1)
            for turn in range(turns):
                sample = case.sample(0, turn + 1)
                other = case.sample(1 + turn, 0)
                show_before(model, case, 1 + turn)
                jobs: list[tuple[Way, Sample]] = [
                    (Unmodified(model), sample),
                    (hit_l2, sample),
                    (pruned, sample),
                    (hit_l1, sample),
                    (Split(model, BackgroundCache(SETTINGS), FULL), other),
                    (Split(model, None, NO_CACHE), sample),
                    (exact, case.sample(0, 0)),
                    (ExactImage(model), other),
                    (first_k, sample),
                    (FirstK(model), other),
                ]
                if case.width < 336:
                    jobs.append((Unmodified(model, drop_letterbox=True), sample))
                for way, sample in jobs:
                    done = request(way, sample, case.name, turn, max_new_tokens=1)
                    found.append(done)
                    bar.set_postfix_str(f"{case.name} {done.label} {done.first_token / 1e3:.2f} s")
                    bar.update()
            stats = cache.stats()
            sizes[case.name] = {"bytes": stats["bytes"]["host"], "backgrounds": stats["backgrounds"]}
    return found, sizes


def language_flops(model: CachedLMM, new: int, past: int) -> float:
    """F(n, p) of the module's docstring."""
    text = model.model.config.text_config
    d, ffn = text.hidden_size, text.intermediate_size
    return text.num_hidden_layers * (
        2 * new * (4 * d * d + 3 * d * ffn) + 4 * d * (new * past + new * new / 2)
    )


def speed_ups(model: CachedLMM, found: list[Request], case: Case) -> dict[str, Any]:
    """An L2 hit against the unmodified model, beside the ideal."""
    mine = {(done.turn, done.label): done for done in found if done.case == case.name}
    pairs = [(done, mine[turn, "hit L2"]) for (turn, label), done in mine.items() if label == "stock"]
    plain, hit = pairs[0]
    ideal = language_flops(model, plain.new_tokens, 0) / language_flops(
        model, hit.new_tokens, hit.past_tokens
    )
    num_text = plain.new_tokens - 576
    tokens = plain.new_tokens / (576 * (1 - case.f) + num_text + 4)
    wall = median(a.wall["language"] / b.wall["language"] for a, b in pairs)
    processor = median(a.processor["language"] / b.processor["language"] for a, b in pairs)
    return {
        "f": case.f,
        "stock_tokens": plain.new_tokens,
        "new_tokens": hit.new_tokens,
        "ideal_prefill": round(ideal, 3),
        "ideal_tokens": round(tokens, 3),
        "prefill_wall": round(wall, 3),
        "prefill_processor": round(processor, 3),
        "share_of_ideal_wall": round(wall / ideal, 3),
        "share_of_ideal_processor": round(processor / ideal, 3),
        "ttft_wall": round(median(a.first_token / b.first_token for a, b in pairs), 3),
        "ttft_processor": round(
            median(sum(a.processor.values()) / sum(b.processor.values()) for a, b in pairs), 3
        ),
    }
