"""Which pictures a model knows: few false alarms on its own world, others are far, files are checked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import skimage.data
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from flmm_detseg.datasets.images import load_image
from flmm_detseg.datasets.tinyworld.render import make_scene
from flmm_detseg.errors import CheckpointError, ConfigError, DataError
from flmm_detseg.models.domain import DOMAIN_FILE, Domain, domain_beside
from flmm_detseg.models.fit_domain import fit_domain
from flmm_detseg.ops.picture_statistics import picture_statistics
from flmm_detseg.utils.paths import find

SHIPPED = find("data/models/tiny_heads") / DOMAIN_FILE


@pytest.fixture(scope="module")
def shipped() -> Domain:
    return Domain.load(SHIPPED)


@pytest.fixture(scope="module")
def scenes() -> list[np.ndarray]:
    """A hundred pictures out of ten."""
    drawn = [make_scene(3, index, image_size=(56, 56)).image for index in range(10)]
    return [np.roll(picture, 5 * shift, axis=1) for picture in drawn for shift in range(10)]


@pytest.fixture(scope="module")
def fitted(scenes) -> Domain:
    return Domain.fit(scenes, "scenes", false_alarms=0.05)


def test_scenes_that_nothing_was_fitted_on_are_known(shipped):
    scores = [shipped.score(make_scene(4321, index, "val").image) for index in range(15)]
    assert not any(score.far for score in scores)


@pytest.mark.parametrize(
    "name", ["astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "page.png"]
)
def test_photos_are_far(shipped, name):
    photo = load_image(Path(skimage.data.__file__).parent / name)
    assert shipped.score(photo).far
    height, width = photo.shape[:2]
    assert shipped.score(photo[height // 4 : -height // 4, width // 4 : -width // 4]).far


def test_the_size_of_a_scene_says_nothing(shipped):
    scene = make_scene(4321, 7, "val").image
    assert not shipped.score(scene.repeat(3, 0).repeat(3, 1)).far


def test_plain_colours_and_noise_are_far(shipped):
    assert shipped.score(np.full((112, 112, 3), 128, np.uint8)).far
    assert shipped.score(np.random.default_rng(0).integers(0, 256, (112, 112, 3), dtype=np.uint8)).far


def test_distance_is_mahalanobis_of_the_shrunk_covariance(fitted, scenes):
    statistics = np.stack([picture_statistics(scene) for scene in scenes])
    deviation = statistics.std(0) + 1e-3
    standard = (statistics - statistics.mean(0)) / deviation
    covariance = 0.95 * np.cov(standard.T) + 0.05 * np.eye(statistics.shape[1])
    picture = make_scene(9, 0).image
    difference = (picture_statistics(picture) - statistics.mean(0)) / deviation
    expected = np.sqrt(difference @ np.linalg.solve(covariance, difference))
    assert fitted.score(picture).score == pytest.approx(expected, rel=1e-6)


def test_the_threshold_comes_from_pictures_that_the_fit_has_not_seen(scenes):
    statistics = np.stack([picture_statistics(scene) for scene in scenes])
    fold = np.random.default_rng(0).permutation(100) % 5
    distances = []
    for left_out in range(5):
        seen = statistics[fold != left_out]
        deviation = seen.std(0) + 1e-3
        covariance = 0.95 * np.cov(((seen - seen.mean(0)) / deviation).T) + 0.05 * np.eye(seen.shape[1])
        for unseen in statistics[fold == left_out]:
            difference = (unseen - seen.mean(0)) / deviation
            distances.append(np.sqrt(difference @ np.linalg.solve(covariance, difference)))
    for share in (0.05, 0.1):
        expected = 1.25 * np.quantile(distances, 1 - share)
        assert Domain.fit(scenes, "scenes", false_alarms=share).threshold == pytest.approx(expected, rel=1e-6)


def test_a_domain_is_the_same_after_saving_and_lies_beside_the_checkpoint(fitted, tmp_path):
    fitted.save(tmp_path / "run" / DOMAIN_FILE)
    again = domain_beside(tmp_path / "run" / "iter_6.pth")
    assert again is not None
    assert (again.source, again.num_pictures, again.false_alarms) == ("scenes", 100, 0.05)
    picture = make_scene(9, 1).image
    assert again.score(picture).score == pytest.approx(fitted.score(picture).score, rel=1e-4)
    assert again.score(picture).threshold == fitted.threshold
    assert domain_beside(tmp_path / "iter_6.pth") is None


def test_damaged_files_are_refused(fitted, tmp_path):
    file = fitted.save(tmp_path / DOMAIN_FILE)
    tensors = load_file(file)
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(CheckpointError, match="damaged.*export domain"):
        Domain.load(file)
    save_file(tensors, file, {"facts": '{"format": "another"}'})
    with pytest.raises(CheckpointError, match="format is 'another'"):
        Domain.load(file)
    shorter = replace(fitted, mean=fitted.mean[:-1], whitening=fitted.whitening[:-1, :-1])
    with pytest.raises(CheckpointError, match=r"shape \(156,\) and \(156, 156\), this version measures 157"):
        Domain.load(shorter.save(tmp_path / "shorter.safetensors"))
    broken = replace(fitted, mean=np.where(np.arange(157) == 3, np.nan, fitted.mean))
    with pytest.raises(CheckpointError, match="a number is NaN or infinite"):
        Domain.load(broken.save(tmp_path / "broken.safetensors"))


def test_a_domain_of_somebody_else_is_numbers_and_a_text_that_can_be_printed(fitted, tmp_path):
    file = replace(fitted, source="cats\x1b[2J\nand dogs").save(tmp_path / DOMAIN_FILE)
    assert Domain.load(file).source == "cats\\x1b[2J\\nand dogs"
    with safe_open(file, "numpy") as content:
        facts = content.metadata()["facts"].replace('"num_pictures": 100', '"num_pictures": Infinity')
    assert "Infinity" in facts
    save_file(load_file(file), file, {"facts": facts})
    with pytest.raises(CheckpointError, match="damaged.*export domain"):
        Domain.load(file)


def test_too_few_pictures_and_impossible_shares_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="3 pictures; at least 100"):
        Domain.fit([make_scene(3, 0).image] * 3, "three")
    with pytest.raises(ConfigError, match="false_alarms"):
        Domain.fit([], "none", false_alarms=0.0)
    with pytest.raises(DataError, match="no such folder of pictures"):
        fit_domain([tmp_path / "gone"], tmp_path / "out.safetensors")
    (tmp_path / "there").write_text("")
    with pytest.raises(ConfigError, match="exists already"):
        fit_domain([tmp_path], tmp_path / "there")
