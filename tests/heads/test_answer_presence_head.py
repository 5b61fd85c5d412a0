"""Whether there is what a question asks for, from the state that begins its answer."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from mmengine.config import Config
from multi_task_parts import objective
from seg_parts import HEADS, make_model, reasoning_sample

from flmm_detseg.errors import ConfigError, DataError
from flmm_detseg.heads import AnswerPresenceHead
from flmm_detseg.models import GroundingLMM
from flmm_detseg.models.checkpoint import load_file
from flmm_detseg.models.from_config import model_from_config
from flmm_detseg.structures import Sample

EVERY_HEAD = pytest.mark.parametrize("head", HEADS)
PRESENCE = dict(type=AnswerPresenceHead, width=8)
# Of what is there, and of what is not.
SAMPLES = [reasoning_sample(0, 2, image_id="a"), reasoning_sample(1, 0), reasoning_sample(2, 1)]


def with_presence(head: str = "sam", **changes) -> GroundingLMM:
    """The model of ``make_model`` with the same tensors, and a presence head."""
    model = make_model(head, presence=PRESENCE, **changes)
    held = {**model.trainable_state_dict(), **make_model(head, **changes).trainable_state_dict()}
    model.load_trainable(held, "the plain one")
    return model


def first_states(model: GroundingLMM, samples: list[Sample]) -> torch.Tensor:
    batch = model.prepare(samples)
    return torch.stack([rows[0] for rows in model.lmm.encode(batch.inputs, model.capture).answer])


@EVERY_HEAD
@torch.no_grad()
def test_the_logit_is_that_of_the_state_before_the_answer(head):
    model = with_presence(head).eval()
    found = model.presence_logits("reasoning", SAMPLES)
    assert [tuple(logits.shape) for logits in found] == [(1,), (1,), (1,)]
    part = model.heads["reasoning"].presence
    states = first_states(model, SAMPLES)
    states = F.layer_norm(states, states.shape[1:], part.norm.weight, part.norm.bias)
    hidden = F.gelu(states @ part.hidden.weight.T + part.hidden.bias)
    expected = hidden @ part.out.weight[0] + part.out.bias
    torch.testing.assert_close(torch.cat(found), expected, rtol=1e-5, atol=1e-6)
    for sample, logits in zip(SAMPLES, found, strict=True):
        torch.testing.assert_close(
            model.presence_logits("reasoning", [sample])[0], logits, rtol=1e-4, atol=1e-5
        )
    # What the reference answer says cannot be read there.
    other = replace(SAMPLES[0], text="nothing .", phrases=(), masks=None)
    torch.testing.assert_close(model.presence_logits("reasoning", [other])[0], found[0], rtol=1e-4, atol=1e-5)


@EVERY_HEAD
def test_all_but_presence_is_that_of_a_model_without_it(head):
    plain, model = make_model(head), with_presence(head)
    for one in (plain, model):
        one.train()
        objective(one, SAMPLES).backward()
    gradients = dict(model.named_parameters())
    for name, weight in plain.named_parameters():
        if weight.requires_grad:
            assert torch.equal(weight.grad, gradients[name].grad), name
    own = [p for name, p in gradients.items() if ".presence." in name]
    assert len(own) == 6
    assert all(p.grad.abs().sum() > 0 for p in own)
    with torch.no_grad():
        without, found = plain.loss(SAMPLES), model.loss(SAMPLES)
        logits = torch.cat(model.presence_logits("reasoning", SAMPLES))
    for name in without:
        if "loss_mask" in name or "loss_dice" in name or "loss_answer" in name:
            assert torch.equal(without[name], found[name]), name
    expected = F.binary_cross_entropy_with_logits(logits, torch.tensor([1.0, 0.0, 1.0]))
    torch.testing.assert_close(found["reasoning.loss_presence"], expected, rtol=1e-4, atol=1e-5)
    for with_it, other in zip(
        model.eval().results("reasoning", SAMPLES), plain.eval().results("reasoning", SAMPLES), strict=True
    ):
        assert torch.equal(with_it.mask_logits, other.mask_logits)
        assert other.presence is None
        assert with_it.presence.shape == with_it.scores.shape


def test_a_batch_without_a_mask_teaches_presence_too():
    model = with_presence().train()
    absent = [reasoning_sample(1, 0), reasoning_sample(2, 0)]
    losses = model.loss(absent)
    logits = torch.cat(model.presence_logits("reasoning", absent))
    torch.testing.assert_close(
        losses["reasoning.loss_presence"], F.softplus(logits).mean(), rtol=1e-4, atol=1e-5
    )
    model.parse_losses(losses)[0].backward()
    assert model.heads["reasoning"].presence.out.weight.grad.abs().sum() > 0


def test_presence_is_weighed_by_questions_and_masks_by_masks(monkeypatch):
    """A process with one question of four, and two masks of two, of the whole step."""
    model = with_presence()
    samples = [reasoning_sample(0, 2)]
    whole = model.loss(samples)
    totals = model._totals(model._groups(samples))
    more = replace(totals, head_samples={name: 4.0 for name in totals.head_samples})
    monkeypatch.setattr(model, "_totals", lambda groups: more)
    part = model.loss(samples)
    torch.testing.assert_close(part["reasoning.loss_presence"], whole["reasoning.loss_presence"] / 4)
    assert torch.equal(part["reasoning.loss_mask"], whole["reasoning.loss_mask"])


def test_an_answer_in_words_alone_says_nothing_of_presence():
    model = with_presence()
    words = replace(reasoning_sample(1, 0), meta={"form": "text"})
    assert float(model.loss([words])["reasoning.loss_presence"].detach()) == 0
    head = model.heads["reasoning"]
    assert [bool(head.is_there(sample)) for sample in SAMPLES] == [True, False, True]
    with pytest.raises(DataError, match="`text_share`=0"):
        head.is_there(words)
    with pytest.raises(ConfigError, match="does not say whether"):
        make_model().presence_logits("reasoning", SAMPLES)


def test_it_can_be_learned():
    model = with_presence(lora=False).train()
    samples = [reasoning_sample(k, k % 2) for k in range(4)]
    samples = [replace(s, prompt="the star ?" if k % 2 else "the bus ?") for k, s in enumerate(samples)]
    states = first_states(model, samples).detach()
    part = model.heads["reasoning"].presence
    optimizer = torch.optim.Adam(part.parameters(), lr=1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        F.binary_cross_entropy_with_logits(part(states), torch.tensor([0.0, 1.0, 0.0, 1.0])).backward()
        optimizer.step()
    found = torch.cat(model.eval().presence_logits("reasoning", samples))
    assert (found > 0).tolist() == [False, True, False, True]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(width=0), "`width` is 0"),
        (dict(dropout=1.0), "`dropout` is 1"),
        (dict(keep_present=0.0), "`keep_present`"),
    ],
)
def test_wrong_settings_are_named(changes, message):
    with pytest.raises(ConfigError, match=f"AnswerPresenceHead: {message}"):
        AnswerPresenceHead(4, **changes)


def test_what_was_saved_is_loaded(tmp_path):
    model, again = with_presence().eval(), make_model(presence=PRESENCE).eval()
    model.heads["reasoning"].presence.calibrate(
        torch.tensor([3.0, 1.0, -2.0, 0.5]), torch.tensor([1, 1, 0, 0]).bool()
    )
    again.load_trainable(model.trainable_state_dict(), "memory")
    assert again.heads["reasoning"].presence_threshold == model.heads["reasoning"].presence_threshold
    for first, second in zip(
        model.results("reasoning", SAMPLES), again.results("reasoning", SAMPLES), strict=True
    ):
        assert torch.equal(first.presence, second.presence)


def test_files_from_before_it_still_load(tmp_path, caplog):
    """Training begins with a new presence head; a model for use has none rather than a random one."""
    plain, file = make_model(), tmp_path / "old.pth"
    torch.save({"state_dict": plain.trainable_state_dict()}, file)
    build = partial(make_model, presence=PRESENCE)
    model = build()
    fresh = {name: p.clone() for name, p in model.named_parameters() if ".presence." in name}
    assert load_file(model, file) == ("heads.reasoning.presence",)
    assert all(torch.equal(p, fresh[name]) for name, p in model.named_parameters() if name in fresh)
    assert torch.equal(model.heads["reasoning"].project[0].weight, plain.heads["reasoning"].project[0].weight)
    config = Config(dict(model=dict(type=make_model, presence=PRESENCE)))
    used = model_from_config(config, file, device="cpu")
    assert used.heads["reasoning"].presence_score is None
    (found,), (expected,) = (one.eval().results("reasoning", SAMPLES[:1]) for one in (used, plain))
    assert found.presence is None
    assert torch.equal(found.mask_logits, expected.mask_logits)
    # A later stage may name it as what it begins with.
    heads = dict(reasoning={**HEADS["sam"], "presence": PRESENCE}, language=plain.heads["language"])
    later = GroundingLMM(build().lmm, heads, init_from=[str(file)])
    assert later.heads["reasoning"].presence_score is not None
    # A file that has it is loaded whole.
    whole = tmp_path / "new.pth"
    torch.save({"state_dict": with_presence().trainable_state_dict()}, whole)
    assert model_from_config(config, whole, device="cpu").heads["reasoning"].presence_score is not None


def test_masks_of_one_answer_share_one_probability():
    model = with_presence().eval()
    (found,) = model.results("reasoning", SAMPLES[:1])
    (logit,) = model.presence_logits("reasoning", SAMPLES[:1])
    assert found.presence.tolist() == pytest.approx([float(logit.sigmoid())] * 2, rel=1e-4)
