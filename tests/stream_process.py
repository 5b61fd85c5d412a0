"""One of several processes that serve streams from one folder.

``python stream_process.py FOLDER fill`` stores backgrounds, says what it answered, and goes on until it is killed.
``python stream_process.py FOLDER ask CASE ...`` asks again with models that differ; one JSON line per case. The test
that starts it is ``inference/test_stream_restart.py``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from cached_parts import SCREEN_BOX, cached_llava, screens

from flmm_detseg.cache import BackgroundCache, CachedLMM, CacheSettings, PreFusion, StreamSession
from flmm_detseg.compat.transformers5 import tower_body

QUESTIONS = ("a red star ?", "the ring of blue on the left ?")
META = {"objects_xyxy": SCREEN_BOX}
LORA = dict(llm=dict(r=2, alpha=4), vision=dict(r=2, alpha=4))


def adapted(**arguments) -> CachedLMM:
    """With LoRA that does something, and logits that are large beside their differences: lower precision shows."""
    model = cached_llava(frozen=False, lora=LORA, **arguments).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        head = model.lmm.model.lm_head.weight
        head.add_((30 * head.std() * torch.randn(head.shape[1], generator=generator)).to(head.dtype))
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.copy_(0.3 * torch.randn(weight.shape, generator=generator).to(weight.dtype))
    return model


def fused(num_heads: int) -> CachedLMM:
    """With a compressor; the number of its heads shows in no weight."""
    return cached_llava(prefusion=PreFusion(num_layers=1, compressed_side=2, num_heads=num_heads)).eval()


def changed(pick: Callable[[CachedLMM], torch.Tensor]) -> CachedLMM:
    """With one other weight."""
    model = adapted()
    with torch.no_grad():
        pick(model).neg_()
    return model


MODELS: dict[str, Callable[[], CachedLMM]] = {
    "same": adapted,
    "lora_off": adapted,
    "autocast": adapted,
    "separators": lambda: changed(lambda model: model.separators),
    "llm_weight": lambda: changed(
        lambda model: model.model.model.language_model.layers[0].mlp.up_proj.weight
    ),
    "vision_weight": lambda: changed(
        lambda model: tower_body(model.model.model.vision_tower).embeddings.patch_embedding.weight
    ),
    "packed": lambda: adapted(positions="packed"),
    "drop": lambda: adapted(letterbox="drop"),
    "separate": lambda: adapted(projectors="separate"),
    "bfloat16": lambda: adapted(dtype="bfloat16"),
    "fused": lambda: fused(2),
    "fused_heads": lambda: fused(4),
}


@contextmanager
def switched(case: str, model: CachedLMM) -> Iterator[None]:
    """What a case does to its model while it is asked."""
    if case == "lora_off":
        with model.lmm.base_mode():
            yield
    elif case == "autocast":
        with torch.autocast("cpu", torch.bfloat16):
            yield
    else:
        yield


def session_of(folder: str, model: CachedLMM) -> StreamSession:
    """Everything is stored at first sight, keys and values on disk too, before the answer is given."""
    settings = CacheSettings(folder=folder, disk_prefix=True, min_tiles=1, admission="always", poll_s=0)
    return StreamSession(model, BackgroundCache(settings), session_id="screen")


def ask(case: str, folder: str, images: list, compare: bool = True) -> dict:
    """Levels, tokens, and whether they are those without the cache."""
    model = MODELS[case]()
    session = session_of(folder, model)
    levels, tokens, cold = [], [], []
    with switched(case, model):
        for image in images:
            for text in QUESTIONS:
                found = session.ask(image, text, meta=META, max_new_tokens=8)
                levels.append(found.level)
                tokens.append(found.token_ids)
                if compare:
                    off = session.ask(
                        image, text, meta=META, max_new_tokens=8, cache="off", partition=found.partition
                    )
                    cold.append(off.token_ids)
    session.cache.close()
    return dict(case=case, levels=levels, tokens=tokens, cold=cold)


def main() -> None:
    folder, role, *cases = sys.argv[1:]
    torch.set_num_threads(1)
    if role == "ask":
        for case in cases:
            print(json.dumps(ask(case, folder, screens(2))), flush=True)
        return
    for case in ("same", "fused"):
        print(json.dumps(ask(case, folder, screens(2), compare=False)), flush=True)
    session = session_of(folder, MODELS["same"]())
    for seed in range(1, 10**6):
        session.ask(screens(1, seed=seed)[0], meta=META, max_new_tokens=1)
        print(json.dumps(seed), flush=True)


if __name__ == "__main__":
    main()
