"""ONNX files of heads: onnxruntime gives the model's numbers on several sizes, and boxes the head's own predictions."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from dense_parts import GRIDS, WIDE, make_dense_case, make_neck
from sam2_parts import make_sam2_refiner
from sam_parts import make_inputs, make_refiner
from torchvision.ops import batched_nms

from flmm_detseg.errors import ConfigError, RunError
from flmm_detseg.heads import DetectionHead, PhraseGroundingHead, SemanticSegHead, UNetHead
from flmm_detseg.heads.side_stream import PixelStem
from flmm_detseg.models.export_onnx import describe, export_onnx, write_graph
from flmm_detseg.structures import Graph, Port
from flmm_detseg.utils.configs import TINY_CONFIG, TINY_HEADS


def session_of(graph: Graph, file: Path) -> onnxruntime.InferenceSession:
    figures = write_graph(graph, file)
    assert figures["largest_difference"] <= 1e-3
    described = describe(graph)
    content = onnx.load(str(file))
    assert [value.name for value in content.graph.output] == [entry["name"] for entry in described["outputs"]]
    for value, entry in zip(content.graph.input, described["inputs"], strict=True):
        sides = [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        assert (value.name, sides) == (entry["name"], entry["shape"])
    return onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("upsample", [20, None])
def test_the_mask_head_takes_any_number_of_phrases_and_any_grid(upsample, tmp_path):
    torch.manual_seed(0)
    head = UNetHead(6, 4, 3, upsample_input=upsample).eval()
    (graph,) = PhraseGroundingHead(head, None, num_layers=2, hidden_size=8).graphs()
    session = session_of(graph, tmp_path / "mask.onnx")
    for size in ((1, 6, 5, 5), (3, 6, 13, 9), (2, 6, 24, 31), (1, 6, 1, 7)):
        rows = torch.rand(size)
        (found,) = session.run(None, {"rows": rows.numpy()})
        with torch.no_grad():
            np.testing.assert_allclose(found, head(rows).numpy(), atol=1e-4)


@pytest.mark.long
@pytest.mark.parametrize("kept", [False, True])
def test_sams_decoder(kept, tmp_path):
    refiner = make_refiner()
    if kept:
        refiner.keep_box_decoder()
    head = PhraseGroundingHead(
        UNetHead(6, 2, 2), refiner, num_layers=2, hidden_size=8, text_dim=refiner.prompt_dim
    ).eval()
    graphs = {graph.name: graph for graph in head.graphs()}
    assert list(graphs) == ["mask", "text", "decoder", *(["box_decoder"] if kept else [])]
    images, coarse, text = make_inputs()[:3]
    session = session_of(graphs["decoder"], tmp_path / "decoder.onnx")
    prompt = refiner.make_prompt(coarse[1], images[1].shape[:2])
    (embedding,), _ = refiner.image_features(images[1:2])
    own = [text[1].tokens[text[1].phrase_ids == phrase] for phrase in range(len(coarse[1]))]
    tokens = torch.nn.utils.rnn.pad_sequence(own, batch_first=True)
    mask = torch.arange(tokens.shape[1])[None] < torch.tensor([len(one) for one in own])[:, None]
    given = [embedding, prompt.boxes_xyxy, prompt.mask_logits, tokens, mask]
    feeds = {
        port.name: value.detach().numpy() for port, value in zip(graphs["decoder"].inputs, given, strict=True)
    }
    logits, _ = session.run(None, feeds)
    with torch.no_grad():
        (expected,) = refiner.refine(images[1:2], coarse[1:2], text[1:2])
    np.testing.assert_allclose(logits[:, 0], expected.maps.numpy(), atol=1e-4, rtol=1e-4)
    if kept:
        session = session_of(graphs["box_decoder"], tmp_path / "box_decoder.onnx")
        feeds = {"features_0": embedding.numpy(), "boxes_xyxy": np.array([[5, 6, 40, 50]], np.float32)}
        with torch.no_grad():
            (expected,) = refiner.maps_from_boxes(images[1:2], [torch.tensor([[5.0, 6.0, 40.0, 50.0]])])
        np.testing.assert_allclose(
            session.run(None, feeds)[0][:, 0], expected.maps.numpy(), atol=1e-4, rtol=1e-4
        )


@pytest.mark.long
def test_sam2s_decoder(tmp_path):
    refiner = make_sam2_refiner()
    graphs = PhraseGroundingHead(
        UNetHead(6, 2, 2), refiner, num_layers=2, hidden_size=8, text_dim=refiner.prompt_dim
    ).graphs()
    session_of(graphs[-1], tmp_path / "decoder.onnx")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"gate": "task", "project_channels": 6},
        pytest.param({"side": "stem"}, marks=pytest.mark.long),
        pytest.param({"gate": "spatial"}, marks=pytest.mark.long),
    ],
)
def test_boxes_are_the_heads_own(changes, tmp_path):
    if changes.get("side"):
        changes = {"side": PixelStem(stride=4, channels=6)}
    head = DetectionHead(
        make_neck(**changes), ("a", "b"), feat_channels=8, stacked_convs=1, score_threshold=0.009, nms_iou=0.4
    ).eval()
    (graph,) = head.graphs()
    session = session_of(graph, tmp_path / "boxes.onnx")
    for grid in (GRIDS[0], WIDE) if not changes.get("side") else GRIDS[:1]:
        states, batch = make_dense_case((grid,), task="detection")
        (expected,) = head.predict(states, batch)
        feeds = {
            "vision": torch.stack([states.vision[0][layer] for layer in head.neck.vision_layers])[
                None
            ].numpy()
        }
        if changes.get("side"):
            feeds["views"] = batch.inputs[0].images[0].view[None].numpy()
        boxes, classes, centreness = map(torch.from_numpy, session.run(None, feeds))
        # What the JSON says comes afterwards, in its own words.
        (frame,) = head.neck.frames(batch)
        point, label = (classes > graph.settings["score_threshold"]).nonzero().unbind(1)
        limit = torch.tensor([frame.size[1], frame.size[0]] * 2)
        found = frame.boxes_out_of(boxes[point].clamp(min=0).minimum(limit))
        scores = classes[point, label] * centreness[point]
        inside = ((found[:, 2:] - found[:, :2]) > 0).all(1)
        found, scores, label = found[inside], scores[inside], label[inside]
        keep = batched_nms(found, scores, label, graph.settings["nms_iou"])[: graph.settings["max_per_image"]]
        assert len(keep) == len(expected) > 0
        np.testing.assert_allclose(found[keep], expected.bboxes, atol=1e-3)
        np.testing.assert_allclose(scores[keep], expected.scores, atol=1e-5)


def test_an_open_semantic_head_takes_its_classes_as_an_input(tmp_path):
    head = SemanticSegHead(make_neck(), ("a", "b"), channels=8, classifier="open", hidden_size=8).eval()
    head.set_class_embeddings(torch.randn(2, 8))
    (graph,) = head.graphs()
    session = session_of(graph, tmp_path / "classes.onnx")
    others = torch.randn(5, 8)
    vision = graph.examples[0]
    (logits,) = session.run(None, {"vision": vision.numpy(), "class_embeddings": others.numpy()})
    with torch.no_grad(), head.other_classes(others, list("abcde")):
        expected = head.decoder(head.neck.pyramid(vision.unbind(1), ("segmentation",)))[0]
    np.testing.assert_allclose(logits, expected, atol=1e-4)


def test_an_open_head_takes_its_classes_as_an_input(tmp_path):
    head = DetectionHead(
        make_neck(), ("a", "b"), "open", hidden_size=8, feat_channels=8, stacked_convs=1
    ).eval()
    head.set_class_embeddings(torch.randn(2, 8))
    (graph,) = head.graphs()
    session = session_of(graph, tmp_path / "boxes.onnx")
    others = torch.randn(5, 8)
    vision = graph.examples[0]
    _, classes, _ = session.run(None, {"vision": vision.numpy(), "class_embeddings": others.numpy()})
    with torch.no_grad(), head.other_classes(others, list("abcde")):
        logits = head.fcos(head.neck.pyramid(vision.unbind(1), ("detection",)))[0]
    expected = torch.cat([maps[0].flatten(1).T for maps in logits]).sigmoid()
    np.testing.assert_allclose(classes, expected.numpy(), atol=1e-5)


def test_label_maps_are_the_heads_own(tmp_path):
    head = SemanticSegHead(make_neck(gate="channel"), ("a", "b", "c"), channels=8, rates=(1, 2)).eval()
    (graph,) = head.graphs()
    session = session_of(graph, tmp_path / "classes.onnx")
    for grid in (GRIDS[0], WIDE):
        states, batch = make_dense_case((grid,), task="segmentation")
        feeds = {
            "vision": torch.stack([states.vision[0][layer] for layer in head.neck.vision_layers])[
                None
            ].numpy()
        }
        with torch.no_grad():
            expected = head.logits(states, batch)[0]
        np.testing.assert_allclose(session.run(None, feeds)[0], expected.numpy(), atol=1e-4)


class Baked(torch.nn.Module):
    """Its size is that of the example."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.zeros(int(x.shape[0]), 2).cumsum(0)


class Random(torch.nn.Module):
    """No two calls are alike."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.rand(2, 2)


@pytest.mark.parametrize(
    ("module", "size", "message"),
    [
        (Baked(), 5, "cannot run it on inputs of \\[\\[5, 2\\]\\]"),
        (Random(), 2, "y differs from the model's by"),
    ],
)
def test_a_file_that_gives_other_numbers_is_refused(module, size, message, tmp_path):
    ports = [(Port(name, ("n", 2), ""),) for name in "xy"]
    graph = Graph("bad", "", module, ports[0], (torch.rand(2, 2),), ports[1], ((torch.rand(size, 2),),))
    with pytest.raises(RunError, match=message):
        write_graph(graph, tmp_path / "bad.onnx")


@pytest.mark.long
def test_the_shipped_heads(tmp_path):
    figures = export_onnx(TINY_CONFIG, TINY_HEADS, tmp_path / "onnx")
    files = {path.name for path in (tmp_path / "onnx").iterdir()}
    assert set(figures["graphs"]) == {
        f"phrase_{name}.onnx" for name in ("mask", "text", "decoder", "box_decoder")
    }
    assert files == set(figures["graphs"]) | {name.replace(".onnx", ".json") for name in figures["graphs"]}
    described = json.loads((tmp_path / "onnx" / "phrase_mask.json").read_text())
    assert described["inputs"][0]["shape"] == ["phrases", 32, "h", "w"]
    with pytest.raises(ConfigError, match="is there and not empty"):
        export_onnx(TINY_CONFIG, TINY_HEADS, tmp_path / "onnx")


def test_a_folder_with_files_is_not_written_over(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    for out in (tmp_path, tmp_path / "mine.txt"):
        with pytest.raises(ConfigError, match="is there and not empty"):
            export_onnx(TINY_CONFIG, TINY_HEADS, out)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_every_export_compares_on_the_same_inputs(tmp_path, monkeypatch):
    seen: list[Graph] = []
    written = "flmm_detseg.models.export_onnx.write_graph"
    monkeypatch.setattr(written, lambda graph, file: seen.append(graph) or {"largest_difference": 0.0})
    state = torch.random.get_rng_state()
    for number in range(2):
        torch.manual_seed(number)
        export_onnx(TINY_CONFIG, TINY_HEADS, tmp_path / str(number))
    torch.random.set_rng_state(state)
    first, second = seen[: len(seen) // 2], seen[len(seen) // 2 :]
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(one.examples, other.examples, rtol=0, atol=0)
        torch.testing.assert_close(one.others, other.others, rtol=0, atol=0)
