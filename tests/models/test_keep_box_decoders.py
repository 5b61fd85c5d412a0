"""What a loaded model's SAM outlines is what it outlined before its training for phrases."""

from __future__ import annotations

import numpy as np
import torch
from chat_parts import speaking_grounder
from multi_task_parts import make_model

from flmm_detseg import Grounder
from flmm_detseg.inference import Outliner
from flmm_detseg.models.from_config import keep_box_decoders

IMAGE = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
CLICK = {"points": [(20, 30)]}


@torch.no_grad()
def test_a_checkpoint_changes_no_outline() -> None:
    trained = speaking_grounder().model
    for name, parameter in trained.named_parameters():
        if parameter.requires_grad and ".sam." in name:
            parameter.add_(0.3)
    weights = {name: tensor.clone() for name, tensor in trained.trainable_state_dict().items()}
    model = speaking_grounder().model
    published = Outliner(Grounder(model), IMAGE).outline(**CLICK)
    names = set(model.trainable_state_dict())
    keep_box_decoders(model)
    assert set(model.trainable_state_dict()) == names, "checkpoints hold what they held"
    kept = model.heads["phrase"].sam.box_parts
    keep_box_decoders(model)
    assert model.heads["phrase"].sam.box_parts is kept
    model.load_trainable(weights, "test")
    np.testing.assert_array_equal(Outliner(Grounder(model), IMAGE).outline(**CLICK).mask, published.mask)
    assert not np.array_equal(Outliner(Grounder(trained), IMAGE).outline(**CLICK).mask, published.mask)


def test_heads_without_a_refiner_have_nothing_to_keep() -> None:
    keep_box_decoders(make_model())
