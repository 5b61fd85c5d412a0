"""A published LISA: its answers and masks are those of LISA's own computation, and damaged folders are refused."""

from __future__ import annotations

import argparse
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lisa_files import ANSWER, QUESTION, SAM, TinyLisa, lisa_ids, tiny_lisa, write_lisa
from mmengine.config import ConfigDict
from safetensors.torch import load_file, save_file
from torch import Tensor

from flmm_detseg import Grounder
from flmm_detseg.commands.imports import lisa as command
from flmm_detseg.errors import CheckpointError, ConfigError
from flmm_detseg.heads import LanguageHead
from flmm_detseg.lmms.weights.identity import lmm_identity
from flmm_detseg.models.checkpoint import read_checkpoint
from flmm_detseg.models.from_config import model_from_config, read_config
from flmm_detseg.models.grounding_lmm import GroundingLMM
from flmm_detseg.models.import_lisa import import_lisa, plan_lisa
from flmm_detseg.refiners import VARIANTS
from flmm_detseg.registry import MODELS
from flmm_detseg.structures import Phrase, Sample
from flmm_detseg.utils.choices import SAM_VARIANTS

IMAGE = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
IMAGE[10:40, 20:60] //= 3


def run(*words: str) -> dict[str, Any]:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.run(parser.parse_args(words))


@pytest.fixture(scope="module", autouse=True)
def _without_layout():
    """Laying the written config out takes most of an import's time, and is MMEngine's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mmengine.config.config.FormatCode", lambda text, **_: (text, True))
        yield


def in_float32(config: Path) -> Any:
    """As the import wrote it, but in the precision of the comparison."""
    read = read_config(config)
    read.model.lmm.dtype = read.model.heads.reasoning.sam.dtype = "float32"
    return read


def taught(**kind: bool) -> TinyLisa:
    lisa = tiny_lisa(**kind)
    lisa.teach(IMAGE, [*lisa_ids(ANSWER, lisa.added), 2])
    return lisa


@pytest.fixture(scope="module")
def lisa() -> TinyLisa:
    return taught()


@pytest.fixture(scope="module")
def model_folder(lisa, tmp_path_factory) -> Path:
    """Never changed."""
    return write_lisa(lisa, tmp_path_factory.mktemp("release"))


@pytest.fixture(scope="module")
def imported(model_folder, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("imported") / "lisa_v1"
    run(str(model_folder), "--out", str(out), "--sam", SAM)
    return out


@pytest.mark.parametrize(
    ("kind", "written"),
    [
        ({}, dict(kind="bin", shards=3)),
        (dict(two=True), dict(kind="safetensors", shards=2, tower=True)),
        (dict(patch=False, marked=False), dict(kind="bin", shards=1)),
    ],
    ids=["linear", "two_layers_tower_inside", "no_image_token"],
)
def test_answer_and_masks_are_those_of_lisas_own_computation(kind, written, tmp_path):
    lisa = taught(**kind)
    answer, masks = lisa.evaluate(IMAGE)
    assert answer.count(lisa.added["[SEG]"]) == 2
    assert answer[-1] == 2
    figures = run(str(write_lisa(lisa, tmp_path, **written)), "--out", str(tmp_path / "out"), "--sam", SAM)
    assert figures["token_id"] == lisa.added["[SEG]"]
    model = model_from_config(in_float32(Path(figures["config"])), device="cpu")
    sample = Sample("image", IMAGE, "", (), None, prompt=QUESTION, task="reasoning")
    found = model.answer_with_masks(sample, max_new_tokens=20)
    assert found.generation.token_ids.tolist() == answer
    logits = found.prediction.mask_maps.enlarge()
    assert logits.shape == masks.shape
    assert masks.std() > 0.1
    assert (masks[0] - masks[1]).abs().max() > 0.01
    torch.testing.assert_close(logits, masks, rtol=1e-5, atol=1e-5)
    assert torch.equal(found.prediction.packed.unpack(), masks > 0)


def test_asking_from_python_needs_the_written_config_alone(lisa, imported):
    grounder = Grounder.from_config(in_float32(imported / "lisa.py"), device="cpu")
    result = grounder.ask(IMAGE, QUESTION, reasoning=True, max_new_tokens=20)
    _, masks = lisa.evaluate(IMAGE)
    assert np.array_equal(result.masks, (masks > 0).numpy())
    assert result.caption.count("[SEG]") == 2
    assert result.phrases[1] == "the ring"
    # A plain question is answered by the same LMM: nothing was added to it.
    assert grounder.ask(IMAGE, QUESTION, max_new_tokens=20).caption == result.caption


@pytest.mark.parametrize(
    ("template", "marked"), [("llava_v1", True), ("llava_llama_2", True), ("llava_llama_2", False)]
)
def test_prompts_are_tokenised_as_they_were_in_training(template, marked, imported, tmp_path):
    """The language model alone is built; one import has another template, and no marks."""
    lisa = tiny_lisa(marked=marked)
    if not marked:
        imported = tmp_path / "out"
        import_lisa(plan_lisa(write_lisa(lisa, tmp_path), sam=SAM), imported, template)
    config = read_config(imported / "lisa.py").model.lmm
    assert config.prompt_template == ("llava_v1_marked" if marked else template)
    lmm = MODELS.build({**config, "prompt_template": f"{template}_marked" if marked else template})
    question = "Can you segment the ring in this image?"
    inputs = lmm.prepare(Sample("image", IMAGE, "it is [SEG].", (), None, prompt=question))
    before, after = lisa.prompt_ids(question, template)
    answer = lisa_ids(" it is [SEG].", lisa.added)
    # A text in one piece with what stands before it: the blank between both is the answer's.
    joined = lisa_ids(f"ASSISTANT: {question} it is [SEG].", lisa.added)
    assert joined[-len(answer[1:]) :] == answer[1:]
    kept = inputs.input_ids[~inputs.image_mask].tolist()
    assert kept[: len(before) + len(after)] == [*before, *after]
    assert kept[-2:] == answer[-2:]
    assert int(inputs.image_mask.sum()) == 16
    assert inputs.image_mask.nonzero()[0] == len(before)


def test_the_checkpoint_says_on_which_lmm_it_was_trained(imported):
    config = in_float32(imported / "lisa.py")
    model = model_from_config(config, device="cpu")
    assert isinstance(model, GroundingLMM)
    recorded = read_checkpoint(imported / "heads.safetensors").identity
    assert json.loads(recorded) == json.loads(lmm_identity(model.lmm))
    index = json.loads((imported / "lmm" / "model.safetensors.index.json").read_text())["weight_map"]
    file = imported / "lmm" / index["language_model.model.norm.weight"]
    before = file.read_bytes()
    try:
        tensors = load_file(file)
        tensors["language_model.model.norm.weight"] += 1
        save_file(tensors, file, metadata={"format": "pt"})
        with pytest.raises(CheckpointError, match="trained on another LMM"):
            model_from_config(config, device="cpu")
    finally:
        file.write_bytes(before)


def test_what_is_trained_further_is_the_published_head_alone(lisa, imported):
    model = model_from_config(in_float32(imported / "lisa.py"), device="cpu")
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == set(read_checkpoint(imported / "heads.safetensors").tensors)
    decoder = dict(lisa.sam.mask_decoder.named_parameters())
    start = "heads.reasoning.sam.model.mask_decoder."
    for name in (name for name in trained if name.startswith(start)):
        assert torch.equal(dict(model.named_parameters())[name], decoder[name.removeprefix(start)])
    assert not model.heads["reasoning"].sam.model.trained_candidates


def test_lora_can_be_trained_from_there_as_the_page_says(imported):
    config = in_float32(imported / "lisa.py").model
    lora = dict(llm=dict(r=2, alpha=4, target=["q_proj", "v_proj"]))
    more = dict(
        lmm=dict(config.lmm, lora=lora),
        heads=dict(config.heads, language=dict(type=LanguageHead)),
        retention="always",
        init_from=[str(imported / "heads.safetensors")],
        new_parts=["lmm."],
    )
    model = MODELS.build(ConfigDict({**config, **more}))
    head = read_checkpoint(imported / "heads.safetensors").tensors
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name for name in trained if ".lora_" not in name} == set(head)
    for name, tensor in head.items():
        assert torch.equal(trained[name], tensor)
    text = "the ring [SEG] ."
    mask = np.zeros((1, *IMAGE.shape[:2]), dtype=bool)
    mask[0, 10:40, 20:60] = True
    phrases = (Phrase(((9, 14),)),)
    sample = Sample("image", IMAGE, text, phrases, mask, prompt=QUESTION, task="reasoning")
    losses, _ = model.parse_losses(model.loss([sample]))
    losses.backward()
    # B of LoRA begins at 0, so A has no gradient yet.
    reached = {
        name for name, parameter in trained.items() if parameter.grad is not None and parameter.grad.any()
    }
    assert {name for name in trained if ".lora_B" in name or ".project." in name} <= reached


def test_a_dry_run_names_every_tensor_and_writes_nothing(lisa, model_folder, tmp_path, capsys):
    before = sorted(tmp_path.parent.rglob("*"))
    figures = run(str(model_folder), "--out", str(tmp_path / "out"), "--sam", SAM, "--dry-run")
    assert sorted(tmp_path.parent.rglob("*")) == before
    lines = capsys.readouterr().out.splitlines()
    names = {line.split(" -> ")[0] for line in lines}
    tower = {name for name in names if name.startswith("clip/")}
    assert names - tower == set(lisa.tensors(tower=False))
    assert len(lines) == figures["tensors"] == len(names)
    norm = next(line for line in lines if line.startswith("model.norm.weight "))
    assert norm == "model.norm.weight -> lmm: language_model.model.norm.weight  [32] float32"
    left = [line for line in lines if "left out: " in line]
    assert len(left) == figures["left_out"] == 3
    assert any("inv_freq -> left out: computed from the config" in line for line in left)
    assert any("logit_scale -> left out: CLIP's other half" in line for line in left)


def shard(folder: Path, number: int) -> Path:
    return sorted(folder.glob("*-of-*"))[number]


def change(tensors: Callable[[dict[str, Tensor]], None]) -> Callable[[Path], None]:
    """Changes the tensors of a single file."""

    def broken(folder: Path) -> None:
        (file,) = folder.glob("*.safetensors")
        found = load_file(file)
        tensors(found)
        save_file(found, file, metadata={"format": "pt"})

    return broken


class Code:
    def __reduce__(self):
        return Path.touch, (Path("harmed"),)


def missing_shard(folder: Path) -> None:
    shard(folder, 0).unlink()


def truncated(folder: Path) -> None:
    file = shard(folder, 1)
    file.write_bytes(file.read_bytes()[:-100])


def pickled(folder: Path) -> None:
    shard(folder, 0).write_bytes(pickle.dumps({"model.norm.weight": Code()}))


def zipped_code(folder: Path) -> None:
    torch.save({"model.norm.weight": Code()}, shard(folder, 0))


def outside(folder: Path) -> None:
    (file,) = folder.glob("*.index.json")
    file.write_text(json.dumps({"weight_map": {"model.norm.weight": "../clip/model.safetensors"}}))


def damaged_index(folder: Path) -> None:
    (file,) = folder.glob("*.index.json")
    file.write_text(file.read_text()[:-9])


def unlisted(folder: Path) -> None:
    (file,) = folder.glob("*.index.json")
    places = json.loads(file.read_text())["weight_map"]
    del places["model.norm.weight"]
    file.write_text(json.dumps({"weight_map": places}))


NORM = "model.norm.weight"
LORA = "model.layers.0.self_attn.q_proj.lora_A.weight"


@pytest.mark.parametrize(
    ("written", "harm", "said"),
    [
        (dict(shards=2), missing_shard, r"model-00001-of-00002.safetensors is missing \(\d+ tensors\)"),
        (dict(kind="bin"), missing_shard, r"pytorch_model-00001-of-00002.bin is missing"),
        (dict(shards=2), truncated, r"model-00002-of-00002.safetensors cannot be read, it is damaged"),
        (dict(kind="bin"), truncated, r"pytorch_model-00002-of-00002.bin cannot be read as plain tensors"),
        (dict(kind="bin"), pickled, r"pytorch_model-00001-of-00002.bin cannot be read .*holds code"),
        (dict(kind="bin"), zipped_code, r"pytorch_model-00001-of-00002.bin cannot be read .*holds code"),
        (dict(shards=2), outside, r"names '../clip/model.safetensors', which is not in the folder"),
        (dict(shards=2), damaged_index, r"model.safetensors.index.json is damaged"),
        (dict(shards=2), unlisted, r"model.norm.weight is in \S+, but not in model.safetensors.index.json"),
        (
            dict(shards=1),
            change(lambda t: t.update({NORM: t[NORM] * torch.nan})),
            r"model.norm.weight holds NaN or infinities",
        ),
    ],
)  # fmt: skip
def test_a_broken_folder_gives_one_error_and_nothing_is_written(
    written, harm, said, lisa, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    folder = write_lisa(lisa, tmp_path, **written)
    harm(folder)
    before = set(tmp_path.rglob("*"))
    with pytest.raises(ConfigError, match=said):
        run(str(folder), "--out", str(tmp_path / "out"), "--sam", SAM)
    assert {path for path in set(tmp_path.rglob("*")) - before if path.suffix != ".lock"} == set()


def misfits(tensors: dict[str, Tensor]) -> None:
    """One of each kind."""
    del tensors["model.layers.0.input_layernorm.weight"], tensors["model.text_hidden_fcs.0.2.bias"]
    vector, head = tensors[NORM], tensors["lm_head.weight"]
    tensors.update({"model.x": vector + 0, "vision_model.post_layernorm.bias": vector + 0, LORA: vector + 0})
    tensors.update({NORM: vector[1:].clone(), "lm_head.weight": head[1:].clone()})
    tensors["model.mm_projector.bias"] = tensors["model.mm_projector.bias"].to(torch.int8)


def test_all_that_does_not_fit_is_one_error(lisa, tmp_path):
    folder = write_lisa(lisa, tmp_path, shards=1)
    change(misfits)(folder)
    with pytest.raises(ConfigError) as error:
        run(str(folder), "--out", str(tmp_path / "out"), "--sam", SAM)
    said = str(error.value).split("8 problem(s): ")[1].split(". Nothing was written")[0].split("; ")
    assert sorted(said) == sorted(
        [
            "model.layers.0.input_layernorm.weight is missing",
            "model.text_hidden_fcs.0.2.bias is missing",
            "model.x [32] is not known",
            "vision_model.post_layernorm.bias [32] is not known",
            f"{LORA} [32] is not known (LoRA has to be merged first)",
            "model.norm.weight has shape [31], [32] is needed",
            "lm_head.weight has shape [403, 32], [404, 32] is needed",
            "model.mm_projector.bias is torch.int8, no weight: the model was quantised",
        ]
    )
    assert not (tmp_path / "out").exists()


def test_ten_of_many_problems_are_listed_with_their_count(model_folder):
    with pytest.raises(ConfigError, match=r"(\d{3}) problem\(s\): ") as error:
        plan_lisa(model_folder, sam="vit_b")
    said = str(error.value)
    assert len(said.split("problem(s): ")[1].split("; and ")[0].split("; ")) == 10
    assert "--sam" in said
    assert set(SAM_VARIANTS) == set(VARIANTS)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (dict(model_type="llava_mpt"), "model_type is 'llava_mpt'"),
        (dict(mm_projector_type="mlp3x_gelu"), "projector is 'mlp3x_gelu'"),
        (dict(mm_resampler_type="spatial"), "resampler"),
        (dict(mm_vision_select_feature="cls_patch"), "class token"),
        (dict(tie_word_embeddings=True), "two tables are one"),
        (dict(quantization_config={"bits": 4}), "quantised"),
        (dict(mm_hidden_size=7), "a tower 7 wide"),
        (dict(vision_tower="nobody/no-such-tower/x"), "no such folder of a CLIP tower"),
        (dict(hidden_size=None), "does not say hidden_size"),
        (dict(mm_vision_select_layer=-9), "vision_feature_layer names"),
    ],
)
def test_other_kinds_are_refused_with_a_sentence(fields, said, lisa, tmp_path):
    folder = write_lisa(lisa, tmp_path)
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))
    with pytest.raises(ConfigError, match=said):
        plan_lisa(folder, sam=SAM)


def test_files_of_v0_and_a_tokenizer_without_its_tokens_are_refused(lisa, tmp_path):
    folder = write_lisa(lisa, tmp_path)
    (folder / "added_tokens.json").write_text(json.dumps({"<im_patch>": lisa.added["<im_patch>"]}))
    with pytest.raises(ConfigError, match="no <im_start>, <im_end>; added_tokens.json may be missing"):
        plan_lisa(folder, sam=SAM)
    (folder / "pytorch_model-visual_model.bin").touch()
    with pytest.raises(ConfigError, match="is LISA v0"):
        plan_lisa(folder, sam=SAM)


def test_an_out_folder_that_is_there_is_left_alone(model_folder, tmp_path):
    (tmp_path / "mine").touch()
    with pytest.raises(ConfigError, match="exists already"):
        run(str(model_folder), "--out", str(tmp_path), "--sam", SAM)


def test_a_template_of_no_lisa_model_is_refused_before_anything_is_written(model_folder, tmp_path):
    with pytest.raises(ConfigError, match="llava_v1, llava_llama_2"):
        import_lisa(plan_lisa(model_folder, sam=SAM), tmp_path / "out", "vicuna")
    assert not (tmp_path / "out").exists()
