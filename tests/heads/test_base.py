"""The head contract: who is meant by a task, and what a head says of itself."""

from __future__ import annotations

import pytest
import torch
from dense_parts import make_neck
from torch import nn

from flmm_detseg.errors import ConfigError
from flmm_detseg.heads import (
    DetectionHead,
    Head,
    LanguageHead,
    PhraseGroundingHead,
    SemanticSegHead,
    UNetHead,
    head_of,
    require_head,
)


def make_heads() -> dict[str, Head]:
    neck = make_neck(scales=(2, 1))
    unet = UNetHead(4, base_channels=2, num_stages=2, upsample_input=8)
    return {
        "boxes": DetectionHead(neck, ("a", "b"), feat_channels=16, stacked_convs=1),
        "maps": SemanticSegHead(neck, ("a", "b", "c"), channels=16),
        "words": PhraseGroundingHead(unet, None, num_layers=2, hidden_size=8),
        "answers": LanguageHead(),
    }


def test_heads_are_found_by_what_they_predict_whatever_their_names() -> None:
    heads = make_heads()
    for task, name in {"detection": "boxes", "segmentation": "maps", "phrase": "words"}.items():
        assert head_of(heads, task) is heads[name]
        assert head_of(nn.ModuleDict(heads), task) is heads[name]
    for task in ("vqa", "joint", "reasoning"):
        assert head_of(heads, task) is None
    with pytest.raises(
        ConfigError, match=r"no head for task 'reasoning' \(heads: boxes, maps, words, answers\)"
    ):
        require_head(heads, "reasoning")


def test_of_several_heads_the_one_named_as_the_task_is_meant() -> None:
    first, second = make_heads()["boxes"], make_heads()["boxes"]
    assert head_of({"a": first, "detection": second}, "detection") is second
    with pytest.raises(ConfigError, match="the heads a, b all predict for task 'detection'"):
        head_of({"a": first, "b": second}, "detection")


def test_what_heads_say_of_themselves() -> None:
    heads = make_heads()
    assert {name: head.class_names for name, head in heads.items()} == {
        "boxes": ("a", "b"), "maps": ("a", "b", "c"), "words": (), "answers": (),
    }  # fmt: skip
    assert not any(head.wants_class_embeddings for head in heads.values())
    assert all(head.lent_sam is None for head in heads.values())
    with pytest.raises(ConfigError, match="this head's classes are fixed"):
        heads["maps"].set_class_embeddings(torch.zeros(3, 2))
    for name in ("words", "answers"):
        with pytest.raises(ConfigError, match=rf"a {type(heads[name]).__name__} takes no class embeddings"):
            heads[name].set_class_embeddings(torch.zeros(1, 2))
        with pytest.raises(ConfigError, match="takes no class embeddings"):
            heads[name].other_classes(torch.zeros(1, 2), ["a"])
    neck = make_neck(scales=(2, 1))
    assert DetectionHead(neck, ("a",), "open", hidden_size=8, feat_channels=16).wants_class_embeddings
