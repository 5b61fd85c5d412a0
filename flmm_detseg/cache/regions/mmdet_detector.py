"""Any detector of mmdet."""

from __future__ import annotations

import pickle
from threading import Lock

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope

from flmm_detseg.cache.regions.sources import Regions, RegionSource
from flmm_detseg.compat import install
from flmm_detseg.errors import CheckpointError, ConfigError
from flmm_detseg.registry import MODELS
from flmm_detseg.structures import Sample
from flmm_detseg.utils.paths import find, places

install()  # before mmdet is imported

from mmdet.apis import inference_detector  # noqa: E402
from mmdet.registry import MODELS as MMDET_MODELS  # noqa: E402

_SCOPE = Lock()


@MODELS.register_module()
class MMDetDetector(RegionSource):
    """An object detector of mmdet. Boxes come back in original pixels.

    Args:
        config: mmdet config file.
        checkpoint: Its weights: a plain state dict, or ``{"state_dict": ...}``. Nothing else is unpickled, so a
            checkpoint of mmdet with training records has to be stored again without them.
        classes: Names of the classes, for policies that choose among them.
        threshold: Least score of a box.
        device: Where it runs.

    Raises:
        ConfigError: There is no such config.
        CheckpointError: The checkpoint cannot be read or does not fit.
    """

    name = "mmdet"

    def __init__(
        self,
        config: str,
        checkpoint: str,
        classes: tuple[str, ...] | None = None,
        threshold: float = 0.3,
        device: str = "cpu",
    ) -> None:
        path = find(config)
        if not path.is_file():
            raise ConfigError(f"config {config} of the detector does not exist ({places(config)})")
        settings = Config.fromfile(path)
        with _SCOPE, DefaultScope.overwrite_default_scope("mmdet"):
            model = MMDET_MODELS.build(settings.model)
        _load(model, checkpoint)
        model.cfg = settings
        self._model = model.eval().requires_grad_(False).to(device)
        self._classes = classes
        self.threshold = threshold

    @torch.no_grad()
    def find(self, sample: Sample) -> Regions:
        """See :class:`RegionSource`."""
        # The scope belongs to the process: two threads would take it from each other.
        with _SCOPE, DefaultScope.overwrite_default_scope("mmdet"):
            # mmdet reads BGR.
            found = inference_detector(self._model, np.ascontiguousarray(sample.image[..., ::-1]))
        objects = found.pred_instances
        objects = objects[objects.scores >= self.threshold].cpu()
        labels = None
        if self._classes is not None:
            labels = [self._classes[int(label)] for label in objects.labels]
        return Regions(
            boxes_xyxy=objects.bboxes.numpy().astype(np.float32), scores=objects.scores.numpy(), labels=labels
        )


def _load(model: torch.nn.Module, checkpoint: str) -> None:
    try:
        state = torch.load(find(checkpoint), map_location="cpu", weights_only=True)
        model.load_state_dict(state.get("state_dict", state))
    except (OSError, RuntimeError, EOFError, AttributeError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f"{checkpoint}: no weights of this detector ({reason}); store its plain state dict"
        ) from error
