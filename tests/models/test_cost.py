"""What a recipe is computed to cost, against the real tensors of the tiny recipe."""

from __future__ import annotations

import json
from argparse import ArgumentParser

import pytest
import torch
from mmengine.config import Config
from torch.utils.flop_counter import FlopCounterMode

from flmm_detseg.commands import cost as command
from flmm_detseg.datasets.images import read_image
from flmm_detseg.errors import ConfigError
from flmm_detseg.inference.grounder import Grounder
from flmm_detseg.models import cost
from flmm_detseg.models.from_config import read_config
from flmm_detseg.structures import CaptureSpec, GroundingBatch, Phrase, Sample
from flmm_detseg.utils.configs import TINY_CONFIG, TINY_HEADS
from flmm_detseg.utils.paths import find

TEXT = "a white ring is left of the orange ring . a large orange ring is at the bottom ."


@pytest.fixture(scope="module")
def computed() -> cost.Cost:
    return cost.training_cost(read_config(find(TINY_CONFIG)), gpus=1)


@pytest.fixture(scope="module")
def model():
    return Grounder.from_config(TINY_CONFIG, TINY_HEADS, "cpu").model.train()


def test_parameters_and_weights_are_those_of_the_built_model(computed, model):
    # What a Grounder keeps beside the trained model, to outline boxes and points, is no part of training.
    named = [*model.named_parameters(), *model.named_buffers()]
    tensors = [tensor for name, tensor in named if ".box_parts." not in name]
    parameters = [p for name, p in model.named_parameters() if ".box_parts." not in name]
    assert computed.parameters == sum(p.numel() for p in parameters)
    assert computed.trained == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert computed.weights == sum(t.numel() * t.element_size() for t in tensors)


def test_gradients_and_moments_are_those_of_a_step(computed, model):
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.0)
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    moments = sum(
        state[name].nbytes for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")
    )
    assert computed.optimizer == moments + sum(parameter.grad.nbytes for parameter in trained)
    model.zero_grad(set_to_none=True)


def test_rows_operations_and_kept_tensors_are_those_of_a_pass(computed, model):
    image = read_image(find("data/models/tiny_heads/scene.png"), "scene")
    spans = [((0, 12),), ((16, 20),), ((28, 39),)]
    sample = Sample("scene", image, TEXT, tuple(Phrase(span) for span in spans))
    inputs = model.lmm.prepare(sample)
    batch = GroundingBatch([sample], [inputs])
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        states = model.lmm.encode(batch.inputs, CaptureSpec(attention=True))
    (stack,) = states.attention
    # A row of a phrase; the recipe's batch has `phrases` of `tokens` each.
    per_token = stack[0].numel() * model.lmm.dtype.itemsize
    assert computed.rows == computed.batch * cost.PHRASES * cost.TOKENS_PER_PHRASE * per_token
    # Attention counts with the causal half, the counter with all of it; the projector is left out: it is small.
    (length,) = inputs.input_ids.shape
    length = int((inputs.input_ids != model.lmm.processor.image_token_id).sum()) + 196
    formula = cost._lmm_flops(model.lmm, length, 196)
    assert formula == pytest.approx(counter.get_total_flops(), rel=0.15)
    # The U-Net on the real maps, seven phrases of them.
    unet = model.heads["phrase"].mask_head
    maps = stack[:1].float().expand(cost.PHRASES, -1, -1, -1).contiguous()
    real = cost.count(lambda: unet(maps), unet)
    shapes = cost.count(lambda: unet.to("meta")(maps.to("meta")), unet.to("meta"))
    assert (shapes.kept, shapes.flops) == (real.kept, real.flops)
    assert computed.kept == computed.batch * real.kept
    assert computed.flops > formula + 3 * real.flops


def test_of_a_mask_token_its_sam_is_counted(model):
    names = ("seg_token", "seg_token_pointer")
    own, pointer = (
        cost.training_cost(read_config(find(f"configs/tiny/{name}.py")), phrases=1) for name in names
    )
    assert (own.dense, pointer.dense) == (False, True), "features of places are not counted"
    two = cost.training_cost(read_config(find("configs/tiny/seg_token.py")), phrases=2)
    decoder = two.flops - own.flops
    assert decoder > 0
    sam = model.heads["phrase"].sam  # the same tiny SAM
    with torch.no_grad(), FlopCounterMode(display=False) as counted:
        sam.image_encoder(torch.zeros(1, 3, sam.side, sam.side))
    assert own.flops - decoder - pointer.flops == pytest.approx(counted.get_total_flops(), rel=1e-6)


def test_what_autograd_keeps_is_counted_once_and_without_weights():
    layer = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 4))
    x = torch.zeros(5, 8)
    part = cost.count(lambda: layer(x), layer)
    # The input, and the ReLU's result, which is also the second layer's input.
    assert part.kept == (5 * 8 + 5 * 8) * 4
    assert part.flops == 2 * 5 * 8 * (8 + 4)


def test_samples_and_hours():
    whole = cost.Cost(0, 0, 1, 2, 3, 4, 5, 1e12, 3600, 1, False)
    assert whole.memory == 15
    assert whole.hours(cost.Gpu(100.0, 40), 0.1) == pytest.approx(0.1)
    sizes = {"data": "data/refcoco/refs(unc).p, png_coco_train2017.json"}
    config = read_config(find("configs/llava/frozen_llava15_7b_refcoco_png.py"))
    assert cost._samples(config, 8) == 8 * (133_103 + 16_994 + 16_992 + 21_899)
    assert cost._samples(read_config(find("configs/llava/detseg_lora.py")), 16) == 60000 * 16
    config.train_dataloader["dataset"] = sizes
    assert cost._samples(config, 8) == 8 * (133_103 + 16_994)
    config.train_dataloader["dataset"] = {"file": "mine.jsonl"}
    assert cost._samples(config, 8) is None


def test_the_command_writes_the_table_between_its_marks(tmp_path, capsys, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- table: cost -->\nold\n<!-- end of table -->\nafter\n")
    figures = _run(TINY_CONFIG, "--gpus", "1", "--write", str(page))
    text = page.read_text()
    assert text.startswith("before\n<!-- table: cost -->\n| recipe |")
    assert text.endswith("|\n<!-- end of table -->\nafter\n")
    assert "old" not in text
    assert f"| `{TINY_CONFIG}` |" in capsys.readouterr().out
    assert json.loads(json.dumps(figures))["recipes"][TINY_CONFIG]["memory_bytes"] > 1e6


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--gpu", "abacus"], "abacus is not known; there are a100-40"),
        (["--utilisation", "0.5", "0.1"], "the lower one first"),
        (["--gpus", "0"], "at least 1 of each"),
    ],
)
def test_what_cannot_be_used_is_named(words, message):
    with pytest.raises(ConfigError, match=message):
        _run(TINY_CONFIG, *words)


def test_a_config_that_trains_nothing_is_named():
    config = read_config(find(TINY_CONFIG))
    config = Config({name: value for name, value in config.to_dict().items() if name != "train_dataloader"})
    with pytest.raises(ConfigError, match="it trains nothing"):
        cost.training_cost(config)


def _run(*words: str):
    parser = ArgumentParser()
    command.add_arguments(parser)
    return command.run(parser.parse_args([*words]))
