"""Whether there is what a phrase names: one logit a phrase from what the LMM and the mask head know of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flmm_detseg.errors import ConfigError
from flmm_detseg.heads.presence_score import PresenceScore
from flmm_detseg.registry import MODELS
from flmm_detseg.structures import HiddenRows

# Shape suffixes: K phrases, P phrase tokens, T most tokens of a phrase, N cells, L layers, C channels, D width.


@dataclass(frozen=True)
class PresenceEvidence:
    """What is known of the K phrases of one sample after the pass of the LMM; all maps show the image without padding.

    Attributes:
        hidden: Hidden rows of the phrases' tokens, of the layers that the presence head reads (or more).
        vision: ``[C_v, h, w]``: the vision tower's maps of its layers, one after the other in channels.
        mask_logits: float32 ``[K, h, w]``: the coarse masks.
        attention: ``[K, C, h, w]`` in [0, 1]; None where nothing of it is read.
        likelihood: float32 ``[P, 2]`` of the phrases' tokens, see :attr:`LMMStates.likelihood`; None as above.
    """

    hidden: HiddenRows
    vision: Tensor
    mask_logits: Tensor
    attention: Tensor | None = None
    likelihood: Tensor | None = None


@MODELS.register_module()
class PresenceHead(PresenceScore):
    """Says of each phrase whether there is such a thing in the image.

    The tokens of a phrase (their hidden rows) look at the cells of the image (the vision tower's features, the phrase's
    attention and its coarse mask there, and where they are) in a small transformer decoder. A learned token
    among them gives the logit. Nothing of the LMM or of the mask head is changed by it: it reads them, without
    gradient.

    How the logit becomes a probability: :class:`~flmm_detseg.heads.presence_score.PresenceScore`.

    Args:
        hidden_layers: Decoder layers, 1..L, whose rows of the phrase's tokens are read.
        vision_layers: The vision tower's hidden states that are read (0: its embeddings).
        hidden_size: d of the LMM.
        vision_channels: d_v of its vision tower.
        in_channels: C of its attention stack.
        width: Of the decoder.
        depth: Layers of the decoder.
        num_heads: Of each of its attentions.
        cells: Side of the square grid that every image is brought to.
        dropout: In training.
        keep_present: See :class:`~flmm_detseg.heads.presence_score.PresenceScore`.
        reads_attention: False: the phrase's attention is left out.
        reads_likelihood: True: how likely the LMM finds each token of the phrase is read too. An LMM that describes
            what it sees finds words about other things unlikely. (Off by default: checkpoints from before it load.)

    Raises:
        ConfigError: No layer, or a number that does not fit.
    """

    def __init__(
        self,
        hidden_layers: Sequence[int],
        vision_layers: Sequence[int],
        hidden_size: int,
        vision_channels: int,
        in_channels: int,
        width: int = 128,
        depth: int = 2,
        num_heads: int = 4,
        cells: int = 14,
        dropout: float = 0.0,
        keep_present: float = 0.97,
        reads_attention: bool = True,
        reads_likelihood: bool = False,
    ) -> None:
        super().__init__(keep_present)
        for name, layers in (("hidden_layers", hidden_layers), ("vision_layers", vision_layers)):
            if not layers:
                raise ConfigError(f"PresenceHead: `{name}` is empty; at least one layer is needed")
        for name, value in (("width", width), ("depth", depth), ("num_heads", num_heads), ("cells", cells)):
            if value < 1:
                raise ConfigError(f"PresenceHead: `{name}` is {value}; at least 1 is needed")
        if width % (4 * num_heads):
            raise ConfigError(
                f"PresenceHead: `width` {width} must be a multiple of 4 x `num_heads` ({4 * num_heads})"
            )
        self.hidden_layers, self.vision_layers = tuple(sorted(hidden_layers)), tuple(sorted(vision_layers))
        self.cells = cells
        # Read of the attention.
        self.in_channels = in_channels if reads_attention else 0
        self.token_norm = nn.LayerNorm(hidden_size)
        self.token_proj = nn.Linear(len(self.hidden_layers) * hidden_size, width)
        self.cell_norm = nn.LayerNorm(vision_channels)
        self.cell_proj = nn.Linear(len(self.vision_layers) * vision_channels, width)
        # Of the phrase: what it attends to and its mask, cell by cell and as a whole.
        self.phrase_proj = nn.Linear(self.in_channels + 1, width)
        self.whole_proj = nn.Linear(2 * self.in_channels + 2, width)
        self.reads_likelihood = reads_likelihood
        if reads_likelihood:
            self.likelihood_proj = nn.Linear(2, width)
            self.whole_likelihood_proj = nn.Linear(2, width)
        self.query = nn.Parameter(torch.randn(width) * 0.02)
        self.decoder = nn.ModuleList(
            nn.TransformerDecoderLayer(
                width, num_heads, 2 * width, dropout, "gelu", batch_first=True, norm_first=True
            )
            for _ in range(depth)
        )
        self.out_norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, 1)

    def forward(self, evidence: Sequence[PresenceEvidence]) -> list[Tensor]:
        """Logits before calibration.

        Args:
            evidence: Per sample, K_i phrases (0 are allowed).

        Returns:
            Per sample float32 ``[K_i]``.
        """
        counts = [len(item.mask_logits) for item in evidence]
        if not sum(counts):
            return [item.mask_logits.new_zeros(0) for item in evidence]
        tokens, padding = self._tokens(evidence)
        maps = torch.cat([self._maps(item) for item in evidence])
        tokens = torch.cat(
            [tokens[:, :1] + self.whole_proj(_as_a_whole(maps))[:, None], tokens[:, 1:]], dim=1
        )
        cells = self._cells(evidence, maps)
        for layer in self.decoder:
            tokens = layer(tokens, cells, tgt_key_padding_mask=padding)
        logits = self.out(self.out_norm(tokens[:, 0]))[:, 0].float()
        return list(logits.split(counts))

    def _tokens(self, evidence: Sequence[PresenceEvidence]) -> tuple[Tensor, Tensor]:
        """The learned token and the phrase's, ``[K, 1 + T, D]``, and where there is none (bool ``[K, 1 + T]``)."""
        rows, wholes = [], []
        for item in evidence:
            dtype = self.token_norm.weight.dtype
            states = item.hidden.of(self.hidden_layers).to(dtype)
            projected = self.token_proj(self.token_norm(states).permute(1, 0, 2).flatten(1))
            own = [item.hidden.phrase_ids == k for k in range(len(item.mask_logits))]
            if self.reads_likelihood:
                assert item.likelihood is not None  # the owner captures it
                # A word that was all but impossible is no stronger sign than one that was very unlikely.
                likelihood = item.likelihood.clamp(min=-20.0).to(dtype) / 5.0
                projected = projected + self.likelihood_proj(likelihood)
                wholes += [likelihood[tokens].sum(0) / 4.0 for tokens in own]
            rows += [projected[tokens] for tokens in own]
        longest = max(map(len, rows))
        places = sinusoids(torch.arange(1 + longest, device=self.query.device), self.query.shape[0])
        tokens = torch.stack([F.pad(row, (0, 0, 0, longest - len(row))) for row in rows])
        whole = self.query.expand(len(rows), 1, -1)
        if self.reads_likelihood:
            whole = whole + self.whole_likelihood_proj(torch.stack(wholes))[:, None]
        tokens = torch.cat([whole, tokens], dim=1) + places.to(tokens.dtype)
        lengths = torch.tensor([len(row) for row in rows], device=tokens.device)
        return tokens, torch.arange(1 + longest, device=tokens.device) > lengths[:, None]

    def _maps(self, item: PresenceEvidence) -> Tensor:
        """Mask and attention of each phrase on the head's grid, ``[K, 1 + C, cells, cells]``."""
        dtype = self.token_norm.weight.dtype
        maps = [self._resize(item.mask_logits[:, None].sigmoid().to(dtype))]
        if self.in_channels:
            assert item.attention is not None  # the owner captures it
            maps.append(self._resize(item.attention.to(dtype)))
        return torch.cat(maps, dim=1)

    def _cells(self, evidence: Sequence[PresenceEvidence], maps: Tensor) -> Tensor:
        """The image as each phrase sees it, ``[K, N, D]``."""
        seen = []
        for item in evidence:
            vision = self._resize(item.vision[None].to(maps.dtype))[0]
            layers = vision.unflatten(0, (len(self.vision_layers), -1)).permute(2, 3, 0, 1)
            cells = self.cell_proj(self.cell_norm(layers).flatten(2)).flatten(0, 1)
            seen.append(cells.expand(len(item.mask_logits), -1, -1))
        # Cells' shares of a channel are small numbers; relative to the largest a linear layer reads them.
        relative = maps[:, 1:] / maps[:, 1:].amax((-2, -1), keepdim=True).clamp(min=1e-12)
        own = self.phrase_proj(torch.cat([maps[:, :1], relative], dim=1).flatten(2).transpose(1, 2))
        half = sinusoids(torch.arange(self.cells, device=own.device), own.shape[-1] // 2).to(own.dtype)
        rows = half[:, None].expand(-1, self.cells, -1)
        return torch.cat(seen) + own + torch.cat([rows, rows.transpose(0, 1)], dim=-1).flatten(0, 1)

    def _resize(self, maps: Tensor) -> Tensor:
        """Maps ``[.., c, h, w]`` on the head's grid."""
        size = (self.cells, self.cells)
        if tuple(maps.shape[-2:]) == size:
            return maps
        return F.interpolate(maps, size, mode="bilinear", align_corners=False, antialias=True)


def _as_a_whole(maps: Tensor) -> Tensor:
    """Of maps ``[K, 1 + C, h, w]``, the mask first: its peak and its mean, then of each channel of the attention the
    share that falls on the image, and how much of that falls on one cell; ``[K, 2 + 2 C]``.
    """
    mask, attention = maps[:, 0].flatten(1), maps[:, 1:].flatten(2)
    mass = attention.sum(-1)
    peak = attention.amax(-1) / mass.clamp(min=1e-12)
    return torch.cat([mask.amax(1, keepdim=True), mask.mean(1, keepdim=True), mass, peak], dim=1)


def sinusoids(places: Tensor, width: int) -> Tensor:
    """Sines and cosines of places, float32 ``[..., width]``, wave lengths from 4 to 400."""
    waves = 4.0 * 100 ** (torch.arange(width // 2, device=places.device) / max(width // 2 - 1, 1))
    angles = places[..., None].float() * (2 * torch.pi) / waves
    return torch.cat([angles.sin(), angles.cos()], dim=-1)
