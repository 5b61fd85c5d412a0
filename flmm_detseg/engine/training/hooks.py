"""Hooks that show what a run does and check what it must not change."""

from __future__ import annotations

import random
import zlib
from typing import Any

import numpy as np
import torch
from mmengine._strategy.deepspeed import DeepSpeedOptimWrapper
from mmengine.config import ConfigDict
from mmengine.dist import all_reduce, all_reduce_dict, get_rank, get_world_size, is_main_process, master_only
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmengine.structures import InstanceData

from flmm_detseg.engine.training.checkpoint_hook import LMM_INFO
from flmm_detseg.engine.training.start import unwrap
from flmm_detseg.errors import CheckpointError, ConfigError, RunError
from flmm_detseg.heads import head_of
from flmm_detseg.models.grounding_lmm import GroundingLMM
from flmm_detseg.registry import HOOKS
from flmm_detseg.structures import Prediction, Sample
from flmm_detseg.visualization import draw_detections, draw_grounding, draw_semantic


@HOOKS.register_module()
class SampleInfoHook(Hook):
    """Logs, before training, how much data there is and one record as the model sees it."""

    @master_only
    def before_train(self, runner: Runner) -> None:
        """See the class."""
        dataset = runner.train_dataloader.dataset
        runner.logger.info(f"Training data: {len(dataset)} samples. {dataset.report()}")
        sample = dataset[0]
        model = unwrap(runner.model)
        inputs = model.lmm.prepare(sample)
        phrases = "; ".join(sample.phrase_text(k) for k in range(len(sample.phrases)))
        runner.logger.info(
            f"Sample {sample.record_id}: image {sample.image_size}, {len(inputs.input_ids)} tokens of which "
            f"{int(inputs.image_mask.sum())} image, grid {inputs.grid.output_grid}, text {sample.text!r}, "
            f"phrases: {phrases}"
        )


@HOOKS.register_module()
class VisualizationHook(Hook):
    """Draws predictions on a few fixed samples into the run's log (files and TensorBoard).

    Args:
        interval: Iterations between pictures; the last iteration is always drawn.
        num_images: Samples, spread evenly over the validation data (training data where there is none).
    """

    priority = "LOW"

    def __init__(self, interval: int = 500, num_images: int = 4) -> None:
        self.interval = interval
        self.num_images = num_images

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: dict[str, Any] | None = None,
        outputs: dict[str, Any] | None = None,
    ) -> None:
        """Draws on every ``interval``-th iteration, in the main process."""
        if is_main_process() and (
            self.every_n_train_iters(runner, self.interval) or self.is_last_train_iter(runner)
        ):
            self.draw(runner)

    def draw(self, runner: Runner) -> None:
        """Predicts and draws; leaves the model in training mode."""
        loader = runner.val_dataloader if runner.val_loop is not None else runner.train_dataloader
        dataset = loader.dataset
        indices = np.unique(np.linspace(0, len(dataset) - 1, self.num_images).astype(int))
        samples = [dataset[int(i)] for i in indices]
        model = unwrap(runner.model)
        was_training = model.training
        model.eval()
        for index, sample in enumerate(samples):
            picture = _picture(model, sample)
            if picture is not None:
                runner.visualizer.add_image(f"{sample.task}_{index}", picture, step=runner.iter + 1)
        model.train(was_training)


def _picture(model: GroundingLMM, sample: Sample) -> np.ndarray | None:
    """What the model predicts for a sample; None for tasks without a picture."""
    head = head_of(model.heads, sample.task)
    if head is None:
        return None
    found = model.results(sample.task, [sample])[0]
    if not isinstance(found, (Prediction, InstanceData, torch.Tensor)):
        return None
    found = found.cpu()
    if isinstance(found, Prediction):
        phrases = [sample.phrase_text(k) for k in range(len(sample.phrases))]
        return draw_grounding(sample.image, found.masks.numpy(), phrases, found.scores.tolist())
    if isinstance(found, InstanceData):
        found = found[found.scores > 0.3]
        names = [head.class_names[label] for label in found.labels.tolist()]
        return draw_detections(sample.image, found.bboxes.numpy(), names, found.scores.tolist())
    return draw_semantic(sample.image, found.numpy(), head.class_names)


@HOOKS.register_module()
class FrozenGuardHook(Hook):
    """Compares the frozen LMM's bits before and after training; writes the fingerprint into the log.

    The fingerprint travels with the checkpoints, and a run can only be resumed on the LMM it began with.

    Raises:
        RunError: After training, when a single bit differs.
        CheckpointError: Before, when the checkpoint to resume from was trained on another LMM.
    """

    def before_train(self, runner: Runner) -> None:
        """Takes the fingerprint."""
        self._model = unwrap(runner.model)
        self._before = self._model.frozen_fingerprint()
        runner.logger.info(f"Frozen LMM before training: sha256 {self._before}")
        resumed = runner.message_hub.runtime_info.get(LMM_INFO)
        if resumed is not None and resumed["before"] != self._before:
            raise CheckpointError(
                f"the checkpoint to resume from was trained on another LMM (sha256 {resumed['before']}, now "
                f"{self._before}); its losses would not go on. Restore that LMM, or start without --resume"
            )
        runner.message_hub.update_info(LMM_INFO, {"before": self._before})

    def after_train(self, runner: Runner) -> None:
        """Takes it again and compares."""
        after = self._model.frozen_fingerprint()
        runner.logger.info(f"Frozen LMM after training: sha256 {after}")
        runner.message_hub.update_info(LMM_INFO, {"before": self._before, "after": after})
        if after != self._before:
            raise RunError(
                f"the frozen LMM changed while training: sha256 {self._before} before, {after} after"
            )


@HOOKS.register_module()
class IterationSeedHook(Hook):
    """Seeds every iteration by (seed, iteration, process), so that a resumed run draws what the first would have.

    Nothing about random generators has to be stored, and validation or pictures in between change nothing.
    """

    priority = "HIGHEST"

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict[str, Any] | None = None
    ) -> None:
        """Seeds torch (all devices), numpy and Python."""
        entropy = np.random.SeedSequence((runner.seed, runner.iter, get_rank()))
        value = int(entropy.generate_state(1)[0])
        torch.manual_seed(value)
        np.random.seed(value)
        random.seed(value)


@HOOKS.register_module()
class GlobalLossHook(Hook):
    """Replaces the logged figures of this process by their mean over all processes: those of the global batch.

    A figure that a process does not have, because no sample of its batch gives it, counts 0 there: figures are scaled
    by shares of the global batch.
    """

    priority = "HIGHEST"

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: dict[str, Any] | None = None,
        outputs: dict[str, Any] | None = None,
    ) -> None:
        """Runs before MMEngine's own hook stores the figures."""
        if outputs and get_world_size() > 1:
            figures = {name: value.detach().float().clone() for name, value in outputs.items()}
            device = next(iter(figures.values())).device
            digest = zlib.crc32(repr(sorted(figures)).encode())
            bounds = torch.tensor([digest, -digest], device=device)
            all_reduce(bounds, op="max")
            if int(bounds.sum()):  # some process has other names
                everywhere: list[list[str]] = [[] for _ in range(get_world_size())]
                torch.distributed.all_gather_object(everywhere, list(figures))
                for name in (name for names in everywhere for name in names):
                    figures.setdefault(name, torch.zeros((), device=device))
            all_reduce_dict(figures, op="mean")
            outputs.update(figures)


@HOOKS.register_module()
class DeepSpeedHook(Hook):
    """Makes MMEngine's DeepSpeed support work with this torch; does nothing without DeepSpeed.

    - The optimizer steps outside autograd: MMEngine's wrapper leaves it on, and torch >= 2.9 then refuses DeepSpeed's
      in-place update ("Output 0 of SplitBackward0 is a view").
    - DeepSpeed stores its options in every checkpoint; as plain containers, so that ``xtuner train --resume``, which
      loads with torch's safe default, can read them.
    - A step in which processes hold samples of different heads is refused: ZeRO puts gradients into its buckets in the
      order of their arrival, and would add up those of different parameters.

    A hook, because ``xtuner train --deepspeed`` replaces any wrapper and strategy that a config names.

    Raises:
        ConfigError: The model is to hold frozen parameters that an earlier run trained, which DeepSpeed leaves out of
            checkpoints.
    """

    def before_train(self, runner: Runner) -> None:
        """Wraps ``step`` of this run's optimizer wrapper, and the engine's options; sets the model's guard."""
        if isinstance(runner.optim_wrapper, DeepSpeedOptimWrapper):
            model = unwrap(runner.model)
            if model.lmm.checkpoint_buffers:
                raise ConfigError(
                    "`model.train_lmm`=False puts frozen parameters of the LMM into checkpoints, and DeepSpeed leaves "
                    "them out; train without --deepspeed"
                )
            if set(model.checkpoint_buffers) - model.published:
                raise ConfigError(
                    "`model.freeze` puts frozen parameters of heads into checkpoints, and DeepSpeed leaves them out; "
                    "train without --deepspeed"
                )
            model.same_groups = True
            runner.optim_wrapper.step = torch.no_grad()(runner.optim_wrapper.step)
            engine = runner.optim_wrapper.model.model
            engine.config = ConfigDict(engine.config).to_dict()
