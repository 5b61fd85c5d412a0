"""Heads as ONNX files, each compared with the model by onnxruntime before it is kept."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flmm_detseg.errors import ConfigError, MissingDependencyError, RunError
from flmm_detseg.heads import named_heads
from flmm_detseg.models.from_config import model_from_config
from flmm_detseg.structures import Graph
from flmm_detseg.utils.configs import config_name
from flmm_detseg.utils.whole_files import new_folder, write_json

OPSET = 17
# Largest difference between onnxruntime and the model, as a share of the largest number of an output (at least 1).
TOLERANCE = 1e-4


def export_onnx(
    config: str | Path, checkpoint: str | Path | None, out: str | Path, *, allow_other_lmm: bool = False
) -> dict[str, Any]:
    """Writes every graph of a model's heads, and beside each a JSON file that says what goes in and out.

    Args:
        config: Config of the model.
        checkpoint: What training wrote; None: ``load_from`` of the config.
        out: Folder to make; it appears when everything in it is written and compared.
        allow_other_lmm: See :class:`~flmm_detseg.models.grounding_lmm.GroundingLMM`.

    Returns:
        ``out`` and ``graphs``: per file its size and the largest difference.

    Raises:
        MissingDependencyError: onnx or onnxruntime is not installed.
        ConfigError: ``out`` is there, the config cannot be used, or no head has anything to export.
        CheckpointError: The checkpoint does not fit.
        RunError: A file gives other numbers than the model.
    """
    try:
        import onnx  # noqa: F401  # before a model is loaded
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(
            f"the export needs onnx and onnxruntime ({error}): pip install 'flmm_detseg[onnx]'"
        ) from error
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} is there and not empty; name a new folder, or remove it first")
    model = model_from_config(config, checkpoint, device="cpu", allow_other_lmm=allow_other_lmm)
    model.heads.float()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(
            0
        )  # inputs to compare on: the same ones each time, so that differences can be measured again
        found = {name: head.graphs() for name, head in named_heads(model.heads).items()}
    if not any(found.values()):
        raise ConfigError(f"no head of {config} has a part to export (heads: {', '.join(found)})")
    figures: dict[str, Any] = {}
    with new_folder(out) as part:
        for head, graphs in found.items():
            for graph in graphs:
                name = f"{head}_{graph.name}.onnx"
                figures[name] = {"head": head, **write_graph(graph, part / name)}
                write_json(
                    (part / name).with_suffix(".json"),
                    {"file": name, "config": config_name(config), **figures[name], **describe(graph)},
                )
    return {"out": str(out), "graphs": figures}


def write_graph(graph: Graph, file: Path) -> dict[str, Any]:
    """Writes a graph and compares what onnxruntime makes of it with the module, on all its examples.

    Args:
        graph: In float32 on the CPU.
        file: To write.

    Returns:
        ``megabytes``, and ``largest_difference`` over all outputs and examples.

    Raises:
        RunError: An output has another shape or other numbers than the module's.
    """
    import onnx
    import onnxruntime

    ports = (*graph.inputs, *graph.outputs)
    module = graph.module.eval()
    with warnings.catch_warnings(), torch.no_grad():
        # Every size that Python compares is warned of; all sizes are compared below.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            graph.examples,
            str(file),
            input_names=[port.name for port in graph.inputs],
            output_names=[port.name for port in graph.outputs],
            dynamic_axes={
                port.name: {i: side for i, side in enumerate(port.shape) if isinstance(side, str)}
                for port in ports
            },
            opset_version=OPSET,
            dynamo=False,
        )
    onnx.checker.check_model(str(file), full_check=True)
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    known = {entry.name for entry in session.get_inputs()}
    largest = 0.0
    for example in (graph.examples, *graph.others):
        with torch.no_grad():
            expected = module(*example)
        expected = (expected,) if isinstance(expected, torch.Tensor) else expected
        feeds = {
            port.name: tensor.numpy()
            for port, tensor in zip(graph.inputs, example, strict=True)
            if port.name in known
        }
        try:
            given = session.run(None, feeds)
        except Exception as error:  # onnxruntime's errors have no base of their own
            sizes = [list(tensor.shape) for tensor in example]
            raise RunError(f"{file.name}: onnxruntime cannot run it on inputs of {sizes}: {error}") from error
        for port, got, wanted in zip(graph.outputs, given, expected, strict=True):
            numbers = wanted.numpy()
            if got.shape != numbers.shape:
                raise RunError(
                    f"{file.name}: {port.name} has the shape {got.shape}, the model's has {numbers.shape}; the part "
                    "cannot be exported for other sizes"
                )
            difference = float(np.abs(got - numbers).max()) if numbers.size else 0.0
            scale = max(1.0, float(np.abs(numbers).max())) if numbers.size else 1.0
            if not difference <= TOLERANCE * scale:
                raise RunError(f"{file.name}: {port.name} differs from the model's by {difference:.3g}")
            largest = max(largest, difference)
    return {"megabytes": round(file.stat().st_size / 1e6, 3), "largest_difference": largest}


def describe(graph: Graph) -> dict[str, Any]:
    """What the JSON file says of a graph."""
    return {
        "about": graph.about,
        "opset": OPSET,
        "dtype": "float32, where nothing else is said",
        "inputs": [{"name": p.name, "shape": list(p.shape), "about": p.about} for p in graph.inputs],
        "outputs": [{"name": p.name, "shape": list(p.shape), "about": p.about} for p in graph.outputs],
        "settings": dict(graph.settings),
    }
