"""Answers grounded by the states they were written with, from Python and from the command line."""

from __future__ import annotations

import json
from argparse import ArgumentParser
from functools import partialmethod

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from sam_parts import SIZES

from flmm_detseg import Grounder, GroundingResult
from flmm_detseg.commands import ground as command
from flmm_detseg.errors import ConfigError, DataError, PhraseNotFoundError
from flmm_detseg.heads import PhraseGroundingHead, UNetHead
from flmm_detseg.lmms.lora.layers import lora_layers
from flmm_detseg.models import GroundingLMM
from flmm_detseg.refiners import SAMRefiner, build_sam

IMAGE = np.asarray(
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)).resize((70, 50))
)
QUESTION = "is the star red ?"
LORA = dict(llm=dict(r=2, alpha=4))
BUILDERS = pytest.mark.parametrize("build", [tiny.tiny_llava, tiny.tiny_llava_next])


@torch.no_grad()
def _grounder(build=tiny.tiny_llava, *, lora: dict | None = None, retention: str | None = None) -> Grounder:
    """Speaks whole words only (its text has one tokenisation); some masks are neither empty nor full."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        lmm = build(lora=lora)
        words = tiny.tiny_tokenizer().convert_tokens_to_ids(tiny.WORDS)
        silent = torch.ones(lmm.model.lm_head.weight.shape[0], dtype=torch.bool)
        silent[words] = False
        lmm.model.lm_head.weight[silent] = 0
        for layer in lora_layers(lmm.model).values():
            for up in layer.lora_B.values():
                up.weight.normal_(std=0.3)
        torch.manual_seed(1)  # the same heads, with LoRA and without
        unet = UNetHead(lmm.attention_channels, base_channels=8, num_stages=3, upsample_input=16)
        refiner = SAMRefiner(build_sam(SIZES))
        head = PhraseGroundingHead(unet, refiner, lmm.num_layers, lmm.hidden_size, text_dim=16)
        for name, parameter in head.named_parameters():
            if parameter.ndim > 1 and "image_encoder" not in name:
                parameter.mul_(2)
        return Grounder(GroundingLMM(lmm=lmm, heads={"phrase": head}, retention=retention))


def _assert_equal(a: GroundingResult, b: GroundingResult) -> None:
    assert (a.caption, a.phrases, a.spans) == (b.caption, b.phrases, b.spans)
    for name in ("coarse_logits", "refined_logits", "scores", "boxes_xyxy"):
        np.testing.assert_allclose(getattr(a, name), getattr(b, name), rtol=1e-4, atol=1e-4, err_msg=name)
    np.testing.assert_array_equal(a.masks, b.masks)


def _spans(text: str) -> list[tuple[int, int]]:
    """Some ranges of whole words."""
    words, start = [], 0
    for word in text.split():
        words.append((start, start + len(word)))
        start += len(word) + 1
    return [words[0], (words[1][0], words[4][1]), words[-1]]


@BUILDERS
@pytest.mark.parametrize(("lora", "retention"), [(None, None), (LORA, "always")], ids=["frozen", "lora"])
def test_asking_is_answering_and_grounding_in_one_pass(build, lora, retention):
    grounder = _grounder(build, lora=lora, retention=retention)
    lengths = []
    decoder = grounder.model.lmm.model.model.language_model
    decoder.norm.register_forward_hook(lambda _, __, output: lengths.append(output.shape[1]))
    answer = grounder.ask(IMAGE, QUESTION, spans=[(0, 1)], max_new_tokens=12).caption
    assert sum(length > 1 for length in lengths) == 1
    spans = _spans(answer)
    asked = grounder.ask(IMAGE, QUESTION, spans=spans, max_new_tokens=12, keep_attention=True)
    grounded = grounder.ground(IMAGE, answer, spans=spans, prompt=QUESTION, keep_attention=True)
    _assert_equal(asked, grounded)
    np.testing.assert_allclose(asked.attention, grounded.attention, rtol=0, atol=1e-5)
    assert asked.grid == grounded.grid
    assert 0 < asked.masks.mean() < 1
    word = answer[slice(*spans[1])]
    _assert_equal(
        grounder.ask(IMAGE, QUESTION, [word], max_new_tokens=12),
        grounder.ground(IMAGE, answer, [word], prompt=QUESTION),
    )


def test_noun_phrases_of_the_answer_are_the_default(monkeypatch):
    grounder = _grounder()
    answer = grounder.answer(IMAGE, max_new_tokens=12)
    result = grounder.ask(IMAGE, max_new_tokens=12)
    assert result.caption == answer
    assert len(result) > 0
    assert all(answer[a:b] == phrase for phrase, ((a, b),) in zip(result.phrases, result.spans, strict=True))
    _assert_equal(result, grounder.ground(IMAGE, answer, spans=result.spans))
    monkeypatch.setattr("flmm_detseg.inference.grounder.noun_phrases", lambda text: ())
    nothing = grounder.ask(IMAGE, QUESTION, max_new_tokens=3)
    assert (len(nothing), nothing.masks.shape, nothing.boxes_xyxy.shape) == (0, (0, 50, 70), (0, 4))
    assert nothing.overlay(boxes=True).dtype == np.uint8


def test_the_answer_is_that_of_the_retention_mode():
    plain = _grounder()
    switched, always = (_grounder(lora=LORA, retention=mode) for mode in ("switched", "always"))
    expected = plain.answer(IMAGE, QUESTION, max_new_tokens=12)
    results = [g.ask(IMAGE, QUESTION, spans=[(0, 3)], max_new_tokens=12) for g in (plain, switched, always)]
    assert (
        results[0].caption
        == results[1].caption
        == expected
        == switched.answer(IMAGE, QUESTION, max_new_tokens=12)
    )
    assert results[2].caption != expected
    # The heads read the states of the LMM that answered.
    np.testing.assert_array_equal(results[0].coarse_logits, results[1].coarse_logits)


def test_wrong_questions_are_named():
    grounder = _grounder()
    answer = grounder.answer(IMAGE, QUESTION, max_new_tokens=4)
    with pytest.raises(PhraseNotFoundError, match="(?s)'the moon'.*" + answer.split()[0]):
        grounder.ask(IMAGE, QUESTION, ["the moon"], max_new_tokens=4)
    for arguments, message in [
        (dict(phrases=["a"], spans=[(0, 1)]), "not both"),
        (dict(phrases="a star"), "pass a list of texts"),
        (dict(phrases=[]), "no phrase to ground"),
        (dict(spans=[]), "no phrase to ground"),
    ]:
        with pytest.raises(DataError, match=message):
            grounder.ask(IMAGE, QUESTION, max_new_tokens=4, **arguments)
    with pytest.raises(ConfigError, match="max_new_tokens"):
        grounder.ask(IMAGE, QUESTION, max_new_tokens=0)


def _arguments(*words: str):
    parser = ArgumentParser()
    command.add_arguments(parser)
    return parser.parse_args(["config.py", "--image", "image.png", "--out", "overlay.png", *words])


def test_question_on_the_command_line(monkeypatch, tmp_path):
    grounder = _grounder()
    monkeypatch.setattr(Grounder, "from_config", classmethod(lambda cls, *_, **__: grounder))
    monkeypatch.setattr(Grounder, "ask", partialmethod(Grounder.ask, max_new_tokens=12))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.py").touch()
    Image.fromarray(IMAGE).save(tmp_path / "image.png")
    arguments = _arguments("--question", QUESTION)
    arguments.image, arguments.out = [str(tmp_path / "image.png")], tmp_path / "new" / "overlay.png"
    figures = json.loads(json.dumps(command.run(arguments)))
    assert figures["caption"] == grounder.ask(IMAGE, QUESTION).caption
    assert [entry["phrase"] for entry in figures["phrases"]] == list(grounder.ask(IMAGE, QUESTION).phrases)
    assert figures["phrases"]
    assert arguments.out.is_file()
    arguments.phrase = [figures["phrases"][0]["phrase"]]
    assert len(command.run(arguments)["phrases"]) == 1


@pytest.mark.parametrize(
    "words",
    [
        ("--question", "what ?", "--span", "0:3"),
        ("--question", "what ?", "--prompt", "what ?"),
        ("--caption", "a star", "--phrase", "a", "--span", "0:3"),
        ("--caption", "a star"),
        ("--span", "0:3"),
    ],
)
def test_arguments_that_do_not_go_together(words):
    with pytest.raises(DataError, match="--"):
        command.run(_arguments(*words))


def test_question_and_caption_exclude_each_other(capsys):
    with pytest.raises(SystemExit):
        _arguments("--question", "what ?", "--caption", "a star")
    assert "not allowed with" in capsys.readouterr().err


@BUILDERS
def test_a_conversation_about_several_images(build):
    grounder = _grounder(build)
    other = np.flip(IMAGE, 1).copy()
    turns = [("what is it ?", "a red star"), ("and above ?", "a blue ring")]
    plain = grounder.answer(IMAGE, QUESTION)
    whole = grounder.answer(IMAGE, QUESTION, turns=turns, more_images=[other])
    assert whole != plain
    result = grounder.ask(IMAGE, QUESTION, turns=turns, more_images=[other], spans=_spans(whole))
    assert result.caption == whole
    assert result.masks.shape == (3, *IMAGE.shape[:2])
    seen = [
        grounder.ask(IMAGE, QUESTION, turns=given, more_images=more, spans=[(0, 3)]).coarse_logits
        for given, more in ((turns, [other]), (turns, [IMAGE]), (turns[:1], [other]))
    ]
    assert not any(np.array_equal(seen[0], logits) for logits in seen[1:])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (dict(turns=["what ?"]), "turn 0 is 'what [?]'; a pair"),
        (dict(turns=[("what ?", "a", "b")]), "turn 0 is .*a pair"),
        (dict(turns=[("what ?", None)]), "answer of turn 0"),
        (dict(turns=[("<image> ?", "a")]), "prompt of turn 0"),
        (dict(more_images=["absent.png"]), "absent.png"),
    ],
)
def test_conversations_that_cannot_be(given, message):
    with pytest.raises(DataError, match=message):
        _grounder().answer(IMAGE, QUESTION, **given)
