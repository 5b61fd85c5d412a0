"""Where an LMM looked: labels, pictures, errors, and the command."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import make_sample, tiny_llava

from flmm_detseg import AttentionReader
from flmm_detseg.errors import ConfigError, DataError, PhraseNotFoundError
from flmm_detseg.lmms.all_families import adapters, find_adapter
from flmm_detseg.structures import CaptureSpec

ROOT = Path(__file__).resolve().parents[2]
TINY = str(ROOT / "data" / "models" / "tiny_llava")
SCENE = str(ROOT / "data" / "models" / "tiny_heads" / "scene.png")
CAPTION = "a white ring is left of the orange ring ."


@pytest.fixture(scope="module")
def reader() -> AttentionReader:
    return AttentionReader.from_pretrained(TINY, device="cpu")


def test_the_family_is_found_from_the_config(reader, tmp_path):
    assert type(reader.lmm) is find_adapter(TINY) is adapters()["llava"]
    assert {"llava", "qwen3_vl", "smolvlm", "deepseek_vl_hybrid"} <= adapters().keys()
    assert all(adapter.family_class.config_class.model_type == kind for kind, adapter in adapters().items())
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "paligemma"}))
    with pytest.raises(
        ConfigError, match=r"'paligemma', of which there is no family here; known: deepseek_vl, "
    ):
        AttentionReader.from_pretrained(str(tmp_path))


def test_rows_have_labels(reader):
    maps = reader.read(SCENE, CAPTION, ["a white ring", "the orange ring"])
    assert (maps.pieces, maps.spans) == (("a white ring", "the orange ring"), (((0, 12),), ((24, 39),)))
    rows = maps.rows(1)
    assert rows.shape == (1, len(maps.layers), len(maps.heads), 14, 14)
    assert len(rows.shape) == len(maps.DIMS)
    assert np.array_equal(maps.rows(1, layer=2), rows[:, 2])
    assert np.array_equal(maps.rows(1, head=5), rows[:, :, 5])
    assert np.array_equal(maps.rows(1, layer=2, head=5), rows[:, 2, 5])
    assert np.array_equal(maps.rows(-1), rows)
    some = AttentionReader.from_pretrained(TINY, device="cpu", layers=[1, 3], heads=[0, 6])
    fewer = some.read(SCENE, CAPTION, ["a white ring", "the orange ring"])
    assert (fewer.layers, fewer.heads) == ((1, 3), (0, 6))
    assert np.array_equal(fewer.rows(1, layer=3, head=6), maps.rows(1, layer=3, head=6))
    for wrong in (dict(layer=2), dict(head=1)):
        with pytest.raises(DataError, match="was not read; those that were"):
            fewer.rows(0, **wrong)
    with pytest.raises(DataError, match="piece 2 does not exist"):
        maps.rows(2)


def test_maps_are_means_without_the_padding(reader):
    image = make_sample(0, image_size=(40, 100)).image
    maps = reader.read(image, CAPTION, spans=[(0, 12), (24, 39)])
    down, across = maps.grid.crop_window((14, 14))
    assert maps.size == (down.stop - down.start, 14) != (14, 14)
    rows = [maps.rows(index)[..., down, across] for index in range(2)]
    by_hand = rows[0][:, 1:3][:, :, [0, 2]].mean(axis=(0, 1, 2))
    np.testing.assert_allclose(maps.map(0, layers=[1, 2], heads=[0, 2]), by_hand, rtol=1e-5)
    means = [one.mean(axis=(0, 1, 2)) for one in rows]
    relative = means[0] / np.mean(means, axis=0)
    np.testing.assert_allclose(maps.map(0, relative=True), relative, rtol=1e-4)
    heat = maps.heat_map(0)
    assert heat.shape == image.shape[:2]
    assert abs(heat.mean() - means[0].mean()) < 0.1 * means[0].mean()
    for given, message in ((dict(layers=[]), "no layer"), (dict(heads=[]), "no head")):
        with pytest.raises(DataError, match=message):
            maps.map(0, **given)
    with pytest.raises(DataError, match="no piece"):
        maps.by_layer([])


def test_a_named_thing_is_looked_at(reader, tmp_path):
    """The tiny LLaVA looks at the ring that it reads of, not at the other one."""
    maps = reader.read(SCENE, CAPTION, ["a white ring", "the orange ring"])
    white, orange = (maps.heat_map(index, relative=True) for index in range(2))
    boxes = slice(28, 63), slice(4, 39)  # of the white ring, see the picture's own notes
    assert white[boxes].mean() > white.mean() > orange[boxes].mean()
    file = maps.save(0, tmp_path / "ring.png")
    assert file.is_file()


def test_words_of_an_answer_have_their_own_states(reader):
    maps = reader.answer(SCENE, "what is at the bottom ?", max_new_tokens=12)
    assert (
        maps.text == "".join(maps.pieces)
        if len(maps) == 1
        else " ".join(maps.text.split()) == " ".join(maps.pieces)
    )
    assert all(maps.text[start:end] == piece for piece, ((start, end),) in zip(maps.pieces, maps.spans))
    # A text that is read through has the rows it had when it was written.
    again = reader.read(SCENE, maps.text, prompt="what is at the bottom ?")
    for index in range(len(maps)):
        np.testing.assert_allclose(maps.rows(index), again.rows(index), atol=2e-5)


def test_bfloat16_on_request():
    coarse = AttentionReader.from_pretrained(TINY, device="cpu", dtype="bfloat16")
    maps, exact = (
        one.read(SCENE, CAPTION, ["a white ring"])
        for one in (coarse, AttentionReader.from_pretrained(TINY, device="cpu"))
    )
    assert coarse.lmm.dtype == torch.bfloat16
    difference = np.abs(maps.rows(0) - exact.rows(0))
    assert maps.rows(0).dtype == np.float32
    assert 0 < difference.max() < 0.1


def test_what_cannot_be_read(reader):
    for given, error, message in (
        (dict(text=" "), DataError, "no text"),
        (dict(text=CAPTION, phrases=["a cat"]), PhraseNotFoundError, "'a cat' does not occur"),
        (dict(text=CAPTION, phrases=["a"], spans=[(0, 1)]), DataError, "not both"),
        (dict(text=CAPTION, phrases="a ring"), DataError, "pass a list of texts"),
        (dict(text=CAPTION, turns=["what ?"]), DataError, "turn 0"),
    ):
        with pytest.raises(error, match=message):
            reader.read(SCENE, **given)
    with pytest.raises(DataError, match="absent.png"):
        reader.answer("absent.png")


def test_an_adapted_lmm_is_read_as_it_is():
    lmm = tiny_llava()
    maps = AttentionReader(lmm).read(make_sample(0).image, "a star", ["a star"])
    item = lmm.prepare(make_sample(0))
    assert (
        maps.rows(0).shape[1] * maps.rows(0).shape[2]
        == lmm.encode([item], CaptureSpec(attention=True)).attention[0].shape[1]
    )


@pytest.mark.e2e
def test_the_command_writes_a_page(tmp_path):
    words = ["explain", SCENE, "--lmm", TINY, "--caption", CAPTION, "--phrase", "a white ring"]
    done = subprocess.run(
        [sys.executable, "-m", "flmm_detseg.cli", *words, "--out", "new/page.html"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["pieces"] == 1
    assert "a white ring" in (tmp_path / "new" / "page.html").read_text()
