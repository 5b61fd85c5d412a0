"""A routed projector: what its routers give, what learns, what photos and tasks get, losses, checkpoints."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from tiny import make_sample, tiny_llava, tiny_llava_config, tiny_tokenizer
from torch import nn

from flmm_detseg import Grounder
from flmm_detseg.errors import CheckpointError, ConfigError, DataError
from flmm_detseg.heads import LanguageHead
from flmm_detseg.lmms import LlavaAdapter
from flmm_detseg.lmms.added.projector_part import Shown, projecting
from flmm_detseg.models import GroundingLMM
from flmm_detseg.models.checkpoint import lmm_meta
from flmm_detseg.models.from_config import model_from_config
from flmm_detseg.ops.load_balance import load_balance
from flmm_detseg.structures import CaptureSpec, Sample

ROOT = Path(__file__).resolve().parents[3]
LOGITS = CaptureSpec(logits=True)
DEPTH, HEAT = Shown("depth"), Shown("heat")


def routed(router: str = "soft", *, moved: bool = True, **settings):
    """A tiny LLaVA with the part, trained by chance unless ``moved`` says otherwise."""
    torch.manual_seed(0)
    given = dict(modalities=["rgb", "depth", "heat"], router=router) | settings
    lmm = tiny_llava(parts=dict(routed=dict(type="RoutedProjector", **given))).train()
    if moved:
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for weight in lmm.parts.parameters():
                weight.add_(0.3 * torch.randn(weight.shape, generator=generator))
    return lmm


def features() -> torch.Tensor:
    return torch.randn(3, 5, 32, generator=torch.Generator().manual_seed(2))


def project(lmm, x: torch.Tensor, shown: Shown) -> torch.Tensor:
    with projecting(shown):
        return lmm.model.model.multi_modal_projector(x)


def written_out(lmm, x: torch.Tensor, row: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What each expert gives, ``[K, 3, 5, d]``, and the router's probabilities, ``[3, 5, K]``."""
    base, (place,) = lmm.model.model.multi_modal_projector.base_layer, lmm.parts["routed"].copies
    first = base(x)
    outputs = [first, *(first + expert(x) for expert in place.experts)]
    if not hasattr(place, "router"):
        return torch.stack(outputs), torch.full((3, 5, len(outputs)), 1 / len(outputs))
    centred = first - first.mean(-1, keepdim=True)
    token = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() + place.tokens[row]
    one, _, two = place.router
    hidden = nn.functional.gelu(token @ one.weight.T + one.bias)
    return torch.stack(outputs), (hidden @ two.weight.T + two.bias).softmax(-1)


def asking(index: int = 0, **changes) -> Sample:
    sample = replace(make_sample(index), prompt="is it near ?", phrases=(), masks=None, task="vqa")
    return replace(sample, **changes)


@pytest.mark.parametrize("router", ["constant", "hard", "soft"])
@torch.no_grad()
def test_a_router_gives_the_mixture_that_it_is_named_after(router):
    lmm, x = routed(router), features()
    for row, shown in enumerate((DEPTH, HEAT)):  # photos are kept, and have no token
        experts, chances = written_out(lmm, x, row)
        if router == "constant":
            expected = experts.mean(0)
        elif router == "soft":
            expected = torch.einsum("knld,nlk->nld", experts, chances)
        else:
            chosen = chances.argmax(-1)
            assert len(chosen.unique()) == 3, "every expert gives some tokens"
            expected = experts.gather(0, chosen[None, ..., None].expand(1, *experts.shape[1:]))[0]
        torch.testing.assert_close(project(lmm, x, shown), expected, rtol=1e-4, atol=1e-5)
        (place,) = lmm.parts["routed"].copies
        weights, probabilities = place.route(experts[0], shown)
        for rows in (weights, probabilities):
            torch.testing.assert_close(rows.sum(-1), torch.ones(3, 5))
    if router == "hard":
        assert torch.equal(project(lmm, x, HEAT), expected), "one expert, in its own bits"


@pytest.mark.parametrize("router", ["constant", "hard", "soft"])
def test_gradients_reach_every_tensor_and_the_router_of_those_that_have_one(router):
    lmm, x = routed(router), features()
    given = torch.randn(3, 5, 32, generator=torch.Generator().manual_seed(3))
    (given * (project(lmm, x, DEPTH) + project(lmm, x, HEAT))).sum().backward()
    trained = dict(lmm.parts["routed"].named_parameters())
    assert all(weight.grad.abs().sum() > 0 for weight in trained.values())
    assert all(weight.grad is None for name, weight in lmm.named_parameters() if "base_layer" in name)
    learned = {name for name in trained if "router" in name or "tokens" in name}
    assert bool(learned) == (router != "constant")
    if router == "constant":
        return
    # Soft's gradient, by hand; hard's is the same: that of the probabilities goes straight through.
    total = 0
    for row in range(2):
        experts, chances = written_out(lmm, x, row)
        total = total + torch.einsum("knld,nlk,nld->", experts.detach(), chances, given)
    (place,) = lmm.parts["routed"].copies
    expected = torch.autograd.grad(total, [place.tokens, *place.router.parameters()])
    for ours, theirs in zip([place.tokens, *place.router.parameters()], expected, strict=True):
        torch.testing.assert_close(ours.grad, theirs, rtol=1e-4, atol=1e-5)


def test_nothing_changes_before_training_and_a_step_tells_modalities_and_experts_apart():
    for router in ("constant", "hard", "soft"):
        lmm, x = routed(router, moved=False), features()
        with torch.no_grad():
            assert torch.equal(project(lmm, x, DEPTH), lmm.model.model.multi_modal_projector.base_layer(x))
        trained = list(lmm.parts.parameters())
        (project(lmm, x, DEPTH) + project(lmm, x, HEAT)).square().sum().backward()
        torch.optim.AdamW(trained, lr=1e-2).step()
        with torch.no_grad():
            depth, heat = project(lmm, x, DEPTH), project(lmm, x, HEAT)
        assert torch.equal(depth, heat) == (router == "constant")
        first, second = (expert(x) for expert in lmm.parts["routed"].copies[0].experts)
        assert not torch.allclose(first, second), "experts with equal weights differ, too"


@pytest.mark.parametrize("settings", [{}, dict(load_balance_weight=0)], ids=["default", "unbalanced"])
def test_a_hard_router_leaves_the_models_own_projector_thanks_to_the_balance(settings):
    lmm, x = routed("hard", moved=False, **settings), features()
    (place,) = lmm.parts["routed"].copies
    with torch.no_grad():
        place.router[2].bias.copy_(torch.tensor([2.0, 0.0, 0.0]))
    optimizer = torch.optim.AdamW(lmm.parts.parameters(), lr=1e-2, weight_decay=0)
    own = []
    for _ in range(60):
        lmm.parts["routed"].begin_pass()
        loss = (project(lmm, x, DEPTH) - 1).square().mean()
        figures = lmm.auxiliary_losses()
        own.append(float(figures["routed.depth_0"]))
        optimizer.zero_grad()
        (loss + figures.get("routed.balance_loss", 0)).backward()
        optimizer.step()
    assert own[0] == 1
    assert own[-1] == 1 if settings else own[-1] < 0.5


def test_a_bfloat16_lmm_is_routed_in_float32():
    parts = dict(routed=dict(type="RoutedProjector", modalities=["depth"]))
    lmm = LlavaAdapter.from_config(
        tiny_llava_config(), tokenizer=tiny_tokenizer(), dtype="bfloat16", parts=parts
    )
    assert {weight.dtype for weight in lmm.parts.parameters()} == {torch.float32}
    x = features().bfloat16()
    tokens = project(lmm.train(), x, DEPTH)
    assert tokens.dtype == torch.bfloat16
    assert torch.equal(tokens, lmm.model.model.multi_modal_projector.base_layer(x))
    tokens.float().square().sum().backward()
    last = [weight for name, weight in lmm.parts.named_parameters() if "linear_2.weight" in name]
    assert len(last) == 2
    assert all(weight.grad.any() for weight in last)


@torch.no_grad()
def test_photos_stay_with_the_models_own_projector_but_for_the_tasks_that_are_routed():
    lmm = routed(tasks=["joint"]).eval()
    plain = asking(0, image_id="one")
    given = [plain, replace(plain, task="joint"), replace(plain, modalities=("depth",))]
    items = [lmm.prepare(sample) for sample in given]
    alone = [lmm.encode([item], LOGITS).logits[0] for item in items]
    together = lmm.encode(items, LOGITS, ["one"] * 3).logits
    for ours, theirs in zip(together, alone, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    with lmm.base_mode():
        (untouched,) = lmm.encode(items[:1], LOGITS).logits
        assert torch.equal(lmm.encode(items[1:2], LOGITS).logits[0], untouched)
    assert torch.equal(alone[0], untouched)
    assert not torch.allclose(alone[1], untouched, atol=1e-3)
    assert not torch.allclose(alone[1], alone[2], atol=1e-3), (
        "the task and the modality have tokens of their own"
    )
    # Of this task, depth gets both tokens.
    both = lmm.prepare(replace(given[2], task="joint"))
    assert not torch.allclose(lmm.encode([both], LOGITS).logits[0], alone[2], atol=1e-3)
    assert [lmm.needs_parts(sample) for sample in given] == [False, False, True]
    assert not lmm.needs_parts(replace(plain, modalities=("rgb",)))
    assert not routed(keep=[]).needs_parts(replace(plain, modalities=("rgb",))), (
        "photos are the untouched LMM's, too"
    )
    with pytest.raises(DataError, match="no part of this LMM reads 'sonar' images"):
        lmm.prepare(replace(plain, modalities=("sonar",)))


@torch.no_grad()
def test_answers_are_those_of_teacher_forcing():
    lmm = routed(tasks=["joint"], keep=[]).eval()
    for sample in (asking(0, modalities=("depth",)), asking(0, task="joint"), asking(0)):
        generation = lmm.generate_with_states(sample, CaptureSpec(), max_new_tokens=4)
        assert generation.text == lmm.generate(sample, max_new_tokens=4)
        (logits,) = lmm.encode([generation.inputs], LOGITS).logits
        expected = logits[-len(generation.token_ids) - 1 : -1].log_softmax(-1)
        expected = expected.gather(1, generation.token_ids[:, None])[:, 0]
        torch.testing.assert_close(generation.log_probs, expected, rtol=1e-4, atol=2e-5)


@torch.no_grad()
def test_photos_beside_depth_in_a_plain_question_are_not_those_of_phrases():
    lmm = routed(tasks=["phrase"])
    grounder = Grounder(GroundingLMM(lmm, dict(language=LanguageHead())))
    photo, depth = (make_sample(index).image for index in (0, 1))
    given = dict(more_images=[depth], modalities=("rgb", "depth"))
    projected = []
    (place,) = lmm.parts["routed"].copies
    place.register_forward_pre_hook(lambda _, args: projected.append(args[1]))
    grounder.answer(photo, "is it near ?", max_new_tokens=2, **given)
    assert projected == [DEPTH], "the photo is the model's own projector's, and depth has no token of a task"


def test_a_training_logs_shares_and_adds_the_weighted_balance():
    lmm = routed("hard", load_balance_weight=0.5)
    model = GroundingLMM(lmm, dict(language=LanguageHead(distill_weight=1.0))).train()
    samples = [asking(0), asking(1, modalities=("depth",)), asking(2), asking(3, modalities=("depth",))]
    (place,) = lmm.parts["routed"].copies
    for _ in range(2):  # figures are of one pass
        losses = model(samples, mode="loss")
        (probabilities,) = place.last.probabilities
        assert probabilities.shape == (2 * 16, 3)
    _, log = model.parse_losses(losses)
    shares = {name: float(value) for name, value in log.items() if name.startswith("lmm.routed.")}
    balance = shares.pop("lmm.routed.balance_loss")
    chosen = torch.eye(3)[probabilities.argmax(-1)]
    assert balance == pytest.approx(0.5 * float(load_balance(probabilities, chosen)))
    assert float(losses["objective.loss_lmm"]) == pytest.approx(balance)
    expected = dict.fromkeys(
        (f"lmm.routed.{name}_{k}" for name in lmm.parts["routed"].modalities for k in range(3)), 0.0
    )
    expected["lmm.routed.rgb_0"] = 0.5
    for expert, share in enumerate(chosen.mean(0)):
        expected[f"lmm.routed.depth_{expert}"] = 0.5 * float(share)
    assert shares == pytest.approx(expected)
    losses["objective.loss_lmm"].backward()
    reached = {
        name for name, weight in lmm.named_parameters() if weight.grad is not None and weight.grad.any()
    }
    assert reached == {
        f"parts.routed.copies.0.{name}"
        for name in ("tokens", *(f"router.{n}.{w}" for n in (0, 2) for w in ("weight", "bias")))
    }
    deepcopy(lmm)  # also with a graph that runs
    model([asking(0)], mode="loss")
    assert lmm.auxiliary_losses()["routed.rgb_0"] == 1
    assert "routed.balance_loss" not in lmm.auxiliary_losses(), "nothing was routed"
    model.eval()
    model(samples, mode="loss")
    assert lmm.auxiliary_losses() == {}


def test_it_is_saved_loaded_and_refused_where_it_would_mean_something_else(tmp_path):
    def config(name: str, **settings) -> Path:
        part = dict(type="RoutedProjector", modalities=["rgb", "depth"], **settings)
        lmm = dict(
            type="LlavaAdapter",
            pretrained=str(ROOT / "data" / "models" / "tiny_llava"),
            parts=dict(routed=part),
        )
        head = dict(language=dict(type="LanguageHead"))
        Config(dict(model=dict(type="GroundingLMM", lmm=lmm, heads=head))).dump(tmp_path / f"{name}.py")
        return tmp_path / f"{name}.py"

    model = model_from_config(config("a", tasks=["phrase"]), untrained=True, device="cpu").eval()
    names = set(model.trainable_state_dict())
    assert names == {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert all(name.startswith("lmm.parts.routed.copies.0.") for name in names)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name in names:
                weight.add_(0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
    file = tmp_path / "iter_1.pth"
    torch.save({"state_dict": model.trainable_state_dict(), "meta": lmm_meta(model.lmm)}, file)
    again = model_from_config(config("a", tasks=["phrase"]), file, device="cpu").eval()
    for sample in (asking(0), asking(0, modalities=("depth",)), asking(0, task="phrase")):
        item = model.lmm.prepare(sample)
        with torch.no_grad():
            assert torch.equal(
                model.lmm.encode([item], LOGITS).logits[0],
                again.lmm.encode([again.lmm.prepare(sample)], LOGITS).logits[0],
            )
    for settings, message in (
        (dict(tasks=["phrase"], router="hard"), "routed.router"),
        (dict(tasks=["joint"]), "routed.tasks"),
        (dict(tasks=["phrase"], keep=[]), "routed.keep"),
    ):
        with pytest.raises(CheckpointError, match=message):
            model_from_config(config("b", **settings), file, device="cpu")
    with pytest.raises(ConfigError, match="RoutedProjector cannot be exported"):
        model.lmm.parts["routed"].settle(model.lmm.model)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(modalities="depth"), "`modalities` is 'depth'; a list of names"),
        (dict(modalities=[""]), "`modalities` is .*; a list of names"),
        (dict(modalities=[], tasks=["phrase"]), r"`modalities` is \[\]; a list of names"),
        (dict(modalities=["rgb"]), r"`keep` leaves all of `modalities` \['rgb'\].*keep=\[\]"),
        (dict(modalities=["depth"], keep=["heat"]), "`keep` names heat, which `modalities` does not"),
        (dict(modalities=["depth"], keep="rgb"), "`keep` is 'rgb'; a list of names"),
        (dict(modalities=["depth"], tasks="phrase"), "`tasks` is 'phrase'; a list of names"),
        (dict(modalities=["depth"], router="sparse"), "`router` is 'sparse'; allowed: constant, hard, soft"),
        (dict(modalities=["depth"], num_experts=1), "`num_experts` is 1; an integer from 2 on"),
        (dict(modalities=["depth"], hidden=0), "`hidden` is 0; an integer from 1 on"),
        (dict(modalities=["depth"], load_balance_weight=-1), "`load_balance_weight` is -1; a number from 0 on"),
        (
            dict(modalities=["depth"], router="constant", load_balance_weight=1),
            "`router`='constant' has nothing to balance; leave `load_balance_weight` out",
        ),
    ],
    ids=str,
)  # fmt: skip
def test_settings_that_cannot_be_used_are_refused(settings, message):
    parts = dict(routed=dict(type="RoutedProjector", **settings))
    with pytest.raises(ConfigError, match=f"`lmm.parts.routed`: RoutedProjector: {message}"):
        LlavaAdapter.from_config(tiny_llava_config(), tokenizer=tiny_tokenizer(), parts=parts)


def test_it_shares_images_with_other_projectors_or_is_refused():
    parts = dict(
        routed=dict(type="RoutedProjector", modalities=["rgb", "depth"]),
        own=dict(type="OwnProjector", modalities=["depth"]),
    )
    with pytest.raises(
        ConfigError, match="`lmm.parts.routed` and `lmm.parts.own` are both .* 'depth' images"
    ):
        tiny_llava(parts=parts)
    with pytest.raises(ConfigError, match="in whose place RoutedProjector computes; leave one of them out"):
        tiny_llava(lora=dict(projector=dict(r=2)), parts=dict(routed=parts["routed"]))
