"""Facts of a foreign model folder that this package relies upon, compared when an adapter is built.

Files of one folder can disagree: the tokenizer with the embedding, the tower with the grid, the config with what this
package can run. Each disagreement is named here, before the first forward pass ends in an error without a name, or in
answers that are silently wrong.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator, Mapping
from typing import Any

from mmengine.logging import print_log
from transformers import PretrainedConfig, PreTrainedModel

from flmm_detseg.errors import ConfigError
from flmm_detseg.lmms.capture.row_tap import ROW_TAP
from flmm_detseg.lmms.capture.token_rules import check_generation_config, end_ids
from flmm_detseg.lmms.family import Family
from flmm_detseg.lmms.processors import LMMProcessor, PixelProcessor

_IMAGE_TOKEN = "<image>"
_RESCALE_FACTOR = 1 / 255
_BICUBIC = 3


def source_of(model: PreTrainedModel) -> str:
    """How messages name a model."""
    return getattr(model, "name_or_path", "") or getattr(model.config, "_name_or_path", "") or "the model"


def check_facts(family: Family, model: PreTrainedModel, processor: LMMProcessor | None) -> None:
    """Compares what the files of a model say with each other and with what this package can run.

    Args:
        family: Of the model.
        model: The transformers model; may be on the meta device.
        processor: The family's processor; None where only shapes matter.

    Raises:
        ConfigError: Two facts disagree; names the model, both values and the remedy.
    """
    source = source_of(model)
    check_config(family, source)
    family.check_model(model, source)
    decoder = family.decoder(model)
    _check_attention(decoder, source)
    if processor is None:
        return
    _check_vocabulary(model, processor, source)
    _check_prompt(model, processor, source)
    _check_positions(decoder, processor, source)
    check_generation_config(model, processor.tokenizer, source)


def check_config(family: Family, source: str) -> None:
    """Refuses what ``config.json`` asks for and this package cannot do; before weights are read.

    A request for another attention function (flash_attention_2, ...) is removed: this package brings its own, and the
    requested kernels may not be installed.

    Args:
        family: Of the model.
        source: Names the model in messages.

    Raises:
        ConfigError: Names the field.
    """
    config = family.config
    for part in (config, config.text_config, config.vision_config):
        if getattr(part, "quantization_config", None) is not None:
            raise ConfigError(
                f"{source}: config.json has a `quantization_config`, but rows, LoRA and checkpoints need the weights "
                "as they are; use the folder that was not quantised (dtype='bfloat16' halves its memory)"
            )
        if getattr(part, "_attn_implementation", None) not in (None, "sdpa", "eager", ROW_TAP):
            part._attn_implementation_internal = None
    family.check_config(source)


def _check_attention(decoder: PreTrainedModel, source: str) -> None:
    if not getattr(decoder, "_supports_attention_backend", True):
        raise ConfigError(
            f"{source}: the language model ({decoder.config.model_type}) does not take an attention function "
            "of transformers' AttentionInterface; attention rows cannot be read. Use a LLaMA-like language model"
        )


def _check_vocabulary(model: PreTrainedModel, processor: LMMProcessor, source: str) -> None:
    tokenizer = processor.tokenizer
    largest = max(tokenizer.get_vocab().items(), key=lambda entry: entry[1])
    for name, table in (
        ("input embedding", model.get_input_embeddings()),
        ("output embedding", model.get_output_embeddings()),
    ):
        rows = table.weight.shape[0]
        if largest[1] >= rows:
            raise ConfigError(
                f"{source}: the tokenizer's largest token id is {largest[1]} ({largest[0]!r}), but the {name} has "
                f"{rows} rows; use the tokenizer stored with these weights, or resize the embedding and store both"
            )
    own = tokenizer.convert_tokens_to_ids(_IMAGE_TOKEN)
    if own is not None and own != processor.image_token_id and own != tokenizer.unk_token_id:
        raise ConfigError(
            f"{source}: {_IMAGE_TOKEN} is token {own} of the tokenizer, but config.json says image_token_index "
            f"{processor.image_token_id} (the tokenizer's {processor.image_token!r}); use the tokenizer stored with "
            "the model, or mend config.json"
        )


def _check_prompt(model: PreTrainedModel, processor: LMMProcessor, source: str) -> None:
    tokenizer = processor.tokenizer
    ids = tokenizer(processor.prompt("a")).input_ids
    count = ids.count(processor.image_token_id)
    if isinstance(processor, PixelProcessor) and count != 1:
        raise ConfigError(
            f"{source}: the prompt {processor.prompt('a')!r} has {count} image tokens once it is tokenised, not 1; the "
            f"tokenizer must keep {processor.image_token!r} whole (an added token that is special and not normalised)"
        )
    if tokenizer.eos_token_id is not None and ids[-1] == tokenizer.eos_token_id:
        raise ConfigError(
            f"{source}: the tokenizer ends every text with {tokenizer.eos_token!r}, so that answers would begin after "
            "an end; take it out of the post-processor of tokenizer.json (add_eos_token=false)"
        )
    ends, word = end_ids(model), processor.template.turn_end or tokenizer.eos_token
    end = None if word is None else tokenizer.convert_tokens_to_ids(word)
    if end is not None and processor.template.turn_end is None and ends and end not in ends:
        print_log(
            f"{source}: generation_config.json ends answers at token {ends}, the tokenizer's end token is "
            f"{end} ({word!r}); answers learned here end with the latter and would not stop there",
            "current",
            logging.WARNING,
        )


def _rotary_modules(decoder: PreTrainedModel) -> Iterator[Any]:
    """Rotary embeddings of transformers, each of a class of its model."""
    for module in decoder.modules():
        if isinstance(getattr(module, "rope_type", None), str) and hasattr(module, "inv_freq"):
            yield module


def stateless_positions(decoder: PreTrainedModel) -> int | None:
    """Positions below which rotary frequencies depend on nothing but the position; None: there is no such limit.

    The rope types "dynamic" and "longrope" change the frequencies of everything when one sequence of the batch is
    longer, and "dynamic" keeps them for the next pass: a sequence's rows would depend on its neighbours, and stored
    keys on what was read before them.
    """
    limits = []
    for module in _rotary_modules(decoder):
        config = module.config
        if "dynamic" in module.rope_type:
            limits.append(module.original_max_seq_len)
        elif module.rope_type == "longrope":
            limits.append(
                getattr(config, "original_max_position_embeddings", None) or config.max_position_embeddings
            )
    return min(limits, default=None)


def default_max_length(decoder: PreTrainedModel) -> int:
    """Longest sequence in tokens where the user names none."""
    built_for = decoder.config.max_position_embeddings
    limit = stateless_positions(decoder)
    return built_for if limit is None else min(built_for, limit)


def position_limit(decoder: PreTrainedModel, max_length: int) -> int | None:
    """Positions an answer may use; None where the config does not say how far scaled positions reach.

    Args:
        decoder: Of the language model.
        max_length: Longest sequence the user asked for.

    Returns:
        The number; where frequencies do not scale, at least ``max_length``.
    """
    if (limit := stateless_positions(decoder)) is not None:
        return limit
    if any(module.rope_type != "default" for module in _rotary_modules(decoder)):
        return None
    return max(decoder.config.max_position_embeddings, max_length)


def _check_positions(decoder: PreTrainedModel, processor: LMMProcessor, source: str) -> None:
    length, limit = processor.settings.max_length, stateless_positions(decoder)
    kinds = sorted({module.rope_type for module in _rotary_modules(decoder)})
    if limit is not None and length > limit:
        raise ConfigError(
            f"{source}: `max_length` is {length}, but with rope type {', '.join(map(repr, kinds))} results depend "
            f"on the other sequences of a batch, and on earlier ones, beyond {limit} positions; set max_length={limit} "
            "or less"
        )
    built_for = decoder.config.max_position_embeddings
    if length > built_for and kinds in ([], ["default"]):
        print_log(
            f"{source}: `max_length` is {length}, the language model was built for {built_for} positions "
            "(max_position_embeddings)",
            "current",
            logging.WARNING,
        )


def check_image_settings(
    settings: Mapping[str, Any], source: str
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of RGB, from a preprocessor config that this package can follow.

    Args:
        settings: Fields of ``preprocessor_config.json``.
        source: Names the model in messages.

    Returns:
        Mean and standard deviation, three numbers each, of pixels in [0, 1].

    Raises:
        ConfigError: Names the field, its value and what is possible.
    """
    for name in ("do_normalize", "do_rescale"):
        if settings.get(name, True) is not True:
            raise ConfigError(
                f"{source}: preprocessor_config.json says {name}={settings[name]!r}; pixels are always divided by 255 "
                "and normalised here. Set it to true (with image_mean 0 and image_std 1 nothing is normalised)"
            )
    factor = settings.get("rescale_factor", _RESCALE_FACTOR)
    if not isinstance(factor, int | float) or not math.isclose(factor, _RESCALE_FACTOR, rel_tol=1e-6):
        raise ConfigError(
            f"{source}: preprocessor_config.json says rescale_factor={factor!r}; it is always 1/255 = "
            f"{_RESCALE_FACTOR} here. Change image_mean and image_std instead"
        )
    found: list[tuple[float, ...]] = []
    for name in ("image_mean", "image_std"):
        values: Any = settings.get(name)
        usable = isinstance(values, list | tuple) and len(values) == 3
        usable = usable and all(
            isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in values
        )
        if not usable or (name == "image_std" and min(values) <= 0):
            raise ConfigError(
                f"{source}: preprocessor_config.json with image_mean and image_std is needed, three numbers each; "
                f"its {name} is {values!r}"
            )
        found.append(tuple(values))
    if settings.get("resample", _BICUBIC) != _BICUBIC:
        print_log(
            f"{source}: preprocessor_config.json says resample={settings['resample']!r}; images are resized "
            f"bicubically ({_BICUBIC}) here",
            "current",
            logging.WARNING,
        )
    return found[0], found[1]


def check_image_sizes(
    settings: Mapping[str, Any], processor: Mapping[str, Any], config: PretrainedConfig, source: str
) -> None:
    """Warns where a processor's files name other sizes than the model's config, whose sizes are the ones used.

    Args:
        settings: Fields of ``preprocessor_config.json``.
        processor: Fields of ``processor_config.json``, empty where there is none.
        config: The model's config.
        source: Names the model in messages.
    """
    own = {
        "patch_size": config.vision_config.patch_size,
        "vision_feature_select_strategy": config.vision_feature_select_strategy,
        "image_grid_pinpoints": getattr(config, "image_grid_pinpoints", None),
    }
    for name, value in own.items():
        for file, fields in (
            ("preprocessor_config.json", settings),
            ("processor_config.json", processor),
        ):
            if value is not None and fields.get(name) is not None and not _equal(fields[name], value):
                print_log(
                    f"{source}: {file} says {name}={fields[name]!r}, config.json {value!r}; the latter is used",
                    "current",
                    logging.WARNING,
                )
    side = config.vision_config.image_size
    for name in ("size", "crop_size"):
        value = settings.get(name)
        sides = set(value.values()) if isinstance(value, Mapping) else {value}
        if sides - {side, None}:
            print_log(
                f"{source}: preprocessor_config.json says {name}={value!r}, the vision tower reads {side} x {side} "
                "pixels; the tower's side is used",
                "current",
                logging.WARNING,
            )


def _equal(value: Any, other: Any) -> bool:
    """Whether two values of JSON are equal; tuples are lists."""
    return json.dumps(value, default=list) == json.dumps(other, default=list)
