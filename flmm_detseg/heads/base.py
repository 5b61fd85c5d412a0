"""The head contract."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeAlias, TypeVar

from torch import Tensor, nn

from flmm_detseg.errors import ConfigError
from flmm_detseg.structures import CaptureSpec, Graph, GroundingBatch, LMMStates, Sample

if TYPE_CHECKING:
    from flmm_detseg.heads.neck import VisionNeck
    from flmm_detseg.heads.presence_score import PresenceScore
    from flmm_detseg.refiners import Refiner

P = TypeVar("P")
# One pass of the LMM with what a head captures, or what was kept of an answer.
Encode: TypeAlias = Callable[[GroundingBatch], LMMStates]


class Head(nn.Module, ABC, Generic[P]):
    """Turns captured LMM states into predictions of type P, one a sample. Takes built parts and scalars, never configs.

    Models, hooks and tools know heads by this contract alone, not by their names or classes.

    Attributes:
        tasks: Tasks (:attr:`Sample.task`) whose samples the head reads; it is given no others.
        result_of: Tasks whose result is this head's prediction: what validation measures and pictures show of their
            samples. None for heads whose prediction has no use without a target.
        by_sample: Losses and figures of :meth:`loss` that are means over samples, not over :meth:`num_targets`.
        optional_parts: Attributes that hold a part, or None. Checkpoints from before it was there load all the same:
            training begins with the part as it is built, a model for use goes without it.
        class_names: Classes in the order of the labels; empty for heads without classes.
        reads_token: Text of the token whose states the head reads, which must be one token of the LMM; None for none.
        token_id: Its id; given by the model when it is built.
    """

    tasks: ClassVar[frozenset[str]]
    result_of: ClassVar[frozenset[str]] = frozenset()
    by_sample: ClassVar[frozenset[str]] = frozenset()
    optional_parts: ClassVar[tuple[str, ...]] = ()
    class_names: tuple[str, ...] = ()
    reads_token: str | None = None
    token_id: int | None = None

    def wants(self, sample: Sample) -> bool:
        """Whether the head is given a sample. A head that learns from ``"joint"`` samples may leave those out that
        carry nothing for it; a sample of its own task without targets is given to it, and is an error.
        """
        return sample.task in self.tasks

    @property
    @abstractmethod
    def capture(self) -> CaptureSpec:
        """What the head needs from the LMM."""

    @abstractmethod
    def loss(self, states: LMMStates, batch: GroundingBatch) -> dict[str, Tensor]:
        """Scalars; keys containing ``loss`` are summed into the objective, others are logged.

        Args:
            states: What :attr:`capture` asked for, one entry a sample.
            batch: The samples with their targets and prepared inputs.

        Returns:
            Scalars by name, means over :meth:`num_targets` (those of :attr:`by_sample`: over the samples).

        Raises:
            DataError: A sample carries no target for this head.
        """

    def num_targets(self, batch: GroundingBatch) -> float:
        """How many targets (or sum of weights) the losses are averaged over: the weight of this process's share of a
        step.
        """
        return sum(inputs.num_phrases for inputs in batch.inputs)

    @abstractmethod
    def predict(self, states: LMMStates, batch: GroundingBatch) -> list[P]:
        """One prediction per sample, in order."""

    def run(self, encode: Encode, batch: GroundingBatch, *, keep_attention: bool = False) -> list[P]:
        """From samples to predictions; a head that needs more than one pass over a sample takes them here.

        Args:
            encode: Gives the states of a batch with :attr:`capture`.
            batch: The samples; those that ``encode`` is given may have some of their phrases only.
            keep_attention: Return the attention stack with each prediction, where there is one.

        Returns:
            One prediction per sample, in order.
        """
        return self.predict(encode(batch), batch)

    def graphs(self) -> list[Graph]:
        """What the head can be exported as; the weights are in float32. Nothing for heads that only read logits."""
        return []

    # What a page about features shows.

    @property
    def feature_neck(self) -> VisionNeck | None:
        """The pyramid that the head reads; None for heads without one."""
        return None

    @property
    def text_layer_shares(self) -> Tensor | None:
        """Share of each decoder layer in what is read of a phrase's tokens, ``[L]``; None where nothing is."""
        return None

    # Whether there is what is asked for.

    @property
    def presence_score(self) -> PresenceScore | None:
        """The part that says whether there is something; None for heads that do not say it."""
        return None

    @property
    def presence_threshold(self) -> float | None:
        """From which :attr:`Prediction.presence <flmm_detseg.structures.Prediction.presence>` on something counts as
        there, as it was fitted with the head; NaN where it never was, None without :attr:`presence_score`.
        """
        return None if self.presence_score is None else self.presence_score.fitted_threshold

    def presence_logits(self, states: LMMStates, batch: GroundingBatch) -> list[Tensor]:
        """What :attr:`presence_score` says, before calibration.

        Args:
            states: What :attr:`capture` asks for.
            batch: The samples.

        Returns:
            Per sample float32 ``[N_i]``: a logit for all that :meth:`is_there` tells about.

        Raises:
            ConfigError: There is no such part.
        """
        raise ConfigError(f"a {type(self).__name__} does not say whether there is something")

    def is_there(self, sample: Sample) -> Tensor:
        """Whether there is what a sample names or asks for.

        Args:
            sample: With its targets.

        Returns:
            bool ``[N]``.

        Raises:
            ConfigError: There is no such part.
            DataError: The targets do not say it.
        """
        raise ConfigError(f"a {type(self).__name__} does not say whether there is something")

    def class_probabilities(self, states: LMMStates, batch: GroundingBatch) -> list[Tensor]:
        """How sure the head is of each class at each pixel; for heads that give every pixel a class.

        Args:
            states: What :attr:`capture` asks for.
            batch: The samples.

        Returns:
            Per sample float32 ``[C, H, W]`` at the original size, which add up to 1 over the classes.

        Raises:
            ConfigError: The head does not.
        """
        raise ConfigError(f"a {type(self).__name__} gives no class to every pixel")

    # Classes by their words.

    @property
    def wants_class_embeddings(self) -> bool:
        """Whether classes are found by text embeddings, which :meth:`set_class_embeddings` must be given before use."""
        return False

    def set_class_embeddings(self, embeddings: Tensor, class_names: Sequence[str] | None = None) -> None:
        """Gives the head its classes; also another list than it was trained with.

        Args:
            embeddings: Float ``[N, hidden_size]``, e.g. the mean input embedding of each name's tokens.
            class_names: N names; None keeps the present ones.

        Raises:
            ConfigError: The head does not want them, or the shapes do not fit.
        """
        raise ConfigError(f"a {type(self).__name__} takes no class embeddings")

    def other_classes(self, embeddings: Tensor, class_names: Sequence[str]) -> AbstractContextManager[None]:
        """Context in which the head finds other classes; arguments and errors as :meth:`set_class_embeddings`."""
        raise ConfigError(f"a {type(self).__name__} takes no class embeddings")

    # Teachers: the same head as another training left it.

    @property
    def teachable(self) -> bool:
        """Whether the head has :meth:`soft_losses` and :meth:`pseudo_labelled`."""
        return False

    def soft_losses(
        self, states: LMMStates, batch: GroundingBatch, teacher: Head[Any], teacher_states: LMMStates
    ) -> dict[str, Tensor]:
        """How far the head's outputs are from a teacher's; 0 where they are the same.

        Args:
            states: What the head reads, one entry a sample.
            batch: The samples.
            teacher: A head of the same kind; gives the targets, without a gradient.
            teacher_states: What the teacher reads.

        Returns:
            ``loss_soft_*``, divided by :meth:`num_targets` of the batch.

        Raises:
            ConfigError: The head is not :attr:`teachable`.
        """
        raise ConfigError(f"a {type(self).__name__} learns from no teacher")

    def pseudo_labelled(self, states: LMMStates, batch: GroundingBatch, threshold: float) -> GroundingBatch:
        """The batch with what the head finds in place of its targets.

        Args:
            states: What the head reads.
            batch: The samples.
            threshold: Least probability of what counts.

        Returns:
            The same samples with other targets.

        Raises:
            ConfigError: The head is not :attr:`teachable`.
        """
        raise ConfigError(f"a {type(self).__name__} labels nothing")

    # Parts that several heads share.

    def trains(self, part: nn.Module) -> bool:
        """Whether the head's losses train a part that it shares with others; else it uses the part as it is."""
        return True

    def trained_parameters(self, part: nn.Module) -> list[nn.Parameter]:
        """Parameters of a shared part that the head's losses reach: all of a part that it trains, unless it says so."""
        return list(part.parameters()) if self.trains(part) else []

    def keep_as_is(self, part: nn.Module) -> None:
        """Called before training or loading when other heads train a part that this head uses without training it."""

    @property
    def lent_sam(self) -> Refiner | None:
        """A refiner that other heads may use as it is, without training it."""
        return None

    @property
    def refiner(self) -> Refiner | None:
        """What makes sharp masks for the head: its own refiner, or a borrowed one."""
        return self.lent_sam

    def borrow_sam(self, sam: Refiner) -> None:
        """Gives the head another one's refiner, to be used as it is; a head that has its own, or no use, ignores it."""


def named_heads(heads: Mapping[str, Head[Any]] | nn.ModuleDict) -> dict[str, Head[Any]]:
    """Heads by name, known as heads: a ``ModuleDict`` knows modules only.

    Args:
        heads: By name.

    Returns:
        The same ones, in the same order.
    """
    items: Iterable[tuple[str, Any]] = heads.items()
    return dict(items)


def head_of(heads: Mapping[str, Head[Any]] | nn.ModuleDict, task: str) -> Head[Any] | None:
    """The head whose prediction is the result of a task; None where no head predicts for it.

    Args:
        heads: By name. Of several that predict for the task, the one that is named as the task is meant.
        task: See :attr:`Sample.task`.

    Returns:
        The head, or None.

    Raises:
        ConfigError: Several do, and none has that name.
    """
    found = {name: head for name, head in named_heads(heads).items() if task in head.result_of}
    if task in found or len(found) < 2:
        return found.get(task) or next(iter(found.values()), None)
    raise ConfigError(
        f"the heads {', '.join(found)} all predict for task {task!r}; name the one that is meant {task!r}"
    )


def require_head(heads: Mapping[str, Head[Any]] | nn.ModuleDict, task: str) -> Head[Any]:
    """As :func:`head_of`.

    Args:
        heads: By name.
        task: See :attr:`Sample.task`.

    Returns:
        The head.

    Raises:
        ConfigError: No head, or several of them, predict for the task.
    """
    head = head_of(heads, task)
    if head is None:
        raise ConfigError(f"the model has no head for task {task!r} (heads: {', '.join(heads)})")
    return head


def checked_names(names: Sequence[str]) -> tuple[str, ...]:
    """Class names of a head.

    Args:
        names: As given in a config.

    Returns:
        The names, in their order.

    Raises:
        ConfigError: None, one that occurs twice, or the name of a list: only a config may use that.
    """
    if isinstance(names, str):
        raise ConfigError(
            f"`class_names` is {names!r}; in Python a head takes the names themselves "
            "(flmm_detseg.datasets.class_names.named_classes gives those of a list)"
        )
    names = tuple(names)
    if not names or len(set(names)) < len(names):
        raise ConfigError(f"`class_names` {names[:5]}... must be different names, at least one")
    return names
