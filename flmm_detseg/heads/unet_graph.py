"""The U-Net mask head, and the phrase's text prompt, as graphs of any number of phrases and any grid."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flmm_detseg.heads.unet_head import UNetHead
from flmm_detseg.structures import Graph, Port


class UNetGraph(nn.Module):
    """:meth:`UNetHead.forward` with sizes that are read from the input when the graph runs.

    Args:
        head: The head.
    """

    def __init__(self, head: UNetHead) -> None:
        super().__init__()
        self.head = head

    def forward(self, maps: Tensor) -> Tensor:
        """As the head's.

        Args:
            maps: float32 ``[N, C, h, w]``.

        Returns:
            float32 ``[N, M_h, M_w]``.
        """
        head = self.head
        if head.normalize_input:
            maps = maps / maps.sum((-2, -1), keepdim=True).clamp(min=1e-12)
        shape = torch._shape_as_tensor(maps)
        rows, cols = shape[2], shape[3]
        if head.upsample_input is not None:
            # In double precision like Python's own numbers: the size is floored.
            # Divided, not multiplied by a reciprocal, as a number over a tensor would be.
            longest = torch.maximum(rows, cols).double()
            scale = (torch.tensor(head.upsample_input, dtype=torch.float64) / longest).clamp(min=1.0)
            more_rows, more_cols = torch.floor(rows * scale).long(), torch.floor(cols * scale).long()
            scale = scale.float()
            maps = _bilinear(rows, more_rows, scale) @ maps @ _bilinear(cols, more_cols, scale).T
            rows, cols = more_rows, more_cols
        multiple = 2 ** (head.num_stages - 1)
        maps = F.pad(maps, (0, (-cols) % multiple, 0, (-rows) % multiple))
        logits: Tensor = head.conv_seg(head.features(maps))[:, 0]
        return logits[:, :rows, :cols]


def _bilinear(cells: Tensor, wanted: Tensor, scale: Tensor) -> Tensor:
    """Weights ``[wanted, cells]`` of ``interpolate(scale_factor=scale, mode="bilinear")`` along one side."""
    places = (torch.arange(wanted) + 0.5) / scale - 0.5  # type: ignore[call-overload]  # a traced size is a tensor
    places = torch.minimum(places.clamp(min=0), (cells - 1).float())
    distance = (places[:, None] - torch.arange(cells)[None]).abs()  # type: ignore[call-overload]  # as above
    return (1 - distance).clamp(min=0)


def unet_graph(head: UNetHead) -> Graph:
    """The graph of a mask head.

    Args:
        head: Built, in float32.

    Returns:
        ``mask``: attention rows to coarse logits.
    """
    channels = head.in_channels
    return Graph(
        "mask",
        "U-Net: attention rows of phrases to coarse mask logits",
        UNetGraph(head),
        (
            Port(
                "rows",
                ("phrases", channels, "h", "w"),
                "attention of each phrase's tokens to the image's tokens, merged over the tokens; channels in the "
                "order of the model's layers and heads; the processor's padding included",
            ),
        ),
        (torch.rand(2, channels, 7, 9),),
        (
            Port(
                "logits",
                ("phrases", "H", "W"),
                "over the same area as `rows`; cut the padding off, then a positive logit is inside",
            ),
        ),
        ((torch.rand(3, channels, 5, 5),), (torch.rand(1, channels, 17, 24),)),
        {"upsample_input": head.upsample_input},
    )


class TextGraph(nn.Module):
    """The mixture of layers and its projection, see ``PhraseGroundingHead.text_prompt``.

    Args:
        layer_weights: ``[L]`` before their softmax.
        projection: To the width of the refiner's prompts.
    """

    def __init__(self, layer_weights: nn.Parameter, projection: nn.Linear) -> None:
        super().__init__()
        self.layer_weights = layer_weights
        self.projection = projection

    def forward(self, hidden: Tensor) -> Tensor:
        """Hidden states ``[L, P, d]`` to prompts ``[P, D]``."""
        prompts: Tensor = self.projection(torch.einsum("l,lpd->pd", self.layer_weights.softmax(0), hidden))
        return prompts


def text_graph(layer_weights: nn.Parameter, projection: nn.Linear) -> Graph:
    """The graph of text prompts.

    Args:
        layer_weights: Of the phrase head.
        projection: Of the phrase head.

    Returns:
        ``text``: hidden states to the refiner's text tokens.
    """
    layers, hidden, width = len(layer_weights), projection.in_features, projection.out_features
    return Graph(
        "text",
        "Hidden states of a phrase's tokens to the refiner's text tokens",
        TextGraph(layer_weights, projection),
        (Port("hidden", (layers, "tokens", hidden), "hidden states after each decoder layer"),),
        (torch.randn(layers, 3, hidden),),
        (Port("text_tokens", ("tokens", width), "input of the decoder's graph, a row a token"),),
        ((torch.randn(layers, 1, hidden),),),
    )
