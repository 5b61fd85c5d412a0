"""Open-vocabulary classification: similarity of image features to embeddings of class names."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flmm_detseg.errors import ConfigError


class OpenClassifier(nn.Module):
    """Scaled cosine between projected features and projected text embeddings, plus a bias where classes are apart.

    The classes are a buffer that no checkpoint holds: the code that builds the model sets them, and may set others at
    inference.

    Args:
        in_channels: C of the feature maps.
        text_channels: d of the text embeddings.
        channels: Width of the common space.
        prior: Probability that a random class gets at a random place at the start; None leaves the bias out, for
            classes that exclude each other (softmax), where it changes nothing.

    Source: GLIP, arXiv 2112.03857 (classification as alignment); F-VLM, arXiv 2209.15639 (cosine, temperature).
    """

    embeddings: Tensor

    def __init__(
        self, in_channels: int, text_channels: int, channels: int = 256, prior: float | None = 0.01
    ) -> None:
        super().__init__()
        self.image_proj = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.text_proj = nn.Linear(text_channels, channels)
        # Cosines span [-1, 1] only: times 10 they span the probabilities that focal loss needs.
        self.log_scale = nn.Parameter(torch.tensor(math.log(10.0)))
        self.bias = None if prior is None else nn.Parameter(torch.tensor(-math.log((1 - prior) / prior)))
        self.register_buffer("embeddings", torch.zeros(0, text_channels), persistent=False)

    def set_embeddings(self, embeddings: Tensor) -> None:
        """Sets the classes.

        Args:
            embeddings: Float ``[N, d]``, one row per class.

        Raises:
            ConfigError: Another shape.
        """
        width = self.embeddings.shape[1]
        if embeddings.ndim != 2 or embeddings.shape[1] != width or len(embeddings) == 0:
            raise ConfigError(
                f"class embeddings of shape {tuple(embeddings.shape)}; (classes, {width}) is needed"
            )
        self.embeddings = embeddings.detach().to(self.embeddings.device, torch.float32)

    def forward(self, features: Tensor) -> Tensor:
        """Logits.

        Args:
            features: ``[B, C, h, w]``.

        Returns:
            float32 ``[B, N, h, w]``.

        Raises:
            ConfigError: No classes were set.
        """
        if len(self.embeddings) == 0:
            raise ConfigError("the open classifier has no classes; call `set_class_embeddings` first")
        # Embeddings of a language model differ far more in length than in direction.
        text = F.normalize(self.embeddings.float(), dim=-1) * math.sqrt(self.embeddings.shape[1])
        text = self.text_proj(text.to(self.text_proj.weight.dtype)).float()
        image = F.normalize(self.image_proj(features).float(), dim=1)
        cosine = torch.einsum("bchw,nc->bnhw", image, F.normalize(text, dim=-1))
        logits = cosine * self.log_scale.float().exp()
        return logits if self.bias is None else logits + self.bias.float()
