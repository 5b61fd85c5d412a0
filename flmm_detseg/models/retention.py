"""Retention: whether an LMM still gives the answers that it gave before anything was added to it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from flmm_detseg.errors import ConfigError
from flmm_detseg.lmms.base import LMMAdapter
from flmm_detseg.structures import Sample

MODES = ("frozen", "switched", "always")
# Tasks that ask for boxes or masks in the answer: the LMM as it was has nothing to say to them.
INSTRUCTIONS = frozenset({"joint", "reasoning"})


class Retention:
    """Which questions the LMM answers as it was, and whether it can.

    Args:
        lmm: The adapter.
        mode: ``"frozen"``: nothing was added to the LMM. ``"switched"``: adapters are on for the heads and off for
            plain questions; answers are bit-identical. ``"always"``: adapters are on; measure what was
            forgotten (``tools/eval_forgetting.py``). None: ``"frozen"`` without adapters, else ``"always"``.

    Raises:
        ConfigError: No such mode, or one that the LMM cannot keep.
    """

    def __init__(self, lmm: LMMAdapter, mode: str | None = None) -> None:
        self._lmm = lmm
        if mode is None:
            mode = "always" if lmm.adapted else "frozen"
        if mode not in MODES:
            raise ConfigError(f"`model.retention` is {mode!r}; allowed: {', '.join(MODES)}")
        if mode == "frozen" and lmm.adapted:
            raise ConfigError(
                "`model.retention`='frozen' leaves the LMM as it is, but `model.lmm` is adapted (`lora`, "
                "`frozen`=False, or isolated groups); leave that out, or use 'switched'"
            )
        self.mode = mode
        if mode == "switched":
            self.require_base("retention='switched'")

    @property
    def keeps_base(self) -> bool:
        """See :attr:`LMMAdapter.keeps_base`."""
        return self._lmm.keeps_base

    def require_base(self, what: str) -> None:
        """For what compares with, or returns to, the LMM as it was.

        Args:
            what: What asks for it, for the error.

        Raises:
            ConfigError: The LMM was fully fine-tuned, or LoRA merged into it.
        """
        if not self.keeps_base:
            raise ConfigError(
                "the original LMM is lost (`model.lmm` has `frozen`=False without `lora`, trains weights of it, or "
                f"its LoRA was merged): {what} is not possible; use `lora`"
            )

    def plain(self, sample: Sample) -> bool:
        """Whether a question goes to the LMM as it was; instructions for boxes or masks (:data:`INSTRUCTIONS`), and
        questions that only parts of the LMM can read (:meth:`LMMAdapter.needs_parts`), never do.
        """
        return self.mode != "always" and sample.task not in INSTRUCTIONS and not self._lmm.needs_parts(sample)

    def answering(self, sample: Sample) -> AbstractContextManager[None]:
        """The mode of the LMM in which it answers a question."""
        return self._lmm.base_mode() if self.plain(sample) else nullcontext()
