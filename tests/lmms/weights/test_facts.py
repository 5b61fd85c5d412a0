"""Facts of foreign model folders: disagreements are named when the adapter is built."""

from __future__ import annotations

import json
import shutil
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
from tiny import make_sample, tiny_llava, tiny_llava_config, tiny_tokenizer
from tokenizers import processors
from transformers import LlavaConfig
from transformers_version import TRANSFORMERS_5

from flmm_detseg.errors import ConfigError, DataError
from flmm_detseg.lmms import LlavaAdapter, LlavaProcessor
from flmm_detseg.lmms.weights import facts
from flmm_detseg.structures import CaptureSpec, Sample

SHIPPED = Path(__file__).resolve().parents[3] / "data" / "models" / "tiny_llava"
ROWS = CaptureSpec(attention=True)


@pytest.fixture
def said(monkeypatch) -> list[str]:
    """Warnings."""
    texts: list[str] = []
    monkeypatch.setattr(facts, "print_log", lambda text, *_: texts.append(text))
    return texts


@pytest.fixture
def folder(tmp_path) -> Path:
    return Path(shutil.copytree(SHIPPED, tmp_path / "model"))


def change(folder: Path, name: str, **fields) -> None:
    file = folder / name
    content = json.loads(file.read_text()) if file.is_file() else {}
    for key, value in fields.items():
        part, _, leaf = key.rpartition("/")
        (content[part] if part else content)[leaf] = value
    file.write_text(json.dumps(content))


def with_tower(**vision) -> LlavaConfig:
    fields = tiny._fields(2, 4, 4, 32)
    fields["vision_config"] = {
        **{key: value for key, value in fields["vision_config"].items() if key != "projection_dim"},
        **vision,
    }
    return LlavaConfig(**fields)


@pytest.mark.case("model/model_facts")
@pytest.mark.parametrize("strategy", ["default", "full"])
def test_a_tower_without_class_token_is_refused(strategy):
    config = with_tower(model_type="siglip_vision_model")
    config.vision_feature_select_strategy = strategy
    with pytest.raises(ConfigError, match=r"siglip_vision_model\) gives 16 tokens.*4 x 4 patches.*CLIP"):
        LlavaAdapter.from_config(config, tokenizer=tiny_tokenizer())


@pytest.mark.case("model/model_facts")
def test_a_tower_without_a_table_of_places_is_run(monkeypatch):
    """Whoever calls his tables otherwise is asked with one image."""
    adapter = tiny_llava()
    monkeypatch.setattr(torch.nn, "Embedding", torch.nn.Bilinear)
    LlavaAdapter(adapter.model, adapter.processor)
    monkeypatch.setattr(adapter.model.config.vision_config, "patch_size", 28)
    with pytest.raises(ConfigError, match="gives 17 tokens.*2 x 2 patches"):
        LlavaAdapter(adapter.model, adapter.processor)


@pytest.mark.case("model/model_facts")
def test_the_class_token_among_the_image_tokens_is_refused():
    config = tiny_llava_config()
    config.vision_feature_select_strategy = "full"
    with pytest.raises(ConfigError, match="must be 'default'.*the class token is no image patch"):
        LlavaAdapter.from_config(config, tokenizer=tiny_tokenizer())


@pytest.mark.case("model/model_facts")
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(vision_feature_layer=-5), r"vision_feature_layer names \[-5\].*0\.\.3"),
        (dict(vision_feature_layer=[1, 9]), r"vision_feature_layer names \[9\]"),
        (
            dict(quantization_config=dict(quant_method="bitsandbytes", load_in_4bit=True)),
            "quantization_config",
        ),
    ],
)
def test_configs_that_cannot_be_run_are_refused(fields, message):
    config = tiny_llava_config()
    for name, value in fields.items():
        setattr(config, name, value)
    with pytest.raises(ConfigError, match=message):
        LlavaAdapter.from_config(config, tokenizer=tiny_tokenizer())


@pytest.mark.case("model/model_facts")
def test_a_vocabulary_smaller_than_the_tokenizers_is_refused():
    config = tiny_llava_config()
    config.text_config.vocab_size = 20
    with pytest.raises(ConfigError, match=r"largest token id is 211 .*input embedding has 20 rows"):
        LlavaAdapter.from_config(config, tokenizer=tiny_tokenizer())


@pytest.mark.case("model/model_facts")
def test_another_image_token_than_the_tokenizers_is_refused():
    config = tiny_llava_config()
    config.image_token_index = 0
    with pytest.raises(ConfigError, match="<image> is token 4 of the tokenizer.*image_token_index 0"):
        LlavaAdapter.from_config(config, tokenizer=tiny_tokenizer())


@pytest.mark.case("model/model_facts")
def test_a_tokenizer_that_ends_every_text_is_refused():
    tokenizer = deepcopy(tiny_tokenizer())
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    with pytest.raises(ConfigError, match="the tokenizer ends every text with '</s>'"):
        LlavaAdapter.from_config(tiny_llava_config(), tokenizer=tokenizer)


@pytest.mark.case("model/model_facts")
def test_a_tokenizer_that_cuts_and_pads_does_neither_here():
    tokenizer = deepcopy(tiny_tokenizer())
    tokenizer.backend_tokenizer.enable_truncation(5)
    tokenizer.backend_tokenizer.enable_padding(length=99)
    changed = LlavaAdapter.from_config(tiny_llava_config(), tokenizer=tokenizer).prepare(make_sample(0))
    assert torch.equal(changed.input_ids, tiny_llava().prepare(make_sample(0)).input_ids)


@pytest.mark.case("model/model_facts")
def test_end_tokens_that_differ_are_named(said):
    adapter = tiny_llava()
    adapter.model.generation_config.eos_token_id = [7, 8]
    LlavaAdapter(adapter.model, adapter.processor)
    assert "ends answers at token [7, 8]" in said[0]
    assert "2 ('</s>')" in said[0]


@pytest.mark.case("model/model_facts")
def test_without_an_end_token_answers_cannot_be_learned():
    tokenizer = deepcopy(tiny_tokenizer())
    tokenizer.eos_token = None
    adapter = LlavaAdapter.from_config(tiny_llava_config(), tokenizer=tokenizer)
    adapter.prepare(make_sample(0))
    answer = Sample("a/1", make_sample(0).image, "yes", (), prompt="is it ?", task="vqa")
    with pytest.raises(ConfigError, match="no end token"):
        adapter.prepare(answer)


@pytest.mark.case("model/model_facts")
@pytest.mark.parametrize("where", ["prompt", "text"])
@pytest.mark.parametrize("token", ["</s>", "<image>"])
def test_control_words_in_the_users_words_are_refused(where, token):
    adapter = tiny_llava()
    words = {"prompt": "is it ?", "text": "a star", where: f"a {token} star"}
    with pytest.raises(DataError, match=f"a/1: `{where}` holds the control word '{token}'.*remove it"):
        adapter.prepare(Sample("a/1", make_sample(0).image, words["text"], (), prompt=words["prompt"]))


@pytest.mark.case("model/model_facts")
@pytest.mark.parametrize("token", ["<s>", "<unk>", "<pad>"])
def test_special_tokens_that_end_nothing_are_read_as_transformers_reads_them(token):
    adapter = tiny_llava()
    item = adapter.prepare(Sample("a/1", make_sample(0).image, f"a {token} star", (), prompt=f"{token} ?"))
    ids = item.input_ids[~item.image_mask].tolist()
    tokenizer = adapter.processor.tokenizer
    words = tokenizer(adapter.processor.prompt(f"{token} ?") + f" a {token} star").input_ids
    assert ids == [i for i in words if i != adapter.processor.image_token_id]
    assert ids.count(tokenizer.convert_tokens_to_ids(token)) >= 2


@pytest.mark.case("model/model_facts")
def test_special_tokens_that_end_the_models_answers_are_control_words():
    tokenizer = deepcopy(tiny_tokenizer())
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|eot_id|>"]})
    config = tiny_llava_config()
    config.text_config.vocab_size = len(tokenizer)
    config.eos_token_id = [
        tokenizer.eos_token_id,
        *tokenizer.convert_tokens_to_ids(["<|eot_id|>", "star"]),
    ]
    adapter = LlavaAdapter.from_config(config, tokenizer=tokenizer)
    sample = Sample("a/1", make_sample(0).image, "a star", (), prompt="is it ?")
    adapter.prepare(sample)  # an ordinary word stays one
    with pytest.raises(DataError, match=r"control word '<\|eot_id\|>'"):
        adapter.prepare(replace(sample, prompt="is it <|eot_id|> ?"))


@pytest.mark.case("model/model_facts")
def test_words_of_the_joint_template_stay_words():
    tokenizer = deepcopy(tiny_tokenizer())
    tokenizer.add_special_tokens({"additional_special_tokens": ["<SEG>"]})
    config = tiny_llava_config()
    config.text_config.vocab_size = len(tokenizer)
    adapter = LlavaAdapter.from_config(config, tokenizer=tokenizer)
    adapter.prepare(Sample("a/1", make_sample(0).image, "star <SEG>", (), prompt="<TASK_SEG> a ?"))


@pytest.mark.case("model/model_facts")
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(do_normalize=False), "do_normalize=False"),
        (dict(do_rescale=False), "do_rescale=False"),
        (dict(rescale_factor=1 / 127.5), "rescale_factor=0.0078"),
        (dict(image_mean=[0.5]), r"its image_mean is \[0.5\]"),
        (dict(image_std=[1, 0, 1]), r"its image_std is \[1, 0, 1\]"),
        (dict(image_mean=["a", "b", "c"]), "its image_mean"),
        (dict(image_std=None), "its image_std is None"),
    ],
)
def test_other_arithmetic_of_pixels_is_refused(folder, fields, message):
    change(folder, "preprocessor_config.json", **fields)
    with pytest.raises(ConfigError, match=f"model: preprocessor_config.json.*{message}"):
        LlavaAdapter.from_pretrained(str(folder))


@pytest.mark.case("model/model_facts")
def test_another_image_side_and_filter_are_named(folder, said):
    change(folder, "preprocessor_config.json", size={"shortest_edge": 999}, crop_size=None, resample=2)
    LlavaAdapter.from_pretrained(str(folder))
    assert [text for text in said if "size={'shortest_edge': 999}" in text]
    assert [text for text in said if "resample=2" in text]
    assert len(said) == 2
    change(folder, "processor_config.json", patch_size=7, vision_feature_select_strategy="full")
    LlavaAdapter.from_pretrained(str(folder))
    assert "processor_config.json says patch_size=7, config.json 8; the latter is used" in said[2]
    assert "vision_feature_select_strategy='full'" in said[3]
    (folder / "processor_config.json").write_text("[")
    if TRANSFORMERS_5:  # reads image settings from it
        with pytest.raises(ConfigError, match="processor_config.json' is not a valid JSON file"):
            LlavaAdapter.from_pretrained(str(folder))
    else:
        LlavaAdapter.from_pretrained(str(folder))


@pytest.mark.case("model/model_facts")
def test_folders_that_ask_for_kernels_or_quantisation(folder):
    plain = LlavaAdapter.from_pretrained(str(folder))
    for part in ("", "text_config/", "vision_config/"):
        change(folder, "config.json", **{f"{part}_attn_implementation": "flash_attention_2"})
    ours = LlavaAdapter.from_pretrained(str(folder))
    fields = json.loads((folder / "config.json").read_text())
    assert LlavaAdapter.from_config(fields, tokenizer=str(folder)).attention_channels
    item = plain.prepare(make_sample(0))
    rows = [lmm.encode([item], ROWS).attention[0] for lmm in (plain, ours)]
    assert torch.equal(*rows)
    change(folder, "config.json", quantization_config=dict(quant_method="gptq", bits=4))
    with pytest.raises(ConfigError, match="model: config.json has a `quantization_config`"):
        LlavaAdapter.from_pretrained(str(folder))


@pytest.mark.case("model/model_facts")
@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("config.json", dict(text_config=5)),
        ("config.json", {"vision_config/hidden_size": None}),
        ("config.json", {"text_config/model_type": "no_such_model"}),
        ("generation_config.json", dict(max_new_tokens=-1)),
        ("tokenizer.json", dict(model=5)),
    ],
)
def test_files_that_cannot_be_used_are_named(folder, name, fields):
    change(folder, name, **fields)
    with pytest.raises(ConfigError, match="model: "):
        LlavaAdapter.from_pretrained(str(folder))


def rotary(kind: str, **arguments) -> LlavaAdapter:
    fields = tiny._fields(2, 4, 4, 32)
    scaling = dict(rope_type=kind, factor=4.0)
    if kind == "longrope":
        scaling |= dict(short_factor=[1.0] * 4, long_factor=[9.0] * 4)
        fields["text_config"]["original_max_position_embeddings"] = 48
    length = 192 if kind == "longrope" else 48
    fields["text_config"].update(max_position_embeddings=length, rope_scaling=scaling)
    torch.manual_seed(0)
    return LlavaAdapter.from_config(LlavaConfig(**fields), tokenizer=tiny_tokenizer(), **arguments)


@pytest.mark.case("model/dynamic_rope")
@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_rope_types_that_keep_state_are_kept_below_it(kind):
    """What one sequence gives depends neither on its neighbours nor on what was read before."""
    with pytest.raises(ConfigError, match=f"`max_length` is 100.*rope type '{kind}'.*set max_length=48"):
        rotary(kind, max_length=100)
    adapter = rotary(kind)
    assert adapter.processor.settings.max_length == 48
    short, long = (
        adapter.prepare(make_sample(index, prompt=prompt))
        for index, prompt in enumerate(["a ?", "a ring ? " * 3])
    )
    assert len(long.input_ids) <= 48
    first = adapter.encode([short], ROWS).attention[0]
    beside = adapter.encode([short, long], ROWS).attention[0]
    sample = make_sample(1, prompt="a ring ? " * 3)
    # An answer goes no further either: it would exceed the range of its frequencies.
    answer = adapter.generate_with_states(sample, ROWS, max_new_tokens=60)
    assert len(answer.inputs.input_ids) <= 48
    assert adapter.generate(sample, max_new_tokens=60) == answer.text
    after = adapter.encode([short], ROWS).attention[0]
    torch.testing.assert_close(beside, first, rtol=0, atol=1e-6)
    assert torch.equal(after, first)


@pytest.mark.case("model/dynamic_rope")
def test_rope_types_without_state_reach_further():
    adapter = rotary("linear", max_length=100)
    assert adapter.position_limit is None
    assert tiny_llava().position_limit == 1024


@pytest.mark.case("model/model_facts")
def test_more_tokens_than_the_model_was_built_for_are_named(said):
    tiny_llava(max_length=5000)
    assert "`max_length` is 5000, the language model was built for 1024 positions" in said[0]


@pytest.mark.case("model/model_facts")
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_pixels_and_rows_do_not_depend_on_torchs_default_dtype(dtype):
    adapter = tiny_llava()
    item = adapter.prepare(make_sample(0))
    expected = adapter.encode([item], ROWS).attention[0]
    tokenizer = tiny_tokenizer()
    torch.set_default_dtype(dtype)
    try:
        processor = LlavaProcessor(tokenizer, image_token_id=4, image_side=56, patch_size=14)
        assert torch.equal(processor(make_sample(0)).pixel_values, item.pixel_values)
        assert torch.equal(adapter.encode([item], ROWS).attention[0], expected)
        assert adapter.generate_with_states(make_sample(0), ROWS, max_new_tokens=3).attention is not None
    finally:
        torch.set_default_dtype(torch.float32)


EVIL = """
from pathlib import Path
Path(__file__).with_name("ran").write_text("code of the model folder ran")
from transformers import PreTrainedTokenizerFast
class Evil(PreTrainedTokenizerFast): pass
"""


@pytest.mark.case("security/remote_code")
def test_code_of_a_model_folder_is_not_run_and_nobody_is_asked(folder, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("somebody was asked"))
    (folder / "evil.py").write_text(EVIL)
    change(
        folder,
        "tokenizer_config.json",
        auto_map={"AutoTokenizer": ["evil.Evil", "evil.Evil"]},
        tokenizer_class="EvilTokenizer",
    )
    if TRANSFORMERS_5:  # does without a class that it does not know
        LlavaAdapter.from_pretrained(str(folder))
    else:
        with pytest.raises(ConfigError, match="model: the tokenizer.*runs no code of a model folder"):
            LlavaAdapter.from_pretrained(str(folder))
    assert not list(folder.parent.rglob("ran"))


@pytest.mark.case("security/remote_code")
def test_every_from_pretrained_of_transformers_says_that_no_code_is_trusted():
    """AutoX.from_pretrained asks at the terminal unless it is given an answer."""
    package = Path(facts.__file__).parents[2]
    silent = []
    for file in package.rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        for place in (i for i in range(len(text)) if text.startswith(".from_pretrained(", i)):
            depth, end = 0, place
            while (depth := depth + (text[end] == "(") - (text[end] == ")")) or text[end] != ")":
                end += 1
            ours = (
                *("SAMRefiner", "SAM2Refiner", ":meth:", "data/models", "AttentionReader", " adapter"),
                *("find_adapter(pretrained)", "Grounder", "``peft.PeftModel"),
            )
            own = text[:place].endswith(ours)
            template = "model_card" in file.name
            if "trust_remote_code=False" not in text[place:end] and not own and not template:
                silent.append(f"{file.relative_to(package)}: {text[place - 30 : end + 1]!r}")
    assert silent == []
