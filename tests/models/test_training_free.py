"""From an LMM's name to a model that grounds: which heads are read, which SAM refines, what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from head_rankings import ranking_file

from flmm_detseg import Grounder
from flmm_detseg.errors import ConfigError
from flmm_detseg.lmms import LlavaAdapter
from flmm_detseg.lmms.capture import row_tap
from flmm_detseg.models import training_free
from flmm_detseg.models.from_config import model_from_config
from flmm_detseg.models.training_free import training_free_model
from flmm_detseg.refiners import SAMRefiner

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "data" / "models" / "tiny_llava"
SAM = str(ROOT / "data" / "models" / "tiny_sam")
SCENE = ROOT / "data" / "models" / "tiny_heads" / "scene.png"
CAPTION, PHRASES = "a white ring is left of the orange ring .", ["a white ring", "the orange ring"]


@pytest.fixture
def said(monkeypatch) -> list[str]:
    found: list[str] = []
    for module in (training_free, row_tap):
        monkeypatch.setattr(module, "print_log", lambda text, *_: found.append(text))
    return found


def test_the_folders_own_ranking_and_a_sam_are_those_of_the_recipe(said):
    """As configs/tiny/training_free.py, to the bit."""
    ours = Grounder.from_lmm(str(TINY), refiner=Path(SAM), device="cpu").ground(SCENE, CAPTION, PHRASES)
    recipe = Grounder(model_from_config("configs/tiny/training_free.py", device="cpu"))
    theirs = recipe.ground(SCENE, CAPTION, PHRASES)
    np.testing.assert_array_equal(ours.coarse_logits, theirs.coarse_logits)
    np.testing.assert_array_equal(ours.refined_logits, theirs.refined_logits)
    assert ours.masks.any((1, 2)).all()
    assert not said


def test_without_a_ranking_all_heads_are_read_and_a_line_says_how_to_make_one(said, tmp_path):
    folder = tmp_path / "other"
    shutil.copytree(TINY, folder, ignore=shutil.ignore_patterns("head_ranking.json"))
    model = training_free_model(str(folder), device="cpu")
    assert len(model.lmm.attention_pairs) == 32
    assert not any(weight.requires_grad for weight in model.parameters())
    (line,) = said
    assert f"flmm-detseg rank-heads --lmm {folder} --phrases FILE" in line
    assert "mean of all 32 heads" in line
    mine = ranking_file(tmp_path / "mine.json", 4, 8, [(3, 1), (0, 7), (2, 2), (1, 1)])
    chosen = training_free_model(str(folder), ranking=mine, heads=2, device="cpu")
    assert chosen.lmm.attention_pairs == ((0, 7), (3, 1))
    assert "was made for tiny, this LMM is" in said[1]
    assert len(said) == 2


def test_a_config_with_another_lmms_ranking_is_warned_as_well(said, tmp_path, monkeypatch):
    read = []
    from_dict = row_tap.HeadRanking.from_dict
    monkeypatch.setattr(
        row_tap.HeadRanking, "from_dict", lambda *given: read.append(given) or from_dict(*given)
    )
    mine = ranking_file(tmp_path / "mine.json", 4, 8, [(3, 1)])
    LlavaAdapter.from_pretrained(str(TINY), rows=dict(heads="top:1", ranking=mine))
    (line,) = said
    assert f"{mine} was made for tiny, this LMM is {TINY}" in line
    assert len(read) == 2  # once for what was asked, once for the adapter's own settings
    LlavaAdapter.from_pretrained(str(TINY), rows=dict(heads="top:1", ranking=str(TINY / "head_ranking.json")))
    assert len(said) == 1


def test_what_is_refused(tmp_path):
    other = ranking_file(tmp_path / "other.json", 3, 4, [(0, 1)])
    for given, message in (
        (dict(ranking=other, heads=1), "3 layers of 4 heads, this model has 4 of 8"),
        (dict(ranking=tmp_path / "gone.json"), r"gone\.json is no file.*rank-heads writes one"),
        (dict(heads=33), "best 33 heads were asked for"),
        (dict(heads=0), "best 0 heads were asked for"),
        (dict(refiner=SAMRefiner.from_pretrained(checkpoint=SAM)), "`sam.use_text`=False"),
    ):
        with pytest.raises(ConfigError, match=message):
            training_free_model(str(TINY), device="cpu", **given)
    with pytest.raises(ConfigError, match="no such folder"):
        training_free_model("./gone", device="cpu")
