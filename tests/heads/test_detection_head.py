from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from dense_parts import (
    PADDED,
    PATCH,
    make_dense_case,
    make_neck,
    select,
    total,
    with_dense,
)
from mmdet.models.dense_heads import FCOSHead
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData
from sam_parts import make_refiner
from torchvision.ops import box_iou, generalized_box_iou_loss, sigmoid_focal_loss

from flmm_detseg.errors import ConfigError, DataError, RunError
from flmm_detseg.heads import DetectionHead, PixelStem
from flmm_detseg.heads.fcos import FrameFCOS, Objects
from flmm_detseg.heads.frame import Frame
from flmm_detseg.structures import CaptureSpec, DenseTargets, GroundingBatch

NAMES = ("star", "ring", "square")
TEXT = 10


def make_head(neck=None, **changes) -> DetectionHead:
    neck = make_neck(scales=(4, 2, 1)) if neck is None else neck
    torch.manual_seed(0)
    return DetectionHead(neck, NAMES, **{**dict(feat_channels=16, stacked_convs=1), **changes}).eval()


def make_open(**changes) -> DetectionHead:
    head = make_head(classifier="open", hidden_size=TEXT, **changes)
    head.set_class_embeddings(torch.randn(3, TEXT, generator=torch.Generator().manual_seed(3)))
    return head


def make_objects(seed=0, num_classes=3, count=4, side=56) -> Objects:
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(count, 2, 2, generator=generator).sort(dim=1).values.flatten(1) * side
    corners[:, 2:] += 2
    labels = torch.randint(0, num_classes, (count,), generator=generator)
    return Objects(corners, labels, torch.ones(count), torch.zeros(0, 4))


def random_outputs(fcos: FrameFCOS, sizes, batch=2, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def maps(channels):
        return [torch.randn(batch, channels, *size, generator=generator) for size in sizes]

    return maps(fcos.num_classes), [m.abs() * 2 for m in maps(4)], maps(1)


def test_regress_ranges_follow_the_strides():
    head = make_head(make_neck(scales=(2, 1, 0.5)))
    assert head.fcos.strides == (7, 14, 28)
    assert head.fcos.regress_ranges == ((-1, 56), (56, 112), (112, 1e8))
    points = head.fcos.prior_generator.grid_priors([(8, 8), (4, 4), (2, 2)], device="cpu")
    assert points[0][0].tolist() == [3.5, 3.5]
    fine = make_head(make_neck(scales=(4, 2)))
    assert fine.fcos.prior_generator.grid_priors([(16, 16), (8, 8)], device="cpu")[0][1].tolist() == [
        5.25,
        1.75,
    ]


def test_assignment_restores_the_boxes():
    head = make_head()
    objects = [make_objects(0), make_objects(1)]
    sizes = head.neck.map_sizes(Frame.of(PADDED, PATCH))
    assignment = head.fcos.assign(sizes, objects)
    points = head.fcos.prior_generator.grid_priors(sizes, device="cpu")
    flat = torch.cat([level.repeat(2, 1) for level in points])
    strides = torch.cat([torch.full((2 * len(p),), s) for p, s in zip(points, head.fcos.strides)])
    image = torch.cat([torch.arange(2).repeat_interleave(len(p)) for p in points])
    assert len(assignment.positive) > 4
    for index in assignment.positive:
        distances = assignment.distances[index] * strides[index]
        box = torch.cat([flat[index] - distances[:2], flat[index] + distances[2:]])
        own = objects[image[index]]
        match = (own.boxes_xyxy - box).abs().amax(1)
        assert match.min() < 1e-3
        assert assignment.labels[index] == own.labels[match.argmin()]
    background = torch.ones(len(assignment.labels), dtype=torch.bool)
    background[assignment.positive] = False
    assert (assignment.labels[background] == 3).all()


def test_losses_follow_independent_formulas():
    fcos = make_head().fcos
    sizes = [(16, 16), (8, 8), (4, 4)]
    outputs = random_outputs(fcos, sizes)
    objects = [make_objects(0), make_objects(1)._replace(weights=torch.tensor([1.0, 0.5, 0.25, 1.0]))]
    got = fcos.losses(*outputs, objects)
    labels, distances, weights, positive = fcos.assign(sizes, objects)
    flat = [torch.cat([m.permute(0, 2, 3, 1).reshape(-1, m.shape[1]) for m in maps]) for maps in outputs]
    one_hot = torch.zeros(len(labels), 3)
    one_hot[positive, labels[positive]] = 1
    focal = sigmoid_focal_loss(flat[0], one_hot, alpha=0.25, gamma=2, reduction="none")
    torch.testing.assert_close(got["loss_cls"], (focal * weights[:, None]).sum() / len(positive))
    assert set(weights[positive].tolist()) > {1.0}

    left, top, right, bottom = distances[positive].unbind(1)
    centre = (left.minimum(right) / left.maximum(right) * top.minimum(bottom) / top.maximum(bottom)).sqrt()
    sign = torch.tensor([-1.0, -1, 1, 1])
    giou = generalized_box_iou_loss(flat[1][positive] * sign, distances[positive] * sign)
    torch.testing.assert_close(got["loss_bbox"], (giou * centre * weights[positive]).sum() / len(positive))
    logits = flat[2][positive, 0]
    entropy = torch.nn.functional.softplus(logits) - logits * centre
    torch.testing.assert_close(got["loss_centerness"], (entropy * weights[positive]).sum() / len(positive))


def test_positives_of_a_large_object_lie_about_its_centre():
    fcos = make_head().fcos
    sizes = [(32, 32), (16, 16), (8, 8)]
    box = torch.tensor([[10.0, 15.0, 100.0, 95.0]])
    objects = Objects(box, torch.tensor([0]), torch.ones(1), torch.zeros(0, 4))
    positive = fcos.assign(sizes, [objects]).positive
    points = torch.cat(fcos.prior_generator.grid_priors(sizes, device="cpu"))[positive]
    # Its centre is (55, 55). The second level (points every 7 pixels) takes those within 10.5 of it; of the nine of the
    # third within 21, the five from where the box reaches further than 56.
    second, third = points[:9], points[9:]
    assert len(third) == 5
    assert sorted({float(x) for x in second.flatten()}) == [45.5, 52.5, 59.5]
    assert (third - 55).abs().max() <= 21


def test_losses_are_those_of_mmdet_but_for_the_box_normaliser():
    fcos = make_head().fcos
    sizes = [(16, 16), (8, 8), (4, 4)]
    outputs = random_outputs(fcos, sizes)
    objects = [make_objects(0), make_objects(1)]
    ours = fcos.losses(*outputs, objects)
    labelled = [InstanceData(bboxes=o.boxes_xyxy, labels=o.labels) for o in objects]
    theirs = FCOSHead.loss_by_feat(fcos, *outputs, labelled, [{}, {}])
    torch.testing.assert_close(ours["loss_cls"], theirs["loss_cls"])
    torch.testing.assert_close(ours["loss_centerness"], theirs["loss_centerness"])
    assignment = fcos.assign(sizes, objects)
    mean = fcos.centerness_target(assignment.distances[assignment.positive]).mean()
    torch.testing.assert_close(ours["loss_bbox"], theirs["loss_bbox"] * mean, rtol=1e-4, atol=1e-6)


def test_crowds_are_neither_learned_nor_background():
    head = make_head()
    states, batch = make_dense_case((PADDED,))
    dense = batch.samples[0].dense
    crowd = with_dense(batch, 0, replace(dense, crowd=np.array([False, True])))
    objects = head._objects(crowd.samples[0], Frame.of(PADDED, PATCH))
    assert objects.labels.tolist() == [0]
    sizes = head.neck.map_sizes(Frame.of(PADDED, PATCH))
    assignment = head.fcos.assign(sizes, [objects])
    points = torch.cat(head.fcos.prior_generator.grid_priors(sizes, device="cpu"))
    x0, y0, x1, y1 = objects.ignored_xyxy[0]
    inside = (points[:, 0] >= x0) & (points[:, 0] < x1) & (points[:, 1] >= y0) & (points[:, 1] < y1)
    positive = torch.zeros_like(inside)
    positive[assignment.positive] = True
    assert (inside & ~positive).sum() > 3
    assert torch.equal(assignment.weights == 0, inside & ~positive)
    assert not torch.equal(head.loss(states, batch)["loss_cls"], head.loss(states, crowd)["loss_cls"])


def test_training_and_evaluation_mode_mean_the_same():
    head = make_head()
    states, batch = make_dense_case()
    torch.testing.assert_close(head.eval().loss(states, batch), head.train().loss(states, batch))
    first, second = head.train().predict(states, batch)[0], head.eval().predict(states, batch)[0]
    assert torch.equal(first.bboxes, second.bboxes)


@pytest.mark.parametrize("make", [make_head, make_open])
def test_batch_equals_single_samples(make):
    head = (
        make(make_neck(scales=(4, 2, 1), gate="dynamic"), score_threshold=0.001)
        if make is make_head
        else make(score_threshold=0.001)
    )
    states, batch = make_dense_case()
    alone = [select(states, batch, index) for index in range(3)]
    counts = torch.tensor([float(head.num_targets(one)) for _, one in alone])
    assert counts.sum() == head.num_targets(batch)
    together = head.loss(states, batch)
    single = [head.loss(*case) for case in alone]
    for name in ("loss_cls", "loss_bbox", "loss_centerness"):
        expected = (torch.stack([figures[name] for figures in single]) * counts).sum() / counts.sum()
        torch.testing.assert_close(together[name], expected, rtol=1e-5, atol=1e-6)
    for objects, case in zip(head.predict(states, batch), alone):
        (other,) = head.predict(*case)
        assert len(objects) == len(other) > 0
        torch.testing.assert_close(objects.bboxes, other.bboxes, rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(objects.scores, other.scores, rtol=1e-4, atol=1e-5)


def test_predictions_lie_in_the_original_image():
    head = make_head(score_threshold=0.001, max_per_image=7)
    assert head.capture == CaptureSpec(vision_layers=(3,))
    states, batch = make_dense_case()
    for objects, sample in zip(head.predict(states, batch), batch.samples):
        height, width = sample.image_size
        assert 0 < len(objects) <= 7
        assert objects.bboxes.dtype == objects.scores.dtype == torch.float32
        assert objects.labels.dtype == torch.int64
        assert (objects.bboxes >= 0).all()
        assert (objects.bboxes[:, 2] <= width).all()
        assert (objects.bboxes[:, 3] <= height).all()
        assert (objects.scores.diff() <= 0).all()
        for label in objects.labels.unique():
            iou = box_iou(*[objects.bboxes[objects.labels == label]] * 2)
            assert (iou.fill_diagonal_(0) <= 0.6).all()


@pytest.mark.case("model/nan_prediction")
def test_outputs_that_are_no_numbers_name_the_sample(monkeypatch):
    head = make_head(score_threshold=0.99)
    states, batch = make_dense_case()
    outputs = head.fcos(head.neck(states, batch))
    with torch.no_grad():
        outputs[2][0][1, 0, 0, 0] = float("nan")
    monkeypatch.setattr(type(head.fcos), "forward", lambda *args, **kwargs: outputs)
    with pytest.raises(
        RunError, match=f"^{batch.samples[1].record_id}: the detection head's outputs hold NaN"
    ):
        head.predict(states, batch)


def test_nothing_found_is_an_empty_result():
    head = make_head(score_threshold=0.99, sam=make_refiner())
    for objects, sample in zip(head.predict(*make_dense_case()), make_dense_case()[1].samples):
        assert objects.bboxes.shape == (0, 4)
        assert objects.masks.shape == (0, *sample.image_size)


def test_masks_of_boxes_come_from_sam():
    refiner = make_refiner()
    head = make_head(score_threshold=0.001, max_per_image=4, sam=refiner)
    assert not any(parameter.requires_grad for parameter in head.sam.parameters())
    states, batch = make_dense_case()
    for objects, sample in zip(head.predict(states, batch), batch.samples):
        assert objects.masks.shape == (4, *sample.image_size)
        assert objects.masks.dtype == torch.bool
        (logits,) = refiner.masks_from_boxes([sample.image], [objects.bboxes])
        assert torch.equal(objects.masks, logits > 0)


def test_a_lent_refiner_makes_masks_and_stays_as_it_is():
    refiner = make_refiner()
    before = {name: p.requires_grad for name, p in refiner.named_parameters()}
    assert any(before.values())
    states, batch = make_dense_case()
    head = make_head(score_threshold=0.001, max_per_image=4)
    own = make_head(score_threshold=0.001, max_per_image=4, sam=make_refiner())
    without = head.predict(states, batch)
    head.borrow_sam(refiner)
    for lent, expected, boxes in zip(head.predict(states, batch), own.predict(states, batch), without):
        assert torch.equal(lent.masks, expected.masks)
        assert "masks" not in boxes
        assert torch.equal(lent.bboxes, boxes.bboxes)
    assert {name: p.requires_grad for name, p in refiner.named_parameters()} == before
    assert not any("model.mask_decoder" in name for name in head.state_dict()), "they are another head's"
    kept = own.refiner
    own.borrow_sam(refiner)
    assert own.refiner is kept, "a head with a refiner of its own keeps it"


@pytest.mark.parametrize("make", [make_head, make_open])
def test_every_trainable_tensor_gets_a_gradient(make):
    neck = make_neck(scales=(4, 2, 1), gate="channel", side=PixelStem(4, 8))
    head = make(neck=neck, sam=make_refiner()).train()
    states, batch = make_dense_case()
    figures = head.loss(states, batch)
    assert {name for name in figures if "loss" not in name} == {
        "gate_layer1", "gate_layer2", "gate_layer3", "gate_entropy"
    }  # fmt: skip
    total(figures).backward()
    # A scale multiplies the boxes of its level, on which no object of the case may lie.
    without = [
        n for n, p in head.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())
    ]
    assert [name for name in without if not name.startswith("fcos.scales")] == []
    assert all(p.grad is not None for p in head.parameters() if p.requires_grad)


def test_images_without_objects_teach_background():
    head = make_head().train()
    states, batch = make_dense_case((PADDED,))
    empty = with_dense(batch, 0, DenseTargets(np.zeros((0, 4), np.float32), np.zeros(0, np.int64)))
    figures = head.loss(states, empty)
    assert head.num_targets(empty) == 1
    assert head.num_targets(GroundingBatch([], [])) == 0
    assert figures["loss_cls"] > 0
    assert figures["loss_bbox"] == figures["loss_centerness"] == 0
    total(figures).backward()
    assert all(parameter.grad is not None for parameter in head.parameters())


def test_a_tiny_set_is_learned():
    head = make_head(make_neck(scales=(4, 2)), feat_channels=32, stacked_convs=2).train()
    states, batch = make_dense_case()
    optimizer = torch.optim.AdamW(head.parameters(), lr=2e-3)
    for _ in range(150):
        optimizer.zero_grad()
        total(head.loss(states, batch)).backward()
        optimizer.step()
    for objects, sample in zip(head.eval().predict(states, batch), batch.samples):
        truth = torch.from_numpy(sample.dense.boxes_xyxy)
        for box, label in zip(truth, sample.dense.labels.tolist()):
            best = objects[objects.labels == label][:1]
            assert best.scores[0] > 0.3
            assert box_iou(best.bboxes, box[None]).item() > 0.8


def test_open_classifier_takes_other_classes():
    head = make_open(score_threshold=0.001)
    states, batch = make_dense_case()
    logits, _, _ = head.fcos(head.neck(states, batch))
    embeddings = torch.randn(3, TEXT, generator=torch.Generator().manual_seed(3))
    more = torch.cat([torch.randn(2, TEXT, generator=torch.Generator().manual_seed(4)), embeddings])
    head.set_class_embeddings(more, ["cat", "dog", *NAMES])
    assert head.class_names[:2] == ("cat", "dog")
    wider, _, _ = head.fcos(head.neck(states, batch))
    for few, many in zip(logits, wider):
        assert many.shape[1] == 5
        torch.testing.assert_close(many[:, 2:], few)  # a class does not depend on the others
    assert {int(label) for objects in head.predict(states, batch) for label in objects.labels} == {
        0,
        1,
        2,
        3,
        4,
    }
    head.set_class_embeddings(more[:1], ["cat"])
    assert all((objects.labels == 0).all() for objects in head.predict(states, batch))
    assert "embeddings" not in " ".join(head.state_dict())


def test_open_classifier_is_a_scaled_cosine():
    head = make_open()
    classifier = head.fcos.conv_cls
    features = torch.randn(1, 16, 3, 3, generator=torch.Generator().manual_seed(0))
    image = classifier.image_proj(features)[0, :, 1, 1]
    embedding = classifier.embeddings[1]
    text = classifier.text_proj(embedding / embedding.norm() * TEXT**0.5)
    expected = 10 * torch.cosine_similarity(image, text, dim=0) + np.log(0.01 / 0.99)
    torch.testing.assert_close(classifier(features)[0, 1, 1, 1], expected.float(), rtol=1e-4, atol=1e-4)
    longer = make_open()
    longer.set_class_embeddings(classifier.embeddings * 50)
    torch.testing.assert_close(longer.fcos.conv_cls(features), classifier(features), rtol=1e-4, atol=1e-4)


def test_open_classifier_learns_its_classes():
    head = make_open(neck=make_neck(scales=(4, 2))).train()
    states, batch = make_dense_case()
    optimizer = torch.optim.AdamW(head.parameters(), lr=3e-3)
    losses = []
    for _ in range(40):
        figures = head.loss(states, batch)
        optimizer.zero_grad()
        total(figures).backward()
        optimizer.step()
        losses.append(figures["loss_cls"].item())
    assert losses[-1] < 0.3 * losses[0]


def test_half_precision_keeps_coordinates_exact():
    head = make_head(score_threshold=0.001)
    states, batch = make_dense_case()
    expected = head.loss(states, batch)
    head = head.to(torch.bfloat16)
    for name, value in head.loss(states, batch).items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, expected[name], rtol=0.05, atol=0.01)
    assert head.predict(states, batch)[0].bboxes.dtype == torch.float32


@pytest.mark.parametrize(("dense", "message"), [
    (None, "no boxes"),
    (DenseTargets(boxes_xyxy=np.zeros((1, 4), np.float32)), "no boxes"),
    (DenseTargets(np.zeros((1, 4), np.float32), np.array([3])), "labels 3..3.*3 classes"),
    (DenseTargets(np.zeros((2, 4), np.float32), np.array([0])), "2 boxes, 1 labels"),
    (DenseTargets(np.zeros((1, 4), np.float32), np.array([0]), weights=np.ones(2, np.float32)), "2 weights"),
])  # fmt: skip
def test_targets_that_cannot_be_used_name_the_record(dense, message):
    states, batch = make_dense_case()
    bad = with_dense(batch, 1, dense)
    with pytest.raises(DataError, match=f"case/1: .*{message}"):
        make_head().loss(states, bad)


def test_settings_that_cannot_be():
    with pytest.raises(ConfigError, match="closed, open"):
        make_head(classifier="clip")
    with pytest.raises(ConfigError, match="hidden_size"):
        make_head(classifier="open")
    with pytest.raises(ConfigError, match="different names"):
        DetectionHead(make_neck(), ["a", "a"])
    with pytest.raises(ConfigError, match="'coco'; in Python a head takes the names"):
        DetectionHead(make_neck(), "coco")
    with pytest.raises(ConfigError, match="classes are fixed"):
        make_head().set_class_embeddings(torch.zeros(3, TEXT))
    with pytest.raises(ConfigError, match="2 class embeddings for 3"):
        make_open().set_class_embeddings(torch.zeros(2, TEXT))
    with (
        pytest.raises(ConfigError, match="classes are fixed"),
        make_head().other_classes(torch.zeros(3, TEXT), NAMES),
    ):
        pass
    with pytest.raises(ConfigError, match="no classes"):
        make_head(classifier="open", hidden_size=TEXT).loss(*make_dense_case())


@pytest.mark.parametrize("scope", ["flmm_detseg", "mmseg", "mmengine"])
def test_the_default_scope_of_a_runner_does_not_matter(scope):
    with DefaultScope.overwrite_default_scope(scope):
        assert make_head().fcos.loss_cls.gamma == 2


def test_shapes_exist_on_the_meta_device():
    with torch.device("meta"):
        head = make_head(make_neck(gate="channel", side=PixelStem(4, 8)), classifier="open", hidden_size=TEXT)
    real = make_open(neck=make_neck(gate="channel", side=PixelStem(4, 8)))
    assert {n: p.shape for n, p in head.named_parameters()} == {
        n: p.shape for n, p in real.named_parameters()
    }
