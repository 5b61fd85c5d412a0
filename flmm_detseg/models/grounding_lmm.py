"""The assembly: one LMM, any heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.structures import InstanceData
from torch import Tensor, nn

from flmm_detseg.errors import ConfigError
from flmm_detseg.heads import Head, head_of, named_heads, require_head
from flmm_detseg.heads.language_head import answer_rows, distillation
from flmm_detseg.lmms import add_head_lora
from flmm_detseg.lmms.base import LMMAdapter
from flmm_detseg.lmms.capture.answer_text import phrase_inputs
from flmm_detseg.models.assembly import (
    build_balancer,
    build_heads,
    checked_isolation,
    freeze_parameters,
    give_class_embeddings,
    give_token_ids,
    lend_sam,
    refuse_shared,
)
from flmm_detseg.models.balancer import TaskBalancer
from flmm_detseg.models.build import build_lmm
from flmm_detseg.models.checkpoint import (
    fingerprint,
    frozen_parameters,
    load_parts,
    load_tensors,
    trainable_tensors,
)
from flmm_detseg.models.domain import Domain
from flmm_detseg.models.grounding_module import GroundingModule
from flmm_detseg.models.mask_answers import masks_of_answers
from flmm_detseg.models.objective import StepTotals, objective, parse_objective, step_totals
from flmm_detseg.models.retention import Retention
from flmm_detseg.models.shared_parts import other_names, save_once
from flmm_detseg.models.teachers import Teachers
from flmm_detseg.registry import MODELS
from flmm_detseg.structures import (
    AnswerWithMasks,
    CaptureSpec,
    Generation,
    GroundingBatch,
    LMMStates,
    Prediction,
    Sample,
)


@dataclass(frozen=True)
class _Group:
    """Samples that the same heads read."""

    batch: GroundingBatch
    heads: tuple[str, ...]
    capture: CaptureSpec


@MODELS.register_module()
class GroundingLMM(BaseModel, GroundingModule):
    """An LMM whose captured states are read by heads.

    Args:
        lmm: Adapter, or its config.
        heads: Heads by name, or their configs; the name is the prefix of losses and parameters (``heads.NAME.*``).
            Sizes that follow from the LMM may be left out.
        freeze: Prefixes of head parameters that are not trained, e.g. ``["phrase.mask_head"]``; of shared parts
            ``["parts.sam"]``. They come from ``init_from``, those of a refiner also from its own file; checkpoints hold
            them all the same.
        train_lmm: False: what an earlier run trained of the LMM comes from ``init_from`` and stays as it is, only heads
            are trained; checkpoints hold it all the same.
        balancer: Weights of the heads' losses and agreement of their gradients; None sums them.
        retention: How answers relate to those the LMM gave before: ``"frozen"``, ``"switched"`` or ``"always"``, see
            :class:`~flmm_detseg.models.retention.Retention`.
        isolate: Per head the LoRA groups its loss may change, e.g. ``dict(detection=["vision"])``; heads left out
            may change all. Heads that read the same samples share one pass and must agree.
        l2sp: Factor of the squared Frobenius norm of the LoRA products: the distance of the adapted weights from
            the LMM's own.
        instance_masks: Detected objects also get masks: the SAM that a head lends (the phrase head's), prompted with
            their boxes, with prompt encoder and mask decoder as they were before any training for phrases.
        head_lora: LoRA on the convolutions of heads whose weights ``init_from`` holds, e.g.
            ``dict(segmentation=dict(r=4, alpha=8))``, see :func:`~flmm_detseg.lmms.add_head_lora`. The adapted
            convolutions are frozen; checkpoints hold them all the same.
        init_from: Checkpoints to start from, each with tensors of this model only (another stage's, another task's).
        new_parts: Prefixes, or patterns with ``*``, of trainable parameters that ``init_from`` does not hold, e.g.
            ``["lmm.", "heads.*.lora_*"]``; every other one must be in one of the files.
        allow_other_lmm: Accept checkpoints whose tensors were trained on another LMM than this one, here and whenever
            one is loaded.
        parts: Parts by name, or their configs, that heads share: ``dict(sam=dict(type=...))``, and ``sam="sam"`` in
            the heads. Built once, parameters ``parts.NAME.*``, see :mod:`flmm_detseg.models.shared_parts`.
        teachers: Heads of an earlier stage that teach those of this one, e.g.
            ``dict(detection=dict(checkpoint="STAGE1.pth", form="soft"))``: ``form="soft"`` by their outputs,
            ``"labels"`` by what they find with at least ``threshold`` (0.5); ``weight`` (1) is the factor of these
            losses. They read the LMM as it was. For training only, see
            :class:`~flmm_detseg.models.teachers.Teachers`.

    Attributes:
        same_groups: Refuse steps in which processes hold samples of different heads (set for DeepSpeed).
        domain: Which pictures the model knows; set by :func:`~flmm_detseg.models.from_config.model_from_config`, None
            where nothing says it.
        built_from: The config that the same function built it from; None for a model that was put together in Python.

    Raises:
        ConfigError: A part cannot be built; names its key.
        CheckpointError: A file of ``init_from`` or ``teachers`` does not fit.
    """

    def __init__(
        self,
        lmm: Mapping[str, Any] | LMMAdapter,
        heads: Mapping[str, Mapping[str, Any] | Head[Any]],
        freeze: Sequence[str] = (),
        train_lmm: bool = True,
        balancer: Mapping[str, Any] | TaskBalancer | None = None,
        retention: str | None = None,
        isolate: Mapping[str, Sequence[str]] | None = None,
        l2sp: float = 0.0,
        instance_masks: bool = False,
        head_lora: Mapping[str, Mapping[str, Any]] | None = None,
        init_from: Sequence[str] = (),
        new_parts: Sequence[str] = (),
        allow_other_lmm: bool = False,
        parts: Mapping[str, Mapping[str, Any] | nn.Module] | None = None,
        teachers: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        super().__init__()
        self.allow_other_lmm = allow_other_lmm
        self.unloaded: frozenset[str] = frozenset()
        self.domain: Domain | None = None
        self.built_from: Config | None = None
        self.lmm = build_lmm(lmm)
        # Parts before heads: what they share gets the parts' names.
        self.parts, built = build_heads(heads, parts or {}, self.lmm)
        self.heads = nn.ModuleDict(built)
        if self.parts:
            save_once(self)
        if head_lora:
            refuse_shared(built, self.parts, head_lora)
            add_head_lora(built, head_lora)
        self.lmm.freeze_unread(self.capture.vision_layers)
        if not train_lmm:
            self.lmm.freeze_trained()
        self.checkpoint_buffers, self.published = freeze_parameters(self.heads, self.parts, freeze)
        self.balancer = build_balancer(balancer, self.lmm, built)
        self.retention = Retention(self.lmm, retention)
        if self.capture.base_logits:
            self.retention.require_base("distillation")
        self.isolate = checked_isolation(isolate or {}, built, self.lmm)
        self.same_groups = False
        self.l2sp = l2sp
        if l2sp and not self.lmm.lora_groups:
            raise ConfigError("`model.l2sp` keeps LoRA near the LMM's weights, but `model.lmm` has no `lora`")
        give_class_embeddings(built, self.lmm)
        give_token_ids(built, self.lmm)
        if teachers:
            self.retention.require_base("a teacher")
        # Before anything is lent or loaded: a teacher is a copy of the head alone.
        self.teachers = Teachers(teachers or {}, self)
        if instance_masks:
            lend_sam(built)
        kept = frozen_parameters(self) - self.published
        if init_from:
            loaded = load_parts(self, init_from, new_parts)
            self.published -= loaded
            kept -= loaded
        self.unloaded = kept
        self._name_parameters()

    def _name_parameters(self) -> None:
        others = other_names(self)
        # Optimizers see parameters only; GroupedAdamW groups by name.
        for name, parameter in self.named_parameters():
            parameter.flmm_name = name  # type: ignore[attr-defined]  # marks of ours on torch's class
            parameter.flmm_places = tuple(  # type: ignore[attr-defined]  # as above
                place + name.removeprefix(own) for place, own in others.items() if name.startswith(own)
            )

    def order_heads(self, names: Sequence[str]) -> None:
        """See the base class."""
        if list(names) != list(self.heads):
            self.heads = nn.ModuleDict({name: self.heads[name] for name in names})
            if self.balancer is not None:
                self.balancer.weighting.order(names)
            self._name_parameters()

    @property
    def capture(self) -> CaptureSpec:
        """Union of what the heads ask for."""
        return self._capture(list(self.heads))

    def _capture(self, names: Sequence[str]) -> CaptureSpec:
        spec, heads = CaptureSpec(), named_heads(self.heads)
        for name in names:
            spec = spec.union(heads[name].capture)
        return spec

    def forward(
        self, samples: list[Sample], mode: str = "tensor"
    ) -> dict[str, Tensor] | list[Any] | LMMStates:
        """MMEngine's entry.

        Args:
            samples: Records as data sets give them.
            mode: ``"loss"``, ``"predict"`` (by the samples' tasks, see :meth:`predict_tasks`) or ``"tensor"`` (the
                captured states).

        Returns:
            What :meth:`loss`, :meth:`predict_tasks` or :meth:`encode` returns.

        Raises:
            ConfigError: Unknown ``mode``; or see the method that it stands for.
        """
        if mode == "loss":
            return self.loss(samples)
        if mode == "predict":
            return self.predict_tasks(samples)
        if mode == "tensor":
            return self.encode(self.prepare(samples))
        raise ConfigError(f"mode {mode!r} is none of loss, predict, tensor")

    def loss(self, samples: list[Sample]) -> dict[str, Tensor]:
        """The objective's terms, and losses and figures of every head that has samples in the batch, for the log.

        Samples that the same heads read run through the LMM together, and only what these ask for is captured. A
        head's figures are means over its targets in the whole batch (or over its samples, see
        :attr:`Head.by_sample <flmm_detseg.heads.base.Head.by_sample>`), also where it reads several tasks. With
        several processes they are scaled by the process's share of the global batch's targets (the LMM's own auxiliary
        losses: of its samples), so that their mean over processes, and the gradient, is that of one process with the
        whole batch. Every trainable parameter gets a gradient, 0 where nothing of the batch reaches it.

        Args:
            samples: Of any tasks that the heads know.

        Returns:
            ``objective.loss_NAME``: terms, weighted by the balancer, to be summed. Without a graph: ``HEAD.NAME``,
            ``lmm.NAME`` and ``balancer.NAME``.

        Raises:
            ConfigError: No head reads a sample's task, or heads that share a pass disagree on ``isolate``.
            RunError: :attr:`same_groups` is set and the processes' batches differ in the heads they are for.
        """
        groups = self._groups(samples)
        totals = self._totals(groups)
        heads = named_heads(self.heads)
        losses: dict[str, Tensor] = {}
        for group in groups:
            # Before the adapted pass: a recomputing (checkpointed) backward must find the adapters as they were.
            base = self.teachers.states(group.heads, group.batch)
            with self._isolated(group.heads):
                states = self._encode(group.batch, group.capture)
            share = len(group.batch.samples) / totals.samples
            found = {f"lmm.{key}": share * value for key, value in self.lmm.auxiliary_losses().items()}
            for name in group.heads:
                head = heads[name]
                seen = self.balancer.gate(name, states) if self.balancer is not None else states
                by_target = head.num_targets(group.batch) / max(totals.targets[name], 1e-6)
                by_sample = len(group.batch) / totals.head_samples[name]
                taught = self.teachers.losses(name, head, seen, group.batch, base)
                for key, value in {**head.loss(seen, group.batch), **taught}.items():
                    found[f"{name}.{key}"] = (by_sample if key in head.by_sample else by_target) * value
            for key, value in found.items():
                losses[key] = losses[key] + value if key in losses else value
        if self.l2sp:
            losses["lmm.loss_l2sp"] = self.l2sp * self.lmm.lora_penalty()
        shared = [p for p in self.lmm.parameters() if p.requires_grad]
        trainable = [p for p in self.parameters() if p.requires_grad]
        return objective(losses, totals.heads, self.balancer, shared, trainable)

    def parse_losses(self, losses: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """MMEngine's hook from :meth:`loss` to the number to minimise and the figures to log."""
        return parse_objective(losses)

    def _groups(self, samples: Sequence[Sample]) -> list[_Group]:
        heads = named_heads(self.heads)
        members: dict[tuple[str, ...], list[Sample]] = {}
        for sample in samples:
            names = tuple(name for name, head in heads.items() if head.wants(sample))
            if not names:
                known = sorted(set().union(*(head.tasks for head in heads.values())))
                raise ConfigError(
                    f"{sample.record_id}: no head reads task {sample.task!r} (the model's heads read: "
                    f"{', '.join(known)}); add a head, or leave the data set out"
                )
            members.setdefault(names, []).append(sample)
        # One order in all processes: ZeRO adds up gradients in the order in which they arrive.
        order = list(heads)
        found = sorted(members.items(), key=lambda item: [order.index(name) for name in item[0]])
        return [_Group(self.prepare(group), names, self._capture(names)) for names, group in found]

    def _totals(self, groups: Sequence[_Group]) -> StepTotals:
        targets = {
            name: float(sum(head.num_targets(g.batch) for g in groups if name in g.heads))
            for name, head in named_heads(self.heads).items()
        }
        names = [group.heads for group in groups]
        sizes = [len(group.batch) for group in groups]
        return step_totals(targets, names, sizes, self.lmm.device, same_groups=self.same_groups)

    def _isolated(self, heads: Sequence[str]) -> Any:
        """While the graph is built, only these LoRA groups are in it."""
        wanted = {self.isolate.get(name) for name in heads}
        if len(wanted) > 1:
            raise ConfigError(
                f"`model.isolate`: the heads {', '.join(heads)} read the same samples in one pass and must name the "
                "same groups"
            )
        groups = wanted.pop()
        return nullcontext() if groups is None else self.lmm.lora_gradients(groups)

    def predict_tasks(self, samples: Sequence[Sample]) -> list[Prediction | InstanceData | Tensor]:
        """What validation measures, one per sample, in order: the predictions of the heads for the samples' tasks.

        Args:
            samples: Of any tasks that have a head.

        Returns:
            By the sample's task: a :class:`Prediction` of its phrases, ``InstanceData`` of objects, or a class map
            (int64 ``[H, W]``), in original pixels.

        Raises:
            ConfigError: The model has no head for a sample's task, or the task has no prediction (answers).
        """
        found: dict[int, Any] = {}
        for task in dict.fromkeys(sample.task for sample in samples):
            members = [i for i, sample in enumerate(samples) if sample.task == task]
            heads = named_heads(self.heads).values()
            if head_of(self.heads, task) is None and any(task in head.tasks for head in heads):
                known = sorted(set().union(*(head.result_of for head in heads)))
                raise ConfigError(
                    f"{samples[members[0]].record_id}: samples of task {task!r} cannot validate a training (those of "
                    f"{', '.join(known) or 'no task'} can); measure answers with tools/eval_vqa.py"
                )
            found.update(zip(members, self.results(task, [samples[i] for i in members]), strict=True))
        return [found[i] for i in range(len(samples))]

    @torch.no_grad()
    def results(self, task: str, samples: list[Sample], *, keep_attention: bool = False) -> list[Any]:
        """Predictions of the head whose result a task is, one per sample, in order.

        Args:
            task: Of the result, whatever the samples' own is.
            samples: Records; targets are not needed.
            keep_attention: See :meth:`Head.run <flmm_detseg.heads.base.Head.run>`.

        Returns:
            See :meth:`predict_tasks`.

        Raises:
            ConfigError: No head predicts for the task.
            RunError: Predictions hold NaN or infinities; names the sample.
        """
        head = require_head(self.heads, task)
        encode = partial(self._encode, capture=head.capture)
        return head.run(encode, self.prepare(samples), keep_attention=keep_attention)

    @torch.no_grad()
    def presence_logits(self, task: str, samples: list[Sample]) -> list[Tensor]:
        """What the head of a task says about presence, before calibration.

        Args:
            task: ``"phrase"`` or ``"reasoning"``.
            samples: Records of this task.

        Returns:
            Per sample float32 ``[K]``, one for each of its phrases; of questions that are answered with mask tokens
            ``[1]``, which depends on image and question alone.

        Raises:
            ConfigError: No head predicts for the task, or it does not say it.
        """
        head = require_head(self.heads, task)
        batch = self.prepare(samples)
        return head.presence_logits(self._encode(batch, head.capture), batch)

    def predict(self, samples: list[Sample], *, keep_attention: bool = False) -> list[Prediction]:
        """Masks, boxes and scores of the samples' phrases; ``keep_attention`` whatever the head is set to."""
        return self.results("phrase", samples, keep_attention=keep_attention)

    def detect(self, samples: list[Sample]) -> list[InstanceData]:
        """Objects per sample: ``bboxes`` (xyxy, original pixels), ``scores``, ``labels``; ``masks`` with a refiner."""
        return self.results("detection", samples)

    def segment(self, samples: list[Sample]) -> list[Tensor]:
        """Class map per sample, int64 ``[H, W]``, original size."""
        return self.results("segmentation", samples)

    def class_probabilities(self, samples: list[Sample]) -> list[Tensor]:
        """Probability of each class at each pixel, per sample float32 ``[C, H, W]``, original size."""
        head, batch = require_head(self.heads, "segmentation"), self.prepare(samples)
        return head.class_probabilities(self._encode(batch, head.capture), batch)

    @torch.no_grad()
    def predict_answer(
        self, sample: Sample, generation: Generation, *, keep_attention: bool = False
    ) -> Prediction:
        """The prediction of :meth:`predict` for phrases of a generated answer, without another pass of the LMM.

        Args:
            sample: The question with ``text`` the answer's text and ``phrases`` parts of it.
            generation: From :meth:`answer_with_states`.
            keep_attention: See :meth:`predict`.

        Returns:
            Masks (original size), boxes (xyxy, original pixels) and scores of the K phrases.
        """

        def encode(batch: GroundingBatch) -> LMMStates:
            return self.lmm.states_of_phrases(generation, batch.samples[0].phrases)

        batch = GroundingBatch([sample], [phrase_inputs(generation, sample.phrases)])
        return require_head(self.heads, "phrase").run(encode, batch, keep_attention=keep_attention)[0]

    def answer(self, sample: Sample, *, max_new_tokens: int = 128) -> str:
        """Greedy answer to a question, in the retention mode of the model.

        Plain questions (task ``"vqa"``) are answered by the untouched LMM where retention is not ``"always"``;
        instructions that ask for boxes or masks (tasks ``"joint"``, ``"reasoning"``) always by the adapted one.
        """
        with self.retention.answering(sample):
            return self.lmm.generate(sample, max_new_tokens=max_new_tokens)

    @property
    def answer_capture(self) -> CaptureSpec:
        """What an answer has to keep for the heads that read it: of phrases, of mask tokens.

        Raises:
            ConfigError: The model has neither.
        """
        found = [head_of(self.heads, task) for task in ("phrase", "reasoning")]
        readers = [head for head in found if head is not None] or [require_head(self.heads, "phrase")]
        capture = CaptureSpec()
        for head in readers:
            capture = capture.union(head.capture)
        return capture

    def answer_with_states(self, sample: Sample, *, max_new_tokens: int = 128) -> Generation:
        """The answer of :meth:`answer` with the states that :attr:`answer_capture` names.

        Where the untouched LMM answers, the states are the untouched LMM's.
        """
        capture = self.answer_capture
        with self.retention.answering(sample):
            return self.lmm.generate_with_states(sample, capture, max_new_tokens=max_new_tokens)

    def answer_with_masks(self, sample: Sample, *, max_new_tokens: int = 128) -> AnswerWithMasks:
        """The answer of :meth:`answer` with a mask for each mask token (``[SEG]``) that it holds.

        The states are those that the answer was written with. Where the untouched LMM answers there is no such token.

        Args:
            sample: A question; of task ``"reasoning"`` it asks for masks, in every retention mode.
            max_new_tokens: Longest answer.

        Returns:
            Text, names, masks (original size), boxes (xyxy, original pixels) and scores.

        Raises:
            ConfigError: The model has no head for task ``"reasoning"``.
        """
        return self.answers_with_masks([sample], max_new_tokens=max_new_tokens)[0]

    def answers_with_masks(
        self, samples: Sequence[Sample], *, max_new_tokens: int = 128
    ) -> list[AnswerWithMasks]:
        """:meth:`answer_with_masks` of several questions, whose answers grow in step where the LMM can do so
        (:meth:`LMMAdapter.generate_together <flmm_detseg.lmms.base.LMMAdapter.generate_together>`).
        """
        head = require_head(self.heads, "reasoning")
        found: dict[int, Generation] = {}
        # Two groups: plain questions go to the untouched LMM.
        for plain in (False, True):
            members = [i for i, sample in enumerate(samples) if self.retention.plain(sample) is plain]
            if members:
                with self.retention.answering(samples[members[0]]):
                    answers = self.lmm.generate_together(
                        [samples[i] for i in members], head.capture, max_new_tokens=max_new_tokens
                    )
                found.update(zip(members, answers, strict=True))
        generations = [found[i] for i in range(len(samples))]
        return masks_of_answers(self.lmm, head, samples, generations)

    def masks_of_answer(self, sample: Sample, generation: Generation) -> AnswerWithMasks:
        """As :meth:`answer_with_masks`, of an answer from :meth:`answer_with_states`."""
        head = require_head(self.heads, "reasoning")
        return masks_of_answers(self.lmm, head, [sample], [generation])[0]

    @torch.no_grad()
    def answer_kl(self, samples: list[Sample]) -> list[float | None]:
        """``KL(base || model)`` per sample: mean over the answer's tokens (``sample.text``, teacher-forced), nats.

        Args:
            samples: With answers in ``text``.

        Returns:
            One number of at least 0 per sample; 0 for those that the untouched LMM answers, None for those that only
            parts of the LMM read (:meth:`LMMAdapter.needs_parts`).

        Raises:
            ConfigError: The LMM as it was is gone.
        """
        self.retention.require_base("the divergence from the base model")
        batch = self.prepare(samples)
        states = self.lmm.encode(batch.inputs, CaptureSpec(logits=True))
        base_logits = self._base_logits(batch, [None] * len(samples))
        result: list[float | None] = []
        assert states.logits is not None  # both were asked for
        assert states.logits_start is not None
        for i, (sample, inputs) in enumerate(zip(batch.samples, batch.inputs, strict=True)):
            start, base = states.logits_start[i], base_logits[i]
            if base is None:
                result.append(None)
                continue
            teacher = answer_rows(base, start, inputs)[0]
            student = (
                teacher if self.retention.plain(sample) else answer_rows(states.logits[i], start, inputs)[0]
            )
            result.append(float(distillation(student, teacher, 1.0, self.lmm.added_ids).mean()))
        return result

    def prepare(self, samples: list[Sample]) -> GroundingBatch:
        """Tokens, pixels and geometry of every sample (CPU)."""
        return GroundingBatch(list(samples), [self.lmm.prepare(sample) for sample in samples])

    def encode(self, batch: GroundingBatch) -> LMMStates:
        """One LMM pass over the batch; images that several samples share run once."""
        return self._encode(batch, self.capture)

    def _encode(self, batch: GroundingBatch, capture: CaptureSpec) -> LMMStates:
        keys = [sample.image_id for sample in batch.samples]
        # Before the adapted pass: a recomputing (checkpointed) backward must find the adapters as they were.
        base_logits = self._base_logits(batch, keys) if capture.base_logits else None
        states = self.lmm.encode(batch.inputs, capture, keys)
        if base_logits is None:
            return states
        return replace(states, base_logits=base_logits, added_ids=self.lmm.added_ids)

    @torch.no_grad()
    def _base_logits(self, batch: GroundingBatch, keys: Sequence[str | None]) -> list[Tensor | None]:
        """Logits of the untouched LMM; None for samples that show what only parts of the LMM read."""
        readable = [index for index, sample in enumerate(batch.samples) if not self.lmm.needs_parts(sample)]
        if not readable:
            return [None] * len(batch)
        with self.lmm.base_mode():
            states = self.lmm.encode(
                [batch.inputs[index] for index in readable],
                CaptureSpec(logits=True),
                [keys[index] for index in readable],
            )
        assert states.logits is not None
        found = dict(zip(readable, states.logits, strict=True))
        return [found.get(index) for index in range(len(batch))]

    def trainable_state_dict(self) -> dict[str, Tensor]:
        """The tensors a checkpoint holds, by full name: parameters with ``requires_grad``, and what the LMM holds."""
        return trainable_tensors(self)

    def load_trainable(self, state_dict: Mapping[str, Tensor], source: str) -> None:
        """Loads what :meth:`trainable_state_dict` gave; also a published F-LMM state dict.

        Args:
            state_dict: Tensors by name.
            source: File the tensors came from, for errors.

        Raises:
            CheckpointError: Keys are missing, unexpected or of another shape; lists them.
        """
        load_tensors(self, state_dict, source)

    def frozen_fingerprint(self) -> str:
        """sha256 over the LMM's frozen parameters and its buffers: equal if and only if every bit is."""
        return fingerprint(self.lmm)
