"""A cheap probe of a tiny LLaVA's attention: how well phrases can be read from single patches."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

from flmm_detseg.datasets.tinyworld import Scene, narrate, referring_expressions
from flmm_detseg.pretrain.eval_llava import EVAL_SEED, image_side, prompt_ids, val_scene
from flmm_detseg.pretrain.llava_chunks import prefix_ids
from flmm_detseg.pretrain.llava_data import normalise_images
from flmm_detseg.pretrain.tiny_llava import CAPTION_PROMPT


@torch.no_grad()
def phrase_maps(
    model: LlavaForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    scenes: Sequence[Scene],
    source: str,
) -> tuple[Tensor, Tensor]:
    """Attention maps and masks of phrases, teacher-forced after the caption prompt.

    Args:
        model: Tiny LLaVA; its attention implementation is switched to eager and back.
        tokenizer: Its tokenizer.
        scenes: Scenes.
        source: ``"caption"`` (phrases of the narrative that name things) or ``"refer"`` (two sentences a scene).

    Returns:
        Maps ``[K, layers * heads, rows, cols]`` (mean over the phrase's tokens, softmax over all keys) and
        masks ``[K, rows, cols]`` bool: patches at least half covered, or the best covered one if there is none.
    """
    patches = model.config.image_seq_length
    side = int(patches**0.5)
    head = prompt_ids(tokenizer, CAPTION_PROMPT, patches)
    first = len(prefix_ids(tokenizer, 0))
    implementation = model.config.text_config._attn_implementation
    model.set_attn_implementation({"text_config": "eager"})
    maps, masks = [], []
    for scene in scenes:
        by_id = {item.object_id: item.mask for item in scene.objects}
        for text, phrases in phrase_texts(scene, source):
            encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
            output = model(
                input_ids=torch.tensor([head + encoded.input_ids]),
                pixel_values=normalise_images(scene.image[None]),
                output_attentions=True,
            )
            rows = torch.cat(
                [layer[0, :, len(head) :, first : first + patches] for layer in output.attentions]
            )
            for spans, object_ids in phrases:
                tokens = [
                    index
                    for index, (start, end) in enumerate(encoded.offset_mapping)
                    if any(start < stop and begin < end for begin, stop in spans)
                ]
                mask = np.any([by_id[object_id] for object_id in object_ids], axis=0)
                cover = mask.reshape(side, mask.shape[0] // side, side, -1).mean((1, 3))
                maps.append(rows[:, tokens].mean(1).unflatten(1, (side, side)))
                masks.append(torch.from_numpy(cover >= min(0.5, cover.max())))
    model.set_attn_implementation({"text_config": implementation})
    return torch.stack(maps), torch.stack(masks)


def phrase_texts(
    scene: Scene, source: str
) -> list[tuple[str, list[tuple[tuple[tuple[int, int], ...], tuple[int, ...]]]]]:
    """Texts of a scene with their phrases as (spans, object ids)."""
    if source == "caption":
        caption = narrate(scene, EVAL_SEED + scene.scene_id)
        phrases = [(phrase.spans, phrase.object_ids) for phrase in caption.phrases if phrase.is_thing]
        return [(caption.text, phrases)]
    expressions = referring_expressions(scene, EVAL_SEED + scene.scene_id)
    picked = expressions[:: max(1, len(expressions) // 2)][:2]
    return [(item.text, [(((0, len(item.text)),), (item.object_id,))]) for item in picked]


def mean_iou(scores: Tensor, masks: Tensor, threshold: float) -> float:
    """Mean IoU of ``scores > threshold`` over phrases."""
    predicted = scores > threshold
    union = (predicted | masks).flatten(1).sum(1).clamp(min=1)
    return ((predicted & masks).flatten(1).sum(1) / union).mean().item()


def fit_pixel_probe(features: Tensor, masks: Tensor) -> Tensor:
    """Logistic regression per pixel: ``[K, C, H, W]`` to weights ``[C + 1]`` (bias last), by L-BFGS."""
    inputs = features.movedim(1, -1).flatten(0, 2)
    inputs = torch.cat([inputs, torch.ones(len(inputs), 1)], 1)
    targets = masks.flatten().float()
    weights = torch.zeros(inputs.shape[1], requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.binary_cross_entropy_with_logits(inputs @ weights, targets) + 1e-4 * weights.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return weights.detach()


def groundability(
    model: LlavaForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    *,
    seed: int,
    source: str,
    num_scenes: int = 60,
) -> dict[str, float]:
    """How well phrases can be read from single patches of the attention maps, at the patch grid's resolution.

    The first half of the scenes fits the probe and chooses the thresholds, the second half is scored.

    Args:
        model: Its attention is read.
        tokenizer: Of the model.
        seed: Of TinyWorld.
        source: Kind of text whose phrases are looked at.
        num_scenes: Scenes to look at.

    Returns:
        ``best_head_iou`` (maps divided by their maximum) and ``probe_iou`` (logistic regression on
        log-attention).
    """
    model.eval()
    side = image_side(model)
    scenes = [val_scene(seed, 10_000 + index, side) for index in range(num_scenes)]
    half = num_scenes // 2
    fit_maps, fit_masks = phrase_maps(model, tokenizer, scenes[:half], source)
    maps, masks = phrase_maps(model, tokenizer, scenes[half:], source)
    thresholds = np.linspace(0.1, 0.9, 9)

    def scaled(values: Tensor) -> Tensor:
        return values / values.amax((-2, -1), keepdim=True)

    table = [
        (mean_iou(scaled(fit_maps[:, head]), fit_masks, cut), head, cut)
        for head in range(maps.shape[1])
        for cut in thresholds
    ]
    _, head, cut = max(table)
    features, fit_features = (torch.log(values * 196 + 1e-2) for values in (maps, fit_maps))
    with torch.enable_grad():
        weights = fit_pixel_probe(fit_features, fit_masks)

    def score(values: Tensor) -> Tensor:
        return torch.sigmoid(torch.einsum("kchw,c->khw", values, weights[:-1]) + weights[-1])

    best = max(np.linspace(0.05, 0.95, 19), key=lambda value: mean_iou(score(fit_features), fit_masks, value))
    return {
        "best_head_iou": round(mean_iou(scaled(maps[:, head]), masks, cut), 4),
        "best_head": head,
        "probe_iou": round(mean_iou(score(features), masks, best), 4),
    }
