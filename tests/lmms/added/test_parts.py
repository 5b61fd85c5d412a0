"""Parts of an LMM: config, checkpoints, export, and where they are refused."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image
from tiny import make_sample, tiny_llava, tiny_llava_config, tiny_tokenizer
from transformers import LlavaForConditionalGeneration

from flmm_detseg import Grounder
from flmm_detseg.cache import CachedLMM
from flmm_detseg.cache.reading.prefusion import PreFusion
from flmm_detseg.cache.regions.sources import GivenRegions, Partitioner
from flmm_detseg.datasets.llava_instruct import LLaVAInstructDataset
from flmm_detseg.datasets.questions import QuestionDataset
from flmm_detseg.engine.evaluation.answers import FORGETTING
from flmm_detseg.errors import CheckpointError, ConfigError, DataError
from flmm_detseg.heads import LanguageHead
from flmm_detseg.lmms import LlavaAdapter, add_lora, lora_groups
from flmm_detseg.lmms.weights.parameters import parameter_report
from flmm_detseg.models.build import build_lmm
from flmm_detseg.models.checkpoint import lmm_meta
from flmm_detseg.models.from_config import model_from_config
from flmm_detseg.models.merge import merge_checkpoint
from flmm_detseg.structures import CaptureSpec, Region
from flmm_detseg.utils.rle import encode_rle

ROOT = Path(__file__).resolve().parents[3]
PRETRAINED = str(ROOT / "data" / "models" / "tiny_llava")
LOGITS = CaptureSpec(logits=True)
REGIONS = dict(regions=dict(type="RegionTokens", layers=[-1]))
PROJECTOR = dict(projector=dict(type="OwnProjector"))


def write_config(folder: Path, **lmm) -> Path:
    folder.mkdir(exist_ok=True)
    settings = dict(type="LlavaAdapter", pretrained=PRETRAINED, **lmm)
    heads = dict(language=dict(type="LanguageHead"))
    Config(dict(model=dict(type="GroundingLMM", lmm=settings, heads=heads))).dump(folder / "config.py")
    return folder / "config.py"


def asking(index: int = 0):
    sample = make_sample(index)
    return replace(
        sample, prompt="what is <region> ?", phrases=(), masks=None, task="vqa",
        regions=(Region(box_xyxy=(2, 3, 30, 20)),),
    )  # fmt: skip


def moved(model) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.add_(0.3 * torch.randn(weight.shape, generator=generator))


def test_parts_are_trained_saved_under_their_names_and_loaded(tmp_path):
    config = write_config(tmp_path / "a", parts={**REGIONS, **PROJECTOR})
    model = model_from_config(config, untrained=True, device="cpu").train()
    losses = model([asking(0), asking(1)], mode="loss")
    sum(value for name, value in losses.items() if name.startswith("objective.")).backward()
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    assert all(name.startswith(("lmm.parts.regions.", "lmm.parts.projector.copies.")) for name in trained)
    assert all(weight.grad.abs().sum() > 0 for weight in trained.values())
    moved(model)
    file = tmp_path / "iter_1.pth"
    torch.save({"state_dict": model.trainable_state_dict(), "meta": lmm_meta(model.lmm)}, file)
    assert set(model.trainable_state_dict()) == set(trained)
    again = model_from_config(config, file, device="cpu").eval()
    model.eval()
    item = model.lmm.prepare(asking())
    with torch.no_grad():
        assert torch.equal(
            model.lmm.encode([item], LOGITS).logits[0], again.lmm.encode([item], LOGITS).logits[0]
        )
    groups = {group.name for group in parameter_report(model).groups if group.trainable}
    assert groups == {"lmm.parts.regions", "lmm.parts.projector"}
    other = write_config(
        tmp_path / "b", parts={**PROJECTOR, "regions": dict(type="RegionTokens", layers=[1])}
    )
    with pytest.raises(CheckpointError, match=r"regions.layers \[\d\] \(model: \[1\]\)"):
        model_from_config(other, file, device="cpu")


@torch.no_grad()
def test_an_own_projector_is_exported_in_the_models_place(tmp_path):
    config = write_config(tmp_path / "a", parts=PROJECTOR)
    model = model_from_config(config, untrained=True, device="cpu").eval()
    moved(model)
    torch.save({"state_dict": model.trainable_state_dict()}, tmp_path / "iter_1.pth")
    merge_checkpoint(config, tmp_path / "iter_1.pth", tmp_path / "merged")
    plain = LlavaForConditionalGeneration.from_pretrained(tmp_path / "merged").eval()
    item = model.lmm.prepare(make_sample(0))
    theirs = plain(
        input_ids=item.input_ids[None],
        attention_mask=torch.ones(1, len(item.input_ids), dtype=torch.int64),
        **model.lmm.own_inputs(item),
    ).logits[0]
    ours = model.lmm.encode([item], LOGITS)
    torch.testing.assert_close(ours.logits[0], theirs[ours.logits_start[0] :], rtol=1e-4, atol=1e-4)
    regions = write_config(tmp_path / "b", parts=REGIONS)
    model = model_from_config(regions, untrained=True, device="cpu")
    torch.save({"state_dict": model.trainable_state_dict()}, tmp_path / "iter_2.pth")
    with pytest.raises(ConfigError, match="RegionTokens cannot be exported"):
        merge_checkpoint(regions, tmp_path / "iter_2.pth", tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("lmm", "message"),
    [
        (dict(parts=dict(regions=dict(type="RegionTokens", layers=[99]))), "99"),
        (dict(parts=dict(regions=dict(type="RegionTokens", layers=[]))), "`layers` is empty"),
        (dict(parts=dict(regions=dict(type="RegionTokens", token="a b"))), "white space"),
        (dict(parts=dict(head=dict(type="LanguageHead"))), "no part of an LMM"),
        (dict(parts=dict(own=dict(type="OwnProjector", modalities="depth"))), "list of names"),
        (dict(parts=dict(a=dict(type="RegionTokens"), b=dict(type="RegionTokens"))), "several parts"),
        (
            dict(parts=dict(own=dict(type="OwnProjektor"))),
            r"`lmm.parts.own.type`.*did you mean `OwnProjector`",
        ),
        (dict(parts=dict(type="RegionTokens")), r"`lmm.parts` is .*parts=dict\(NAME=dict\(type=...\)\)"),
        (dict(parts=["RegionTokens"]), r"`lmm.parts` is .*parts=dict\(NAME=dict\(type=...\)\)"),
        (dict(parts=dict(own=dict(reset=True))), r"`lmm.parts.own` is .*dict\(type=..., ...\) is needed"),
        (dict(parts=dict(own="OwnProjector")), r"`lmm.parts.own` is .*dict\(type=..., ...\) is needed"),
        (dict(parts=dict(own=dict(type="OwnProjector", rest=1))), "`lmm.parts.own` has no argument `rest`"),
        (dict(parts=dict(own=dict(type="OwnProjector", reset="no"))), "`lmm.parts.own`: .*`reset` is 'no'"),
        (dict(parts={"a.b": dict(type="OwnProjector")}), "called 'a.b', which cannot be a name"),
        (dict(parts=dict(keys=dict(type="OwnProjector"))), "called 'keys', which cannot be a name"),
        (dict(parts=dict(training=dict(type="OwnProjector"))), "called 'training', which cannot be a name"),
        (dict(parts={"": dict(type="OwnProjector")}), "called '', which cannot be a name"),
        (
            dict(parts=dict(spot=dict(type="RegionTokens", layers=-2))),
            "`lmm.parts.spot`: .*`layers` is -2; a list",
        ),
        (dict(parts=dict(spot=dict(type="RegionTokens", layers="12"))), "`layers` is '12'; a list"),
        (dict(parts=dict(spot=dict(type="RegionTokens", layers=[True]))), "`layers` is .True.; a list"),
        (
            dict(parts=dict(spot=dict(type="RegionTokens", layers=(-100,)))),
            r"`lmm.parts.spot`: .*\[-100\].* -1 to -",
        ),
        (dict(parts=dict(spot=dict(type="RegionTokens", hidden=0))), "`hidden` is 0"),
        (dict(parts=dict(spot=dict(type="RegionTokens", token=3))), "`token` is 3"),
        (dict(parts=dict(spot=dict(type="RegionTokens", token="zebra"))), "a word that texts may have"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused(lmm, message):
    with pytest.raises(ConfigError, match=message):
        LlavaAdapter.from_config(tiny_llava_config(), tokenizer=tiny_tokenizer(), **lmm)


@pytest.mark.parametrize(
    ("token", "why"),
    [
        ("<image>", "the tokenizer has already"),
        ("</s>", "the tokenizer has already"),
        ("<unk>", "the tokenizer has already"),
        (".", "the tokenizer has already"),
        ("ASSISTANT:", "the chat template is written with"),
        ("<image", "the chat template is written with"),
        ("<<image>>", "is part of a control word, or has one"),
    ],
)
def test_a_token_that_texts_have_otherwise_stands_for_no_region(token, why):
    parts = dict(spot=dict(type="RegionTokens", token=token))
    with pytest.raises(ConfigError, match=f"`lmm.parts.spot.token` is '{re.escape(token)}', which {why}"):
        LlavaAdapter.from_config(tiny_llava_config(), tokenizer=tiny_tokenizer(), parts=parts)


def test_an_added_token_may_stand_for_regions():
    lmm = LlavaAdapter.from_config(
        tiny_llava_config(),
        tokenizer=tiny_tokenizer(),
        added_tokens=["<spot>"],
        parts=dict(spot=dict(type="RegionTokens", token="<spot>")),
    )
    item = lmm.prepare(replace(asking(), prompt="what is <spot> ?"))
    assert item.input_ids[item.slots].tolist() == list(lmm.added_ids)


def test_a_part_without_a_name_is_named_by_the_model_too():
    lmm = dict(type="LlavaAdapter", pretrained=PRETRAINED, parts=dict(type="RegionTokens"))
    with pytest.raises(ConfigError, match=r"`model.lmm`: `lmm.parts` is .*parts=dict\(NAME="):
        build_lmm(lmm)


def test_lora_of_a_projector_that_is_not_read_is_refused():
    lmm = LlavaAdapter.from_config(tiny_llava_config(), tokenizer=tiny_tokenizer(), parts=PROJECTOR)
    with pytest.raises(ConfigError, match="would never be read"):
        add_lora(lmm, lora_groups(dict(projector=dict(r=2))))
    with pytest.raises(ConfigError, match="leave one of them out"):
        tiny_llava(lora=dict(projector=dict(r=2)), parts=PROJECTOR)


def test_lora_that_comes_later_keeps_the_base():
    lmm = tiny_llava(frozen=False)
    assert not lmm.keeps_base
    add_lora(lmm, lora_groups(dict(llm=dict(r=2))))
    assert lmm.keeps_base


def test_the_cache_refuses_what_changes_its_images():
    lmm = LlavaAdapter.from_config(tiny_llava_config(), tokenizer=tiny_tokenizer(), parts=PROJECTOR)
    with pytest.raises(ConfigError, match=r"projector of its own \(projector\)"):
        CachedLMM(lmm, Partitioner(GivenRegions("meta")))
    lmm = LlavaAdapter.from_config(tiny_llava_config(), tokenizer=tiny_tokenizer(), parts=REGIONS)
    with pytest.raises(ConfigError, match="leave `prefusion` or `lmm.parts` out"):
        CachedLMM(lmm, Partitioner(GivenRegions("meta")), prefusion=PreFusion())


def test_questions_about_regions_from_the_api(tmp_path):
    config = write_config(tmp_path / "a", parts=REGIONS)
    model = model_from_config(config, untrained=True, device="cpu").eval()
    moved(model)
    grounder, image = Grounder(model), make_sample(0).image
    boxes = [(2, 3, 30, 20), (20, 10, 40, 30)]
    answer = grounder.answer(image, "is <region> left of <region> ?", regions=boxes, max_new_tokens=4)
    sample = replace(asking(), prompt="is <region> left of <region> ?", regions=tuple(map(Region.of, boxes)))
    assert answer == model.lmm.generate(sample, max_new_tokens=4)
    plain = grounder.answer(image, "what is it ?", max_new_tokens=4)
    with model.lmm.base_mode():
        assert plain == model.lmm.generate(replace(make_sample(0), prompt="what is it ?"), max_new_tokens=4)
    with pytest.raises(DataError, match="1 regions"):
        grounder.answer(image, "what ?", regions=boxes[:1])
    with pytest.raises(ConfigError, match="no part that reads them"):
        tiny_llava().prepare(sample)


def test_questions_about_regions_from_files(tmp_path):
    image = ROOT / "data" / "models" / "tiny_heads" / "scene.png"
    (tmp_path / "scene.png").write_bytes(image.read_bytes())
    line = dict(question_id=1, image="scene.png", text="what is <region> ?", answer="a ring")
    for regions in ([[1, 2, 9, 12]], [[3.5, 4]]):
        (tmp_path / "q.jsonl").write_text(json.dumps({**line, "regions": regions}))
        (sample,) = QuestionDataset(str(tmp_path / "q.jsonl"), str(tmp_path))
        assert sample.regions == (Region.of(regions[0]),)
        turns = [
            {"from": "human", "value": "<image>what is <region> ?", "regions": regions},
            {"from": "gpt", "value": "a ring"},
        ]
        (tmp_path / "c.json").write_text(json.dumps([dict(id=1, image="scene.png", conversations=turns)]))
        (sample,) = LLaVAInstructDataset(str(tmp_path / "c.json"), str(tmp_path))
        assert sample.regions == (Region.of(regions[0]),)
    mask = np.zeros(sample.image.shape[:2], bool)
    mask[3:9, 4:20] = True
    pair = dict(text="is <region> left of <region> ?", regions=[[1, 2], encode_rle(mask)])
    (tmp_path / "q.jsonl").write_text(json.dumps({**line, **pair}))
    (sample,) = QuestionDataset(str(tmp_path / "q.jsonl"), str(tmp_path))
    assert sample.regions[0] == Region.of((1, 2))
    assert np.array_equal(sample.regions[1].mask, mask)
    run = encode_rle(mask)
    for wrong in ("all", [[1, 2, 3]], [["1", "2"]], [None], 5, [{"counts": "a"}], [{**run, "size": [4]}]):
        (tmp_path / "q.jsonl").write_text(json.dumps({**line, "regions": wrong}))
        with pytest.raises(DataError, match="regions"):
            QuestionDataset(str(tmp_path / "q.jsonl"), str(tmp_path))
    for polygon in ([[1, 2, 3, 4, 5, 6]], [[[1, 2, 3, 4, 5, 6]]]):
        (tmp_path / "q.jsonl").write_text(json.dumps({**line, "regions": polygon}))
        with pytest.raises(DataError, match=r'run lengths \(RLE\) \{"size": \[H, W\], "counts"'):
            QuestionDataset(str(tmp_path / "q.jsonl"), str(tmp_path))
    # Damage inside of the run lengths is found where the mask is read.
    (tmp_path / "q.jsonl").write_text(
        json.dumps({**line, "regions": [{**run, "counts": run["counts"][:-1]}]})
    )
    with pytest.raises(DataError, match="question/1.*RLE counts"):
        QuestionDataset(str(tmp_path / "q.jsonl"), str(tmp_path))[0]


def test_images_and_their_modalities_come_from_question_and_conversation_files(tmp_path):
    files = ["scene.png", "depth.png"]
    for index, name in enumerate(files):
        Image.fromarray(make_sample(index).image).save(tmp_path / name)
    line = {"question_id": 1, "text": "is it near ?", "answer": "yes", "image": files}
    turns = [
        {"from": "human", "value": "<image>\n<image>\nis it near ?"},
        {"from": "gpt", "value": "yes"},
    ]

    def read(modalities, words=turns):
        further = {} if modalities is None else {"modalities": modalities}
        (tmp_path / "q.jsonl").write_text(json.dumps({**line, **further}))
        talk = dict(id=1, image=files, conversations=words, **further)
        (tmp_path / "c.json").write_text(json.dumps([talk]))
        yield QuestionDataset(str(tmp_path / "q.jsonl"), str(tmp_path))
        yield LLaVAInstructDataset(str(tmp_path / "c.json"), str(tmp_path))

    for modalities in (None, ["rgb", "depth"]):
        for (sample,) in read(modalities):
            assert sample.modalities == tuple(modalities or ())
            assert sample.prompt == "is it near ?"
            assert np.array_equal(sample.image, make_sample(0).image)
            assert [image.tolist() for image in sample.more_images] == [make_sample(1).image.tolist()]
    for wrong, message in (
        (["rgb"], "1 names for 2 images"),
        ("depth", "not a list"),
        ([1, 2], "not a list"),
    ):
        with pytest.raises(DataError, match=message):
            list(read(wrong))
    within = [{"from": "human", "value": "<image> is <image> near ?"}, turns[1]]
    with pytest.raises(DataError, match="several images stand before the question"):
        list(read(None, within))


def test_a_projector_for_a_modality_is_saved_with_it_and_not_exported(tmp_path):
    depth = dict(depth=dict(type="OwnProjector", modalities=["depth"]))
    config = write_config(tmp_path / "a", parts=depth)
    model = model_from_config(config, untrained=True, device="cpu").eval()
    moved(model)
    file = tmp_path / "iter_1.pth"
    torch.save({"state_dict": model.trainable_state_dict(), "meta": lmm_meta(model.lmm)}, file)
    assert all(name.startswith("lmm.parts.depth.copies.") for name in model.trainable_state_dict())
    image, question = make_sample(0).image, "what is it ?"
    ours, again = Grounder(model), Grounder(model_from_config(config, file, device="cpu"))
    plain = Grounder(model_from_config(write_config(tmp_path / "b"), untrained=True, device="cpu"))
    for modalities in (("rgb",), ("depth",)):
        answer = ours.answer(image, question, modalities=modalities, max_new_tokens=8)
        assert answer == again.answer(image, question, modalities=modalities, max_new_tokens=8)
        assert (answer == plain.answer(image, question, max_new_tokens=8)) == (modalities == ("rgb",))
    other = write_config(tmp_path / "c", parts=dict(depth=dict(type="OwnProjector", modalities=["heat"])))
    with pytest.raises(CheckpointError, match="depth"):
        model_from_config(other, file, device="cpu")
    with pytest.raises(ConfigError, match="OwnProjector for depth cannot be exported"):
        merge_checkpoint(config, file, tmp_path / "merged")


DEPTH = dict(depth=dict(type="OwnProjector", modalities=["depth"]))


@pytest.mark.parametrize("parts", [REGIONS, DEPTH], ids=["regions", "depth"])
def test_what_only_parts_read_is_left_out_of_the_distillation(parts, tmp_path):
    """The untouched LMM has nothing to say about it; the others are distilled as they are alone."""
    config = write_config(tmp_path / "a", parts=parts, lora=dict(llm=dict(r=2)))
    model = model_from_config(config, untrained=True, device="cpu").train()
    model.heads["language"] = LanguageHead(distill_weight=1.0)
    moved(model)
    plain = replace(asking(1), prompt="what is it ?", regions=())
    shown = asking(0) if parts is REGIONS else replace(plain, record_id="depth/0", modalities=("depth",))
    alone = model([plain], mode="loss")
    both = model([shown, plain], mode="loss")
    count = [float(model.heads["language"].num_targets(model.prepare([s]))) for s in (shown, plain)]
    share = count[1] / sum(count)
    assert float(alone["language.loss_distill"]) > 1e-4
    assert float(both["language.loss_distill"]) == pytest.approx(
        share * float(alone["language.loss_distill"]), rel=1e-4
    )
    assert "language.loss_distill" not in model([shown], mode="loss")
    none, some = model.answer_kl([shown, plain])
    assert none is None
    assert some > 1e-4
    with pytest.raises(ConfigError, match=f"{shown.record_id} shows what only parts of the LMM read"):
        FORGETTING.facts(model, [plain, shown], None, None)
