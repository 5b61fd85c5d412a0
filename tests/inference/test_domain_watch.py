"""The warning about a picture that a model was not made for: once a picture, in results, not for scenes."""

from __future__ import annotations

import numpy as np
import pytest
import skimage.data

from flmm_detseg import Grounder
from flmm_detseg.datasets.tinyworld.render import make_scene
from flmm_detseg.inference import domain_watch
from flmm_detseg.inference.chat import Chat
from flmm_detseg.inference.domain_watch import DomainWatch
from flmm_detseg.models.domain import DOMAIN_FILE, Domain
from flmm_detseg.utils.configs import TINY_CONFIG, TINY_HEADS
from flmm_detseg.utils.paths import find

SCENE = find("data/models/tiny_heads/scene.png")


@pytest.fixture
def warnings(monkeypatch) -> list[str]:
    found: list[str] = []
    monkeypatch.setattr(domain_watch, "print_log", lambda text, *_: found.append(text))
    return found


@pytest.fixture(scope="module")
def grounder() -> Grounder:
    return Grounder.from_config(TINY_CONFIG, TINY_HEADS, "cpu")


def test_a_photo_is_warned_of_once_and_a_scene_never(grounder, warnings):
    photo = skimage.data.astronaut()
    first = grounder.ground(photo, "a white ring .", phrases=["a white ring"])
    assert first.out_of_domain
    assert first.domain.score > first.domain.threshold
    assert len(warnings) == 1
    assert "TinyWorld" in warnings[0]
    grounder.ask(photo, "what is above the ring ?")
    grounder.answer(photo, "what is above the ring ?")
    assert len(warnings) == 1
    grounder.answer(photo[100:], "what is above the ring ?")
    assert len(warnings) == 2
    scene = grounder.ground(str(SCENE), "a white ring .", phrases=["a white ring"])
    assert not scene.out_of_domain
    assert scene.domain.score < scene.domain.threshold
    assert len(warnings) == 2


def test_a_model_that_says_nothing_of_its_training_warns_of_nothing(warnings):
    watch = DomainWatch(None)
    assert watch.look(skimage.data.astronaut()) is None
    assert warnings == []


def test_only_so_many_pictures_are_remembered(warnings, monkeypatch):
    monkeypatch.setattr(domain_watch, "_REMEMBERED", 2)
    watch = DomainWatch(Domain.load(find("data/models/tiny_heads") / DOMAIN_FILE))
    plain = [np.full((20, 20, 3), value, np.uint8) for value in (0, 100, 200)]
    for picture in (*plain, plain[2], plain[0]):
        watch.look(picture)
    assert len(warnings) == 4  # the first was forgotten when the third came
    assert watch.look(make_scene(1, 0).image) == watch.look(make_scene(1, 0).image)


def test_the_first_turn_of_a_conversation_says_it(grounder, warnings):
    chat = Chat(grounder, skimage.data.coffee(), max_new_tokens=4)
    first, second = chat.say("what is above the ring ?"), chat.say("what is at the bottom ?")
    assert "far from all that the model knows" in first.warning
    assert second.warning == ""
    assert len(warnings) == 1  # whoever looks at it
    assert Chat(grounder, SCENE, max_new_tokens=4).say("what is above the ring ?").warning == ""
