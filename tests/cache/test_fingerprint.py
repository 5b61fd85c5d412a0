"""Fingerprints: whatever changes what is stored changes the name, and nothing is read twice for it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from inspect import signature
from threading import Barrier, Thread
from types import SimpleNamespace

import pytest
import torch
from cached_parts import SCREEN_BOX, cached_llava, screens
from torch import nn

from flmm_detseg.cache import digests, fingerprint
from flmm_detseg.cache.cached_lmm import CachedLMM
from flmm_detseg.cache.reading.prefusion import PreFusion
from flmm_detseg.cache.regions.sources import NoRegions, Partitioner
from flmm_detseg.cache.serving.answer import answer
from flmm_detseg.cache.serving.session import StreamSession
from flmm_detseg.compat.transformers5 import tower_body
from flmm_detseg.errors import ConfigError
from flmm_detseg.lmms.lora.layers import lora_layers, lora_off
from flmm_detseg.store.background_cache import BackgroundCache
from flmm_detseg.store.settings import CacheSettings
from flmm_detseg.structures import Sample

META = {"objects_xyxy": SCREEN_BOX}
LORA = dict(frozen=False, lora=dict(llm=dict(r=2, alpha=4, dropout=0.5), vision=dict(r=2, alpha=4)))
BASE = PreFusion(num_layers=1, compressed_side=2, num_heads=1)

# Every argument of CachedLMM: changes that change what is stored ...
CHANGES = {
    "lmm": dict(hidden_size=64),
    "positions": dict(positions="packed"),
    "letterbox": dict(letterbox="drop"),
    "projectors": dict(projectors="separate"),
    "prefusion": dict(prefusion=BASE),
    "order": dict(order="image"),
}
# ... and others that do not: with the same groups and weights the same comes out in eval mode.
NEUTRAL = {
    "partitioner": dict(partitioner=Partitioner(NoRegions())),
    "train": dict(train=("separators",)),
    "train_layers": dict(train_layers=1),
    "stale_share": dict(frozen=False, train=("separators",), stale_share=(0.1, 0.2)),
}


def built(weights: CachedLMM | None = None, **arguments) -> CachedLMM:
    """A model with another one's weights, as far as it has them."""
    model = cached_llava(**arguments)
    if weights is not None:
        given = weights.state_dict()
        with torch.no_grad():
            for name, tensor in model.state_dict().items():
                if name in given and given[name].shape == tensor.shape:
                    tensor.copy_(given[name])
    return model.eval()


def names(model: CachedLMM) -> tuple[str, str]:
    found = model.fingerprints.namespace("t")
    return found.vision_fp, found.llm_fp


def new_session(model: CachedLMM, cache: BackgroundCache | None = None) -> StreamSession:
    cache = cache or BackgroundCache(CacheSettings(min_tiles=1, admission="always"))
    return StreamSession(model, cache, session_id="s")


def test_every_argument_is_known_here():
    """A new argument has to be listed: does it change what is stored?"""
    assert set(signature(CachedLMM).parameters) == {*CHANGES, *NEUTRAL}


@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)
def test_arguments_are_named(changes):
    base = built()
    assert names(built(base, **changes))[1] != names(base)[1]


@pytest.mark.parametrize("changes", NEUTRAL.values(), ids=NEUTRAL)
def test_arguments_without_effect_are_not_named(changes):
    base = built()
    assert names(built(base, **changes)) == names(base)


@pytest.mark.parametrize("name", [item.name for item in fields(PreFusion)])
def test_settings_of_prefusion_are_named(name):
    base = built(prefusion=BASE)
    other = replace(BASE, **{name: {"num_layers": 2, "compressed_side": 3, "num_heads": 4}[name]})
    assert names(built(base, prefusion=other))[1] != names(base)[1]
    assert names(built(base, prefusion=BASE)) == names(base)


def test_heads_that_show_in_no_shape_make_another_entry():
    base = built(prefusion=BASE)
    other = built(base, prefusion=replace(BASE, num_heads=4))
    assert [*base.state_dict()] == [*other.state_dict()]
    cache = BackgroundCache(CacheSettings(min_tiles=1, admission="always"))
    first, second = screens(2)
    new_session(base, cache).ask(first, max_new_tokens=2, meta=META)
    found = new_session(other, cache).ask(second, max_new_tokens=8, meta=META)
    # The vision features are the same ones.
    assert found.level == "L1"
    sample = Sample("cold", second, "", ())
    assert found.token_ids == answer(other, sample, partition=found.partition, max_new_tokens=8).token_ids


@contextmanager
def precision(matmul: str, convolutions: bool) -> Iterator[None]:
    """Of float32 in products of matrices, and whether cuDNN may use TF32."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision(matmul)
    torch.backends.cudnn.allow_tf32 = convolutions
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def test_the_way_numbers_are_computed_is_named(monkeypatch):
    model, found = built(), []
    for matmul, convolutions in (("highest", True), ("high", True), ("medium", True), ("highest", False)):
        with precision(matmul, convolutions):
            found.append(names(model))
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype=dtype):
            found.append(names(model))
    read = fingerprint.version
    monkeypatch.setattr(fingerprint, "version", lambda name: "0" if name == "peft" else read(name))
    fingerprint._library_versions.cache_clear()
    found.append(names(model))
    monkeypatch.undo()
    fingerprint._library_versions.cache_clear()
    for side in zip(*found, strict=True):
        assert len(set(side)) == len(found)
    with precision("highest", True):
        assert names(model) == found[0]


def test_switches_of_lora_are_named():
    """Alone: base_mode also changes the attention function, which has a name of its own."""
    model = built(**LORA)
    on = names(model)
    with lora_off(model):
        off = names(model)
    for layer in lora_layers(model).values():
        layer.scaling = {group: 2 * factor for group, factor in layer.scaling.items()}
    scaled = names(model)
    for side in zip(on, off, scaled, strict=True):
        assert len(set(side)) == 3


def test_a_digest_has_dtype_and_shape_in_it():
    found = digests.TensorDigests()
    tensors = [torch.zeros(2, 3, dtype=dtype) for dtype in (torch.float16, torch.bfloat16, torch.int16)]
    tensors += [torch.zeros(3, 2, dtype=torch.float16), torch.zeros(6, dtype=torch.float16)]
    assert len({found.of(tensor) for tensor in tensors}) == len(tensors)
    assert found.of(torch.zeros(2, 3, dtype=torch.float16)) == found.of(tensors[0])


def test_preprocessing_that_changes_while_it_runs_is_named():
    model = built()
    found = [names(model)]
    settings = model.processor.settings
    for field in ("image_mean", "image_std"):
        model.processor.settings = replace(settings, **{field: (0.4, 0.5, 0.6)})
        found.append(names(model))
    model.processor.settings = settings
    model.feature_layer -= 1
    found.append(names(model))
    for side in zip(*found, strict=True):
        assert len(set(side)) == len(found)


def test_a_tensor_in_the_place_of_a_freed_one_is_another():
    model = built()
    addresses, found = [], []
    for value in range(64):  # the allocator seldom gives eight other places in a row, but it does
        model.separators = None
        weight = torch.empty(4, 4096).fill_(value)
        model.separators = nn.Parameter(weight, requires_grad=False)
        addresses.append((weight.data_ptr(), weight._version))
        del weight
        found.append(names(model)[1])
    # Otherwise this shows nothing.
    assert len(set(addresses)) < len(addresses)
    assert len(set(found)) == len(found)


def test_memory_that_was_replaced_is_seen():
    known, weight = digests.TensorDigests(), nn.Parameter(torch.zeros(4, 4096))
    addresses, found = set(), []
    for value in range(8):
        weight.data = torch.zeros(0)
        weight.data = torch.full((4, 4096), float(value))
        addresses.add((weight.data_ptr(), weight._version))
        found.append(known.of(weight))
    assert len(addresses) < len(found)
    assert len(set(found)) == len(found)


def test_tensors_without_a_version_are_always_read():
    model = built()
    with torch.inference_mode():
        model.separators = nn.Parameter(model.separators.clone(), requires_grad=False)
    before = names(model)
    assert names(model) == before
    with torch.inference_mode():
        model.separators.add_(1)
    assert names(model)[1] != before[1]


@pytest.fixture
def reads(monkeypatch) -> list[tuple[int, ...]]:
    """Shapes of the tensors that were read."""
    read, found = digests._digest, []

    def counted(tensor):
        found.append(tuple(tensor.shape))
        return read(tensor)

    monkeypatch.setattr(digests, "_digest", counted)
    return found


def test_switching_reads_no_weight_again(reads):
    model = built(**LORA)
    base = names(model)
    assert len(reads) > 50
    reads.clear()
    for _ in range(3):
        with model.base_mode():
            assert names(model) != base
        assert names(model) == base
    assert reads == []
    with torch.no_grad():
        model.separators.add_(1)
    assert names(model)[1] != base[1]
    assert reads == [tuple(model.separators.shape)]
    reads.clear()
    model.fingerprints.invalidate()
    names(model)
    assert len(reads) > 50


def test_threads_read_the_weights_once(reads):
    alone = built()
    names(alone)
    number = len(reads)
    reads.clear()
    model, together, found = built(), Barrier(4, timeout=60), []

    def work() -> None:
        together.wait()
        found.append(names(model))

    threads = [Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(reads) == number
    assert len(set(found)) == 1


def test_digests_of_freed_tensors_are_forgotten():
    known = digests.TensorDigests()
    for value in range(10):
        known.of(torch.full((3,), value))
    assert len(known._known) <= 1


def test_a_copied_model_has_fingerprints_of_its_own():
    model = built()
    other = copy.deepcopy(model)
    assert names(other) == names(model)
    with torch.no_grad():
        other.separators.add_(1)
    assert names(other)[1] != names(model)[1]
    assert names(model)[1] == names(built())[1]


def test_training_mode_has_no_cache():
    model = built(**LORA)
    session = new_session(model)
    first, second = screens(2)
    model.train()
    with pytest.raises(ConfigError, match="eval mode"):
        session.ask(first, max_new_tokens=2, meta=META)
    assert session.ask(first, max_new_tokens=2, meta=META, cache="off").level == "off"
    model.eval()
    found = [session.ask(image, max_new_tokens=4, meta=META) for image in (first, second)]
    assert [item.level for item in found] == ["miss", "L2"]
    cold = answer(model, Sample("cold", second, "", ()), partition=found[1].partition, max_new_tokens=4)
    assert found[1].token_ids == cold.token_ids


def test_training_mode_within_a_request_stores_nothing(monkeypatch):
    model = built(**LORA)
    session = new_session(model)
    find = model.partitioner.source.find

    def switching(sample):
        model.train()
        return find(sample)

    monkeypatch.setattr(model.partitioner, "source", SimpleNamespace(name="switching", find=switching))
    with pytest.raises(ConfigError, match="eval mode"):
        session.ask(screens(1)[0], max_new_tokens=2, meta=META)
    assert session.cache.stats()["bytes"]["host"] == 0


def scaled_data(model: CachedLMM) -> None:
    for weight in model.parameters():
        weight.data.copy_(weight.data * 0.9)


def one_tensor(model: CachedLMM) -> None:
    model.model.model.language_model.layers[0].mlp.up_proj.weight.data.neg_()


def through_a_numpy_view(model: CachedLMM) -> None:
    model.model.model.language_model.layers[0].mlp.down_proj.weight.detach().numpy()[:] *= 2


def not_contiguous(model: CachedLMM) -> None:
    model.separators.data.mul_(2)


def swapped_by_ema(model: CachedLMM) -> None:
    # As MMEngine's EMAHook does.
    weight = model.model.model.multi_modal_projector.linear_1.weight
    other = torch.zeros_like(weight)
    kept = weight.data.clone()
    weight.data.copy_(other.data)
    other.data.copy_(kept)


def buffer_data(model: CachedLMM) -> None:
    model.model.model.language_model.rotary_emb.inv_freq.data.mul_(0.5)


def double(_, __, output):
    return output * 2


def hook_on_projector(model: CachedLMM) -> None:
    model.model.model.multi_modal_projector.register_forward_hook(double)


def hook_before_a_layer_of_the_tower(model: CachedLMM) -> None:
    tower_body(model.model.model.vision_tower).encoder.layers[0].mlp.register_forward_pre_hook(
        lambda _, arguments: tuple(2 * item for item in arguments)
    )


def hook_in_the_language_model(model: CachedLMM) -> None:
    model.model.model.language_model.layers[0].mlp.register_forward_hook(double)


def replaced_forward(model: CachedLMM) -> None:
    layer = model.model.model.language_model.layers[0].mlp
    forward = layer.forward
    layer.forward = lambda x: 2 * forward(x)


def epsilon(model: CachedLMM) -> None:
    model.model.model.language_model.layers[0].input_layernorm.variance_epsilon = 1.0


def scaling(model: CachedLMM) -> None:
    model.model.model.language_model.layers[0].self_attn.scaling *= 3


def other_activation(model: CachedLMM) -> None:
    model.model.model.language_model.layers[0].mlp.act_fn = nn.Tanh().eval()


def replaced_hooks(model: CachedLMM) -> None:
    layer = model.model.model.language_model.layers[0].mlp
    layer._forward_hooks = type(layer._forward_hooks)({0: double})


def replaced_parameters(model: CachedLMM) -> None:
    layer = model.model.model.language_model.layers[0].mlp.up_proj
    layer = getattr(layer, "base_layer", layer)
    layer._parameters = {
        name: nn.Parameter(-weight.detach(), False) if weight is not None else None
        for name, weight in layer._parameters.items()
    }


def other_class(model: CachedLMM) -> None:
    class Halved(type(model.model.model.multi_modal_projector)):
        def forward(self, features):
            return 0.5 * super().forward(features)

    model.model.model.multi_modal_projector.__class__ = Halved


UNTOLD = [
    scaled_data, one_tensor, through_a_numpy_view, not_contiguous, swapped_by_ema, buffer_data, hook_on_projector,
    hook_before_a_layer_of_the_tower, hook_in_the_language_model, replaced_forward, epsilon, scaling, other_activation,
    replaced_hooks, replaced_parameters, other_class,
]  # fmt: skip


@pytest.mark.case("model/data_write")
@pytest.mark.parametrize("change", UNTOLD)
def test_changes_without_a_version_counter_are_seen_before_a_hit(change):
    model = built(**LORA)
    if change is not_contiguous:
        model.separators = nn.Parameter(model.separators.detach().T.clone().T, requires_grad=False)
    session, images = new_session(model), screens(4)

    def ask(number: int, **arguments):
        return session.ask(images[number], max_new_tokens=4, meta=META, **arguments)

    ask(0)
    assert ask(1).level == "L2"
    change(model)
    found = ask(2)
    # The vision features may be the same ones, the prefix is not.
    assert found.level != "L2"
    assert found.token_ids == ask(2, cache="off", partition=found.partition).token_ids
    # And the new state is kept in mind as the old one was.
    assert ask(3).level == "L2"


@pytest.mark.case("model/data_write")
def test_a_request_of_an_unchanged_model_looks_at_each_module_once_and_at_no_weight(reads, monkeypatch):
    """Requests wait for it: nothing is put together anew, and there is one comparison of values."""
    model = built(**LORA)
    first = names(model)
    reads.clear()
    built_anew, compared = [], []
    monkeypatch.setattr(fingerprint, "_program", built_anew.append)
    equal = torch.equal
    monkeypatch.setattr(torch, "equal", lambda *pair: compared.append(pair) or equal(*pair))
    assert names(model) == first
    assert (reads, built_anew, len(compared)) == ([], [], 1)
    session = new_session(model)
    asked = [session.ask(image, max_new_tokens=2, meta=META).level for image in screens(3)]
    assert asked == ["miss", "L2", "L2"]
    # A hit asks once; the miss asked again before it stored.
    assert (reads, built_anew, len(compared)) == ([], [], 1 + 2 + 1 + 1)


@torch.no_grad()
def test_a_call_for_all_hidden_states_leaves_the_names():
    model = built()
    before = names(model)
    side = model.model.config.vision_config.image_size
    model.model.model.vision_tower(torch.zeros(1, 3, side, side), output_hidden_states=True)
    assert names(model) == before


@pytest.mark.case("model/data_write")
def test_hooks_have_different_names_that_end_with_them():
    model = built()
    before, found = names(model), []
    projector = model.model.model.multi_modal_projector
    for hook in (double, lambda *_: None, lambda *_: None):
        handle = projector.register_forward_hook(hook)
        found.append(names(model))
        assert names(model) == found[-1]
        handle.remove()
        assert names(model) == before
    assert len({llm for _, llm in found}) == 3
    handle = projector.register_forward_hook(double)
    assert names(model) == found[0]
    handle.remove()
    # Another process calls no hook by the name that this one gives it.
    other = copy.deepcopy(model)
    other.model.model.multi_modal_projector.register_forward_hook(double)
    assert names(other)[1] != found[0][1]


@pytest.mark.case("model/data_write")
def test_a_written_tensor_alone_is_read_again(reads):
    model = built()
    names(model)
    number = len(reads)
    one_tensor(model)
    reads.clear()
    names(model)
    assert reads == [tuple(model.model.model.language_model.layers[0].mlp.up_proj.weight.shape)]
    assert number > 20
    # NaN is like itself, and tensors of one value and of none have samples, too.
    known = digests.TensorDigests()
    tensors = [
        torch.full((5,), float("nan")),
        torch.tensor(1),
        torch.zeros(0),
        torch.zeros(3, 4, dtype=torch.bool),
    ]
    before = known.of_all(tensors)
    reads.clear()
    assert known.of_all(tensors) == before
    assert reads == []
    tensors[3].data.fill_(True)
    after = known.of_all(tensors)
    assert reads == [(3, 4)]
    assert [old == new for old, new in zip(before, after, strict=True)] == [True, True, True, False]
    assert known.of_all(tensors) == after
    assert known.of_all(tensors[:2]) == after[:2]
