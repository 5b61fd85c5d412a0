"""Stands in for ``mmcv._ext`` when only mmcv-lite is installed.

mmdet and mmsegmentation import ``mmcv.ops``, whose modules look every compiled operator up in ``mmcv._ext``
at import time. mmcv-lite has no such module, so the import fails although none of those operators is needed
here. The stand-in answers every look-up: ``nms`` works (torchvision), any other operator raises when it is
called.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import NoReturn

from torch import Tensor

from flmm_detseg.errors import MissingDependencyError

_NAME = "mmcv._ext"
_NO_COMPILER = "none (mmcv-lite)"


def nms(bboxes: Tensor, scores: Tensor, iou_threshold: float, offset: int = 0) -> Tensor:
    """Non-maximum suppression with the signature of mmcv's compiled operator.

    Args:
        bboxes: ``[N, 4]`` float, xyxy.
        scores: ``[N]`` float.
        iou_threshold: Boxes that overlap a better one by more than this are dropped.
        offset: 1 where the coordinates name the last pixel inside the box (width ``x1 - x0 + 1``), else 0.

    Returns:
        Indices of the kept boxes, best score first, int64.
    """
    from torchvision.ops import nms as torchvision_nms

    shift = bboxes.new_tensor([0, 0, offset, offset])
    return torchvision_nms(bboxes + shift, scores, iou_threshold)


def _missing_op(name: str) -> Callable[..., NoReturn]:
    def raise_missing(*args: object, **kwargs: object) -> NoReturn:
        raise MissingDependencyError(
            f"the compiled operator mmcv.ops '{name}' is not available with mmcv-lite; uninstall mmcv-lite "
            "and install the compiled package (pip install mmcv==2.1.0, needs a C++ compiler; it then takes "
            "precedence)"
        )

    raise_missing.__name__ = name
    return raise_missing


class _StandIn(ModuleType):
    """A module in which every operator name resolves."""

    def __getattr__(self, name: str) -> Callable[..., NoReturn]:
        if name.startswith("__"):
            raise AttributeError(name)
        operator = _missing_op(name)
        setattr(self, name, operator)
        return operator


def install() -> bool:
    """Makes ``mmcv._ext`` importable; call it before anything imports mmdet, mmseg or ``mmcv.ops``.
    Idempotent.

    Returns:
        True when the stand-in is in use, False when the compiled module of a full mmcv is there (it is left
        alone).

    Raises:
        MissingDependencyError: Neither mmcv nor mmcv-lite is installed.
    """
    if _NAME in sys.modules:
        return is_stand_in()
    try:
        compiled = importlib.util.find_spec(_NAME)
    except ModuleNotFoundError as error:
        raise MissingDependencyError("neither mmcv nor mmcv-lite is installed; run `make install`") from error
    if compiled is not None:
        return False
    module = _StandIn(_NAME, "Stand-in of flmm_detseg.compat for mmcv's compiled operators.")
    # A spec without loader: mmcv's own check for compiled operators keeps answering no.
    module.__spec__ = ModuleSpec(_NAME, loader=None)
    vars(module).update(
        nms=nms,
        get_compiler_version=lambda: _NO_COMPILER,
        get_compiling_cuda_version=lambda: _NO_COMPILER,
    )
    sys.modules[_NAME] = module
    return True


def is_stand_in() -> bool:
    """Whether ``mmcv._ext`` is ours (for reports such as ``doctor``)."""
    return isinstance(sys.modules.get(_NAME), _StandIn)
