"""Prompt encoder and mask decoder of a SAM as a graph of any number of prompts of one image."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flmm_detseg.refiners.base import Refiner
from flmm_detseg.structures import Graph, Port


class DecoderGraph(nn.Module):
    """Prompts of one image to mask logits.

    Args:
        refiner: Whose parts these are.
        prompt_encoder: The refiner's, or the one that it keeps for boxes.
        mask_decoder: Likewise.
        num_features: Feature maps that the decoder reads.
        use_box: Boxes are an input.
        use_mask: Mask prompts are an input.
        use_text: Text tokens and their mask are inputs.
    """

    def __init__(
        self,
        refiner: Refiner,
        prompt_encoder: nn.Module,
        mask_decoder: nn.Module,
        num_features: int,
        use_box: bool,
        use_mask: bool,
        use_text: bool,
    ) -> None:
        super().__init__()
        self.refiner = refiner
        self.prompt_encoder = prompt_encoder
        self.mask_decoder = mask_decoder
        self.num_features = num_features
        self.use_box = use_box
        self.use_mask = use_mask
        self.use_text = use_text

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Decodes N prompts.

        Args:
            *inputs: Features of the image, then boxes, masks, text tokens and their mask, as far as they are inputs.

        Returns:
            Logits ``[N, 4, 4e, 4e]``, quality ``[N, 4]``.
        """
        features, rest = inputs[: self.num_features], list(inputs[self.num_features :])
        count = rest[0].shape[0]
        boxes = rest.pop(0) if self.use_box else None
        masks = rest.pop(0) if self.use_mask else None
        sparse, dense = self.refiner.encode_prompts(self.prompt_encoder, boxes, masks)
        sparse, dense = sparse.expand(count, -1, -1), dense.expand(count, -1, -1, -1)
        sparse_mask = torch.ones_like(sparse[..., 0], dtype=torch.bool)
        if self.use_text:
            sparse = torch.cat([sparse, rest[0]], dim=1)
            sparse_mask = torch.cat([sparse_mask, rest[1]], dim=1)
        read = self.refiner.decoder_features(self.mask_decoder, features)
        levels = tuple(level.expand(count, -1, -1, -1) for level in read)
        return self.refiner.decode(self.mask_decoder, levels, sparse, sparse_mask, dense)


def decoder_graphs(refiner: Refiner) -> list[Graph]:
    """The graphs of a refiner.

    Args:
        refiner: In float32.

    Returns:
        ``decoder``: for phrases; ``box_decoder`` where the refiner keeps parts for boxes alone.
    """
    model = refiner.model
    pixels = torch.zeros(1, 3, refiner.side, refiner.side, device=next(model.parameters()).device)
    with torch.no_grad():
        features = refiner.encode_pixels(pixels)
    graphs = [_graph(refiner, "decoder", model.prompt_encoder, model.mask_decoder, features)]
    if (kept := refiner.box_parts) is not None:
        graphs.append(
            _graph(
                refiner,
                "box_decoder",
                kept["prompt_encoder"],
                kept["mask_decoder"],
                features,
                boxes_only=True,
            )
        )
    return graphs


def _graph(
    refiner: Refiner,
    name: str,
    prompt_encoder: nn.Module,
    mask_decoder: nn.Module,
    features: tuple[Tensor, ...],
    boxes_only: bool = False,
) -> Graph:
    side, maps, width = refiner.side, refiner.map_side, refiner.prompt_dim
    use_box = boxes_only or refiner.use_box
    use_mask, use_text = not boxes_only and refiner.use_mask, not boxes_only and refiner.use_text
    about = f"of the frozen image encoder, on the image in its square of {side} pixels"
    ports = [Port(f"features_{i}", tuple(level.shape), about) for i, level in enumerate(features)]
    if use_box:
        ports.append(Port("boxes_xyxy", ("prompts", 4), f"pixels of the square of {side}"))
    if use_mask:
        text = (
            "coarse logits at this size over the square, the lowest logit (at most -1) outside of the image"
        )
        ports.append(Port("mask_logits", ("prompts", 1, maps, maps), text))
    if use_text:
        ports.append(
            Port("text_tokens", ("prompts", "tokens", width), "of the graph `text`, zeros at padding")
        )
        ports.append(Port("text_mask", ("prompts", "tokens"), "bool, False at padding"))

    def example(count: int, tokens: int) -> tuple[Tensor, ...]:
        found = [torch.randn_like(level) for level in features]
        if use_box:
            corner = torch.rand(count, 2) * side / 2
            found.append(torch.cat([corner, corner + side / 3], dim=1))
        if use_mask:
            found.append(4 * torch.randn(count, 1, maps, maps))
        if use_text:
            found.append(torch.randn(count, tokens, width))
            found.append(torch.arange(tokens)[None] < torch.arange(1, count + 1)[:, None])
        return tuple(found)

    return Graph(
        name,
        "Prompt encoder and mask decoder: prompts of one image to mask logits over its square",
        DecoderGraph(refiner, prompt_encoder, mask_decoder, len(features), use_box, use_mask, use_text),
        tuple(ports),
        example(2, 3),
        (
            Port(
                "logits",
                ("prompts", 4, maps, maps),
                "over the square; first the single mask, then three candidates",
            ),
            Port("quality", ("prompts", 4), "estimates of IoU, which training for phrases does not keep"),
        ),
        (example(1, 2), example(5, 4)),
        {"square": side, "multimask_output": False if boxes_only else refiner.multimask_output},
    )
