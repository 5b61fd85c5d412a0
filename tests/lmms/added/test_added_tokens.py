"""Settings of added tokens, and their way through checkpoints, the cache and files for other programs."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from cached_parts import boxed_sample, cached_llava
from mmengine.config import Config
from multi_task_parts import LORA, move_lora
from tiny import make_sample, tiny_llava_config, tiny_tokenizer
from transformers import AutoProcessor, LlavaForConditionalGeneration

from flmm_detseg.errors import CheckpointError, ConfigError
from flmm_detseg.heads import LanguageHead
from flmm_detseg.lmms import LlavaAdapter
from flmm_detseg.lmms.added.added_tokens import AddedTokens, grown_tables, is_added, settle
from flmm_detseg.lmms.weights.identity import lmm_identity
from flmm_detseg.lmms.weights.parameters import parameter_report
from flmm_detseg.models import GroundingLMM
from flmm_detseg.models.checkpoint import lmm_meta
from flmm_detseg.models.from_config import model_from_config
from flmm_detseg.models.merge import merge_checkpoint
from flmm_detseg.structures import CaptureSpec

ROOT = Path(__file__).resolve().parents[3]
PRETRAINED = str(ROOT / "data" / "models" / "tiny_llava")
LOGITS = CaptureSpec(logits=True)


def spoken(sample=None):
    sample = sample or make_sample(0)
    return replace(sample, text=f"{sample.text} [SEG]", phrases=(), masks=None, task="vqa")


def write_config(folder: Path, **lmm) -> Path:
    settings = dict(type="LlavaAdapter", pretrained=PRETRAINED, **lmm)
    path = folder / "config.py"
    Config(
        dict(model=dict(type="GroundingLMM", lmm=settings, heads=dict(language=dict(type="LanguageHead"))))
    ).dump(path)
    return path


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("[SEG]", "a list of texts"),
        (["[SEG]", "[SEG]"], "twice"),
        (["[S EG]"], "without white space"),
        ([""], "without white space"),
        ([3], "not a text"),
        (dict(tokens=["[SEG]"], train="all"), "rows, tables"),
        (dict(token=["[SEG]"]), "unknown keys"),
        (["circle"], "has already"),
        (dict(tokens=["[SEG]"], words="circle"), "a list of texts"),
        (dict(tokens=["[SEG]"], words=["[SEG]"]), "twice"),
        (dict(tokens=["[SEG]"], words=["circle", "zebra"]), r"\['zebra'\], which are no tokens"),
    ],
    ids=str,
)
def test_what_cannot_be_added_is_refused(given, message):
    with pytest.raises(ConfigError, match=message):
        LlavaAdapter.from_config(tiny_llava_config(), tokenizer=tiny_tokenizer(), added_tokens=given)


def test_no_tokens_change_nothing():
    assert AddedTokens.from_config(None) is AddedTokens.from_config([]) is None
    lmm = LlavaAdapter.from_config(tiny_llava_config(), tokenizer=tiny_tokenizer(), added_tokens=[])
    assert not grown_tables(lmm.model)
    assert lmm.frozen


def test_a_tokenizer_that_others_use_stays_as_it_was():
    tokenizer = tiny_tokenizer()
    LlavaAdapter.from_config(tiny_llava_config(), tokenizer=tokenizer, added_tokens=["[SEG]"])
    assert "[SEG]" not in tokenizer.get_vocab()


def test_tables_of_all_tokens_are_trained_if_asked_for():
    lmm = LlavaAdapter.from_config(
        tiny_llava_config(), tokenizer=tiny_tokenizer(), added_tokens=dict(tokens=["[SEG]"], train="tables")
    )
    trained = [name for name, weight in lmm.named_parameters() if weight.requires_grad]
    assert sorted(name.rpartition(".")[2] for name in trained) == [
        "added_rows",
        "added_rows",
        "weight",
        "weight",
    ]
    assert not lmm.keeps_base


def test_the_report_and_the_identity_know_the_rows():
    plain = LlavaAdapter.from_config(tiny_llava_config(), tokenizer=tiny_tokenizer())
    lmm = LlavaAdapter.from_config(tiny_llava_config(), tokenizer=tiny_tokenizer(), added_tokens=["[SEG]"])
    lmm.model.load_state_dict(
        {
            name.replace("embed_tokens.", "embed_tokens.base_layer.").replace(
                "lm_head.", "lm_head.base_layer."
            ): value
            for name, value in plain.model.state_dict().items()
        },
        strict=False,
    )
    assert lmm_identity(lmm) == lmm_identity(plain)
    (group,) = [item for item in parameter_report(lmm).groups if item.trainable]
    assert (group.name, group.total) == ("lmm.added_tokens", 2 * lmm.hidden_size)


WORDS = ("circle", "red")


def with_words(**settings) -> LlavaAdapter:
    torch.manual_seed(0)
    return LlavaAdapter.from_config(
        tiny_llava_config(),
        tokenizer=tiny_tokenizer(),
        added_tokens=dict(tokens=["[SEG]"], words=WORDS),
        **settings,
    )


def test_words_begin_as_the_table_has_them_and_their_rows_alone_are_trained():
    lmm = with_words(lora=LORA)
    sample = replace(make_sample(0), text="a red circle", phrases=(), masks=None, task="vqa")
    ids = lmm.processor.known_tokens(WORDS)
    table, head = grown_tables(lmm.model)
    assert table.ids == head.ids == (*lmm.added_ids, *ids)
    assert len(lmm.added_ids) == 1
    with torch.no_grad():
        size = head.weight.shape[0]
        before = lmm.encode([lmm.prepare(sample)], LOGITS).logits[0][:, :size]
        with lmm.base_mode():
            base = lmm.encode([lmm.prepare(sample)], LOGITS).logits[0]
    torch.testing.assert_close(before, base, rtol=1e-5, atol=1e-6)
    kept = {name: value.clone() for name, value in lmm.named_parameters() if not value.requires_grad}
    logits = lmm.train().encode([lmm.prepare(sample)], LOGITS).logits[0]
    logits.log_softmax(-1)[:, ids].sum().backward()
    for rows in (table.added_rows, head.added_rows):
        assert (rows.grad[1:].abs().sum(1) > 0).all()
        with torch.no_grad():
            rows.sub_(rows.grad)
    lmm.eval()
    with torch.no_grad():
        moved = lmm.encode([lmm.prepare(sample)], LOGITS).logits[0][:, :size]
        with lmm.base_mode():
            assert torch.equal(lmm.encode([lmm.prepare(sample)], LOGITS).logits[0], base)
    assert (moved - before).abs().amax(0)[ids].min() > 1e-3
    assert all(torch.equal(value, kept[name]) for name, value in lmm.named_parameters() if name in kept)


@torch.no_grad()
def test_settled_words_are_rows_of_an_ordinary_model():
    lmm = with_words().eval()
    for table in grown_tables(lmm.model):
        table.added_rows.normal_(generator=torch.Generator().manual_seed(3), std=0.3)
    plain = deepcopy(lmm.model)
    settle(plain)
    plain.set_attn_implementation("sdpa")
    item = lmm.prepare(spoken(replace(make_sample(0), text="a red circle")))
    theirs = plain(
        input_ids=item.input_ids[None],
        attention_mask=torch.ones(1, len(item.input_ids), dtype=torch.int64),
        **lmm.own_inputs(item),
    ).logits[0]
    ours = lmm.encode([item], LOGITS)
    torch.testing.assert_close(ours.logits[0], theirs[ours.logits_start[0] :], rtol=1e-4, atol=2e-5)


def test_a_checkpoint_fits_the_same_words_only():
    assert with_words().trained_layout == {"added_tokens": ["[SEG]"], "trained_words": list(WORDS)}
    plain = LlavaAdapter.from_config(
        tiny_llava_config(), tokenizer=tiny_tokenizer(), added_tokens=["[SEG]"], lora=LORA
    )
    assert plain.trained_layout == {"added_tokens": ["[SEG]"]}
    assert plain.added_ids == (len(tiny_tokenizer()),)


def test_words_need_a_tokenizer():
    with pytest.raises(ConfigError, match="needs a tokenizer"):
        LlavaAdapter.from_config(tiny_llava_config(), added_tokens=dict(tokens=["[SEG]"], words=["red"]))


def test_a_checkpoint_holds_the_rows_and_fits_the_same_tokens_only(tmp_path):
    config = write_config(tmp_path, added_tokens=["[SEG]"])
    model = model_from_config(config, untrained=True, device="cpu").train()
    losses = model([spoken()], mode="loss")
    sum(value for name, value in losses.items() if name.startswith("objective.")).backward()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.requires_grad:
                assert is_added(name)
                assert weight.grad.abs().sum() > 0
                weight.sub_(weight.grad.sign())
    state = model.trainable_state_dict()
    assert sorted(name.rpartition(".")[0] for name in state) == [
        "lmm.model.lm_head",
        "lmm.model.model.language_model.embed_tokens",
    ]
    file = tmp_path / "iter_1.pth"
    torch.save({"state_dict": state}, file)
    again = model_from_config(config, file, device="cpu").eval()
    model.eval()
    item = model.lmm.prepare(spoken())
    with torch.no_grad():
        assert torch.equal(
            model.lmm.encode([item], LOGITS).logits[0], again.lmm.encode([item], LOGITS).logits[0]
        )


@pytest.mark.parametrize("spare", [0, 5])
def test_without_training_there_is_nothing_to_distil(spare):
    """Also where the new ids are rows that the tables had to spare."""
    words, config = tiny_tokenizer(), tiny_llava_config()
    config.text_config.vocab_size = len(words) + spare
    lmm = LlavaAdapter.from_config(config, tokenizer=words, added_tokens=["[SEG]"], lora=LORA)
    model = GroundingLMM(lmm, {"language": LanguageHead(distill_weight=1.0)})
    sample = replace(spoken(), text="a red ring")
    assert lmm.added_ids == (len(words),)
    assert float(model.loss([sample])["language.loss_distill"]) == pytest.approx(0, abs=1e-6)
    assert model.answer_kl([sample]) == [pytest.approx(0, abs=1e-6)]


@torch.no_grad()
def test_the_exported_model_knows_the_tokens(tmp_path):
    config = write_config(tmp_path, lora=LORA, added_tokens=["[SEG]", "[REJ]"])
    model = model_from_config(config, untrained=True, device="cpu").eval()
    move_lora(model)
    for name, weight in model.named_parameters():
        if is_added(name):
            weight.normal_(generator=torch.Generator().manual_seed(0), std=0.5)
    torch.save({"state_dict": model.trainable_state_dict()}, tmp_path / "iter_1.pth")
    out = tmp_path / "merged"
    merge_checkpoint(config, tmp_path / "iter_1.pth", out)
    plain = LlavaForConditionalGeneration.from_pretrained(out).eval()
    tokenizer = AutoProcessor.from_pretrained(out).tokenizer
    item = model.lmm.prepare(spoken())
    token = tokenizer.convert_tokens_to_ids("[SEG]")
    assert token == model.lmm.processor.tokenizer.convert_tokens_to_ids("[SEG]")
    assert token in item.input_ids
    theirs = plain(
        input_ids=item.input_ids[None],
        attention_mask=torch.ones(1, len(item.input_ids), dtype=torch.int64),
        **model.lmm.own_inputs(item),
    ).logits[0]
    ours = model.lmm.encode([item], LOGITS)
    torch.testing.assert_close(ours.logits[0], theirs[ours.logits_start[0] :], rtol=1e-4, atol=1e-4)
    loaded = LlavaAdapter.from_pretrained(str(out))
    assert torch.equal(loaded.prepare(spoken()).input_ids, item.input_ids)


@torch.no_grad()
def test_behind_the_cache_they_are_read_as_without_it():
    cached = cached_llava(added_tokens=["[SEG]"], order="image").eval()
    lmm = cached.lmm
    item = spoken(boxed_sample())
    (ours,) = cached.encode([cached.prepare(item)], LOGITS).logits
    (theirs,) = lmm.encode([lmm.prepare(item)], LOGITS).logits
    assert ours.shape == theirs.shape
    with cached.base_mode():
        assert torch.equal(cached.prepare(item).input_ids, cached_llava().prepare(item).input_ids)
        (base,) = cached.encode([cached.prepare(boxed_sample())], LOGITS).logits
    assert base.shape[-1] == theirs.shape[-1] - 1
    assert cached.trained_layout["added_tokens"] == ["[SEG]"]
    assert cached.keeps_base
    name = cached.fingerprints.namespace("a")
    lmm.model.get_input_embeddings().added_rows.add_(1)
    assert cached.fingerprints.namespace("a") != name


def test_other_tokens_are_named_when_a_checkpoint_does_not_fit(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    model = model_from_config(
        write_config(tmp_path / "a", added_tokens=["[SEG]"]), untrained=True, device="cpu"
    )
    file = tmp_path / "iter_1.pth"
    torch.save({"state_dict": model.trainable_state_dict(), "meta": lmm_meta(model.lmm)}, file)
    with pytest.raises(CheckpointError, match=r"added_tokens \['\[SEG\]'\] \(model: \['\[REF\]'\]\)"):
        model_from_config(write_config(tmp_path / "b", added_tokens=["[REF]"]), file, device="cpu")
