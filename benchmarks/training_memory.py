"""One training step on the CPU, measured, beside what ``flmm-detseg cost`` computes for the recipe.

The recipe's model takes one step (forward, backward, AdamW) on a batch of its size: drawn scenes of 480 x 640 pixels,
seven phrases of three words each, as the computed figures suppose. Reported, in bytes:

- ``weights``: parameters and buffers of the built model.
- ``optimizer``: gradients and AdamW's moments after the step.
- ``kept``: what autograd keeps of the forward pass for the backward pass, each storage once, without the weights.
- ``largest``: the largest operation of the forward pass, with its inputs and outputs.
- ``peak``: most bytes of tensors at one time during the second step, weights and moments included (torch's profiler).
- ``resident``: by how much the process's own peak grew from before the model was built (Linux only).

Example: ``python benchmarks/training_memory.py``
"""

from __future__ import annotations

import argparse
import resource
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from torch.profiler import ProfilerActivity, profile

from flmm_detseg.datasets.tinyworld.render import make_scene
from flmm_detseg.datasets.tinyworld.scene import COLOURS
from flmm_detseg.models.cost import IMAGE_SIZE, PHRASES, count, training_cost
from flmm_detseg.models.from_config import read_config
from flmm_detseg.models.grounding_lmm import GroundingLMM
from flmm_detseg.registry import MODELS
from flmm_detseg.structures import Phrase, Sample
from flmm_detseg.utils.cli import run_tool
from flmm_detseg.utils.configs import TINY_CONFIG


def make_batch(size: int) -> list[Sample]:
    """Scenes with as many phrases, of as many words, as the computed figures suppose."""
    text, spans = "", []
    for colour in list(COLOURS)[:PHRASES]:
        words = f"a {colour} ring"
        spans.append((len(text), len(text) + len(words)))
        text += f"{words} . "
    samples = []
    for index in range(size):
        scene = make_scene(0, index)
        rows, columns = (np.arange(side) * 112 // side for side in IMAGE_SIZE)
        masks = [scene.objects[k % len(scene.objects)].mask[rows][:, columns] for k in range(len(spans))]
        samples.append(
            Sample(
                f"scene/{index}",
                scene.image[rows][:, columns],
                text.strip(),
                tuple(Phrase((span,)) for span in spans),
                np.stack(masks),
            )
        )
    return samples


def resident_peak() -> int:
    """Most bytes that this process has had in memory."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def peak_of(found: profile) -> int:
    """Most bytes that were allocated at one time above those that were there when the profile began."""
    events = [event for event in found.profiler.kineto_results.events() if event.name() == "[memory]"]
    sizes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return int(max(np.cumsum(sizes, dtype=np.int64), default=0))


def step(model: GroundingLMM, optimizer: torch.optim.Optimizer, batch: list[Sample]) -> None:
    """Forward, backward, update."""
    loss, _ = model.parse_losses(model.loss(batch))
    loss.backward()
    optimizer.step()


def measure(config: Config, batch_size: int | None) -> dict[str, Any]:
    """What a step of a recipe takes, beside what is computed for it.

    Args:
        config: A recipe on weights that are here.
        batch_size: Another one than the recipe's, for both sides; None: the recipe's.

    Returns:
        ``batch``, and ``computed`` and ``measured`` bytes by part.
    """
    if batch_size is not None:
        config.train_dataloader.batch_size = batch_size
    cost = training_cost(config, gpus=1)
    torch.manual_seed(0)
    batch = make_batch(cost.batch)
    before = resident_peak()
    model: GroundingLMM = MODELS.build(config.model).train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    part = count(lambda: model.loss(batch), model)
    step(model, optimizer, batch)
    states = [
        value for state in optimizer.state.values() for name, value in state.items() if "exp_avg" in name
    ]
    own = sum(tensor.nbytes for tensor in [*model.parameters(), *model.buffers()])
    moments = sum(value.nbytes for value in states)
    optimizer.zero_grad(set_to_none=True)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        step(model, optimizer, batch)
    measured = {
        "weights": own,
        "optimizer": moments
        + sum(parameter.grad.nbytes for parameter in trained if parameter.grad is not None),
        "kept": part.kept,
        "largest": part.largest,
        "peak": own + moments + peak_of(found),
        "resident": resident_peak() - before,
    }
    computed = {
        "weights": cost.weights, "optimizer": cost.optimizer, "rows": cost.rows, "kept": cost.kept,
        "largest": cost.largest, "memory": cost.memory,
    }  # fmt: skip
    return {"batch": cost.batch, "computed": computed, "measured": measured}


def main() -> dict[str, Any]:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", type=Path, default=TINY_CONFIG, help=f"default: {TINY_CONFIG}")
    parser.add_argument("--batch", type=int, help="samples; default: the recipe's")
    arguments = parser.parse_args()
    return measure(read_config(arguments.config), arguments.batch)


if __name__ == "__main__":
    run_tool(main)
