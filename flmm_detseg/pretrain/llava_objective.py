"""What the tiny LLaVA is trained for: patch labels of the tower and next tokens of packed turns."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, apply_rotary_pos_emb

from flmm_detseg.compat.transformers5 import tower_body
from flmm_detseg.datasets.tinyworld import COLOURS, KINDS, STUFF, TEXTURES
from flmm_detseg.pretrain.llava_chunks import SIZE_WORDS, prefix_ids
from flmm_detseg.pretrain.llava_data import NUM_COORDINATES, PackedBatch
from flmm_detseg.pretrain.tiny_llava import image_features

WORD_GROUPS = ((*KINDS, *STUFF), tuple(COLOURS), TEXTURES, SIZE_WORDS)


# Shape is by far the hardest label of a patch: it needs the patch's surroundings.
KIND_WEIGHT = 4.0


class PatchLabelLoss(nn.Module):
    """Cross-entropy of per-patch labels on the projected image tokens.

    Names, colours, textures and sizes are classified by the dot product with the language model's own output
    and input embeddings of these words, so the tower learns in the language model's terms; box edges and "the
    centre of an object lies here" by linear layers that are thrown away after training.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, hidden: int) -> None:
        super().__init__()
        self.box = nn.Linear(hidden, 4 * NUM_COORDINATES)
        self.centre = nn.Linear(hidden, 2)
        self.word_ids = [torch.tensor(tokenizer.convert_tokens_to_ids(list(words))) for words in WORD_GROUPS]

    def forward(self, features: Tensor, labels: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
        """Sums the groups' losses.

        Args:
            features: Projected image tokens ``[B, N, D]``.
            labels: ``[B, N, len(LABEL_GROUPS)]``, -100 where a group does not apply.
            tables: Output and input embedding tables, each ``[V, D]``.

        Returns:
            A scalar.
        """
        flat, labels = features.flatten(0, 1), labels.flatten(0, 1)
        normed = F.rms_norm(flat, flat.shape[-1:])
        things = labels[:, 1] >= 0
        stuff = (labels[:, 0] >= 0) & ~things
        losses = []
        for group, ids in enumerate(self.word_ids):
            # Apart: nine of ten patches are stuff, in one mean they would silence the kinds of the objects.
            for chosen, weight in ((things, KIND_WEIGHT if group == 0 else 1.0), (stuff, float(group == 0))):
                if weight:
                    target = labels[chosen, group]
                    losses += [weight * F.cross_entropy(normed[chosen] @ t[ids].T, target) for t in tables]
        edges = self.box(normed[things]).unflatten(1, (4, NUM_COORDINATES))
        box_loss = F.cross_entropy(edges.flatten(0, 1), labels[things][:, len(WORD_GROUPS) : -1].flatten())
        centre_loss = F.cross_entropy(self.centre(normed), labels[:, -1])
        return torch.stack(losses).sum() / 2 + box_loss + 2 * centre_loss


class Trainee(nn.Module):
    """The model, its patch-label head, and the loss of a packed batch."""

    def __init__(self, model: LlavaForConditionalGeneration, tokenizer: PreTrainedTokenizerFast) -> None:
        super().__init__()
        self.model = model
        self.labels = PatchLabelLoss(tokenizer, model.config.text_config.hidden_size)
        head = [token for token in prefix_ids(tokenizer, 1)][:-1]
        self.register_buffer("head_ids", torch.tensor(head), persistent=False)
        tower = tower_body(model.model.vision_tower)
        # LLaVA reads layer -2: the last layer and the pooling norm never see a gradient.
        for unused in (tower.encoder.layers[-1], tower.post_layernorm):
            unused.requires_grad_(False)

    def forward(
        self, batch: PackedBatch, label_weight: float, language: bool
    ) -> tuple[Tensor, dict[str, float]]:
        """Loss of a batch.

        Args:
            batch: Packed batch.
            label_weight: Weight of the patch labels; 0 skips them.
            language: Whether the language loss is computed.

        Returns:
            Scalar loss and its parts as numbers.
        """
        features = image_features(self.model, batch.pixel_values)
        loss, parts = features.new_zeros(()), {}
        if label_weight > 0:
            tables = (self.model.lm_head.weight, self.model.get_input_embeddings().weight)
            label_loss = self.labels(features, batch.labels, tables)
            loss = loss + label_weight * label_loss
            parts["labels"] = label_loss.item()
        if language:
            text_loss = self.text_loss(features, batch)
            loss = loss + text_loss
            parts["text"] = text_loss.item()
        return loss, parts

    def packed_hidden(self, features: Tensor, batch: PackedBatch) -> Tensor:
        """Last hidden states of the packed turns, ``[B, L, D]``.

        The same numbers as the language model's own forward with the full 4-D mask (tested), in less time: the
        prefix is plain causal, and the last layer computes no prefix rows, which are not read.
        """
        language = self.model.model.language_model
        embed = self.model.get_input_embeddings()
        head = embed(self.head_ids).expand(len(features), -1, -1)
        hidden = torch.cat([head, features, embed(batch.text_ids)], dim=1)
        prefix = head.shape[1] + features.shape[1]
        rotary = language.rotary_emb(hidden, batch.position_ids)
        for layer in language.layers[:-1]:
            hidden = packed_layer(layer, hidden, rotary, batch.attention_bias, prefix, text_only=False)
        hidden = packed_layer(
            language.layers[-1], hidden, rotary, batch.attention_bias, prefix, text_only=True
        )
        return language.norm(hidden)

    def text_loss(self, features: Tensor, batch: PackedBatch) -> Tensor:
        """Weighted next-token cross-entropy of the answers."""
        hidden = self.packed_hidden(features, batch)[:, :-1]
        targets, weights = batch.targets[:, 1:], batch.weights[:, 1:]
        kept = targets >= 0
        logits = self.model.lm_head(hidden[kept])
        losses = F.cross_entropy(logits, targets[kept], reduction="none")
        return (losses * weights[kept]).sum() / weights[kept].sum()


def packed_layer(
    layer: LlamaDecoderLayer,
    hidden: Tensor,
    rotary: tuple[Tensor, Tensor],
    bias: Tensor,
    prefix: int,
    *,
    text_only: bool,
) -> Tensor:
    """One Llama layer over a packed sequence.

    Args:
        layer: The layer (as many key-value heads as heads).
        hidden: ``[B, P + L, D]``.
        rotary: Cosines and sines of the positions.
        bias: ``[B, 1, L, P + L]`` additive mask of the text rows.
        prefix: P, rows that attend causally among themselves.
        text_only: Compute the text rows only.

    Returns:
        ``[B, P + L, D]``, or ``[B, L, D]`` with ``text_only``.
    """
    attention = layer.self_attn

    def split(values: Tensor) -> Tensor:
        return values.unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)

    normed = layer.input_layernorm(hidden)
    query, key, value = (split(p(normed)) for p in (attention.q_proj, attention.k_proj, attention.v_proj))
    query, key = apply_rotary_pos_emb(query, key, *rotary)
    mixed = F.scaled_dot_product_attention(query[:, :, prefix:], key, value, attn_mask=bias)
    if text_only:
        hidden = hidden[:, prefix:]
    else:
        query, key, value = (values[:, :, :prefix] for values in (query, key, value))
        image = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        mixed = torch.cat([image, mixed], dim=2)
    hidden = hidden + attention.o_proj(mixed.transpose(1, 2).flatten(2))
    return hidden + layer.mlp(layer.post_attention_layernorm(hidden))
