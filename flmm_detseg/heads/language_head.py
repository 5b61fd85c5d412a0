"""The language head: cross-entropy on the answer's tokens, and distillation to the untouched LMM."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from flmm_detseg.errors import ConfigError, DataError
from flmm_detseg.heads.base import Head
from flmm_detseg.registry import MODELS
from flmm_detseg.structures import CaptureSpec, GroundingBatch, LMMInputs, LMMStates

_IGNORED = -100


@MODELS.register_module()
class LanguageHead(Head[Tensor]):
    """Language loss of an adapted LMM. Has no weights of its own: it reads the LMM's language head.

    Args:
        answer_weight: Factor of the cross-entropy on the answer's tokens.
        distill_weight: Factor of the distillation; 0 saves the second pass.
        temperature: T of the distillation; the divergence is multiplied by its square, so that the size of the
            gradient does not depend on it.
        distill_tasks: Tasks distilled. Joint answers, and those with mask tokens, speak a language the base model never
            learned: it has nothing to say about them. Nor has it about what only parts of the LMM read (regions,
            modalities with a projector of their own): such questions are left out, too.

    Raises:
        ConfigError: A weight is negative, the temperature is not positive, or a task is not one of the head's.

    Source: Hinton et al., arXiv 1503.02531, section 2 (temperature); cross-entropy as LLaVA's instruction tuning.
    """

    tasks = frozenset({"vqa", "joint", "reasoning"})

    def __init__(
        self,
        answer_weight: float = 1.0,
        distill_weight: float = 0.0,
        temperature: float = 2.0,
        distill_tasks: tuple[str, ...] = ("vqa",),
    ) -> None:
        super().__init__()
        if answer_weight < 0 or distill_weight < 0 or answer_weight + distill_weight == 0:
            raise ConfigError(
                f"answer_weight={answer_weight}, distill_weight={distill_weight}: they must not be negative, nor "
                "both 0"
            )
        if temperature <= 0:
            raise ConfigError(f"temperature={temperature} must be positive")
        if unknown := set(distill_tasks) - self.tasks:
            raise ConfigError(f"distill_tasks {sorted(unknown)} are none of {', '.join(sorted(self.tasks))}")
        self.answer_weight = answer_weight
        self.distill_weight = distill_weight
        self.temperature = temperature
        self.distill_tasks = frozenset(distill_tasks)

    @property
    def capture(self) -> CaptureSpec:
        """Logits of the answer; the untouched LMM's too where they are distilled."""
        return CaptureSpec(logits=True, base_logits=self.distill_weight > 0)

    def num_targets(self, batch: GroundingBatch) -> float:
        """Weights of the tokens learned: the losses are means by them."""
        learned = [(inputs.labels != _IGNORED, inputs.label_weights) for inputs in batch.inputs]
        return float(sum(mask.sum() if weights is None else weights[mask].sum() for mask, weights in learned))

    def loss(self, states: LMMStates, batch: GroundingBatch) -> dict[str, Tensor]:
        """Losses over all answer tokens of the batch.

        Args:
            states: With logits, and base logits where distillation is on.
            batch: Samples with answers.

        Returns:
            ``loss_answer``, ``answer_accuracy`` (teacher-forced, logged), and ``loss_distill`` where it is on and
            the batch holds a sample that is distilled; means by the tokens' weights (``LMMInputs.label_weights``).

        Raises:
            DataError: A sample has no answer.
        """
        assert states.logits is not None  # `capture` asks for them
        assert states.logits_start is not None
        logits, labels, weights = [], [], []
        for index, inputs in enumerate(batch.inputs):
            rows, targets, weight = answer_rows(states.logits[index], states.logits_start[index], inputs)
            if not len(targets):
                raise DataError(f"{inputs.record_id}: no answer token to learn; its text is empty")
            logits.append(rows)
            labels.append(targets)
            weights.append(weight)
        flat, targets, weight = torch.cat(logits).float(), torch.cat(labels), torch.cat(weights)
        nll = F.cross_entropy(flat, targets, reduction="none")
        total = weight.sum().clamp(min=1e-6)
        result = {
            "loss_answer": self.answer_weight * (weight * nll).sum() / total,
            "answer_accuracy": ((weight * (flat.argmax(-1) == targets)).sum() / total).detach(),
        }
        if self.distill_weight > 0:
            assert states.base_logits is not None
            taught = {
                i: base
                for i, base in enumerate(states.base_logits)
                if base is not None and batch.samples[i].task in self.distill_tasks
            }
            if taught:
                teacher = [
                    answer_rows(base, states.logits_start[i], batch.inputs[i])[0]
                    for i, base in taught.items()
                ]
                student = torch.cat([logits[i] for i in taught])
                divergence = distillation(
                    student, torch.cat(teacher), self.temperature, states.added_ids or ()
                )
                # A mean over all answer tokens, as the cross-entropy's, so that both scale alike over processes.
                own = torch.cat([weights[i] for i in taught])
                result["loss_distill"] = self.distill_weight * (own * divergence).sum() / total
        return result

    def predict(self, states: LMMStates, batch: GroundingBatch) -> list[Tensor]:
        """Per sample the most likely token at each answer position (teacher-forced), int64 ``[A]``."""
        assert states.logits is not None  # `capture` asks for them
        assert states.logits_start is not None
        return [
            answer_rows(states.logits[i], states.logits_start[i], inputs)[0].argmax(-1)
            for i, inputs in enumerate(batch.inputs)
        ]


def answer_rows(logits: Tensor, start: int, inputs: LMMInputs) -> tuple[Tensor, Tensor, Tensor]:
    """Cuts out the rows that predict learned tokens.

    Args:
        logits: ``[T - start, V]``, row i predicts token ``start + i + 1`` (``LMMStates.logits``).
        start: Position of row 0.
        inputs: Labels of the sample.

    Returns:
        Rows ``[A, V]``, labels int64 ``[A]`` and label weights float32 ``[A]``, on the device of the logits.
    """
    labels = inputs.labels[start + 1 :].to(logits.device)
    weights = torch.ones(len(inputs.labels)) if inputs.label_weights is None else inputs.label_weights
    weights = weights[start + 1 :].to(logits.device)
    learned = labels != _IGNORED
    return logits[: len(labels)][learned], labels[learned], weights[learned]


def distillation(
    student: Tensor, teacher: Tensor, temperature: float, added_ids: Sequence[int] = ()
) -> Tensor:
    """``T^2 * KL(teacher || student)`` per token at temperature T, over the words both know.

    Args:
        student: ``[A, V]`` logits.
        teacher: ``[A, V']`` logits; where one has more than the other, those at the end are left out.
        temperature: T.
        added_ids: Tokens that only the student knows, wherever they are; left out of both.

    Returns:
        float32 ``[A]``, no gradient to the teacher.
    """
    known = min(student.shape[-1], teacher.shape[-1])
    student, teacher = student[:, :known], teacher[:, :known].detach()
    if within := [token_id for token_id in added_ids if token_id < known]:
        words = torch.ones(known, dtype=torch.bool, device=student.device)
        words[within] = False
        student, teacher = student[:, words], teacher[:, words]
    log_student = F.log_softmax(student.float() / temperature, dim=-1)
    log_teacher = F.log_softmax(teacher.float() / temperature, dim=-1)
    divergence = (log_teacher.exp() * (log_teacher - log_student)).sum(-1)
    return divergence * temperature**2
