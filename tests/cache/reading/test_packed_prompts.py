"""Several questions about one image share its row: the same numbers and gradients as one by one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from cached_parts import boxed_sample, cached_llava

from flmm_detseg.cache.reading.packing import share_images
from flmm_detseg.cache.reading.prefusion import PreFusion
from flmm_detseg.cache.reading.prompt_parts import partitioned
from flmm_detseg.cache.regions.sources import Partitioner, RandomRegions
from flmm_detseg.errors import ConfigError
from flmm_detseg.heads import LanguageHead
from flmm_detseg.models import GroundingLMM
from flmm_detseg.structures import CaptureSpec

EVERYTHING = CaptureSpec(attention=True, hidden="all", vision_layers=(0, 2), logits=True)
VARIANTS = pytest.mark.parametrize(
    "settings",
    [
        dict(),
        dict(positions="packed", letterbox="drop", projectors="separate"),
        dict(order="image"),
        dict(prefusion=PreFusion(num_layers=2)),
        dict(prefusion=PreFusion(num_layers=1, compressed_side=2), positions="packed"),
    ],
)
PROMPTS = ("where is the ring ?", "what is near a small star ?", "how many ?")


def samples() -> list:
    """Three questions and a description of one image, two of another, and one alone."""
    shown = boxed_sample(1, image_size=(24, 72), image_id="a")
    other = boxed_sample(2, image_size=(56, 56), num_phrases=3, image_id="b")
    return [
        replace(shown, prompt=PROMPTS[0]),
        replace(other, prompt=PROMPTS[1]),
        replace(shown, prompt=PROMPTS[1]),
        boxed_sample(0),
        replace(shown, prompt=PROMPTS[2], text="a blue ring", phrases=(), task="vqa"),
        other,
        shown,
    ]


def opened(model):
    """Gates that let pre-fusion through."""
    if model.prefusion is not None:
        with torch.no_grad():
            model.prefusion.layers.gates.fill_(0.7)
    return model


@VARIANTS
@torch.no_grad()
def test_shared_rows_equal_one_by_one(settings):
    model = opened(cached_llava(**settings))
    items = [model.prepare(sample) for sample in samples()]
    rows = []
    hook = model.model.model.language_model.register_forward_pre_hook(
        lambda _, __, kwargs: rows.append(len(kwargs["inputs_embeds"])), with_kwargs=True
    )
    together = model.encode(items, EVERYTHING, [sample.image_id for sample in samples()])
    hook.remove()
    assert rows == [3]
    for index, item in enumerate(items):
        alone = model.encode([item], EVERYTHING)
        torch.testing.assert_close(together.logits[index], alone.logits[0], rtol=1e-5, atol=2e-4)
        for layer, maps in alone.vision[0].items():
            torch.testing.assert_close(together.vision[index][layer], maps, rtol=0, atol=1e-5)
        if item.num_phrases:
            torch.testing.assert_close(together.attention[index], alone.attention[0], rtol=0, atol=1e-5)
            hidden = together.hidden[index], alone.hidden[0]
            torch.testing.assert_close(hidden[0].states, hidden[1].states, rtol=1e-5, atol=1e-4)
            assert torch.equal(hidden[0].phrase_ids, hidden[1].phrase_ids)


@VARIANTS
def test_gradients_are_those_of_one_by_one(settings):
    train = ("separators", "projectors", *(("prefusion",) if "prefusion" in settings else ()))
    if settings.get("order") == "image":
        train = ("projectors",)
    found = []
    for shared in (True, False):
        lmm = opened(cached_llava(**settings, train=train, share_prefix=shared))
        model = GroundingLMM(lmm, heads=dict(language=LanguageHead()))
        batch = [
            replace(sample, task="vqa", phrases=(), prompt=prompt, image_id="x")
            for sample in (boxed_sample(1),)
            for prompt in PROMPTS
        ]
        loss, _ = model.parse_losses(model.loss(batch))
        loss.backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][name], rtol=1e-3, atol=1e-5, msg=name)


@torch.no_grad()
def test_groups_by_lot_are_one_draw_a_visit():
    model = cached_llava(partitioner=Partitioner(RandomRegions()))
    shown = boxed_sample(0, image_size=(56, 56), image_id="a")
    questions = [replace(shown, prompt=f"{prompt} {n}") for prompt in PROMPTS for n in range(3)]

    def kinds(visits) -> list[bytes]:
        asked = [replace(q, meta={**q.meta, **visit}) for q, visit in zip(questions, visits, strict=True)]
        items = [model.prepare(sample) for sample in asked]
        assert len(share_images(items, ["a"] * len(items))) == len(
            {item.partition.group.tobytes() for item in items}
        )
        return [item.partition.group.tobytes() for item in items]

    assert len(set(kinds([{}] * 9))) > 2
    assert len(set(kinds([{"visit": "0/7"}] * 9))) == 1
    assert len(set(kinds([{"visit": f"{n}/7"} for n in range(9)]))) > 2


@torch.no_grad()
def test_training_does_not_depend_on_how_a_batch_is_cut():
    model = cached_llava(partitioner=Partitioner(RandomRegions()), train=("separators",)).train()
    shown = boxed_sample(0, image_size=(56, 56), image_id="a", num_phrases=1)
    asked = [replace(shown, prompt=prompt, meta={"visit": "3/1"}) for prompt in (*PROMPTS, "and this ?")]
    whole = model.encode([model.prepare(s) for s in asked], EVERYTHING, ["a"] * 4).logits
    for members in ((0, 2), (1, 3), (3,)):
        part = model.encode(
            [model.prepare(asked[m]) for m in members], EVERYTHING, ["a"] * len(members)
        ).logits
        for member, logits in zip(members, part, strict=True):
            torch.testing.assert_close(logits, whole[member], rtol=1e-5, atol=2e-4)


def test_changed_patches_leave_room_for_the_longest_text_of_a_row():
    short = replace(boxed_sample(0, image_size=(56, 56), image_id="a"), phrases=(), text="a", task="vqa")
    long = replace(short, text=" ".join(["a blue ring"] * 40))
    model = cached_llava(stale_share=(0.5, 0.5), train=("separators",), max_length=70).train()
    items = [model.prepare(sample) for sample in (short, long)]
    assert len(items[1].input_ids) > len(items[0].input_ids) + 8
    for order in ((0, 1), (1, 0)):
        states = model.encode([items[i] for i in order], CaptureSpec(logits=True), ["a", "a"])
        assert [len(logits) for logits in states.logits] == [
            len(items[i].input_ids) - items[i].prefix_length + 1 for i in order
        ]


@torch.no_grad()
def test_changed_patches_of_a_row_are_those_of_its_first_sample():
    # Boxes in the middle, so that most patches are background.
    model = cached_llava(stale_share=(0.3, 0.3), train=("separators",)).train()
    shown = boxed_sample(0, image_size=(56, 56), image_id="x")
    items = [model.prepare(replace(shown, prompt=prompt)) for prompt in PROMPTS]
    unchanged = [model.eval().encode([item], EVERYTHING).logits[0] for item in items]
    model.train()
    torch.manual_seed(3)
    together = model.encode(items, EVERYTHING, ["x"] * len(items))
    for index, item in enumerate(items):
        torch.manual_seed(3)
        alone = model.encode([item], EVERYTHING)
        torch.testing.assert_close(together.logits[index], alone.logits[0], rtol=1e-5, atol=2e-4)
        torch.testing.assert_close(together.attention[index], alone.attention[0], rtol=0, atol=1e-5)
        assert not torch.allclose(together.logits[index], unchanged[index], atol=1e-3)


def test_other_pixels_share_nothing_and_plain_inputs_are_refused():
    model = cached_llava()
    shown = boxed_sample(0, image_size=(56, 56))
    turned = replace(shown, image=shown.image[::-1].copy())
    items = [model.prepare(sample) for sample in (shown, turned)]
    assert share_images(items, ["a", "a"]) == [[0], [1]]
    assert share_images([items[0]] * 2, None) == [[0], [1]]
    with pytest.raises(ConfigError, match="CachedLMM.prepare"):
        partitioned([*items, model.lmm.prepare(shown)])
