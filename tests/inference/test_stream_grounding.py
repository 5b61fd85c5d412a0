"""Masks for answers of a stream: those of hits are those without a cache, in Python and from the shell."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from cached_parts import SCREEN_BOX, cached_llava, screens
from mmengine.config import Config
from PIL import Image
from pycocotools import mask as rle
from sam_parts import make_refiner

from flmm_detseg import Grounder, GroundingResult
from flmm_detseg.cache import (
    BackgroundCache,
    CacheSettings,
    FrameDifference,
    Partitioner,
    Regions,
    RegionSource,
    StreamSession,
)
from flmm_detseg.errors import ConfigError, DataError, PhraseNotFoundError
from flmm_detseg.heads import LanguageHead, PhraseGroundingHead, UNetHead
from flmm_detseg.inference.streaming import stream_from_config
from flmm_detseg.models import GroundingLMM
from flmm_detseg.models.from_config import model_from_config

ROOT = Path(__file__).resolve().parents[2]
CONFIG = "configs/cache/tiny_stream_grounding.py"
QUESTION = "a red star ?"


class TheScreen(RegionSource):
    """Every image has the object of :func:`screens`."""

    name = "the screen"

    def find(self, sample):
        return Regions(boxes_xyxy=np.asarray(SCREEN_BOX, dtype=np.float32))


@torch.no_grad()
def grounder(source: RegionSource, **settings) -> Grounder:
    """Speaks whole words only (its text has one tokenisation); some of its masks are neither empty nor full."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        lmm = cached_llava(partitioner=Partitioner(source, dilate=0), **settings)
        silent = torch.ones(lmm.model.lm_head.weight.shape[0], dtype=torch.bool)
        silent[tiny.tiny_tokenizer().convert_tokens_to_ids(tiny.WORDS)] = False
        lmm.model.lm_head.weight[silent] = 0
        unet = UNetHead(lmm.attention_channels, base_channels=8, num_stages=3, upsample_input=16)
        head = PhraseGroundingHead(unet, make_refiner(), lmm.num_layers, lmm.hidden_size, text_dim=16)
        for name, parameter in head.named_parameters():
            if parameter.ndim > 1 and not name.startswith("sam."):
                parameter.mul_(2)
    return Grounder(GroundingLMM(lmm=lmm, heads=dict(language=LanguageHead(), phrase=head)))


def session_of(asked: Grounder, **settings) -> StreamSession:
    cache = BackgroundCache(CacheSettings(min_tiles=1, admission="always", **settings))
    return StreamSession(asked.model.lmm, cache)


def spans_of(generation) -> list[tuple[int, int]]:
    """A phrase of one token and one of several."""
    found = [span for span in generation.token_offsets if generation.text[slice(*span)].strip()]
    return [found[0], (found[1][0], found[3][1])]


def assert_same_bits(ours: GroundingResult, theirs: GroundingResult) -> None:
    assert (ours.caption, ours.phrases, ours.spans) == (theirs.caption, theirs.phrases, theirs.spans)
    for name in ("attention", "coarse_logits", "refined_logits", "masks", "boxes_xyxy", "scores"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name), err_msg=name)


@pytest.mark.parametrize("level", ["L2", "L1"])
@pytest.mark.parametrize("letterbox", ["background", "drop"])
def test_masks_of_a_hit_are_those_without_the_cache(level, letterbox):
    asked = grounder(FrameDifference(), letterbox=letterbox)
    session = session_of(asked, levels=("L1",) if level == "L1" else ("L1", "L2"))
    pictures = [image[14:42] for image in screens(4)]  # wide: two rows of patches are padding
    for picture in pictures[:3]:
        session.ask(picture, QUESTION, max_new_tokens=1)
    hit = session.ask(pictures[3], QUESTION, max_new_tokens=8, capture=asked.capture)
    cold = session.ask(
        pictures[3], QUESTION, cache="off", partition=hit.partition, max_new_tokens=8, capture=asked.capture
    )
    assert (hit.level, cold.level) == (level, "off")
    assert hit.partition.objects.tolist() == [5, 6]
    spans = spans_of(hit.generation)
    ours, theirs = (
        asked.ground_answer(pictures[3], answer.generation, spans=spans, keep_attention=True)
        for answer in (hit, cold)
    )
    assert_same_bits(ours, theirs)
    assert ours.masks.shape == (2, 28, 56)
    assert 0 < ours.masks.mean() < 1
    assert (ours.attention[:, :, [1, 2]] > 0).all()


def test_a_grounder_on_a_cached_lmm_asks_and_grounds_like_a_stream():
    asked = grounder(TheScreen())
    session = session_of(asked)
    first, second = screens(2)
    session.ask(first, QUESTION, max_new_tokens=1)
    hit = session.ask(second, QUESTION, max_new_tokens=8, capture=asked.capture)
    assert hit.level == "L2"
    spans = spans_of(hit.generation)
    streamed = asked.ground_answer(second, hit.generation, spans=spans, keep_attention=True)
    assert streamed.caption == hit.text
    assert_same_bits(
        streamed, asked.ask(second, QUESTION, spans=spans, keep_attention=True, max_new_tokens=8)
    )
    # The words were read one after the other; here they are read at once, in another order of sums.
    read = asked.ground(second, hit.text, spans=spans, prompt=QUESTION, keep_attention=True)
    np.testing.assert_allclose(read.attention, streamed.attention, rtol=0, atol=1e-5)
    np.testing.assert_allclose(read.coarse_logits, streamed.coarse_logits, rtol=1e-3, atol=1e-4)
    assert read.grid == streamed.grid
    # Other groups are other attention: the comparison above could have failed.
    asked.model.lmm.partitioner = Partitioner(FrameDifference(), dilate=0)
    other = asked.ground(second, hit.text, spans=spans, prompt=QUESTION, keep_attention=True)
    assert np.abs(other.attention - streamed.attention).max() > 1e-3


def test_phrases_of_an_answer_are_found_as_in_ask(monkeypatch):
    asked = grounder(TheScreen())
    picture = screens(1)[0]
    answer = session_of(asked).ask(picture, QUESTION, max_new_tokens=8, capture=asked.capture)
    found = asked.ground_answer(Image.fromarray(picture), answer.generation)
    assert found.spans == asked.ask(picture, QUESTION, max_new_tokens=8).spans
    monkeypatch.setattr("flmm_detseg.inference.grounder.noun_phrases", lambda text: ())
    assert len(asked.ground_answer(picture, answer.generation)) == 0
    with pytest.raises(PhraseNotFoundError, match="the moon"):
        asked.ground_answer(picture, answer.generation, ["the moon"])


def test_what_cannot_be_grounded_is_named():
    asked = grounder(TheScreen())
    session, picture = session_of(asked), screens(1)[0]
    with pytest.raises(DataError, match="ask with `capture=grounder.capture`"):
        asked.ground_answer(picture, session.ask(picture, max_new_tokens=1).generation)
    answer = session.ask(picture, max_new_tokens=2, capture=asked.capture)
    with pytest.raises(DataError, match=r"\(56, 56\).*\(28, 56\).*that was asked about"):
        asked.ground_answer(picture[:28], answer.generation)
    with pytest.raises(DataError, match="not both"):
        asked.ground_answer(picture, answer.generation, ["a"], spans=[(0, 1)])
    only_language = GroundingLMM(lmm=cached_llava(), heads=dict(language=LanguageHead()))
    with pytest.raises(ConfigError, match="grounds no phrases: .*heads: language"):
        Grounder(only_language).capture  # noqa: B018


# From the shell, with the repository's tiny LLaVA and tiny SAM.


@pytest.fixture
def frames(tmp_path, monkeypatch) -> Path:
    """Four screens whose content changes in one place."""
    monkeypatch.chdir(ROOT)
    folder = tmp_path / "frames"
    folder.mkdir()
    rng = np.random.default_rng(0)
    wallpaper = rng.integers(0, 256, (14, 14, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    for index in range(4):
        picture = wallpaper.copy()
        picture[8:24, 40:72] = rng.integers(0, 256, (16, 32, 3), dtype=np.uint8)
        Image.fromarray(picture).save(folder / f"{index}.png")
    return folder


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    """What a training could have left: LoRA that adds something, a head that is not what a new one would be."""
    config = Config.fromfile(ROOT / CONFIG)
    torch.manual_seed(3)
    model = model_from_config(config, untrained=True, device="cpu")
    tensors = model.trainable_state_dict()
    for name, tensor in tensors.items():
        if ".lora_B." in name:
            tensor.normal_(std=0.002)
    torch.save({"state_dict": tensors}, tmp_path / "trained.pth")
    return tmp_path / "trained.pth"


def stream(monkeypatch, capsys, *arguments: str) -> tuple[int, str, str]:
    """Exit status, output, errors."""
    words = ["--device", "cpu", "--max-new-tokens", "12", "--question", "What is in the image?", *arguments]
    monkeypatch.setattr(sys, "argv", ["stream.py", *words])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "tools" / "stream.py"), run_name="__main__")
    captured = capsys.readouterr()
    return ended.value.code, captured.out, captured.err


def test_a_stream_is_grounded_from_the_shell(frames, checkpoint, tmp_path, monkeypatch, capsys):
    out_dir = tmp_path / "deep" / "out"
    code, out, err = stream(
        monkeypatch, capsys, CONFIG, "--checkpoint", str(checkpoint), "--images", str(frames), "--static",
        "--compare", "--ground", str(out_dir),
    )  # fmt: skip
    assert code == 0, err
    figures = json.loads(out.splitlines()[-1])
    assert figures["levels"] == {"miss": 2, "L2": 2}
    assert figures["different"] == 0
    # LoRA and projector are frozen here, and still differ from the unmodified LLaVA's.
    assert {"separators", "llm", "vision", "projector"} <= {line.split()[0] for line in out.splitlines()[1:6]}
    assert [Path(entry["image"]).name for entry in figures["grounded"]] == [f"{i}.png" for i in range(4)]
    coco = json.loads(Path(figures["masks"]).read_text())
    annotations, ids = coco["annotations"], {item["file_name"]: item["id"] for item in coco["images"]}
    assert [item["id"] for item in annotations] == list(range(1, len(annotations) + 1))

    session, model = stream_from_config(CONFIG, checkpoint, device="cpu", static=True)
    asked = Grounder(model)
    for index, entry in enumerate(figures["grounded"]):
        frame = np.asarray(Image.open(frames / f"{index}.png"))
        answer = session.ask(frame, entry["question"], max_new_tokens=12, capture=asked.capture)
        expected = asked.ground_answer(frame, answer.generation)
        assert entry["answer"] == answer.text
        assert [item["phrase"] for item in entry["masks"]] == list(expected.phrases)
        assert len(expected) > 0
        assert Path(entry["overlay"]).parent == out_dir
        with Image.open(entry["overlay"]) as picture:
            np.testing.assert_array_equal(np.asarray(picture), expected.overlay(boxes=True))
        stored = [item for item in annotations if item["image_id"] == ids[entry["image"]]]
        # A mask without pixels is listed and is no object of the COCO file.
        assert [item["id"] for item in stored] == [item["id"] for item in entry["masks"] if item["area"]]
        for item, mask in zip(stored, [mask for mask in expected.masks if mask.any()], strict=True):
            np.testing.assert_array_equal(rle.decode(item["segmentation"]).astype(bool), mask)


def test_a_model_without_a_phrase_head_is_refused_before_it_answers(frames, tmp_path, monkeypatch, capsys):
    code, out, err = stream(
        monkeypatch, capsys, "configs/cache/tiny_stream_screens.py", "--untrained", "--images", str(frames),
        "--ground", str(tmp_path / "out"),
    )  # fmt: skip
    assert code == 2
    assert "grounds no phrases" in err
    assert "first token" not in out
    assert not (tmp_path / "out").exists()
