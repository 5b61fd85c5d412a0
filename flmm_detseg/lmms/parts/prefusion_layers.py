"""Decoder layers that read image and question before the language model does."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import Cache, LlamaConfig, PretrainedConfig
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

from flmm_detseg.compat.transformers5 import cache_argument, causal_mask, rope_theta


class GatedLayers(nn.Module):
    """Causal Llama layers with weights of their own, each followed by a gate per channel that begins at 0.

    ``state' = state + gate * (layer(state) - state)``: before training, outputs equal inputs bit for bit. They
    are called like a language model, so that :class:`~flmm_detseg.lmms.capture.decoder.PrefixDecoder` runs them, also
    after stored keys and values.

    Args:
        config: Of the language model in front of which the layers stand: gives their sizes.
        num_layers: Layers.

    Source: LLaVA-Mini (arXiv 2501.03895), modality pre-fusion, which has no gates.
    """

    def __init__(self, config: PretrainedConfig, num_layers: int) -> None:
        super().__init__()
        self.config = LlamaConfig(
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=num_layers,
            num_attention_heads=config.num_attention_heads,
            num_key_value_heads=config.num_key_value_heads,
            rms_norm_eps=config.rms_norm_eps,
            rope_theta=rope_theta(config),
            max_position_embeddings=config.max_position_embeddings,
            attn_implementation="sdpa",
        )
        self.layers = nn.ModuleList(LlamaDecoderLayer(self.config, index) for index in range(num_layers))
        for module in self.layers.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=config.initializer_range)
        self.gates = nn.Parameter(torch.zeros(num_layers, config.hidden_size))
        self.rotary_emb = LlamaRotaryEmbedding(self.config)

    def forward(
        self,
        inputs_embeds: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        past_key_values: Cache | None = None,
        use_cache: bool = False,
    ) -> BaseModelOutputWithPast:
        """Runs all layers.

        Args:
            inputs_embeds: ``[B, T, d]``.
            attention_mask: bool: ``[B, P + T]``, tokens that may be seen, or the whole mask ``[B or 1, 1, T, P + T]``.
            position_ids: int64 ``[B, T]``.
            past_key_values: Keys and values of P earlier tokens; is added to.
            use_cache: Language models have this argument; whether ``past_key_values`` is there decides.

        Returns:
            ``last_hidden_state`` ``[B, T, d]``.
        """
        mask = causal_mask(self.config, inputs_embeds, attention_mask, past_key_values, position_ids)
        rotary = self.rotary_emb(inputs_embeds, position_ids)
        states = inputs_embeds
        for layer, gate in zip(self.layers, self.gates.to(states.dtype), strict=True):
            read = layer(
                states,
                attention_mask=mask,
                position_ids=position_ids,
                position_embeddings=rotary,
                **cache_argument(layer, past_key_values),
            )
            states = states + gate * (read - states)
        return BaseModelOutputWithPast(last_hidden_state=states)
