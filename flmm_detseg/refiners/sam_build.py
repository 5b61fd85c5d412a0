"""Builds segment-anything models of the official and of small sizes, and reads and writes their weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from torch import Tensor, nn

from flmm_detseg.errors import CheckpointError, ConfigError
from flmm_detseg.utils.finite import not_finite
from flmm_detseg.utils.paths import find, places

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
_PIXEL_MEAN = (123.675, 116.28, 103.53)
_PIXEL_STD = (58.395, 57.12, 57.375)


@dataclass(frozen=True)
class SamSizes:
    """Sizes of a segment-anything model; the defaults are those all official variants share.

    Attributes:
        embed_dim: Width of the image encoder.
        depth: Its blocks.
        num_heads: Its attention heads.
        global_attn_indexes: Blocks that attend to the whole image; the others attend inside windows.
        image_size: Side of the square input in pixels.
        patch_size: Side of a patch in pixels; the embedding has ``image_size // patch_size`` rows and
            columns.
        window_size: Side of an attention window in patches.
        prompt_dim: Width of prompts, image embedding and mask decoder.
        mask_in_chans: Hidden channels of the mask prompt's encoder.
        decoder_depth: Blocks of the two-way transformer.
        decoder_num_heads: Its heads.
        decoder_mlp_dim: Its feed-forward width.
        iou_hidden_dim: Hidden width of the quality head.
        trained_candidates: Whether the three candidates and the quality head were trained; False for a SAM that knows
            its single mask alone.
    """

    embed_dim: int
    depth: int
    num_heads: int
    global_attn_indexes: tuple[int, ...]
    image_size: int = 1024
    patch_size: int = 16
    window_size: int = 14
    prompt_dim: int = 256
    mask_in_chans: int = 16
    decoder_depth: int = 2
    decoder_num_heads: int = 8
    decoder_mlp_dim: int = 2048
    iou_hidden_dim: int = 256
    trained_candidates: bool = True


VARIANTS: dict[str, SamSizes] = {
    "vit_b": SamSizes(768, 12, 12, (2, 5, 8, 11)),
    "vit_l": SamSizes(1024, 24, 16, (5, 11, 17, 23)),
    "vit_h": SamSizes(1280, 32, 16, (7, 15, 23, 31)),
    "tiny": SamSizes(
        embed_dim=128,
        depth=4,
        num_heads=4,
        global_attn_indexes=(1, 3),
        image_size=128,
        patch_size=8,
        window_size=8,
        prompt_dim=64,
        decoder_num_heads=4,
        decoder_mlp_dim=256,
        iou_hidden_dim=64,
        trained_candidates=False,
    ),
}


def build_sam(variant: str | SamSizes | None = None, checkpoint: str | Path | None = None) -> Sam:
    """Builds a segment-anything model in evaluation mode.

    Args:
        variant: ``"vit_b"``, ``"vit_l"``, ``"vit_h"``, ``"tiny"`` or explicit sizes. May be None where
            ``checkpoint`` is a folder, whose config then decides.
        checkpoint: An official ``.pth`` file, a ``.safetensors`` file, or a folder with ``config.json`` and
            ``model.safetensors``; None leaves random weights (also on the meta device).

    Returns:
        The model, with the weights of ``checkpoint`` or random ones.

    Raises:
        ConfigError: Unknown variant, or none given where one is needed.
        CheckpointError: The weights cannot be read, are unsafe, or do not fit; names the keys.
    """
    path = None if checkpoint is None else find(checkpoint)
    if path is not None and path.is_dir():
        stored = _read_sizes(path / CONFIG_NAME)
        if variant is not None and _sizes_of(variant) != stored:
            raise ConfigError(
                f"SAM variant {variant!r} differs from the sizes in {path / CONFIG_NAME}; drop `variant`"
            )
        variant, path = stored, path / WEIGHTS_NAME
    model = _assemble(_sizes_of(variant))
    if path is not None:
        load_strictly(model, read_weights(path), path)
    return model.eval()


def save_sam(model: Sam, sizes: SamSizes, folder: str | Path, dtype: torch.dtype = torch.float16) -> None:
    """Writes ``config.json`` and ``model.safetensors`` into a folder (made if absent).

    Args:
        model: The model to store.
        sizes: What it was built from.
        folder: Where to write.
        dtype: Of the stored weights.
    """
    weights = {
        name: value.detach().cpu().to(dtype).contiguous() for name, value in model.state_dict().items()
    }
    save_sam_weights(weights, sizes, folder)


def save_sam_weights(weights: Mapping[str, Tensor], sizes: SamSizes, folder: str | Path) -> None:
    """:func:`save_sam` of weights that are in no model.

    Args:
        weights: By segment-anything's names, on the CPU, contiguous.
        sizes: Of the model they are of.
        folder: Where to write.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = {"model_type": "sam", "library": "segment-anything", **asdict(sizes)}
    (folder / CONFIG_NAME).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    save_file(dict(weights), folder / WEIGHTS_NAME, metadata={"format": "pt"})


def sam_shapes(sizes: SamSizes) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor that a SAM of these sizes is stored as."""
    with torch.device("meta"):
        return {name: tuple(value.shape) for name, value in _assemble(sizes).state_dict().items()}


def read_weights(path: Path) -> dict[str, Tensor]:
    """Reads a flat file of tensors without running code from it.

    Args:
        path: Tensors as safetensors or as a torch file.

    Returns:
        Tensors by name, on the CPU.

    Raises:
        CheckpointError: The file is absent, damaged, holds other objects than tensors, or would run code.
    """
    if not path.is_file():
        raise CheckpointError(
            f"no SAM weights at {path} ({places(path)}); data/README.md says where to get them"
        )
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # readers of damaged bytes may raise anything
        raise CheckpointError(f"cannot read {path} as plain tensors (damaged or unsafe): {error}") from error
    if not isinstance(weights, Mapping) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise CheckpointError(f"{path} is no SAM checkpoint: expected a flat dictionary of tensors")
    return dict(weights)


def load_strictly(model: nn.Module, weights: Mapping[str, Tensor], source: Path) -> None:
    """Loads weights that must fit key by key and shape by shape.

    Args:
        model: Changed in place.
        weights: By name.
        source: Where they come from, for the error.

    Raises:
        CheckpointError: Names missing and unexpected keys, wrong shapes, and tensors with NaN or infinities.
    """
    expected = model.state_dict()
    problems = {
        "missing": sorted(expected.keys() - weights.keys()),
        "unexpected": sorted(weights.keys() - expected.keys()),
        "wrong shape": [
            f"{name} {tuple(weights[name].shape)} instead of {tuple(value.shape)}"
            for name, value in expected.items()
            if name in weights and weights[name].shape != value.shape
        ],
        "not finite": not_finite(weights),
    }
    lines = [f"{kind} ({len(names)}): {_shorten(names)}" for kind, names in problems.items() if names]
    if lines:
        raise CheckpointError(f"{source} does not fit this SAM (another variant?); " + "; ".join(lines))
    # On the meta device there is nothing to copy to, and torch warns of every tensor.
    if not any(value.is_meta for value in expected.values()):
        model.load_state_dict(dict(weights))


def _shorten(names: list[str], limit: int = 8) -> str:
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")


def _sizes_of(variant: str | SamSizes | None) -> SamSizes:
    if isinstance(variant, SamSizes):
        return variant
    if variant not in VARIANTS:
        raise ConfigError(
            f"unknown SAM variant {variant!r}; choose one of {', '.join(VARIANTS)} or give SamSizes"
        )
    return VARIANTS[variant]


def _read_sizes(path: Path) -> SamSizes:
    known = {field.name for field in fields(SamSizes)}
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        sizes = {name: value for name, value in stored.items() if name in known}
        return SamSizes(**{**sizes, "global_attn_indexes": tuple(sizes["global_attn_indexes"])})
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"cannot read the SAM sizes in {path}: {error!r}") from error


def _assemble(sizes: SamSizes) -> Sam:
    side = sizes.image_size // sizes.patch_size
    model = Sam(
        image_encoder=ImageEncoderViT(
            depth=sizes.depth,
            embed_dim=sizes.embed_dim,
            img_size=sizes.image_size,
            mlp_ratio=4,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
            num_heads=sizes.num_heads,
            patch_size=sizes.patch_size,
            qkv_bias=True,
            use_rel_pos=True,
            global_attn_indexes=sizes.global_attn_indexes,
            window_size=sizes.window_size,
            out_chans=sizes.prompt_dim,
        ),
        prompt_encoder=PromptEncoder(
            embed_dim=sizes.prompt_dim,
            image_embedding_size=(side, side),
            input_image_size=(sizes.image_size, sizes.image_size),
            mask_in_chans=sizes.mask_in_chans,
        ),
        mask_decoder=MaskDecoder(
            num_multimask_outputs=3,
            transformer=TwoWayTransformer(
                depth=sizes.decoder_depth,
                embedding_dim=sizes.prompt_dim,
                mlp_dim=sizes.decoder_mlp_dim,
                num_heads=sizes.decoder_num_heads,
            ),
            transformer_dim=sizes.prompt_dim,
            iou_head_depth=3,
            iou_head_hidden_dim=sizes.iou_hidden_dim,
        ),
        pixel_mean=list(_PIXEL_MEAN),
        pixel_std=list(_PIXEL_STD),
    )
    model.trained_candidates = sizes.trained_candidates
    return model
