"""Changed patches in training: the forward pass of training is that of an L3 hit, and is off everywhere else."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from cached_parts import SCREEN_BOX, boxed_sample, cached_llava, screens

from flmm_detseg.cache.reading import changed_patches
from flmm_detseg.cache.reading.changed_patches import see_groups
from flmm_detseg.cache.serving.prefill import CacheUse, Stopwatch, prefill
from flmm_detseg.errors import ConfigError
from flmm_detseg.store.background_cache import BackgroundCache
from flmm_detseg.store.settings import ApproximateSettings, CacheSettings
from flmm_detseg.structures import CaptureSpec, Sample

LOGITS = CaptureSpec(logits=True)


def changed_model(share=(0.4, 0.4), **arguments):
    return cached_llava(frozen=False, train=("separators",), stale_share=share, **arguments)


def drawn(part, item) -> torch.Tensor:
    """Patches that are in the background and recomputed."""
    again = set(part.objects.tolist()) - set(item.partition.objects.tolist())
    assert again <= set(part.background.tolist())
    return torch.tensor(sorted(again))


@pytest.mark.parametrize("positions", ["packed", "raster"])
@pytest.mark.parametrize("projectors", ["shared", "separate"])
def test_training_computes_what_an_approximate_hit_computes(positions, projectors, monkeypatch):
    model = changed_model(positions=positions, projectors=projectors)
    stored, shown = screens(2)
    shown[:14, :14] = 255 - stored[:14, :14]
    shown[42:, 28:42] = 255 - stored[42:, 28:42]
    model.eval()
    settings = ApproximateSettings(share=0.3, edge_density=2.0)
    use = CacheUse(BackgroundCache(CacheSettings(min_tiles=1, admission="always", approximate=settings)))
    samples = [
        Sample("screen", image, "a red star", (), prompt="what ?", meta={"objects_xyxy": SCREEN_BOX})
        for image in (stored, shown)
    ]
    prefill(model, samples[0], Stopwatch(model.device), use)
    hit = prefill(model, samples[1], Stopwatch(model.device), use)
    assert hit.level == "L3"
    assert hit.match.stale.tolist() == [0, 14]
    wanted = model.model.lm_head(hit.last_state)[0, 0].float()

    items = [model.prepare(sample) for sample in samples]
    monkeypatch.setattr(changed_patches, "_draw", lambda *_: torch.from_numpy(hit.match.stale))
    monkeypatch.setattr(
        changed_patches, "_as_stored", lambda _, item, __: item.with_pixels(items[0].pixel_values)
    )
    model.train()
    found = model.encode([items[1]], LOGITS).logits[0][0].float()
    torch.testing.assert_close(found.detach(), wanted, rtol=0, atol=1e-4)
    exact = cached_llava(positions=positions, projectors=projectors)
    assert (exact.encode([items[1]], LOGITS).logits[0][0] - wanted).abs().max() > 1e-3


def test_patches_are_drawn_anew_and_stand_where_they_belong():
    model = changed_model().train()
    item = model.prepare(boxed_sample(1, image_size=(24, 72)))
    torch.manual_seed(0)
    chosen = []
    for _ in range(6):
        parts, states, stored = see_groups(
            model, [item], (model.feature_layer,), [len(item.input_ids)], model.stale_share
        )
        changed = drawn(parts[0], item)
        # 8 of 16 patches are padding, which never changes.
        assert len(changed) == round(0.4 * len(item.partition.background))
        assert not set(changed.tolist()) & set(item.partition.letterbox.tolist())
        assert (parts[0].plan.columns[changed] >= parts[0].plan.prefix_length).all()
        positions = parts[0].plan.position_ids[parts[0].plan.columns[changed]]
        assert (positions == len(parts[0].system_ids) + 2 + changed).all()
        again = model.group_features(item, parts[0].objects)
        torch.testing.assert_close(states[model.feature_layer][0][parts[0].objects], again)
        others = parts[0].background
        assert not torch.allclose(stored[0][others], model.group_features(item, others), atol=1e-3)
        chosen.append(tuple(changed.tolist()))
    assert len(set(chosen)) > 1


def test_the_stored_image_differs_in_its_changed_patches_only():
    model = changed_model()
    item = model.prepare(Sample("screen", screens(1)[0], "", (), meta={"objects_xyxy": SCREEN_BOX}))
    torch.manual_seed(1)
    stored = changed_patches._as_stored(model, item, torch.tensor([3, 9]))
    changed = (stored.pixel_values != item.pixel_values).any(0)
    patches = changed.unflatten(1, (4, 14)).unflatten(0, (4, 14)).any(3).any(1)
    assert patches.flatten().nonzero().flatten().tolist() == [3, 9]


def test_only_training_has_changed_patches_and_only_when_asked():
    item = cached_llava().prepare(boxed_sample(0))
    plain = cached_llava(frozen=False, train=("separators",)).train()
    wanted = plain.encode([item], LOGITS).logits[0]
    model = changed_model()
    model.eval()
    assert torch.equal(model.encode([item], LOGITS).logits[0], wanted)
    model.train()
    torch.manual_seed(0)
    assert not torch.allclose(model.encode([item], LOGITS).logits[0], wanted, atol=1e-4)
    with model.base_mode(), plain.base_mode():
        assert torch.equal(model.encode([item], LOGITS).logits[0], plain.encode([item], LOGITS).logits[0])
    none = changed_model((0.0, 0.0)).train()
    torch.testing.assert_close(none.encode([item], LOGITS).logits[0], wanted)


def test_separators_learn_with_changed_patches_and_long_texts_leave_no_room():
    model = changed_model().train()
    item = model.prepare(boxed_sample(0))
    length = model.prompt_parts(item).plan.length
    torch.manual_seed(0)
    model.encode([item], LOGITS).logits[0].sum().backward()
    assert model.separators.grad.abs().sum() > 0
    for room in (0, 1):
        model.layout = replace(model.layout, max_length=length + room)
        parts, *_ = see_groups(
            model, [item], (model.feature_layer,), [len(item.input_ids)], model.stale_share
        )
        assert len(drawn(parts[0], item)) == room


@pytest.mark.parametrize("share", [(0.5,), (0.3, 0.1), (-0.1, 0.1), (0, 2)])
def test_wrong_shares_are_named(share):
    with pytest.raises(ConfigError, match="stale_share"):
        cached_llava(stale_share=share)
    with pytest.raises(ConfigError, match="image order"):
        cached_llava(stale_share=(0, 0.1), order="image")
