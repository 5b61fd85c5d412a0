"""A learned vector for each task, by the task's name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from flmm_detseg.errors import ConfigError

# Rows of `weight`, in this order: what every checkpoint holds. A new task is no entry here but a row of its own.
TASKS = ("phrase", "detection", "segmentation", "vqa", "joint")


class TaskRows(nn.Module):
    """Vectors by task. More tasks may be added at any time: checkpoints that do not know them still load.

    Tensors, and thus checkpoints, gradients and their norm, are those of an embedding of :data:`TASKS`; each added task
    is a parameter ``added.NAME`` beside it.

    Args:
        channels: d.
        added: Names of further tasks.

    Attributes:
        weight: ``[len(TASKS), d]``.
        added: ``[d]`` by name.

    Raises:
        ConfigError: A name is no identifier, occurs twice, or has a row already.
    """

    def __init__(self, channels: int, added: Sequence[str] = ()) -> None:
        super().__init__()
        _check_names(added)
        self.weight = nn.Parameter(torch.empty(len(TASKS), channels))
        nn.init.normal_(self.weight)
        # Drawn after the others, so that their initial values do not depend on what is added.
        self.added = nn.ParameterDict({name: nn.Parameter(torch.randn(channels)) for name in added})

    @property
    def tasks(self) -> tuple[str, ...]:
        """Tasks that have a row."""
        return (*TASKS, *self.added)

    def forward(self, tasks: Sequence[str]) -> Tensor:
        """Rows ``[B, d]`` of B samples' tasks.

        Args:
            tasks: One a sample.

        Returns:
            float32 ``[B, d]`` with a gradient to the rows.

        Raises:
            ConfigError: A task has no row.
        """
        for task in tasks:
            self.require(task)
        rows: Tensor = self.weight
        if self.added:
            rows = torch.cat([rows, torch.stack(list(self.added.values()))])
        index = torch.tensor([self.tasks.index(task) for task in tasks], device=rows.device)
        return nn.functional.embedding(index, rows)

    def require(self, task: str, where: str = "") -> None:
        """Checks that a task has a row.

        Args:
            task: Its name.
            where: Whose task it is, for the error.

        Raises:
            ConfigError: It has none.
        """
        if task not in self.tasks:
            raise ConfigError(
                f"{where + ': ' if where else ''}the gate has no row for task {task!r} (rows: "
                f"{', '.join(self.tasks)}); name it in `gate_tasks` of the head's neck, or take a gate that does not "
                "look at the task"
            )


def rows_since(model: nn.Module, tensors: Mapping[str, Tensor]) -> list[str]:
    """Rows of a model for tasks that were added after a checkpoint was written, by parameter name.

    Args:
        model: Holds any number of :class:`TaskRows`.
        tensors: Of the checkpoint. Where it holds a gate's other rows but not that of an added task, the task is new.

    Returns:
        Parameter names (``....added.TASK``) in the order of the model.
    """
    return [
        f"{path}.added.{task}"
        for path, module in model.named_modules()
        if isinstance(module, TaskRows) and f"{path}.weight" in tensors
        for task in module.added
        if f"{path}.added.{task}" not in tensors
    ]


def _check_names(added: Sequence[str]) -> None:
    for place, name in enumerate(added):
        if name in (*TASKS, *added[:place]):
            raise ConfigError(f"`gate_tasks`: {name!r} has a row already (rows: {', '.join(TASKS)})")
        # The name of a parameter: without dots, and different from the container's attributes.
        if not (isinstance(name, str) and name.isidentifier()) or hasattr(nn.ParameterDict(), name):
            raise ConfigError(
                f"`gate_tasks`: {name!r} cannot be the name of a parameter; take letters, digits and underscores, for "
                "example 'reasoning'"
            )
