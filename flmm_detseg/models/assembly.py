"""Steps of putting LMM, heads and balancer together; :class:`GroundingLMM` takes them in order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import nn

from flmm_detseg.errors import ConfigError
from flmm_detseg.heads import Head, head_of
from flmm_detseg.lmms.base import LMMAdapter
from flmm_detseg.models.balancer import TaskBalancer
from flmm_detseg.models.build import build_part
from flmm_detseg.models.shared_parts import PREFIX, PartsToShare, SharedParts
from flmm_detseg.refiners import Refiner


def build_heads(
    heads: Mapping[str, Mapping[str, Any] | Head[Any]],
    parts: Mapping[str, Mapping[str, Any] | nn.Module],
    lmm: LMMAdapter,
) -> tuple[SharedParts, dict[str, Head[Any]]]:
    """Heads by name, and the parts that they share.

    Args:
        heads: ``model.heads``: built ones, or configs.
        parts: ``model.parts``: the same.
        lmm: What they read.

    Returns:
        Shared parts, to be registered before the heads, and the heads in the order of the config.

    Raises:
        ConfigError: There are no heads, one cannot be built or is no head, a part is in no head, or several heads
            predict for one task and none has its name; names the key or the heads.
    """
    if not heads:
        raise ConfigError("`model.heads` is empty; a GroundingLMM needs at least one head")
    shared = PartsToShare(parts, lmm)
    built: dict[str, Head[Any]] = {}
    for name, part in heads.items():
        head = build_part(part, lmm, f"model.heads.{name}", shared)
        if not isinstance(head, Head):
            raise ConfigError(
                f"`model.heads.{name}` is a {type(head).__name__}; a head fulfils flmm_detseg.heads.Head"
            )
        built[name] = head
    for task in sorted(set().union(*(head.result_of for head in built.values()))):
        head_of(built, task)
    return shared.settle(built), built


class Frozen(NamedTuple):
    """Parameters that a config freezes, by the model's names for them.

    Attributes:
        names: Those that would have been trained.
        published: Of these, those of refiners, which come from the refiner's own file.
    """

    names: tuple[str, ...]
    published: frozenset[str]


def freeze_parameters(heads: nn.ModuleDict, parts: SharedParts, prefixes: Sequence[str]) -> Frozen:
    """Freezes parameters of heads and of what they share.

    Args:
        heads: By name.
        parts: By name.
        prefixes: ``model.freeze``: those of heads without ``heads.``, those of shared parts with ``parts.``.

    Returns:
        What was trainable before.

    Raises:
        ConfigError: No parameter begins with one of them.
    """
    # By every name: what is shared is frozen for all.
    known = [*heads.named_parameters(remove_duplicate=False)]
    known += [(f"{PREFIX}{name}", p) for name, p in parts.named_parameters(remove_duplicate=False)]
    # Parts last: what is shared has their names.
    modules = {"heads": heads, PREFIX.rstrip("."): parts}
    trained = {
        p: name for root in modules for name, p in modules[root].named_parameters(root) if p.requires_grad
    }
    for prefix in prefixes:
        frozen = [p for name, p in known if name.startswith(prefix)]
        if not frozen:
            raise ConfigError(f"`model.freeze`: no head parameter starts with {prefix!r}")
        for parameter in frozen:
            parameter.requires_grad_(False)
    refiners = [
        module for root in modules.values() for module in root.modules() if isinstance(module, Refiner)
    ]
    published = {parameter for refiner in refiners for parameter in refiner.parameters()}
    names = {p: name for p, name in trained.items() if not p.requires_grad}
    return Frozen(tuple(names.values()), frozenset(name for p, name in names.items() if p in published))


def build_balancer(
    balancer: Mapping[str, Any] | TaskBalancer | None, lmm: LMMAdapter, heads: Mapping[str, Head[Any]]
) -> TaskBalancer | None:
    """The balancer, made for these heads.

    Args:
        balancer: Built one, its config, or None.
        lmm: The adapter that the heads read.
        heads: By name.

    Returns:
        The balancer with a gate and a weight for each head; None where the config has none.

    Raises:
        ConfigError: It cannot be built, or is something else.
    """
    if balancer is None:
        return None
    built = build_part(balancer, lmm, "model.balancer")
    if not isinstance(built, TaskBalancer):
        raise ConfigError(f"`model.balancer` is a {type(built).__name__}; a TaskBalancer is needed")
    built.setup(list(heads))
    return built


def checked_isolation(
    isolate: Mapping[str, Sequence[str]], heads: Mapping[str, Head[Any]], lmm: LMMAdapter
) -> dict[str, tuple[str, ...]]:
    """Which LoRA groups each head may change.

    Args:
        isolate: LoRA groups by head.
        heads: By name.
        lmm: Has the LoRA groups.

    Returns:
        ``isolate`` itself, with tuples; heads that it leaves out may change all groups.

    Raises:
        ConfigError: A head or group that is not there.
    """
    for name, groups in isolate.items():
        if name not in heads:
            raise ConfigError(f"`model.isolate`: {name!r} is none of the heads {', '.join(heads)}")
        if unknown := set(groups) - set(lmm.lora_groups):
            raise ConfigError(
                f"`model.isolate.{name}`: {sorted(unknown)} are none of the LoRA groups "
                f"{', '.join(lmm.lora_groups) or '(none)'}"
            )
    return {name: tuple(groups) for name, groups in isolate.items()}


def give_class_embeddings(heads: Mapping[str, Head[Any]], lmm: LMMAdapter) -> None:
    """Heads that find classes by their words get these from the LMM.

    Args:
        heads: By name; those that want class embeddings get them.
        lmm: Gives them.

    Raises:
        ConfigError: A class name has no token.
    """
    for head in heads.values():
        if head.wants_class_embeddings:
            head.set_class_embeddings(lmm.class_embeddings(head.class_names))


def give_token_ids(heads: Mapping[str, Head[Any]], lmm: LMMAdapter) -> None:
    """Heads that read a token's states get its id from the LMM.

    Args:
        heads: By name.
        lmm: Has the token.

    Raises:
        ConfigError: It does not; names the head.
    """
    for name, head in heads.items():
        if head.reads_token is not None:
            try:
                head.token_id = lmm.token_id(head.reads_token)
            except ConfigError as error:
                raise ConfigError(f"`model.heads.{name}` reads {head.reads_token}: {error}") from error


def lend_sam(heads: Mapping[str, Head[Any]]) -> None:
    """One head's SAM also makes masks of other heads' boxes, with its weights as built, before any training or loading.

    Args:
        heads: By name.

    Raises:
        ConfigError: No head has one to lend.
    """
    sam = next((head.lent_sam for head in heads.values() if head.lent_sam is not None), None)
    if sam is None:
        raise ConfigError(
            "`model.instance_masks` needs a head that lends its `sam` (a phrase head with one); heads: "
            f"{', '.join(heads)}"
        )
    sam.keep_box_decoder()  # SAM as it was published makes masks of boxes
    for head in heads.values():
        head.borrow_sam(sam)


def refuse_shared(heads: Mapping[str, Head[Any]], parts: SharedParts, head_lora: Mapping[str, Any]) -> None:
    """Makes sure that LoRA on a head changes no part that other heads share.

    Args:
        heads: By name.
        parts: Shared parts by name.
        head_lora: Settings of LoRA by head.

    Raises:
        ConfigError: It would.
    """
    shared = {id(module): name for name, part in parts.items() for module in part.modules()}
    for name in head_lora:
        for module in heads[name].modules() if name in heads else ():
            if isinstance(module, nn.Conv2d) and id(module) in shared:
                raise ConfigError(
                    f"`head_lora.{name}` would change the part {shared[id(module)]!r}, which heads share "
                    "(`model.parts`); give the head a part of its own"
                )
