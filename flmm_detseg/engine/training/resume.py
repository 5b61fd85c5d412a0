"""What a resumed run takes from the checkpoint (its state, by name) and what from its config (all it can state)."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from mmengine._strategy import DeepSpeedStrategy
from mmengine.optim import BaseOptimWrapper
from mmengine.runner import FlexibleRunner, Runner
from torch import Tensor

from flmm_detseg.errors import CheckpointError
from flmm_detseg.models.checkpoint import HEADS, check_finite, head_order
from flmm_detseg.models.grounding_lmm import GroundingLMM

# Entry of a checkpoint's meta: names of the optimizer's parameters, by index.
PARAMETERS = "optimizer_parameters"
# State of the shape of its parameter.
_LIKE_PARAMETER = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer", "square_avg")
# Settings that distinguish kinds of optimizers: the state of one means nothing to another.
_KINDS = ("betas", "momentum", "alpha", "rho", "lr_decay", "etas")


def order_meta(model: GroundingLMM, optimizer: Any) -> dict[str, Any]:
    """What the ``meta`` of a checkpoint says about everything in it that is identified by its index."""
    names = parameter_names(optimizer)
    return {HEADS: list(model.heads), **({} if names is None else {PARAMETERS: names})}


def parameter_names(optimizer: Any) -> list[str] | None:
    """Names of an optimizer's parameters in its order; None where one has none.

    Args:
        optimizer: torch's, or DeepSpeed's ZeRO (stages 1 and 2), whose flat partitions follow that order.

    Returns:
        Full names, in the optimizer's order.
    """
    groups = getattr(optimizer, "bit16_groups", None)
    if groups is None:
        groups = [group["params"] for group in optimizer.param_groups]
    names = [getattr(parameter, "flmm_name", None) for group in groups for parameter in group]
    known = [name for name in names if name is not None]
    return known if len(known) == len(names) else None


def state_tensors(optimizer: Any) -> dict[str, Tensor]:
    """All tensors of an optimizer's state, by names for messages.

    Args:
        optimizer: torch's, or DeepSpeed's ZeRO, which holds the one that steps.

    Returns:
        The tensors themselves, nothing is copied.
    """
    states = getattr(optimizer, "optimizer", optimizer).state
    return {
        f"{key} of {getattr(parameter, 'flmm_name', f'partition {i}')}": value
        for i, (parameter, state) in enumerate(states.items())
        for key, value in state.items()
        if isinstance(value, Tensor)
    }


def take_order(model: GroundingLMM, content: Mapping[str, Any]) -> None:
    """Puts the model's heads into the order they had in the resumed run.

    A config that MMEngine wrote has its keys sorted. The order decides what the balancer's vectors mean, in which
    order PCGrad takes the tasks, what is drawn for which head, and where DeepSpeed's partitions are cut.

    Args:
        model: Before it is given to an optimizer.
        content: Of the checkpoint.
    """
    order = head_order(content)
    if order and set(order) == set(model.heads):
        model.order_heads(order)


def check_order(optimizer: Any, content: Mapping[str, Any], source: str) -> None:
    """Compares the order of parameters with that of a DeepSpeed folder, which is read by index.

    Args:
        optimizer: Of the run.
        content: What the folder's states file holds.
        source: The folder, for the error.

    Raises:
        CheckpointError: They differ; names the first difference.
    """
    stored, own = content["meta"].get(PARAMETERS), parameter_names(optimizer)
    if stored is None or own is None or stored == own:
        return
    place = next((i for i, (a, b) in enumerate(zip(stored, own)) if a != b), min(len(stored), len(own)))
    first = [names[place] if place < len(names) else "nothing" for names in (stored, own)]
    raise CheckpointError(
        f"{source}: DeepSpeed's partitions are read by index, and the optimizer's parameter {place} was {first[0]}, "
        f"now {first[1]}. Resume with the config of that run (order of `optimizer.groups`), or start from its tensors: "
        f"--cfg-options load_from={source}"
    )


def follow_schedule(schedulers: Any, done: int) -> bool:
    """Advances new schedulers, and with them the optimizer's rates, to where they are after ``done`` iterations.

    They are stepped as the interrupted run stepped them, so an unchanged config gives the same bits.

    Args:
        schedulers: Of MMEngine's runner: a list, lists by optimizer, or None.
        done: Iterations of the checkpoint.

    Returns:
        Whether it could be done: schedules that read validation results have a history.
    """
    lists = list(schedulers.values()) if isinstance(schedulers, Mapping) else [schedulers or []]
    if any(getattr(one, "need_val_args", False) for some in lists for one in some):
        return False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the optimizer has not stepped yet
        for some in lists:
            for _ in range(done - (some[0]._global_step if some else 0)):
                for one in some:
                    if not one.by_epoch:
                        one.step()
    return True


def follow_config(runner: Runner | FlexibleRunner, checkpoint: dict[str, Any], source: str) -> None:
    """Changes what a checkpoint (no DeepSpeed folder) holds of optimizer and schedules to what the run goes on with.

    The state is mapped by parameter names. Rates, decay, betas and schedules are the config's, at the iteration that
    is reached. Files without names: by the order of their tensors; else by index, where shapes agree.

    Args:
        runner: The run, with its optimizer as it was built.
        checkpoint: Content; ``optimizer`` and ``param_schedulers`` are changed.
        source: Named in errors.

    Raises:
        CheckpointError: The state fits another optimizer or other parameters.
    """
    wrapper = runner.optim_wrapper
    if not isinstance(wrapper, BaseOptimWrapper) or "optimizer" not in checkpoint:
        return
    stored = checkpoint["optimizer"]
    groups = wrapper.optimizer.param_groups
    followed = follow_schedule(runner.param_schedulers, checkpoint["meta"]["iter"])
    if not followed:  # its history is the checkpoint's
        for own, old in zip(groups, stored["param_groups"]):
            own.update({key: old[key] for key in ("lr", "initial_lr") if key in old})
    elif (before := stored["param_groups"][0]["lr"]) != (now := groups[0]["lr"]):
        runner.logger.info(
            f"Learning rate after iteration {checkpoint['meta']['iter']}: {before:.6g} in {source}, {now:.6g} by this "
            "run's config, which is followed"
        )
    kinds = [[key for key in _KINDS if key in group] for group in (stored["param_groups"][0], groups[0])]
    if kinds[0] != kinds[1]:
        raise CheckpointError(
            f"{source} holds the state of another kind of optimizer (settings {kinds[0]}, this one's {kinds[1]}); "
            f"start from its tensors: --cfg-options load_from={source}"
        )
    result = wrapper.state_dict()
    result["state"] = _state(stored, _stored_names(checkpoint), wrapper, source, runner)
    if "loss_scaler" in result and "loss_scaler" in stored and wrapper._scale_update_param is None:
        kept = ("scale", "_growth_tracker")
        result["loss_scaler"] |= {k: v for k, v in stored["loss_scaler"].items() if k in kept}
    checkpoint["optimizer"] = result
    if followed and runner.param_schedulers is not None:
        own = runner.param_schedulers
        checkpoint["param_schedulers"] = (
            {name: [one.state_dict() for one in some] for name, some in own.items()}
            if isinstance(own, Mapping)
            else [one.state_dict() for one in own]
        )


def follow_config_of_engine(strategy: DeepSpeedStrategy) -> None:
    """Lets DeepSpeed's ``resume``, which calls no hook, keep the settings and schedules that this run states.

    It also refuses an optimizer's state with NaN or infinities, with a CheckpointError.
    """
    resume = strategy.resume

    def resumed(filename: str, **options: Any) -> dict[str, Any]:
        groups = strategy.optim_wrapper.optimizer.param_groups
        stated = [{key: value for key, value in group.items() if key != "params"} for group in groups]
        extra = resume(filename, **{**options, "resume_param_scheduler": False})
        check_finite(state_tensors(strategy.optim_wrapper.optimizer), filename)
        schedulers = getattr(strategy, "param_schedulers", None)
        stored = extra.pop("param_schedulers", None)
        for group, own in zip(strategy.optim_wrapper.optimizer.param_groups, stated):
            group.update(own)
        if not follow_schedule(schedulers, extra["meta"]["iter"]):
            strategy.load_scheduler_state_dict(stored)
        return extra

    strategy.resume = resumed


def _state(
    stored: Mapping[str, Any],
    names: Sequence[str] | Mapping[int, str] | None,
    wrapper: BaseOptimWrapper,
    source: str,
    runner: Runner | FlexibleRunner,
) -> dict[int, Any]:
    parameters = [parameter for group in wrapper.optimizer.param_groups for parameter in group["params"]]
    own = parameter_names(wrapper.optimizer)
    state = stored["state"]
    if names is None or own is None:
        runner.logger.warning(f"{source} has no parameter names: its optimizer state is matched by index")
    else:
        by_name = {names[place]: values for place, values in state.items()}
        state = {place: by_name[name] for place, name in enumerate(own) if name in by_name}
        if homeless := [name for name in by_name if name not in own]:
            runner.logger.warning(
                f"{source}: the optimizer state of {len(homeless)} parameters ({homeless[0]}, ...) has no place in "
                "this config and is left out; parameters that have another name now (`model.parts`) start without state"
            )
    for place, values in state.items():
        shape = parameters[place].shape if place < len(parameters) else None
        if not _fits(values, shape):
            raise CheckpointError(
                f"{source}: the optimizer's state {place} does not belong to the parameter in its place (shapes "
                f"{[tuple(v.shape) for v in values.values() if isinstance(v, Tensor)]}, parameter "
                f"{None if shape is None else tuple(shape)}); start from its tensors: --cfg-options load_from={source}"
            )
    return state


def _fits(values: Mapping[str, Any], shape: Sequence[int] | None) -> bool:
    like = [
        value.shape for key, value in values.items() if key in _LIKE_PARAMETER and isinstance(value, Tensor)
    ]
    return shape is not None and all(own == shape for own in like)


def _stored_names(checkpoint: Mapping[str, Any]) -> Sequence[str] | Mapping[int, str] | None:
    """Parameter names of a stored optimizer by index; for files that do not record them, by their tensors' order."""
    if PARAMETERS in checkpoint["meta"]:
        return checkpoint["meta"][PARAMETERS]
    tensors, stored = checkpoint["state_dict"], checkpoint["optimizer"]
    groups, state = stored["param_groups"], stored["state"]
    keys = [group.get("group_name") for group in groups]
    names = [name for name, value in tensors.items() if isinstance(value, Tensor)]
    if all(keys):  # GroupedAdamW's: the longest key in a name wins
        members: dict[str, list[str]] = {key: [] for key in keys}
        for name in names:
            members[max((key for key in keys if key in name), key=len, default=keys[-1])].append(name)
        pairs = [(group["params"], members[key]) for group, key in zip(groups, keys)]
    else:
        pairs = [(sorted(state), names)]
    # Buffers come after the parameters, and have no state.
    found = {place: name for places, own in pairs for place, name in zip(places, own)}
    complete = all(len(places) <= len(own) for places, own in pairs) and set(state) <= set(found)
    fits = complete and all(_fits(values, tensors[found[place]].shape) for place, values in state.items())
    return found if fits else None
