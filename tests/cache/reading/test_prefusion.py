"""Pre-fusion: begins as nothing, leaks nothing into the prefix, and a hit is still a cold run."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from cached_parts import SCREEN_BOX, boxed_sample, cached_llava, screens

from flmm_detseg.cache.cached_lmm import CachedLMM
from flmm_detseg.cache.own_tensors import load_own, part_reports, save_own
from flmm_detseg.cache.reading.prefusion import PreFusion, sincos_places
from flmm_detseg.cache.regions.sources import NoRegions, Partitioner
from flmm_detseg.cache.serving.answer import answer
from flmm_detseg.cache.serving.prefill import CacheUse, Stopwatch, prefill
from flmm_detseg.cache.serving.session import StreamSession
from flmm_detseg.errors import CheckpointError, ConfigError
from flmm_detseg.heads import LanguageHead
from flmm_detseg.lmms.capture.answer_text import phrase_inputs
from flmm_detseg.models import GroundingLMM
from flmm_detseg.store.background_cache import BackgroundCache
from flmm_detseg.store.settings import ApproximateSettings, CacheSettings
from flmm_detseg.structures import CaptureSpec, Phrase, Sample

EVERYTHING = CaptureSpec(attention=True, hidden="all", vision_layers=(2,), logits=True)
FUSED, COMPRESSED = PreFusion(num_layers=2), PreFusion(num_layers=2, compressed_side=2)
SCHEMES = pytest.mark.parametrize("positions", ["packed", "raster"])
LETTERBOX = pytest.mark.parametrize("letterbox", ["background", "drop"])
VARIANTS = pytest.mark.parametrize("prefusion", [FUSED, COMPRESSED], ids=["fused", "compressed"])
META = {"objects_xyxy": SCREEN_BOX}


def opened(**arguments) -> CachedLMM:
    """Gates as after training."""
    model = cached_llava(**arguments)
    with torch.no_grad():
        model.prefusion.layers.gates.fill_(0.7)
    return model


def new_cache(**settings) -> BackgroundCache:
    return BackgroundCache(CacheSettings(**{"min_tiles": 1, "admission": "always", **settings}))


def question(image, text: str = "a red star ?") -> Sample:
    return Sample("screen", image, "", (), prompt=text, meta=dict(META))


def run(model, sample, use=None, partition=None):
    done = prefill(model, sample, Stopwatch(model.device), use, partition)
    return model.model.lm_head(done.last_state)[0, 0], done


def prefix_tensors(model, sample) -> list[torch.Tensor]:
    """Everything that is stored of a sample's prefix."""
    cache = new_cache()
    use = CacheUse(cache, session="s")
    run(model, sample, use)
    _, done = run(model, sample, use)
    assert done.level == "L2"
    return [*done.match.prefix.keys, *done.match.prefix.values]


@SCHEMES
@torch.no_grad()
def test_begins_as_the_model_without(positions):
    with_it, without = cached_llava(prefusion=FUSED, positions=positions), cached_llava(positions=positions)
    items = [with_it.prepare(boxed_sample(index, image_size=(40 + 20 * index, 60))) for index in range(3)]
    ours, theirs = with_it.encode(items, EVERYTHING), without.encode(items, EVERYTHING)
    for a, b in zip(ours.logits, theirs.logits, strict=True):
        assert torch.equal(a, b)
    for a, b in zip(ours.attention, theirs.attention, strict=True):
        assert torch.equal(a, b)
    sample = question(screens(1)[0])
    assert torch.equal(run(with_it, sample)[0], run(without, sample)[0])
    assert not torch.equal(
        run(opened(prefusion=FUSED, positions=positions), sample)[0], run(without, sample)[0]
    )


@SCHEMES
@LETTERBOX
@VARIANTS
@pytest.mark.parametrize("projectors", ["shared", "separate"])
def test_hits_equal_cold_runs(positions, letterbox, prefusion, projectors):
    model = opened(positions=positions, letterbox=letterbox, prefusion=prefusion, projectors=projectors)
    images = [image[14:42] for image in screens(4)]
    meta = {"objects_xyxy": [[14, 0, 42, 14]]}
    session = StreamSession(model, new_cache())
    levels = []
    for index, image in enumerate(images):
        text = ["a star ?", "the ring of blue on the left ?"][index % 2]
        hit = session.ask(image, text, max_new_tokens=8, meta=meta)
        sample = replace(question(image, text), meta=meta)
        cold = answer(model, sample, partition=hit.partition, max_new_tokens=8)
        assert hit.token_ids == cold.token_ids
        levels.append(hit.level)
    assert levels == ["miss", "L2", "L2", "L2"]


@VARIANTS
def test_first_logits_of_both_levels_are_those_of_cold_runs(prefusion):
    model = opened(prefusion=prefusion)
    use = CacheUse(new_cache(), session="s")
    first, second = screens(2)
    run(model, question(first), use)
    model.processor.settings = replace(model.processor.settings, prompt_template="mistral")
    levels = []
    for _ in range(2):
        hit, done = run(model, question(second), use)
        cold, _ = run(model, question(second), partition=done.item.partition)
        assert torch.equal(hit, cold)
        levels.append(done.level)
    assert levels == ["L1", "L2"]


@SCHEMES
@LETTERBOX
@VARIANTS
def test_answers_have_the_states_of_the_training_pass(positions, letterbox, prefusion):
    model = opened(positions=positions, letterbox=letterbox, prefusion=prefusion)
    sample = boxed_sample(1, image_size=(24, 72))
    generation = model.generate_with_states(sample, EVERYTHING, max_new_tokens=8)
    spans = [span for span in generation.token_offsets if generation.text[slice(*span)].strip()]
    phrases = [Phrase((spans[0],)), Phrase((spans[1],))]
    ours = model.states_of_phrases(generation, phrases)
    with torch.no_grad():
        # Next to a longer prompt: padding must not matter.
        other = model.prepare(boxed_sample(0, num_phrases=3))
        theirs = model.encode([phrase_inputs(generation, phrases), other], EVERYTHING)
    torch.testing.assert_close(ours.attention[0], theirs.attention[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(ours.hidden[0].states, theirs.hidden[0].states, rtol=1e-5, atol=5e-5)
    logits = theirs.logits[0][: len(generation.token_ids)]
    assert torch.equal(logits.argmax(-1), generation.token_ids)


@VARIANTS
def test_nothing_of_the_prefix_depends_on_objects_or_text(prefusion):
    model = opened(prefusion=prefusion)
    first, second = screens(2)
    base = prefix_tensors(model, question(first))
    for other in (question(second), question(first, "the ring of blue on the left is near a small star ?")):
        assert all(torch.equal(a, b) for a, b in zip(base, prefix_tensors(model, other), strict=True))
    # It does depend on the background.
    changed = first.copy()
    changed[:14, :14] = 255 - changed[:14, :14]
    assert not any(
        torch.equal(a, b) for a, b in zip(base, prefix_tensors(model, question(changed)), strict=True)
    )


@torch.no_grad()
def test_questions_see_the_image_and_answers_stay():
    model = opened(prefusion=FUSED)
    first, second = screens(2)

    def suffix(image, text):
        sample = replace(question(image), text=text, task="vqa")
        item = model.prepare(sample)
        part = model.prompt_parts(item)
        plain = model.suffix_embeds(model.group_features(item, part.objects), part.text_ids)
        background = model.background_tokens(model.group_features(item, part.background))
        return model.prefusion([background], [plain], [part])[0], plain, part

    fused, plain, part = suffix(first, "a blue ring")
    start = len(part.objects) + 2
    ((_, num_question),) = part.questions
    end = start + num_question
    assert 0 < num_question < len(part.text_ids)
    assert torch.equal(fused[:start], plain[:start])
    assert torch.equal(fused[end:], plain[end:])
    assert (fused[start:end] != plain[start:end]).any(1).all()
    longer, _, _ = suffix(first, "a blue ring of a large red star")
    torch.testing.assert_close(longer[:end], fused[:end], rtol=0, atol=1e-6)
    other, _, _ = suffix(second, "a blue ring")
    assert (other[start:end] != fused[start:end]).any(1).all()


def vqa_batch() -> list[Sample]:
    return [replace(boxed_sample(index), task="vqa", phrases=()) for index in range(3)]


@pytest.mark.parametrize("projectors", ["shared", "separate"])
def test_every_trained_tensor_gets_a_gradient(projectors):
    train = ("separators", "projectors", "prefusion")
    lmm = cached_llava(prefusion=COMPRESSED, projectors=projectors, train=train)
    model = GroundingLMM(lmm, heads=dict(language=LanguageHead()))
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.SGD(trained.values(), lr=0.02)
    losses = []
    for step in range(4):
        loss, _ = model.parse_losses(model.loss(vqa_batch()))
        optimizer.zero_grad()
        loss.backward()
        without = {name for name, p in trained.items() if not p.grad.any()}
        # With a closed gate no layer matters; the first step opens it.
        closed = {name for name in trained if "prefusion.layers.layers" in name}
        assert without == (closed if step == 0 else set())
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < losses[0]
    frozen = {name.split(".")[1] for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {"model"}


def test_parts_are_stored_and_loaded_strictly(tmp_path):
    file = tmp_path / "own.safetensors"
    trained, untrained = (
        opened(prefusion=COMPRESSED, train=("prefusion",)),
        cached_llava(prefusion=COMPRESSED),
    )
    stored = save_own(trained, file)
    assert part_reports(untrained) != stored
    assert load_own(untrained, file) == stored
    assert {report.name for report in stored} == {"separators", "prefusion"}
    sample = boxed_sample(0)
    assert untrained.generate(sample, max_new_tokens=8) == trained.generate(sample, max_new_tokens=8)
    for other, message in (
        (FUSED, "trained for"),
        (PreFusion(num_layers=3, compressed_side=2), "trained for"),
        # Heads show in no shape.
        (PreFusion(num_layers=2, compressed_side=2, num_heads=4), r"prefusion\.num_heads 8 \(model: 4\)"),
    ):
        with pytest.raises(CheckpointError, match=message):
            load_own(cached_llava(prefusion=other), file)


def test_checkpoints_of_stages_chain():
    heads = dict(language=LanguageHead())
    before = GroundingLMM(cached_llava(train=("separators",)), heads=heads).trainable_state_dict()
    model = GroundingLMM(cached_llava(prefusion=FUSED, train=("separators", "prefusion")), heads=heads)
    wanted = model.trainable_state_dict()
    assert set(before) < set(wanted)
    assert all(name.startswith("lmm.prefusion.") for name in set(wanted) - set(before))
    with pytest.raises(CheckpointError, match="missing"):
        model.load_trainable(before, "memory")


def test_fingerprints_name_it():
    model = opened(prefusion=COMPRESSED)
    base = model.fingerprints.namespace("t")
    for part in (model.prefusion.compressor.queries, model.prefusion.layers.gates):
        with torch.no_grad():
            part.add_(1e-3)
        now = model.fingerprints.namespace("t")
        assert now.llm_fp != base.llm_fp
        assert now.vision_fp == base.vision_fp
        base = now
    ids = torch.arange(3)
    keys = [
        built.layout.prefix_key(ids, built.separators)
        for built in (cached_llava(), cached_llava(prefusion=COMPRESSED))
    ]
    assert keys[0] != keys[1]


@SCHEMES
def test_a_compressed_background_is_a_few_tokens(positions):
    model, plain = opened(prefusion=COMPRESSED, positions=positions), cached_llava(positions=positions)
    sample = question(screens(1)[0])
    item = model.prepare(sample)
    part, other = model.prompt_parts(item), plain.prompt_parts(item)
    assert len(part.background) == 14
    assert part.plan.prefix_length == other.plan.prefix_length - 14 + 4
    start = len(part.system_ids) + 1
    places = part.plan.position_ids[start : part.plan.prefix_length - 1]
    # Raster: in the middles of four stretches of the image's 16 positions, which begin after the two separators.
    expected = torch.tensor([2, 6, 10, 14]) + start + 1 if positions == "raster" else start + torch.arange(4)
    assert torch.equal(places, expected)
    assert (part.plan.columns[part.background] == -1).all()
    tensors = prefix_tensors(model, sample)
    lengths = [tensor.shape[-2] for tensor in tensors[: len(tensors) // 2]]
    assert lengths == [part.plan.prefix_length] * 3 + [14] * 2
    with torch.no_grad():
        attention = model.encode([model.prepare(boxed_sample(0))], CaptureSpec(attention=True)).attention[0]
    sent = torch.from_numpy(model.prepare(boxed_sample(0)).partition.group == 1).view(4, 4)
    assert (attention[:, :, sent] > 0).all()
    assert (attention[:, :, ~sent] == 0).all()


def test_compressor_looks_where_its_query_stands():
    model = cached_llava(prefusion=COMPRESSED)
    compressor = model.prefusion.compressor
    assert torch.equal(sincos_places((4, 4), (4, 4), 32), compressor.patch_places)
    near = compressor.query_places @ compressor.patch_places.T
    # Four queries, in the middle of four quarters of the image.
    best = near.topk(4, dim=1).indices.sort().values
    assert best.tolist() == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]
    features, indices = torch.randn(14, 32), torch.arange(14)
    found = compressor(features, indices)
    order = torch.randperm(14)
    torch.testing.assert_close(compressor(features[order], indices[order]), found)
    assert not torch.allclose(compressor(features[order], indices), found)


@VARIANTS
def test_images_without_background_and_without_objects(prefusion):
    model = opened(prefusion=prefusion)
    session = StreamSession(model, new_cache())
    image = screens(1)[0]
    found = [session.ask(image, max_new_tokens=3, meta={"objects_xyxy": [[0, 0, 56, 56]]}) for _ in range(2)]
    assert [item.level for item in found] == ["miss", "miss"]
    model.partitioner = Partitioner(NoRegions())
    found = [session.ask(image, max_new_tokens=3) for _ in range(2)]
    assert [item.level for item in found] == ["miss", "L2"]
    assert found[0].token_ids == found[1].token_ids


@VARIANTS
def test_changed_patches_are_recomputed(prefusion):
    approximate = ApproximateSettings(tau=4, share=0.2, edge_density=2.0, shadow_rate=0.0)
    model = opened(prefusion=prefusion)
    session = StreamSession(model, new_cache(approximate=approximate))
    first, noisy = screens(2)
    session.ask(first, max_new_tokens=2, meta=META)
    noisy[42:, 42:] = 255 - noisy[42:, 42:]
    found = session.ask(noisy, max_new_tokens=2, meta=META)
    assert (found.level, found.num_stale) == ("L3", 1)


def test_half_precision_keeps_rotary_frequencies():
    model = opened(prefusion=COMPRESSED, dtype="bfloat16")
    layers = model.prefusion.layers
    assert {p.dtype for p in model.prefusion.parameters()} == {torch.bfloat16}
    expected = cached_llava(prefusion=COMPRESSED).prefusion.layers.rotary_emb.inv_freq
    for _ in range(2):
        assert layers.rotary_emb.inv_freq.dtype == torch.float32
        assert torch.equal(layers.rotary_emb.inv_freq, expected)
        model.to(torch.bfloat16)
    assert isinstance(model.generate(boxed_sample(0), max_new_tokens=2), str)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(num_layers=0), "num_layers"),
        (dict(compressed_side=5), "4 x 4 patches"),
        (dict(compressed_side=2, num_heads=3), "divide"),
    ],
)
def test_wrong_settings_are_named(arguments, message):
    with pytest.raises(ConfigError, match=message):
        cached_llava(prefusion=PreFusion(**arguments))


def test_there_must_be_something_to_train():
    with pytest.raises(ConfigError, match="there is none"):
        cached_llava(train=("prefusion",))


def test_built_from_a_config():
    made = cached_llava(prefusion=dict(type=PreFusion, num_layers=1, compressed_side=2))
    assert made.layout.compressed == 4
    assert made.prefusion.layers.config.num_hidden_layers == 1
