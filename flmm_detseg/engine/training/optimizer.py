"""AdamW with a learning rate per part of the model, configured where no launcher replaces it."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

from mmengine.logging import print_log
from torch import nn
from torch.optim import AdamW

from flmm_detseg.errors import ConfigError
from flmm_detseg.registry import OPTIMIZERS

_SETTINGS = ("lr_mult", "decay_mult")
REST = "rest"
BALANCER = "balancer."


@OPTIMIZERS.register_module()
class GroupedAdamW(AdamW):
    """AdamW whose parameter groups follow the names of the model's parameters.

    MMEngine's ``paramwise_cfg`` belongs to the optimizer wrapper, and ``xtuner train --deepspeed`` replaces the
    wrapper: everything but ``optimizer`` is lost there. So the groups are arguments of the optimizer.
    A :class:`~flmm_detseg.models.GroundingLMM` leaves each parameter's name on it (``flmm_name``). The balancer's
    parameters get no weight decay: it would pull the tasks' weights back to equal ones.

    Args:
        params: Parameters of the model; those without ``requires_grad`` are left out.
        lr: Learning rate of what no group names.
        betas: See ``torch.optim.AdamW``.
        eps: See ``torch.optim.AdamW``.
        weight_decay: Of what no group names.
        groups: Part of a parameter name to ``dict(lr_mult=..., decay_mult=...)``; of those that occur in a name the
            longest wins (not the first: a config that is written and read again has its keys sorted). What
            ``"balancer."`` holds is ``dict(decay_mult=0.0)``, unless it is given.

    A part that heads share has names of its own (``parts.NAME.``): ``heads.NAME.`` does not reach it, and a warning
    says so.

    Raises:
        ConfigError: A group matches no parameter, has an unknown setting, or the parameters have no names.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        groups: Mapping[str, Mapping[str, float]] | None = None,
    ) -> None:
        groups = dict(groups or {})
        for key, settings in groups.items():
            if unknown := set(settings) - set(_SETTINGS):
                raise ConfigError(
                    f"`optimizer.groups.{key}`: unknown {sorted(unknown)}; allowed: {', '.join(_SETTINGS)}"
                )
        trainable = [p for p in params if p.requires_grad]
        if any(getattr(p, "flmm_name", "").startswith(BALANCER) for p in trainable):
            groups.setdefault(BALANCER, {"decay_mult": 0.0})
        members: dict[str, list[nn.Parameter]] = {key: [] for key in (*groups, REST)}
        for parameter in trainable:
            name = getattr(parameter, "flmm_name", None)
            if name is None:
                raise ConfigError("GroupedAdamW needs the parameters of a GroundingLMM: these have no names")
            members[max((key for key in groups if key in name), key=len, default=REST)].append(parameter)
        if empty := [key for key in groups if not members[key]]:
            names = sorted({".".join(getattr(p, "flmm_name", "").split(".")[:3]) for p in trainable})
            raise ConfigError(
                f"`optimizer.groups`: {', '.join(empty)} match no trainable parameter (there are: "
                f"{', '.join(names)})"
            )
        _say_unreached(groups, trainable)
        built: list[dict[str, Any]] = []
        for key, parameters in members.items():
            if parameters:
                settings = groups.get(key, {})
                built.append(
                    {
                        "params": parameters,
                        "group_name": key,
                        "lr": lr * settings.get("lr_mult", 1.0),
                        "weight_decay": weight_decay * settings.get("decay_mult", 1.0),
                    }
                )
        super().__init__(built, lr=lr, betas=(betas[0], betas[1]), eps=eps, weight_decay=weight_decay)


def _say_unreached(groups: Mapping[str, Any], parameters: Iterable[nn.Parameter]) -> None:
    """Warns of groups that name a head whose shared part they do not reach."""
    unreached: set[tuple[str, str]] = set()
    for parameter in parameters:
        name: str = getattr(parameter, "flmm_name", "")
        if not any(key in name for key in groups):
            part = ".".join(name.split(".")[:2]) + "."
            places: tuple[str, ...] = getattr(parameter, "flmm_places", ())
            unreached |= {(key, part) for key in groups if any(key in place for place in places)}
    for key, part in sorted(unreached):
        print_log(
            f"`optimizer.groups.{key}` does not reach {part} which heads share; give it a group of its own: "
            f"`{part}`",
            "current",
            logging.WARNING,
        )
