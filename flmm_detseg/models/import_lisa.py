"""A published LISA model (LLaVA-v1 with a SAM inside) as an LMM, a SAM and a head of ours, checked tensor by tensor."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from flmm_detseg.errors import ConfigError
from flmm_detseg.heads.seg_token_head import SegTokenHead
from flmm_detseg.language.segment_names import MASK_TOKEN
from flmm_detseg.lmms.llava_v1 import TOWER, LlavaV1, file_name, read_fields, read_llava_v1
from flmm_detseg.lmms.weights.export import check_free
from flmm_detseg.lmms.weights.identity import identity_of, sampled
from flmm_detseg.lmms.weights.shards import StoredTensor, WeightFolder, weight_folder
from flmm_detseg.models.checkpoint import HEADS, IDENTITY, write_tensors
from flmm_detseg.models.from_config import read_config
from flmm_detseg.refiners.sam import SAMRefiner
from flmm_detseg.refiners.sam_build import VARIANTS, SamSizes, build_sam, sam_shapes, save_sam_weights
from flmm_detseg.utils.finite import is_finite
from flmm_detseg.utils.hub import fetch_model, is_hub_name
from flmm_detseg.utils.paths import find
from flmm_detseg.utils.whole_files import new_folder, write_json, write_text

PRESET = "llava/lisa_v1_7b"
LMM_FOLDER, SAM_FOLDER, HEADS_FILE, CONFIG_FILE = "lmm", "sam", "heads.safetensors", "lisa.py"
_HEAD = "reasoning"
_SAM, _PROJECT = "model.visual_model.", "model.text_hidden_fcs.0."
_EMBED = "model.embed_tokens.weight"
# What a CLIP folder holds of itself, under the name that it has in a LLaVA.
_CLIP_TOWER = "vision_model."
# Ends of names -> why they are not needed.
_COMPUTED = {
    "rotary_emb.inv_freq": "computed from the config",
    "embeddings.position_ids": "counts from 0",
}
_CLIP_REST = ("text_model.", "text_projection.", "visual_projection.", "logit_scale")
# The first release, whose SAM and projection are files of their own.
_V0_FILES = ("pytorch_model-visual_model.bin", "pytorch_model-text_hidden_fcs.bin")
_LISTED = 10
# LISA's `conv_type`.
PROMPT_TEMPLATES = ("llava_v1", "llava_llama_2")


@dataclass(frozen=True)
class Move:
    """Where a stored tensor goes.

    Attributes:
        tensor: What its file says of it.
        lmm: Its name in the LMM, as transformers 4 has it.
        sam: Its name in the SAM.
        head: Its name in the checkpoint of the head.
        left_out: Why it goes nowhere.
    """

    tensor: StoredTensor
    lmm: str | None = None
    sam: str | None = None
    head: str | None = None
    left_out: str | None = None

    @property
    def targets(self) -> str:
        """Files and names, for people."""
        names = [
            f"{folder}: {name}"
            for folder, name in (
                (LMM_FOLDER, self.lmm and file_name(self.lmm)),
                (SAM_FOLDER, self.sam),
                (HEADS_FILE, self.head),
            )
            if name
        ]
        return ", ".join(names) or f"left out: {self.left_out}"


@dataclass(frozen=True)
class LisaPlan:
    """What an import would do.

    Attributes:
        llava: The LMM without its weights.
        sizes: Of the SAM.
        weights: Of the model.
        moves: By the name of each of its tensors.
        tower_weights: Of the tower's folder, where the model holds none.
        tower_moves: By the name of each of these.
    """

    llava: LlavaV1
    sizes: SamSizes
    weights: WeightFolder
    moves: dict[str, Move]
    tower_weights: WeightFolder
    tower_moves: dict[str, Move]

    @property
    def all_moves(self) -> dict[str, Move]:
        """Of both folders; the tower's names begin with its folder."""
        return {
            **self.moves,
            **{f"{self.llava.tower.name}/{name}": move for name, move in self.tower_moves.items()},
        }

    def table(self) -> Iterator[str]:
        """A line for each tensor: source, target, shape, dtype."""
        for name, move in self.all_moves.items():
            kind = str(move.tensor.dtype).removeprefix("torch.")
            yield f"{name} -> {move.targets}  {list(move.tensor.shape)} {kind}"

    def figures(self, prompt_template: str = "llava_v1") -> dict[str, Any]:
        """Counts, and what the config will say, for the last line of a command.

        Args:
            prompt_template: One of :data:`PROMPT_TEMPLATES`, as the model was trained.

        Returns:
            By name.

        Raises:
            ConfigError: There is no such template.
        """
        if prompt_template not in PROMPT_TEMPLATES:
            raise ConfigError(
                f"`prompt_template` is {prompt_template!r}; LISA models were trained with one of "
                f"{', '.join(PROMPT_TEMPLATES)}"
            )
        moves = list(self.all_moves.values())
        return {
            "tensors": len(moves),
            "lmm": sum(move.lmm is not None for move in moves),
            "sam": sum(move.sam is not None for move in moves),
            "head": sum(move.head is not None for move in moves),
            "left_out": sum(move.left_out is not None for move in moves),
            "token_id": int(self.llava.tokenizer.convert_tokens_to_ids(MASK_TOKEN)),
            "image_token": self.llava.image_token,
            "projector": self.llava.projector,
            "prompt_template": f"{prompt_template}_marked" if self.llava.marked else prompt_template,
        }


def plan_lisa(folder: str | Path, vision_tower: str | None = None, sam: str = "vit_h") -> LisaPlan:
    """Finds a place for every tensor of a LISA model; nothing is written.

    Args:
        folder: The merged model as its authors publish it: ``config.json``, tokenizer, and weights in one file or
            several (safetensors, or torch files, which are read without running code).
        vision_tower: Folder or hub name of its CLIP tower; None: what its config names.
        sam: Variant of the SAM inside.

    Returns:
        The plan; it is complete.

    Raises:
        ConfigError: It is no such model, of a kind that is not mapped, or its files are damaged, or tensors are
            missing, unknown or of another shape: one error that lists them.
    """
    path = find(folder)
    if not path.is_dir():
        raise ConfigError(f"{path}: no such folder; name that of a merged LISA model")
    if any((path / name).is_file() for name in _V0_FILES):
        raise ConfigError(
            f"{path} is LISA v0 ({_V0_FILES[0]} beside the language model): it was asked in other words and with image "
            "tokens in the text, which is not mapped; take a v1 model"
        )
    if sam not in VARIANTS:
        raise ConfigError(f"unknown SAM variant {sam!r}; choose one of {', '.join(VARIANTS)}")
    fields = read_fields(path)
    tower = _tower_folder(vision_tower or fields.get("vision_tower") or fields.get("mm_vision_tower"), path)
    weights = weight_folder(path)
    # What is in files that cannot be read would be missing as well.
    _raise_problems(path, weights.problems)
    table = weights.tensors.get(_EMBED)
    llava = read_llava_v1(path, tower, None if table is None else table.shape[0])
    if MASK_TOKEN not in llava.tokenizer.get_vocab():
        raise ConfigError(
            f"{path}: the tokenizer has no {MASK_TOKEN}; it is no LISA's, or added_tokens.json is missing"
        )
    inside = any((llava.target(name) or "").startswith(f"{TOWER}.") for name in weights.tensors)
    tower_weights = WeightFolder({}, ()) if inside else weight_folder(tower)
    shapes, sizes = llava.shapes(), VARIANTS[sam]
    trained = _trained(sizes, llava.config.text_config.hidden_size)
    moves = {name: _move(name, tensor, llava, trained) for name, tensor in weights.tensors.items()}
    tower_moves = {name: _tower_move(name, tensor) for name, tensor in tower_weights.tensors.items()}
    expected = {
        **{
            f"{_PROJECT}{name.removeprefix(f'heads.{_HEAD}.project.')}": shape
            for name, shape in trained.items()
            if ".project." in name
        },
        **{f"{_SAM}{name}": shape for name, shape in sam_shapes(sizes).items()},
    }
    _raise_problems(path, [f"{tower}: {problem}" for problem in tower_weights.problems])
    both = [*moves.items(), *tower_moves.items()]
    found_lmm = {move.lmm for _, move in both}
    problems = [f"{llava.source(name, inside=inside)} is missing" for name in shapes if name not in found_lmm]
    problems += [f"{name} is missing" for name in expected if name not in moves]
    for name, move in both:
        needed = shapes.get(move.lmm or "") or expected.get(name)
        if move.left_out is not None:
            continue
        if needed is None:
            hint = " (LoRA has to be merged first)" if "lora_" in name else ""
            problems.append(f"{name} {list(move.tensor.shape)} is not known{hint}")
        elif needed != move.tensor.shape:
            problems.append(f"{name} has shape {list(move.tensor.shape)}, {list(needed)} is needed")
        elif not move.tensor.dtype.is_floating_point:
            problems.append(f"{name} is {move.tensor.dtype}, no weight: the model was quantised")
    _raise_problems(path, problems)
    return LisaPlan(llava, sizes, weights, moves, tower_weights, tower_moves)


def import_lisa(
    plan: LisaPlan, out: str | Path, prompt_template: str = "llava_v1", *, source: str | Path = "the model"
) -> dict[str, Any]:
    """Writes what a plan says: an LMM in hub layout, a SAM, a checkpoint and a config that loads them; all or nothing.

    Of the model one file is in memory at a time, and the SAM.

    Args:
        plan: From :func:`plan_lisa`.
        out: Folder to make. Its ``lisa.py`` names it as it is written here.
        prompt_template: One of :data:`PROMPT_TEMPLATES`, as the model was trained.
        source: Named in errors.

    Returns:
        ``out``, ``config``, ``num_parameters``, and :meth:`LisaPlan.figures`.

    Raises:
        ConfigError: There is something at ``out``, no such template, or weights are not finite; nothing is left there.
    """
    folder = check_free(out)
    figures = plan.figures(prompt_template)
    with new_folder(folder) as part:
        try:
            count = _write_weights(plan, part, source)
            _write_config(part / CONFIG_FILE, str(out), figures["prompt_template"])
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise
    return {
        "out": str(out),
        "config": str(folder / CONFIG_FILE),
        "num_parameters": count,
        **figures,
    }


def _write_weights(plan: LisaPlan, part: Path, source: str | Path) -> int:
    """All but the config; returns the number of values of the three parts together."""
    lmm_folder = part / LMM_FOLDER
    lmm_folder.mkdir()
    plan.llava.write_settings(lmm_folder)
    files = [(plan.weights, plan.moves, file) for file in plan.weights.files]
    files += [(plan.tower_weights, plan.tower_moves, file) for file in plan.tower_weights.files]
    shards = [
        file
        for _, moves, file in files
        if any(move.lmm is not None and move.tensor.file == file for move in moves.values())
    ]
    places: dict[str, str] = {}
    samples: dict[str, Tensor] = {}
    sam: dict[str, Tensor] = {}
    head: dict[str, Tensor] = {}
    broken: list[str] = []
    size = count = 0
    for weights, moves, file in files:
        shard: dict[str, Tensor] = {}
        for name, tensor in weights.read(
            file, {name for name, move in moves.items() if move.left_out is None}
        ):
            move = moves[name]
            if not is_finite(tensor):
                broken.append(f"{name} holds NaN or infinities")
            if move.lmm is not None:
                values = plan.llava.values(move.lmm, tensor)
                shard.update({file_name(target): value.contiguous() for target, value in values.items()})
                samples.update({target: sampled(value).clone() for target, value in values.items()})
            if move.sam is not None:
                sam[move.sam] = tensor
            if move.head is not None:
                head[move.head] = tensor
        if shard:
            number = shards.index(file) + 1
            called = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            save_file(shard, lmm_folder / called, metadata={"format": "pt"})
            places.update(dict.fromkeys(shard, called))
            size += sum(value.numel() * value.itemsize for value in shard.values())
            count += sum(value.numel() for value in shard.values())
    _raise_problems(source, broken)
    index = {"metadata": {"total_size": size}, "weight_map": places}
    write_json(lmm_folder / "model.safetensors.index.json", index)
    # Its decoder goes on from another training than its candidates: they fit no more.
    save_sam_weights(sam, replace(plan.sizes, trained_candidates=False), part / SAM_FOLDER)
    write_tensors(head, part / HEADS_FILE, {HEADS: [_HEAD], IDENTITY: identity_of(samples)})
    own = {name: value for name, value in head.items() if ".project." in name}
    return count + sum(value.numel() for value in [*sam.values(), *own.values()])


def _write_config(path: Path, out: str, template: str) -> None:
    """The preset with this folder's files in the place of its own."""
    config = read_config(PRESET)
    config.model.lmm.update(pretrained=f"{out}/{LMM_FOLDER}", prompt_template=template)
    config.model.heads[_HEAD].sam.checkpoint = f"{out}/{SAM_FOLDER}"
    config.load_from = f"{out}/{HEADS_FILE}"
    write_text(path, f"# {PRESET} with a model that `flmm-detseg import lisa` wrote.\n{config.pretty_text}")


def _trained(sizes: SamSizes, width: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of what a checkpoint of the head holds."""
    with torch.device("meta"):
        head = SegTokenHead(SAMRefiner(build_sam(sizes)), width)
    return {
        f"heads.{_HEAD}.{name}": tuple(parameter.shape)
        for name, parameter in head.named_parameters()
        if parameter.requires_grad
    }


def _move(name: str, tensor: StoredTensor, llava: LlavaV1, trained: Mapping[str, object]) -> Move:
    reason = next((reason for end, reason in _COMPUTED.items() if name.endswith(end)), None)
    if reason is not None:
        return Move(tensor, left_out=reason)
    if name.startswith(_SAM):
        own = name.removeprefix(_SAM)
        head = f"heads.{_HEAD}.sam.model.{own}"
        return Move(tensor, sam=own, head=head if head in trained else None)
    if name.startswith(_PROJECT):
        return Move(tensor, head=f"heads.{_HEAD}.project.{name.removeprefix(_PROJECT)}")
    return Move(tensor, lmm=llava.target(name))


def _tower_move(name: str, tensor: StoredTensor) -> Move:
    reason = next((reason for end, reason in _COMPUTED.items() if name.endswith(end)), None)
    if reason is None and name.startswith(_CLIP_REST):
        reason = "CLIP's other half"
    if reason is not None:
        return Move(tensor, left_out=reason)
    return Move(tensor, lmm=f"{TOWER}.{name}" if name.startswith(_CLIP_TOWER) else None)


def _tower_folder(name: object, folder: Path) -> Path:
    if not isinstance(name, str) or not name:
        raise ConfigError(
            f"{folder}: config.json names no vision tower; name its folder or hub name (--vision-tower)"
        )
    path = find(name)
    if path.is_dir():
        return path
    if not is_hub_name(name):
        raise ConfigError(
            f"{name}: no such folder of a CLIP tower; name one, or one on the hub (--vision-tower)"
        )
    return fetch_model(name)


def _raise_problems(source: str | Path, problems: Sequence[str]) -> None:
    if problems:
        more = f"; and {len(problems) - _LISTED} more" if len(problems) > _LISTED else ""
        raise ConfigError(
            f"{source} is no LISA model that can be imported, {len(problems)} problem(s): "
            f"{'; '.join(problems[:_LISTED])}{more}. Nothing was written; copy the model again, or name the SAM and "
            "the tower that it has (--sam, --vision-tower)"
        )
