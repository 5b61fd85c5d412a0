"""Heads that make a mask of each mask token's state: with SAM, SAM 2.1, and without."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from multi_task_parts import objective
from sam_parts import make_refiner
from seg_parts import HEADS, make_model, reasoning_sample
from tiny import make_sample

from flmm_detseg.errors import ConfigError, DataError, PhraseWithoutTokensError
from flmm_detseg.evaluation.records import phrase_records
from flmm_detseg.heads import SegTokenHead
from flmm_detseg.heads.losses import MaskLoss
from flmm_detseg.language.segment_names import MASK_TOKEN
from flmm_detseg.lmms.added.added_tokens import settle
from flmm_detseg.structures import CaptureSpec, Phrase, Turn

EVERY_HEAD = pytest.mark.parametrize("head", HEADS)


def batch_of_samples():
    return [
        reasoning_sample(0, 2, image_id="shared"),
        reasoning_sample(1, 0),
        replace(reasoning_sample(0, 1), image_id="shared", record_id="tiny/other"),
        replace(reasoning_sample(2, 3), image=np.ascontiguousarray(make_sample(3, image_size=(90, 30)).image),
                masks=np.zeros((3, 90, 30), dtype=bool)),
    ]  # fmt: skip


@EVERY_HEAD
def test_every_trainable_tensor_gets_a_gradient(head):
    model = make_model(head).train()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:  # zero would let nothing through to lora_A
                weight.normal_(std=0.1)
    objective(model, [reasoning_sample(0, 2), reasoning_sample(1, 1)]).backward()
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    for part in ("added_rows", "lora_A", "lora_B", "heads.reasoning.project.0", "heads.reasoning.project.2"):
        assert any(part in name for name in trained), part
    assert any("mask_decoder" in name for name in trained) == (head != "pointer")
    assert not any("prompt_encoder" in name or "image_encoder" in name for name in trained)
    assert not any("vision_encoder" in name for name in trained)
    for name, weight in trained.items():
        assert weight.grad.abs().sum() > 0, name


@pytest.mark.parametrize("position", ["before", "at"])
def test_the_state_is_that_of_the_models_own_forward(position):
    """The LMM as one of transformers' with larger tables, and the head's formula written out."""
    model = make_model("sam", lora=False, position=position).eval()
    sample = reasoning_sample(0, 2)
    lmm, head = model.lmm, model.heads["reasoning"]
    item = lmm.prepare(sample)
    ids = item.input_ids.tolist()
    own = lmm.processor.tokenizer.convert_tokens_to_ids(MASK_TOKEN)
    places = [place - (position == "before") for place, token in enumerate(ids) if token == own]
    with torch.no_grad():
        states = lmm.encode([item], head.capture)
        (prompts,) = head.prompts(states, model.prepare([sample]))
        settle(lmm.model)
        lmm.model.set_attn_implementation("sdpa")
        hidden = lmm.model(
            input_ids=item.input_ids[None],
            attention_mask=torch.ones(1, len(ids), dtype=torch.int64),
            output_hidden_states=True,
            use_cache=False,
            **lmm.own_inputs(item),
        ).hidden_states[-1][0, places]
        first, _, second = head.project
        expected = torch.relu(hidden @ first.weight.T + first.bias) @ second.weight.T + second.bias
    assert len(places) == 2
    torch.testing.assert_close(prompts, expected, rtol=1e-4, atol=1e-5)


@EVERY_HEAD
def test_a_batch_equals_single_samples(head):
    model = make_model(head).eval()
    samples = batch_of_samples()
    together = model.results("reasoning", samples)
    assert [len(found.packed) for found in together] == [2, 0, 1, 3]
    for sample, ours in zip(samples, together, strict=True):
        (alone,) = model.results("reasoning", [sample])
        assert ours.masks.shape == (len(sample.phrases), *sample.image_size)
        torch.testing.assert_close(ours.mask_logits, alone.mask_logits, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(ours.coarse_logits, alone.coarse_logits, rtol=1e-4, atol=1e-4)
        assert (ours.refined is None) == (head != "sam"), "SAM alone has padding"
        assert len(phrase_records(sample, ours)) == len(sample.phrases)
    assert float(together[3].mask_logits.std()) > 0
    few = make_model(head).eval()
    few.heads["reasoning"].prompts_per_call = 1
    for ours, one in zip(together, few.results("reasoning", samples), strict=True):
        torch.testing.assert_close(ours.mask_logits, one.mask_logits, rtol=1e-4, atol=1e-4)


@EVERY_HEAD
def test_losses_are_those_of_the_masks_at_image_size(head):
    model = make_model(head).eval()
    samples = batch_of_samples()
    found = model.loss(samples)
    predictions = model.results("reasoning", samples)
    expected = MaskLoss(2.0, 0.5)(
        [found.mask_logits for found in predictions], [torch.from_numpy(sample.masks) for sample in samples]
    )
    for name, value in expected.items():
        torch.testing.assert_close(found[f"reasoning.{name}"], value, rtol=1e-4, atol=1e-5)
    assert found["language.loss_answer"] > 0


@EVERY_HEAD
def test_answers_without_masks_are_learned_as_words_alone(head):
    model = make_model(head).train()
    losses = model.loss([reasoning_sample(0, 0)])
    assert float(losses["reasoning.loss_mask"]) == float(losses["reasoning.loss_dice"]) == 0
    model.parse_losses(losses)[0].backward()
    assert all(weight.grad is not None for weight in model.parameters() if weight.requires_grad)
    assert all(
        not weight.grad.any() for weight in model.heads["reasoning"].parameters() if weight.requires_grad
    )
    (found,) = model.eval().results("reasoning", [reasoning_sample(0, 0)])
    assert found.masks.shape == (0, 48, 72)


def test_joint_samples_with_mask_tokens_teach_it_and_others_are_left_out():
    model = make_model("pointer").eval()
    reasoning = reasoning_sample(0, 2)
    joint = replace(reasoning, task="joint")
    own = {key: value for key, value in model.loss([reasoning]).items() if key.startswith("reasoning.")}
    found = model.loss([joint])
    assert own
    assert all(torch.equal(found[key], value) for key, value in own.items())
    # Names as phrases are not its tokens; nor are there any where nothing is shown.
    named = replace(joint, phrases=(Phrase(((0, 3),)),), masks=joint.masks[:1])
    for other in (named, replace(joint, text="none", phrases=(), masks=joint.masks[:0])):
        assert not any(key.startswith("reasoning.") for key in model.loss([other]))


@pytest.mark.parametrize(
    ("head", "steps"),
    [("sam", 120), ("pointer", 80), pytest.param("sam2", 500, marks=pytest.mark.long)],
)
def test_a_few_answers_can_be_learned_by_heart(head, steps):
    model = make_model(head, lora=False).train()
    samples = [reasoning_sample(0, 2), reasoning_sample(1, 1)]
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(steps):
        losses = model.loss(samples)
        optimizer.zero_grad()
        model.parse_losses(losses)[0].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    assert float(losses["reasoning.aiou"]) > 0.7


@EVERY_HEAD
def test_what_was_saved_is_loaded_and_predicts_the_same(head):
    model, again = make_model(head).eval(), make_model(head).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.add_(0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(3)))
    sample = reasoning_sample(0, 2)
    (before,), (other,) = model.results("reasoning", [sample]), again.results("reasoning", [sample])
    assert not torch.equal(before.mask_logits, other.mask_logits)
    again.load_trainable(model.trainable_state_dict(), "memory")
    (after,) = again.results("reasoning", [sample])
    assert torch.equal(before.mask_logits, after.mask_logits)
    assert torch.equal(before.scores, after.scores)


def test_only_the_last_answers_tokens_are_read():
    """Tokens of the question and of earlier turns have no mask."""
    model = make_model().eval()
    plain = reasoning_sample(0, 1)
    sample = replace(
        plain,
        prompt=f"is it {MASK_TOKEN} ?",
        turns=(Turn("where is the ring ?", f"a ring {MASK_TOKEN} ."),),
    )
    batch = model.prepare([sample])
    assert int((batch.inputs[0].input_ids == model.heads["reasoning"].token_id).sum()) == 3
    (found,) = model.results("reasoning", [sample])
    (other,) = model.results("reasoning", [plain])
    assert found.masks.shape == other.masks.shape == (1, 48, 72)
    assert not torch.equal(found.mask_logits, other.mask_logits), "the conversation was read"


def test_a_token_that_is_cut_off_is_refused():
    """Whole objects or none: never fewer masks than the answer speaks of."""
    model = make_model()
    sample = reasoning_sample(0, 2)
    length = len(model.lmm.prepare(sample).input_ids)
    model.lmm.processor.settings = replace(model.lmm.processor.settings, max_length=length - 3)
    with pytest.raises(PhraseWithoutTokensError, match=r"tiny/0: phrase 1 '\[SEG\]' keeps 0 of its 1 tokens"):
        model.loss([sample])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(masks=None), "0 target masks, 2 phrases"),
        (dict(masks=np.zeros((1, 48, 72), dtype=bool)), "1 target masks, 2 phrases"),
        (
            dict(phrases=(Phrase(((0, 3),)),), masks=np.zeros((1, 48, 72), dtype=bool)),
            "2 times .SEG. in the answer's tokens, 1 phrases",
        ),
    ],
    ids=["no masks", "too few masks", "too few phrases"],
)
def test_samples_that_do_not_fit_are_named(changes, message):
    with pytest.raises(DataError, match=f"^tiny/0: {message}"):
        make_model().loss([replace(reasoning_sample(0, 2), **changes)])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(position="after"), "`position` is 'after'; choose one of at, before"),
        (dict(prompts_per_call=0), "`prompts_per_call` is 0"),
        (dict(token="<SEG>"), r"model.heads.reasoning` reads <SEG>: the LMM has no token '<SEG>'; add it"),
    ],
    ids=["position", "call", "token"],
)
def test_settings_that_cannot_be_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        make_model("sam", **changes)


@pytest.mark.parametrize("changes", [dict(embed_size=0), dict(rates=())], ids=str)
def test_a_pointer_of_no_width_is_refused(changes):
    with pytest.raises(ConfigError, match="must be positive"):
        make_model("pointer", **changes)


def test_a_kept_decoder_stays_and_its_masks_still_teach_the_token():
    model = make_model("sam", train_decoder=False).train()
    names = [name for name, weight in model.named_parameters() if weight.requires_grad]
    assert not any(".sam." in name for name in names)
    objective(model, [reasoning_sample(0, 2)]).backward()
    assert model.heads["reasoning"].project[0].weight.grad.abs().sum() > 0
    assert model.heads["reasoning"].lent_sam is model.heads["reasoning"].sam


def test_sams_own_decoder_gives_the_mask_of_a_token():
    """segment-anything's own calls: no prompt but one sparse token."""
    refiner = make_refiner()
    head = SegTokenHead(refiner, hidden_size=8)
    samples = [reasoning_sample(0, 2)]
    tokens = torch.randn(2, refiner.prompt_dim, generator=torch.Generator().manual_seed(0))
    (found,) = refiner.maps_from_tokens([samples[0].image], [tokens])
    sam = refiner.model
    with torch.no_grad():
        (embedding,), _ = refiner.image_features([samples[0].image])
        _, dense = sam.prompt_encoder(points=None, boxes=None, masks=None)
        for index, token in enumerate(tokens):
            logits, _ = sam.mask_decoder(
                image_embeddings=embedding[None] if embedding.ndim == 3 else embedding,
                image_pe=sam.prompt_encoder.get_dense_pe(),
                sparse_prompt_embeddings=token[None, None],
                dense_prompt_embeddings=dense,
                multimask_output=False,
            )
            own = sam.postprocess_masks(logits, refiner.input_size((48, 72)), (48, 72))[0, 0]
            torch.testing.assert_close(found.enlarge()[index], own, rtol=1e-4, atol=1e-4)
    assert found.unpadded().shape == (2, 22, 32), "rows of the image in SAM's square"
    assert head.capture == CaptureSpec(answer=True)
