"""Several projectors for one place, and a router that mixes them token by token; photos stay with the model's own."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from flmm_detseg.errors import ConfigError
from flmm_detseg.lmms.added.projector_part import ProjectorPart, Shown, is_names
from flmm_detseg.lmms.family import LMMFacts
from flmm_detseg.ops.load_balance import load_balance
from flmm_detseg.registry import MODELS
from flmm_detseg.structures import RGB

ROUTERS = ("constant", "hard", "soft")
# How far the inner matrices of an expert begin from the model's, in their standard deviations: experts that begin
# equal stay equal where all get the same weight.
_APART = 0.1


@dataclass
class _Pass:
    """What a place keeps of one pass of the LMM.

    Attributes:
        shares: Per modality the sum of the weights of its tokens, float32 ``[K]``.
        probabilities: The router's of the tokens that it read, ``[n, K]`` each.
    """

    shares: dict[str, Tensor] = field(default_factory=dict)
    probabilities: list[Tensor] = field(default_factory=list)


class RoutedPlace(nn.Module):
    """The experts and the router in the place of one projector of the model.

    Args:
        base: The model's projector, expert 0; its last weight is a matrix.
        width: d, of the tokens that it gives.
        num_experts: K, the model's own included.
        router: One of :data:`ROUTERS`.
        hidden: Width between the router's two linear layers.
        modalities: That are routed; each has a token.
        tasks: That have a token.
    """

    def __init__(
        self,
        base: nn.Module,
        width: int,
        num_experts: int,
        router: str,
        hidden: int,
        modalities: Sequence[str],
        tasks: Sequence[str],
    ) -> None:
        super().__init__()
        self.num_experts = num_experts
        self.how = router
        self._rows = {name: row for row, name in enumerate(modalities)}
        self._task_rows = {name: len(modalities) + row for row, name in enumerate(tasks)}
        self.experts = nn.ModuleList(_residual(base) for _ in range(num_experts - 1))
        if router != "constant":
            place: dict[str, Any] = {"device": next(base.parameters()).device}
            # As large as what is normalised: modalities go different ways from the start.
            self.tokens = nn.Parameter(torch.randn(len(modalities) + len(tasks), width, **place))
            self.router = nn.Sequential(
                nn.Linear(width, hidden, **place), nn.GELU(), nn.Linear(hidden, num_experts, **place)
            )
        self.last = _Pass()

    def forward(self, tokens: Tensor, shown: Shown, call: Callable[[nn.Module], Tensor]) -> Tensor:
        """Adds the mixture of what the experts change to what the model's own projector gives.

        Args:
            tokens: From expert 0, ``[..., d]``.
            shown: What the images are.
            call: See :meth:`ProjectorPart.project <flmm_detseg.lmms.added.projector_part.ProjectorPart.project>`.

        Returns:
            ``[..., d]``, in the dtype of ``tokens``.
        """
        weights, probabilities = self.route(tokens, shown)
        if self.records:
            self.last.probabilities.append(probabilities.flatten(0, -2))
            self.count(shown.modality, weights.detach().flatten(0, -2).sum(0))
        change = torch.zeros((), device=tokens.device)
        for index, expert in enumerate(self.experts, start=1):
            change = change + weights[..., index, None] * call(expert)
        # The weights' sum is 1, so expert 0 is there once, in its own bits.
        return tokens + change.to(tokens.dtype)

    def route(self, tokens: Tensor, shown: Shown) -> tuple[Tensor, Tensor]:
        """Which share of each token each expert gives.

        Args:
            tokens: From expert 0, ``[..., d]``.
            shown: What the images are.

        Returns:
            Weights and the router's probabilities, float32 ``[..., K]``, sum 1.
        """
        if self.how == "constant":
            even = tokens.new_full(
                (*tokens.shape[:-1], self.num_experts), 1 / self.num_experts, dtype=torch.float32
            )
            return even, even
        given = self.tokens[self._rows[shown.modality]]
        if shown.task in self._task_rows:
            given = given + self.tokens[self._task_rows[shown.task]]
        features = F.layer_norm(tokens.to(given.dtype), tokens.shape[-1:])
        probabilities = self.router(features + given).float().softmax(-1)
        if self.how == "soft":
            return probabilities, probabilities
        chosen = F.one_hot(probabilities.argmax(-1), self.num_experts).to(probabilities)
        # The forward pass has one expert, in its own bits; the backward pass the gradient of the probabilities.
        return chosen + (probabilities - probabilities.detach()), probabilities

    @property
    def records(self) -> bool:
        """Whether this pass is one of training."""
        return self.training and torch.is_grad_enabled()

    def count(self, modality: str, weights: Tensor) -> None:
        """Adds weights of the experts ``[K]``, summed over tokens, to the figures of the pass."""
        before = self.last.shares.get(modality)
        self.last.shares[modality] = weights if before is None else before + weights

    def __getstate__(self) -> dict[str, Any]:
        # A tensor of a running graph cannot be copied with the module.
        return {**self.__dict__, "last": _Pass()}


@torch.no_grad()
def _residual(base: nn.Module) -> nn.Module:
    """A copy of a projector in float32 whose last matrix and its bias are 0: what it gives is to be added."""
    own = copy.deepcopy(base).float().requires_grad_(True)
    *inner, last = (name for name, weight in own.named_parameters() if weight.ndim > 1)
    for name in inner:
        weight = own.get_parameter(name)
        weight.add_(_APART * weight.std() * torch.randn_like(weight))
    for weight in own.get_submodule(last.rpartition(".")[0]).parameters(recurse=False):
        weight.zero_()
    return own


@MODELS.register_module()
class RoutedProjector(ProjectorPart):
    """K projectors in the place of the model's, mixed token by token; expert 0 is the model's own, frozen.

    Experts 1 to K - 1 are copies of the model's projector, whose output is added to its own; their last matrix begins
    at 0, so nothing changes before training. A token stays a token: the map of the image is kept, unlike with the 30
    queries of OneLLM. The router sees the token that expert 0 gives, normalised, plus a learned token of the image's
    modality and, for samples of ``tasks``, one of the task. Its weights are float32 whatever the model's are.

    Args:
        modalities: Of the images that it reads (:attr:`~flmm_detseg.structures.Sample.modalities`), ``"rgb"`` for
            photos.
        num_experts: K, at least 2.
        router: ``"soft"``: the mixture by the router's probabilities; ``"hard"``: the most probable expert alone, the
            gradient of the probabilities going straight through; ``"constant"``: 1/K each, no router.
        keep: Modalities whose images are the model's own projector's, bit for bit, but for samples of ``tasks``.
        tasks: Tasks of samples (``"phrase"``, ...) whose images are routed also where ``keep`` names them. The same
            image is then projected once for them and once for others. Dense heads (``"detection"``,
            ``"segmentation"``) read the vision tower: naming their tasks changes nothing that they see.
        hidden: Width between the router's two linear layers.
        load_balance_weight: Factor of the loss that spreads tokens over the experts. None: 0.01, as of Switch
            Transformers, for a ``"hard"`` router, which trains only experts that it chooses; else 0.

    Raises:
        ConfigError: An argument cannot be used, nothing would be routed, or the model has no projector that gives
            tokens.

    Source: Han et al., OneLLM, CVPR 2024 (arXiv 2312.03700), whose experts and routers (constant, sparse, soft) these
    are, without its queries; the loss: Switch Transformers, arXiv 2101.03961, equation 4.
    """

    modalities: tuple[str, ...]

    def __init__(
        self,
        modalities: Sequence[str],
        num_experts: int = 3,
        router: str = "soft",
        keep: Sequence[str] = (RGB,),
        tasks: Sequence[str] = (),
        hidden: int = 64,
        load_balance_weight: float | None = None,
    ) -> None:
        super().__init__()
        for key, names in (("modalities", modalities), ("keep", keep), ("tasks", tasks)):
            if not is_names(names) or (key == "modalities" and not names):
                raise ConfigError(f"RoutedProjector: `{key}` is {names!r}; a list of names is needed")
        for key, number, least in (("num_experts", num_experts, 2), ("hidden", hidden, 1)):
            if not isinstance(number, int) or isinstance(number, bool) or number < least:
                raise ConfigError(
                    f"RoutedProjector: `{key}` is {number!r}; an integer from {least} on is needed"
                )
        if router not in ROUTERS:
            raise ConfigError(f"RoutedProjector: `router` is {router!r}; allowed: {', '.join(ROUTERS)}")
        if load_balance_weight is None:
            load_balance_weight = 0.01 if router == "hard" else 0.0
        if isinstance(load_balance_weight, bool) or not (
            isinstance(load_balance_weight, int | float) and load_balance_weight >= 0
        ):
            raise ConfigError(
                f"RoutedProjector: `load_balance_weight` is {load_balance_weight!r}; a number from 0 on is needed"
            )
        if router == "constant" and load_balance_weight:
            raise ConfigError(
                "RoutedProjector: `router`='constant' has nothing to balance; leave `load_balance_weight` out"
            )
        if not set(modalities) - set(keep) and not tasks:
            raise ConfigError(
                f"RoutedProjector: `keep` leaves all of `modalities` {list(modalities)} to the model's own projector: "
                "nothing is routed; name another modality, or `tasks`, or leave one out of `keep` (keep=[])"
            )
        self.modalities = tuple(dict.fromkeys(modalities))
        self.num_experts = num_experts
        self.router = router
        # Its default may name photos where they are not read.
        self.keep = tuple(name for name in self.modalities if name in keep)
        self.tasks = tuple(dict.fromkeys(tasks))
        self.hidden = hidden
        self.load_balance_weight = float(load_balance_weight)
        if unknown := sorted(set(keep) - {RGB, *self.modalities}):
            raise ConfigError(
                f"RoutedProjector: `keep` names {', '.join(unknown)}, which `modalities` does not; add it there"
            )

    @property
    def unread_modalities(self) -> frozenset[str]:
        """See :class:`ProjectorPart`; what it keeps for the model's own projector, the untouched LMM reads too."""
        return super().unread_modalities - set(self.keep)

    def make_copy(
        self, base: nn.Module, model: PreTrainedModel, path: str, facts: LMMFacts
    ) -> RoutedPlace | None:
        """See :class:`ProjectorPart`; None for modules that give maps (of DeepSeek-VL's second tower)."""
        shapes = [weight.shape for weight in base.parameters() if weight.ndim > 1]
        if not shapes or len(shapes[-1]) != 2 or facts.hidden_size not in shapes[-1]:
            return None
        routed = [name for name in self.modalities if self.tasks or name not in self.keep]
        return RoutedPlace(
            base, facts.hidden_size, self.num_experts, self.router, self.hidden, routed, self.tasks
        )

    def project(
        self, own: nn.Module, base: nn.Module, shown: Shown, call: Callable[[nn.Module], Any]
    ) -> Tensor:
        """See :class:`ProjectorPart`."""
        assert isinstance(own, RoutedPlace)  # made by make_copy
        tokens: Tensor = call(base)
        if shown.modality in self.keep and shown.task not in self.tasks:
            if own.records:
                first = torch.eye(self.num_experts, device=tokens.device)[0]
                own.count(shown.modality, first * (tokens.numel() // tokens.shape[-1]))
            return tokens
        routed: Tensor = own(tokens, shown, call)
        return routed

    def begin_pass(self) -> None:
        """See :class:`ProjectorPart`."""
        for place in self._places():
            place.last = _Pass()

    def losses(self) -> dict[str, Tensor]:
        """See :class:`LMMPart`.

        Returns:
            ``balance_loss`` where it has a weight and something was routed, mean over the places; and
            ``MODALITY_K``, the share of all image tokens that are of the modality and expert K gives (of mixtures, its
            weights), their sum 1.
        """
        found: dict[str, list[Tensor]] = {}
        for place in self._places():
            if not place.last.shares:
                continue
            total = torch.stack(list(place.last.shares.values())).sum()
            for modality in self.modalities:
                shares = place.last.shares.get(modality, torch.zeros(self.num_experts, device=total.device))
                for expert, share in enumerate(shares / total):
                    found.setdefault(f"{modality}_{expert}", []).append(share)
            if self.load_balance_weight and place.last.probabilities:
                probabilities = torch.cat(place.last.probabilities)
                chosen = F.one_hot(probabilities.argmax(-1), self.num_experts).to(probabilities)
                balance = self.load_balance_weight * load_balance(probabilities, chosen)
                found.setdefault("balance_loss", []).append(balance)
        return {name: torch.stack(values).mean() for name, values in found.items()}

    def _places(self) -> list[RoutedPlace]:
        return [place for place in self.copies if isinstance(place, RoutedPlace)]

    @property
    def layout(self) -> dict[str, Any]:
        """See :class:`LMMPart`."""
        names = {"modalities": self.modalities, "keep": self.keep, "tasks": self.tasks}
        lists = {key: list(value) for key, value in names.items()}
        return {"replaces": list(self._paths), "router": self.router, **lists}
