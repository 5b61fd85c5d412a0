"""The forward pass that transformers' LLaVA families share: one pass, and only what was asked is kept."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from contextlib import ExitStack
from threading import get_ident
from typing import Any

import torch
from torch import Tensor

from flmm_detseg.errors import ConfigError
from flmm_detseg.lmms.capture.answer_text import answered, decode_greedily, phrase_inputs, text_and_offsets
from flmm_detseg.lmms.capture.packing import (
    PackedBatch,
    PhraseRows,
    answer_states,
    distinct_images,
    image_columns,
    pack,
    phrase_entries,
    phrase_rows,
)
from flmm_detseg.lmms.capture.per_sample import attention_maps, hidden_rows, split_attention, split_hidden
from flmm_detseg.lmms.capture.row_tap import ROW_TAP, RowTap
from flmm_detseg.lmms.capture.token_rules import answer_room, end_ids, token_rules, warn_if_cut
from flmm_detseg.lmms.hf_base import HFLlavaBase
from flmm_detseg.ops.rows import merge_rows
from flmm_detseg.structures import (
    CaptureSpec,
    Generation,
    HiddenRows,
    LMMInputs,
    LMMStates,
    PatchGrid,
    Phrase,
    Sample,
)


class HFLlavaAdapter(HFLlavaBase):
    """A LLaVA of transformers; a family adds its classes, its processor and how it turns pixels into image
    tokens. Arguments and errors: :class:`HFLlavaBase`.
    """

    @abstractmethod
    def image_tokens(self, pixel_values: Sequence[Tensor], grids: Sequence[PatchGrid]) -> list[Tensor]:
        """Runs tower and projector.

        Args:
            pixel_values: Per image the processor's pixels, on the model's device and in its dtype.
            grids: Per image its geometry.

        Returns:
            Per image ``[num_tokens, d]`` in sequence order.
        """

    @abstractmethod
    def base_views(self, pixel_values: Sequence[Tensor]) -> list[int]:
        """Per image the place of its squared whole view in the tower's batch."""

    def encode(
        self,
        inputs: Sequence[LMMInputs],
        capture: CaptureSpec,
        image_keys: Sequence[str | None] | None = None,
    ) -> LMMStates:
        """See :class:`LMMAdapter`."""
        assert len(inputs) > 0
        assert image_keys is None or len(image_keys) == len(inputs)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            owners = distinct_images(inputs, image_keys)
            features, vision = self._see(inputs, owners, capture.vision_layers)
            if not (capture.attention or capture.hidden or capture.logits):
                return LMMStates(vision=vision)
            batch = self._pack(inputs, owners)
            columns = [image_columns(inputs[members[0]]) for members in batch.groups]
            places = phrase_rows(inputs, batch.groups, batch.token_index, columns)
            stack, hidden, last = self._read(batch, self._embed(batch, owners, features), places, capture)
            return LMMStates(
                attention=split_attention(stack, inputs, places) if stack is not None else None,
                hidden=split_hidden(hidden, places) if hidden is not None else None,
                vision=vision,
                logits=self._logits(last, inputs, batch) if capture.logits else None,
                logits_start=[item.prefix_length - 1 for item in inputs] if capture.logits else None,
            )

    @torch.no_grad()
    def generate_with_states(
        self, sample: Sample, capture: CaptureSpec, *, max_new_tokens: int = 128
    ) -> Generation:
        """See :class:`LMMAdapter`. The rows come from the row tap whatever ``attention`` says: eager blocks would
        answer in other bits.
        """
        if max_new_tokens < 1:
            raise ConfigError(f"`max_new_tokens` is {max_new_tokens}; an answer needs at least 1")
        processor = self._processor()
        question = processor.question(sample)
        ends = end_ids(self.model)
        room = answer_room(len(question.input_ids), self.position_limit, max_new_tokens, sample.record_id)
        with self._eval_mode(), self._text_attention(ROW_TAP):
            features, vision = self._see([question], [0], capture.vision_layers)
            one = torch.zeros(1, 1, dtype=torch.int64)
            query = PhraseRows(
                one, one, image_columns(question)[None], 1, [(0, slice(0, 1), slice(0, 1))], [one[0]]
            )
            decoded = decode_greedily(
                self.model.model.language_model,
                self.model.get_output_embeddings(),
                self._embed(pack([question], None), [0], features),
                make_tap=(lambda: self._tap(query, self.device)) if capture.attention else None,
                keep_hidden=capture.hidden,
                end_ids=ends,
                max_new_tokens=room,
                rules=token_rules(self.model, processor.tokenizer, question.input_ids, room),
            )
        warn_if_cut(len(decoded.token_ids), int(decoded.token_ids[-1]), ends, room, max_new_tokens)
        text, offsets = text_and_offsets(
            decoded.token_ids.tolist(), lambda ids: processor.tokenizer.decode(ids, skip_special_tokens=True)
        )
        return Generation(
            text=text,
            token_ids=decoded.token_ids,
            token_offsets=offsets,
            log_probs=decoded.log_probs,
            inputs=answered(question, decoded.token_ids),
            attention=decoded.attention,
            hidden=decoded.hidden,
            vision=None if vision is None else vision[0],
        )

    def states_of_phrases(self, generation: Generation, phrases: Sequence[Phrase]) -> LMMStates:
        """See :class:`LMMAdapter`."""
        item = phrase_inputs(generation, phrases)
        tokens, ids = phrase_entries(item.phrase_tokens[:, item.prefix_length :], item.record_id)
        tokens, ids = tokens.to(self.device), ids.to(self.device)
        attention = hidden = None
        if generation.attention is not None:
            rows = generation.attention[None, :, tokens]
            merged = merge_rows(rows, ids[None], len(phrases), how=self.rows.merge)
            attention = [attention_maps(merged[0], item.grid)]
        if generation.hidden is not None:
            hidden = [HiddenRows(generation.hidden[:, tokens], ids)]
        vision = None if generation.vision is None else [generation.vision]
        return LMMStates(attention=attention, hidden=hidden, vision=vision)

    def _see(
        self, inputs: Sequence[LMMInputs], owners: Sequence[int], layers: tuple[int, ...]
    ) -> tuple[dict[int, Tensor], list[dict[int, Tensor]] | None]:
        """Image tokens per distinct image, and the asked vision layers per sample."""
        images = sorted(set(owners))
        pixels = [inputs[index].pixel_values.to(self.device, self.model.dtype) for index in images]
        tower_states: list[Tensor] = []
        with ExitStack() as stack:
            if layers:
                self._check_vision_layers(layers)
                tower = self.model.model.vision_tower
                owner = get_ident()

                def keep(_: Any, __: Any, output: Any) -> None:
                    # Other threads may use the tower at the same time.
                    if get_ident() == owner:
                        tower_states.extend(output.hidden_states)

                hook = tower.register_forward_hook(keep)
                stack.callback(hook.remove)
            tokens = self.image_tokens(pixels, [inputs[index].grid for index in images])
        features = dict(zip(images, tokens, strict=True))
        if not layers:
            return features, None
        maps = {}
        for index, view in zip(images, self.base_views(pixels), strict=True):
            level = inputs[index].grid.levels[0]
            # The class token leads.
            maps[index] = {
                layer: tower_states[layer][view, 1:].T.reshape(-1, level.rows, level.cols) for layer in layers
            }
        return features, [maps[owner] for owner in owners]

    def _check_vision_layers(self, layers: tuple[int, ...]) -> None:
        last = self.model.config.vision_config.num_hidden_layers
        if wrong := [layer for layer in layers if not 0 <= layer <= last]:
            raise ConfigError(f"vision_layers {wrong} do not exist; the tower has hidden states 0..{last}")

    def _pack(self, inputs: Sequence[LMMInputs], owners: Sequence[int]) -> PackedBatch:
        batch = pack(inputs, owners if self.share_prefix else None)
        window = getattr(self.model.config.text_config, "sliding_window", None)
        if batch.visible is not None and window is not None and batch.input_ids.shape[1] >= window:
            # Our mask knows no window; inside of the window there is nothing to know.
            batch = pack(inputs, None)
        return batch

    def _embed(self, batch: PackedBatch, owners: Sequence[int], features: dict[int, Tensor]) -> Tensor:
        embeds = self.model.get_input_embeddings()(batch.input_ids.to(self.device))
        tokens = torch.cat([features[owners[members[0]]] for members in batch.groups])
        return embeds.masked_scatter(batch.image_mask.to(embeds.device)[..., None], tokens.to(embeds))

    def _read(
        self, batch: PackedBatch, embeds: Tensor, places: PhraseRows, capture: CaptureSpec
    ) -> tuple[Tensor | None, list[Tensor] | None, Tensor]:
        """One pass of the language model: attention rows, hidden rows per layer, last hidden states."""
        device = embeds.device
        eager = self.rows.attention == "eager"
        if eager and torch.is_grad_enabled() and self.model.is_gradient_checkpointing:
            raise ConfigError(
                "rows `attention`='eager' is for parity checks: not with gradient checkpointing"
            )
        arguments = _mask_and_positions(batch, embeds, additive=eager)
        tap = self._tap(places, device) if capture.attention else None
        if tap is not None:
            arguments |= {"output_attentions": True} if eager else {"row_tap": tap}
        language_model = self.model.model.language_model
        with ExitStack() as stack:
            stack.enter_context(self._text_attention("eager" if eager else ROW_TAP))
            hidden = None
            if capture.hidden:
                hidden = stack.enter_context(hidden_rows(language_model, places.positions.to(device)))
            output = language_model(inputs_embeds=embeds, use_cache=False, **arguments)
        if eager and tap is not None:
            for layer, attention in enumerate(output.attentions):
                tap.collect_eager(layer, attention)
        return tap.finish() if tap is not None else None, hidden, output.last_hidden_state

    def _tap(self, places: PhraseRows, device: torch.device) -> RowTap:
        return RowTap(
            places.positions.to(device),
            places.phrase_ids.to(device),
            places.columns.to(device),
            places.num_phrases,
            layers=self._layers,
            heads=None if self.rows.heads is None else self._heads,
            merge=self.rows.merge,
        )

    def _logits(self, last: Tensor, inputs: Sequence[LMMInputs], batch: PackedBatch) -> list[Tensor]:
        states = answer_states(last, inputs, batch.groups, batch.token_index)
        return list(
            self.model.get_output_embeddings()(torch.cat(states)).split([len(part) for part in states])
        )


def _mask_and_positions(batch: PackedBatch, embeds: Tensor, *, additive: bool) -> dict[str, Any]:
    """Arguments of the language model; ``additive`` for eager blocks, which add the mask to the scores."""
    if batch.visible is None or batch.position_ids is None:
        # All ones, not None: transformers then keeps sdpa's causal kernel and builds no mask.
        return {"attention_mask": torch.ones(batch.input_ids.shape, dtype=torch.bool, device=embeds.device)}
    mask = batch.visible.to(embeds.device)
    if additive:
        mask = torch.zeros_like(mask, dtype=embeds.dtype).masked_fill(~mask, torch.finfo(embeds.dtype).min)
    return {"attention_mask": mask, "position_ids": batch.position_ids.to(embeds.device)}
