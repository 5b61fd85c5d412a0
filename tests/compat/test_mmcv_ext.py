from __future__ import annotations

import importlib.util
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest
import torch

from flmm_detseg import compat
from flmm_detseg.compat import mmcv_ext
from flmm_detseg.errors import MissingDependencyError


@pytest.fixture
def no_extension(monkeypatch):
    """As in a new interpreter with mmcv-lite: nothing is called mmcv._ext."""
    monkeypatch.delitem(sys.modules, "mmcv._ext", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    yield
    sys.modules.pop("mmcv._ext", None)  # what the test installed; monkeypatch puts the former one back


def test_install_is_idempotent(no_extension):
    assert compat.install() is True
    first = sys.modules["mmcv._ext"]
    assert compat.install() is True
    assert sys.modules["mmcv._ext"] is first
    assert compat.is_stand_in()


def test_compiled_extension_is_left_alone(no_extension, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: ModuleSpec(name, loader=None))
    assert compat.install() is False
    assert "mmcv._ext" not in sys.modules


def test_loaded_compiled_extension_is_left_alone(monkeypatch):
    compiled = ModuleType("mmcv._ext")
    monkeypatch.setitem(sys.modules, "mmcv._ext", compiled)
    assert compat.install() is False
    assert sys.modules["mmcv._ext"] is compiled
    assert not compat.is_stand_in()


def test_absent_mmcv_is_an_error_with_the_remedy(no_extension, monkeypatch):
    def no_parent(name):
        raise ModuleNotFoundError("No module named 'mmcv'")

    monkeypatch.setattr(importlib.util, "find_spec", no_parent)
    with pytest.raises(MissingDependencyError, match="make install"):
        compat.install()


def test_missing_operator_names_itself_and_the_remedy(no_extension):
    compat.install()
    operator = sys.modules["mmcv._ext"].modulated_deform_conv_forward
    with pytest.raises(MissingDependencyError, match=r"modulated_deform_conv_forward.*install the compiled"):
        operator(torch.zeros(1))


@pytest.mark.parametrize(("offset", "kept"), [(0, [1, 0, 2]), (1, [1, 2])])
def test_nms_follows_the_offset(offset, kept):
    # Without offset the first two overlap by 1/3, with pixel-inclusive corners by 1/2.
    boxes = torch.tensor([[0.0, 0, 2, 1], [1, 0, 3, 1], [20, 20, 30, 30]])
    scores = torch.tensor([0.8, 0.9, 0.1])
    assert mmcv_ext.nms(boxes, scores, iou_threshold=0.4, offset=offset).tolist() == kept


@pytest.mark.skipif(
    importlib.util.find_spec("mmcv._ext") is not None and not compat.is_stand_in(), reason="full mmcv"
)
def test_mmcv_ops_work_through_the_stand_in():
    compat.install()
    from mmcv.ops import batched_nms
    from mmcv.utils.ext_loader import check_ops_exist

    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 9]])
    dets, keep = batched_nms(
        boxes, torch.tensor([0.9, 0.8, 0.7]), torch.tensor([0, 0, 1]), {"type": "nms", "iou_threshold": 0.5}
    )
    assert keep.tolist() == [0, 2]
    assert dets.shape == (2, 5)
    assert not check_ops_exist()
