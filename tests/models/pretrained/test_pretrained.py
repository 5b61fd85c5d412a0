"""Stored models: the same masks bit for bit, and an error for whatever does not belong to them."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from flmm_detseg import Grounder
from flmm_detseg.errors import CheckpointError, ConfigError, DataError
from flmm_detseg.models import GroundingLMM
from flmm_detseg.models.domain import DOMAIN_FILE
from flmm_detseg.models.from_config import model_from_config, read_config
from flmm_detseg.models.pretrained.config_json import from_json, to_json
from flmm_detseg.models.pretrained.reading import TENSORS_FILE, own_hash
from flmm_detseg.registry import MODELS
from flmm_detseg.utils.configs import TINY_CONFIG, TINY_HEADS, config_file, shipped_configs
from flmm_detseg.utils.hub import MODEL_FILE, fetch_model, model_folder
from flmm_detseg.utils.paths import find

SCENE = find("data/models/tiny_heads/scene.png")
TEXT, PHRASES = "a white ring is left of the orange ring .", ["a white ring", "the orange ring"]
FIELDS = ("masks", "boxes_xyxy", "scores", "coarse_logits", "refined_logits")


def new(config: str) -> Grounder:
    torch.manual_seed(5)
    return Grounder.from_config(config, device="cpu", untrained=True)


def ground(grounder: Grounder):
    return grounder.ground(SCENE, TEXT, phrases=PHRASES)


def assert_same_bits(first, second):
    for field in FIELDS:
        np.testing.assert_array_equal(getattr(first, field), getattr(second, field), err_msg=field)


@pytest.fixture(scope="module")
def grounder() -> Grounder:
    return new(TINY_CONFIG)


@pytest.fixture(scope="module")
def saved(grounder, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("stored") / "tiny"
    domain = find("data/models/tiny_heads") / DOMAIN_FILE
    figures = grounder.save_pretrained(folder, licence="apache-2.0", domain=domain)
    assert figures["references"] == ["data/models/tiny_llava", "data/models/tiny_sam"]
    return folder


@pytest.fixture
def folder(saved, tmp_path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def change(folder: Path, edit) -> None:
    """Edits the model file and makes all hashes right again, as somebody who means harm would."""
    path = folder / MODEL_FILE
    content = json.loads(path.read_text())
    edit(content)
    for name, facts in content["files"].items():
        facts["sha256"] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    content["sha256"] = own_hash(content)
    path.write_text(json.dumps(content))


def test_a_stored_model_gives_the_same_bits(grounder, saved):
    again = Grounder.from_pretrained(saved, device="cpu")
    result = ground(again)
    assert_same_bits(ground(grounder), result)
    assert result.domain is not None
    assert again.model.frozen_fingerprint() == grounder.model.frozen_fingerprint()
    assert sorted(p.name for p in saved.iterdir()) == ["README.md", MODEL_FILE, DOMAIN_FILE, TENSORS_FILE]


@pytest.mark.parametrize(
    "config",
    [
        "tiny/training_free",
        "tiny/detseg_shared_parts",
        pytest.param("tiny/region_questions", marks=pytest.mark.long),
        pytest.param("tiny/seg_token", marks=pytest.mark.long),
        pytest.param("tiny/seg_token_pointer", marks=pytest.mark.long),
    ],
)
def test_every_kind_of_model_comes_back(config, tmp_path):
    """Without anything trained; LoRA, detection, segmentation and shared parts; added parts and tokens of the LMM."""
    before = new(config)
    before.save_pretrained(tmp_path / "model")
    after = Grounder.from_pretrained(tmp_path / "model", device="cpu")
    if "phrase" in before.model.heads:
        assert_same_bits(ground(before), ground(after))
    ours, theirs = before.model.trainable_state_dict(), after.model.trainable_state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    again = after.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / MODEL_FILE).read_text() == (tmp_path / "model" / MODEL_FILE).read_text()
    assert again["num_tensors"] == len(ours)


def test_frozen_heads_of_an_earlier_training_are_stored(tmp_path):
    """`init_from` is not stored, and neither its file nor a new model's random head may take the place of the head."""
    start = Path(shutil.copy(find(TINY_HEADS), tmp_path / "start.pth"))
    config = read_config(TINY_CONFIG)
    config.model.update(freeze=["phrase.mask_head", "phrase.sam"], init_from=[str(start)])
    before = Grounder.from_config(config, device="cpu", untrained=True)
    expected = ground(before)
    assert_same_bits(expected, ground(Grounder.from_config(TINY_CONFIG, TINY_HEADS, device="cpu")))
    before.save_pretrained(tmp_path / "model")
    start.unlink()
    torch.manual_seed(6)
    after = Grounder.from_pretrained(tmp_path / "model", device="cpu")
    assert_same_bits(expected, ground(after))
    assert not any(p.requires_grad for p in after.model.heads["phrase"].sam.parameters())
    after.save_pretrained(tmp_path / "again")
    for name in (MODEL_FILE, TENSORS_FILE):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "model" / name).read_bytes()


@pytest.mark.parametrize(
    "name", sorted(n for n in shipped_configs() if n.startswith(("tiny/", "cache/tiny_stream", "llava/"))
            and "stages" not in n and "ladder" not in n)
)  # fmt: skip
def test_shipped_configs_have_a_form_without_code(name, tmp_path):
    model = read_config(name).model
    fields = {key: value for key, value in model.items() if key not in ("init_from", "new_parts")}
    stored = json.loads(json.dumps(to_json(fields, MODELS, "model", lambda text, _: text)))
    again = from_json(stored, MODELS, "model", tmp_path)
    assert to_json(again, MODELS, "model", lambda text, _: text) == stored


def test_a_folder_takes_a_configs_place_everywhere(saved, tmp_path, monkeypatch):
    config = read_config(saved)
    assert config_file(saved) == saved / MODEL_FILE
    assert (
        config.refcoco_eval.refcoco_val.refs_file
        == read_config(TINY_CONFIG).refcoco_eval.refcoco_val.refs_file
    )
    assert config.load_from == str(saved / TENSORS_FILE)
    from flmm_detseg.cli import main

    monkeypatch.setattr("sys.argv", [
        "flmm-detseg", "ground", str(saved), "--image", str(SCENE), "--caption", TEXT, "--phrase", PHRASES[0],
        "--out", str(tmp_path / "o.png"), "--device", "cpu",
    ])  # fmt: skip
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    assert (tmp_path / "o.png").is_file()


def test_another_lmm_is_refused_and_may_be_meant(folder):
    other = "data/models/tiny_llava_streams"
    with pytest.raises(CheckpointError, match="another LMM"):
        Grounder.from_pretrained(folder, base=other, device="cpu")
    assert Grounder.from_pretrained(folder, base=other, device="cpu", allow_other_lmm=True)
    change(folder, lambda content: content["model"]["lmm"].update(pretrained=other))
    with pytest.raises(CheckpointError, match="another LMM"):
        Grounder.from_pretrained(folder, device="cpu")


@pytest.mark.long
def test_the_same_lmm_may_lie_elsewhere(grounder, folder, tmp_path):
    shutil.copytree(find("data/models/tiny_llava"), tmp_path / "lmm")
    again = Grounder.from_pretrained(folder, base=str(tmp_path / "lmm"), device="cpu")
    assert_same_bits(ground(grounder), ground(again))


def test_another_sam_is_refused(folder, tmp_path):
    sam = Path(shutil.copytree(find("data/models/tiny_sam"), tmp_path / "sam"))
    tensors = load_file(sam / "model.safetensors")
    name = next(n for n in tensors if "image_encoder" in n)
    save_file({**tensors, name: tensors[name] + 1}, sam / "model.safetensors")
    shutil.copytree(sam, folder / "sam")

    def named(content) -> None:
        content["model"]["heads"]["phrase"]["sam"].update(checkpoint={"$file": "sam"})
        content["files"].update({f"sam/{file.name}": {} for file in (folder / "sam").iterdir()})

    change(folder, named)
    with pytest.raises(CheckpointError, match=r"frozen weights of heads\.phrase\.sam .*--inside"):
        Grounder.from_pretrained(folder, device="cpu")


@pytest.mark.parametrize("kind", ["missing", "unexpected"])
def test_missing_and_extra_tensors_are_named(folder, kind):
    path = folder / TENSORS_FILE
    tensors = load_file(path)
    name = next(iter(tensors))
    if kind == "missing":
        del tensors[name]
    else:
        name = "heads.phrase.more"
        tensors[name] = torch.zeros(1)
    with safe_open(path, "pt") as content:
        facts = content.metadata()
    save_file(tensors, path, facts)
    change(folder, lambda content: None)
    with pytest.raises(CheckpointError, match=f"1 {kind}: {name}"):
        Grounder.from_pretrained(folder, device="cpu")


@pytest.mark.parametrize("name", [TENSORS_FILE, DOMAIN_FILE])
def test_a_changed_byte_is_noticed(folder, name):
    path = folder / name
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{name}.*sha256 differs.*again"):
        Grounder.from_pretrained(folder, device="cpu")
    path.unlink()
    with pytest.raises(CheckpointError, match=f"{name} is missing"):
        Grounder.from_pretrained(folder, device="cpu")


@pytest.mark.parametrize(
    "name", ["domain.safetensors", "parts/lmm/chat_template.jinja", "files/ranking.json"]
)
def test_a_file_that_the_config_does_not_list_is_refused(grounder, name, tmp_path):
    grounder.save_pretrained(tmp_path / "model")
    for harmless in ("LICENSE.txt", "figure.png", ".gitattributes", "parts/lmm/notes.md"):
        path = tmp_path / "model" / harmless
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "model" / "README.md").write_text("another card")
    read_config(tmp_path / "model")
    path = tmp_path / "model" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(find("data/models/tiny_heads") / DOMAIN_FILE, path)
    with pytest.raises(CheckpointError, match=f"{name} is not among the files .* lists.*--domain"):
        read_config(tmp_path / "model")
    path.unlink()
    (tmp_path / "model" / "sam").symlink_to(tmp_path)
    with pytest.raises(CheckpointError, match="sam is not among the files"):
        read_config(tmp_path / "model")


def test_a_domain_is_not_put_beside_a_stored_model(folder):
    from argparse import ArgumentParser

    from flmm_detseg.commands.export import domain

    parser = ArgumentParser()
    domain.add_arguments(parser)
    words = [str(find("data/models/tiny_heads")), "--beside", str(folder / TENSORS_FILE)]
    with pytest.raises(CheckpointError, match="takes no further file.*--domain FILE"):
        domain.run(parser.parse_args(words))


def test_a_changed_config_is_noticed(folder):
    path = folder / MODEL_FILE
    path.write_text(path.read_text().replace('"mean"', '"max"'))
    with pytest.raises(CheckpointError, match="changed after it was written.*base="):
        read_config(folder)
    path.write_text("{")
    with pytest.raises(DataError, match="damaged"):
        read_config(folder)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda m: m["heads"]["phrase"].update(type="os.system"), "'os.system', which is not registered"),
        (lambda m: m["heads"]["phrase"].update(type="torch.nn.Linear"), "not registered"),
        (lambda m: m["lmm"].update(pretrained="/etc"), "hub names, files of its own folder"),
        (lambda m: m["lmm"].update(pretrained="../../etc"), "hub names, files of its own folder"),
        (lambda m: m["lmm"].update(pretrained={"$file": "../../etc"}), "no file inside"),
        (lambda m: m["lmm"].update(pretrained={"$code": "x"}), "unknown entry"),
        (lambda m: m["lmm"].update(tokenizer_code=True), "tokenizer_code"),
    ],
)
def test_a_config_builds_registered_types_from_its_own_files_only(folder, edit, message):
    change(folder, lambda content: edit(content["model"]))
    with pytest.raises(ConfigError, match=message.replace("$", r"\$")):
        Grounder.from_pretrained(folder, device="cpu")


@pytest.mark.parametrize(
    ("edit", "error", "message"),
    [
        (lambda c: c.update(evaluation={"model": {}}), ConfigError, "`evaluation` holds data sets"),
        (lambda c: c.update(evaluation={"custom_hooks": []}), ConfigError, "`evaluation` holds data sets"),
        (lambda c: c.update(evaluation=["refcoco_eval"]), ConfigError, "`evaluation` holds data sets"),
        (lambda c: c["files"].update({TENSORS_FILE: "hash"}), CheckpointError, "sha256 differs"),
    ],
)
def test_entries_of_another_form_are_refused(folder, edit, error, message):
    path = folder / MODEL_FILE
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content | {"sha256": own_hash(content)}))
    with pytest.raises(error, match=message):
        read_config(folder)


def test_all_files_of_a_model_are_fetched_from_the_hub(saved, monkeypatch):
    patterns = []

    def fetched(name, *, revision, allow_patterns):
        patterns.extend(allow_patterns)
        return str(saved)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetched)
    fetch_model.cache_clear()
    fetch_model("owner/model")
    fetch_model.cache_clear()
    names = [
        "sam_vit_l.pth",
        "sam.pt",
        "lmm/tokenizer.model",
        "lmm/LICENSE.txt",
        "lmm/LICENSE",
        "lmm/README.md",
    ]
    written = [
        MODEL_FILE,
        TENSORS_FILE,
        DOMAIN_FILE,
        "files/ranking.json",
        *(f"parts/{name}" for name in names),
    ]
    offered = [*written, "code.py", "parts/lmm/code.py", "large.pth"]
    assert list(huggingface_hub.utils.filter_repo_objects(offered, allow_patterns=patterns)) == written


def test_a_model_on_the_hub_comes_out_of_the_cache_without_a_network(grounder, saved, tmp_path, monkeypatch):
    commit = "0" * 39 + "1"
    repository = tmp_path / "hub" / "models--owner--tiny"
    (repository / "refs").mkdir(parents=True)
    for reference in ("main", "v1"):
        (repository / "refs" / reference).write_text(commit)
    shutil.copytree(saved, repository / "snapshots" / commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    fetch_model.cache_clear()
    again = Grounder.from_pretrained("owner/tiny", revision="v1", device="cpu")
    assert_same_bits(ground(grounder), ground(again))
    assert config_file("hf://owner/tiny@v1") == repository / "snapshots" / commit / MODEL_FILE
    with pytest.raises(ConfigError, match="owner/other at revision v2 is neither in the local cache"):
        Grounder.from_pretrained("owner/other", revision="v2")
    with pytest.raises(ConfigError, match="no model on a hub"):
        config_file("hf://nobody")
    fetch_model.cache_clear()


def test_names_that_are_no_model(saved, tmp_path):
    with pytest.raises(ConfigError, match="has no revision"):
        model_folder(saved, "main")
    with pytest.raises(ConfigError, match="no such folder"):
        model_folder("a/b/c")
    with pytest.raises(ConfigError, match="no config.json in it"):
        model_folder(tmp_path)
    with pytest.raises(ConfigError, match=r"an LMM of transformers \(llava\).*--lmm"):
        read_config("data/models/tiny_llava")


def test_weights_may_be_inside(grounder, tmp_path):
    config = read_config(TINY_CONFIG)
    for name in ("tiny_llava", "tiny_sam"):
        shutil.copytree(find(f"data/models/{name}"), tmp_path / "mine" / name)
    config.model.lmm.pretrained = str(tmp_path / "mine" / "tiny_llava")
    config.model.heads.phrase.sam.checkpoint = str(tmp_path / "mine" / "tiny_sam")
    torch.manual_seed(5)
    mine = Grounder.from_config(config, device="cpu", untrained=True)
    with pytest.raises(ConfigError, match="a place of this machine.*--base.*--inside"):
        mine.save_pretrained(tmp_path / "refused")
    assert not (tmp_path / "refused").exists()
    mine.save_pretrained(tmp_path / "whole", inside=True)
    shutil.rmtree(tmp_path / "mine")
    again = Grounder.from_pretrained(tmp_path / "whole", device="cpu")
    assert_same_bits(ground(grounder), ground(again))
    assert (tmp_path / "whole" / "parts" / "tiny_llava" / "tokenizer.json").is_file()


def test_what_cannot_be_stored_is_said(grounder, saved, tmp_path):
    with pytest.raises(ConfigError, match="exists already"):
        grounder.save_pretrained(saved)
    built = GroundingLMM(lmm=grounder.model.lmm, heads={"phrase": grounder.model.heads["phrase"]})
    with pytest.raises(ConfigError, match="put together in Python"):
        Grounder(built).save_pretrained(tmp_path / "model")


def test_the_command_writes_the_same_folder(grounder, saved, tmp_path):
    from argparse import ArgumentParser

    from flmm_detseg.commands.export import pretrained

    parser = ArgumentParser()
    pretrained.add_arguments(parser)
    arguments = [str(saved), "--out", str(tmp_path / "again"), "--licence", "apache-2.0"]
    figures = pretrained.run(parser.parse_args(arguments))
    assert figures["num_parameters"] == sum(v.numel() for v in load_file(saved / TENSORS_FILE).values())
    for name in (MODEL_FILE, TENSORS_FILE, DOMAIN_FILE):
        assert (tmp_path / "again" / name).read_bytes() == (saved / name).read_bytes()
    model = model_from_config(tmp_path / "again", device="cpu")
    assert model.domain is not None
