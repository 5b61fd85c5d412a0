"""Detectors and segmenters of an earlier stage as teachers: frozen copies of heads that read the LMM as it was."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flmm_detseg.errors import CheckpointError, ConfigError
from flmm_detseg.heads import Head
from flmm_detseg.models.checkpoint import check_finite, check_lmm, read_checkpoint, trainable_tensors
from flmm_detseg.models.grounding_module import GroundingModule
from flmm_detseg.structures import CaptureSpec, GroundingBatch, LMMStates
from flmm_detseg.utils.values import is_number

FORMS = ("soft", "labels")
_KEYS = ("checkpoint", "form", "weight", "threshold")
_DEFAULTS = {"form": "soft", "weight": 1.0, "threshold": 0.5}


@dataclass(frozen=True)
class Teacher:
    """A head as an earlier stage left it. No module of the model: not trained, not in its checkpoints.

    Attributes:
        head: In evaluation mode, without gradients.
        form: ``"soft"``: its outputs are the targets; ``"labels"``: what it finds with at least ``threshold``.
        weight: Factor of its losses.
        threshold: Least probability of a pseudo-label.
    """

    head: Head[Any]
    form: str
    weight: float
    threshold: float


class Teachers(Mapping[str, Teacher]):
    """What earlier stages' heads say of a batch, as further losses of the heads of their names.

    A teacher reads the vision maps of the LMM without adapters, on which it was trained.

    Args:
        settings: ``model.teachers``: by head, ``dict(checkpoint=..., form=..., weight=..., threshold=...)``.
        model: Whose heads are taught; they are as built, nothing is loaded or lent yet.

    Raises:
        ConfigError: An unknown head or key, a head that cannot be taught, or a wrong value.
        CheckpointError: The file lacks tensors of the head, has them in another shape or for another LMM, or was
            trained on an adapted LMM.
    """

    def __init__(self, settings: Mapping[str, Mapping[str, Any]], model: GroundingModule) -> None:
        self._lmm = model.lmm
        self._teachers: dict[str, Teacher] = {}
        for name, given in settings.items():
            if name not in model.heads:
                raise ConfigError(f"`model.teachers`: {name!r} is none of the heads {', '.join(model.heads)}")
            head: Any = model.heads[name]
            self._teachers[name] = _build(name, head, given, model)

    def __getitem__(self, name: str) -> Teacher:
        return self._teachers[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._teachers)

    def __len__(self) -> int:
        return len(self._teachers)

    def capture(self, names: Sequence[str]) -> CaptureSpec | None:
        """What the teachers of these heads read; None where they have none."""
        specs = [self._teachers[name].head.capture for name in names if name in self._teachers]
        spec = CaptureSpec()
        for item in specs:
            spec = spec.union(item)
        return spec if specs else None

    @torch.no_grad()
    def states(self, names: Sequence[str], batch: GroundingBatch) -> LMMStates | None:
        """States of the LMM as it was.

        Args:
            names: Heads that read the batch.
            batch: The samples.

        Returns:
            What :meth:`capture` names; None where none of the heads has a teacher.

        Raises:
            ConfigError: A sample shows what only parts of the LMM read.
        """
        capture = self.capture(names)
        if capture is None:
            return None
        for sample in batch.samples:
            if self._lmm.needs_parts(sample):
                raise ConfigError(
                    f"{sample.record_id}: a teacher reads the LMM as it was, which knows no such input "
                    "(`model.lmm.parts`); leave `model.teachers` out, or the data set"
                )
        with self._lmm.base_mode():
            return self._lmm.encode(batch.inputs, capture, [sample.image_id for sample in batch.samples])

    def losses(
        self, name: str, head: Head[Any], seen: LMMStates, batch: GroundingBatch, base: LMMStates | None
    ) -> dict[str, Tensor]:
        """Further losses of a head, divided by what its own are divided by.

        Args:
            name: Of the head.
            head: The one that learns.
            seen: States that it reads.
            batch: The samples.
            base: Of :meth:`states`.

        Returns:
            ``loss_soft_*`` or ``loss_teacher_*``, times the teacher's weight; nothing without a teacher.
        """
        if name not in self._teachers or base is None or not len(batch):
            return {}
        teacher = self._teachers[name]
        # Not where the head's parameters are: ZeRO may keep those elsewhere between the passes.
        teacher.head.to(device=self._lmm.device, dtype=next(head.parameters()).dtype)
        if teacher.form == "soft":
            found = head.soft_losses(seen, batch, teacher.head, base)
            return {key: teacher.weight * value for key, value in found.items()}
        with torch.no_grad():
            labelled = teacher.head.pseudo_labelled(base, batch, teacher.threshold)
        # Means over the teacher's targets become sums over the batch's own number, as the head's other losses.
        share = teacher.weight * head.num_targets(labelled) / max(head.num_targets(batch), 1e-6)
        return {
            key.replace("loss_", "loss_teacher_", 1): share * value
            for key, value in head.loss(seen, labelled).items()
            if key.startswith("loss_")
        }


def _build(name: str, head: Head[Any], given: Mapping[str, Any], model: GroundingModule) -> Teacher:
    where = f"`model.teachers.{name}`"
    if not isinstance(given, Mapping):
        raise ConfigError(f"{where} is {given!r}; give dict(checkpoint=...)")
    if unknown := sorted(set(given) - set(_KEYS)):
        raise ConfigError(f"{where} has no key {', '.join(unknown)}; known: {', '.join(_KEYS)}")
    if not head.teachable:
        raise ConfigError(
            f"{where}: a {type(head).__name__} learns from no teacher; detection and segmentation heads do"
        )
    values = {**_DEFAULTS, **given}
    if values["form"] not in FORMS:
        raise ConfigError(f"{where}: `form` is {values['form']!r}; allowed: {', '.join(FORMS)}")
    for key in ("weight", "threshold"):
        if not is_number(values[key]) or values[key] <= 0:
            raise ConfigError(f"{where}: `{key}` is {values[key]!r}; give a positive number")
    if values["threshold"] > 1:
        raise ConfigError(f"{where}: `threshold` is {values['threshold']!r}; no probability is above 1")
    if values["form"] == "soft" and "threshold" in given:
        raise ConfigError(f"{where}: `threshold` is that of `form`='labels'; soft targets have none")
    if not values.get("checkpoint"):
        raise ConfigError(f"{where} needs `checkpoint`: the file of the stage that trained this head alone")
    taught = copy.deepcopy(head)
    _load(taught, name, str(values["checkpoint"]), model)
    taught.requires_grad_(False).eval()
    return Teacher(taught, values["form"], float(values["weight"]), float(values["threshold"]))


@torch.no_grad()
def _load(head: Head[Any], name: str, file: str, model: GroundingModule) -> None:
    checkpoint = read_checkpoint(file)
    check_lmm(model, checkpoint, file, start=True)
    if any(key.startswith("lmm.") for key in checkpoint.tensors):
        raise CheckpointError(
            f"{file} was trained with an adapted LMM; a teacher reads the LMM as it was: give the checkpoint of the "
            f"stage that trained the head {name!r} alone"
        )
    prefix = f"heads.{name}."
    given = {key[len(prefix) :]: value for key, value in checkpoint.tensors.items() if key.startswith(prefix)}
    wanted = trainable_tensors(head)
    wrong = sorted(set(wanted) ^ set(given))
    wrong += [key for key in wanted if key in given and given[key].shape != wanted[key].shape]
    if wrong:
        raise CheckpointError(
            f"{file} does not hold the head {name!r} of this model; missing, unexpected or of another shape: "
            f"{', '.join(wrong[:5])}{f' and {len(wrong) - 5} more' if len(wrong) > 5 else ''}"
        )
    check_finite(given, file)
    for key, value in given.items():
        wanted[key].copy_(value)
