"""Checkpoints of trainable tensors: read safely, load strictly."""

from __future__ import annotations

import hashlib
import json
import logging
import pickle
from collections import OrderedDict
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from mmengine.logging import print_log
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from flmm_detseg.compat.transformers5 import stored_names
from flmm_detseg.errors import CheckpointError, ConfigError
from flmm_detseg.heads.task_rows import rows_since
from flmm_detseg.lmms.added.added_tokens import is_added
from flmm_detseg.lmms.base import LMMAdapter
from flmm_detseg.lmms.lora.layers import lora_group_of
from flmm_detseg.lmms.weights.identity import check_identity, lmm_identity
from flmm_detseg.lmms.weights.trained_layout import check_layout, layout_text
from flmm_detseg.models.grounding_module import GroundingModule
from flmm_detseg.models.shared_parts import to_own_names
from flmm_detseg.models.zero_folder import check_states, read_model_states
from flmm_detseg.utils.finite import not_finite
from flmm_detseg.utils.paths import find, places
from flmm_detseg.utils.whole_files import dump_json, write_bytes

SAFETENSORS = ".safetensors"
# Entry of such a file's header: what the `meta` of a .pth says.
_META = "flmm_detseg"
# Entry of a checkpoint's meta: the model's heads in their order, which is that of a balancer's vectors.
HEADS = "heads"
PHRASE_PREFIX = "heads.phrase."
# Entry of a checkpoint's meta: for which layout of the LMM its tensors were trained, see lmm_layout.
LAYOUT = "lmm_layout"
# The same: which LMM its tensors were trained on, see :mod:`flmm_detseg.lmms.weights.identity`.
IDENTITY = "lmm_identity"
# First parts of the names in published F-LMM files (reference: wusize/F-LMM state dicts); ours add PHRASE_PREFIX.
_FLMM_GROUPS = ("text_layer_weights", "text_proj.", "mask_head.", "sam.model.")
# A buffer that DeepSpeed's saver leaves in published files.
_OPTIONAL_SUFFIX = "sam.model.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
_ZERO_STATES = "mp_rank_00_model_states.pt"
_LISTED = 8
# What GradNorm keeps by head, in vectors.
_BY_HEAD = ("balancer.weighting.logits", "balancer.weighting.first_losses")
_BASE = ".base_layer."


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds of a model.

    Attributes:
        tensors: By name, on the CPU, names as stored.
        layout: For which layout of the LMM they were trained, see :func:`lmm_meta`; None: the file does not say.
        identity: The same: which LMM.
        heads: The model's heads in their order.
    """

    tensors: dict[str, Tensor]
    layout: str | None
    identity: str | None = None
    heads: tuple[str, ...] = ()


def trainable_tensors(model: nn.Module) -> OrderedDict[str, Tensor]:
    """Parameters with ``requires_grad``, and :func:`state_buffers`, detached (storage shared), by the names that files
    have for them.
    """
    found = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    found.update(state_buffers(model))
    stored = stored_names(model, list(found))
    # An OrderedDict because MMEngine attaches metadata to a state dict.
    return OrderedDict((stored[name], tensor) for name, tensor in found.items())


def state_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Buffers and frozen parameters that belong to the run, so that checkpoints must contain them:
    those a module names in an attribute ``checkpoint_buffers`` (with dots for what is in its submodules).
    """
    return {
        f"{path}.{name}" if path else name: attrgetter(name)(module).detach()
        for path, module in model.named_modules()
        for name in getattr(module, "checkpoint_buffers", ())
    }


def frozen_parameters(model: nn.Module) -> frozenset[str]:
    """Of :func:`state_buffers`, the parameters, by the names that files have for them: what is not trained here, and
    what no published weights hold.
    """
    parameters = dict(model.named_parameters())
    names = [name for name in state_buffers(model) if name in parameters]
    return frozenset(stored_names(model, names).values())


def parts_since(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """Optional parts of heads that were added after a checkpoint was written.

    Args:
        model: Heads name such parts in ``optional_parts``.
        tensors: Of the checkpoint. Where it holds other tensors of a head but none of the part, the part is new.

    Returns:
        By the part's path the names of its tensors.
    """
    found: dict[str, list[str]] = {}
    for path, module in model.named_modules():
        own = any(name.startswith(f"{path}.") for name in tensors)
        for part in getattr(module, "optional_parts", ()) if own else ():
            prefix = f"{path}.{part}."
            names = [name for name in trainable_tensors(module) if name.startswith(f"{part}.")]
            if names and not any(name.startswith(prefix) for name in tensors):
                found[f"{path}.{part}"] = [f"{path}.{name}" for name in names]
    return found


def fingerprint(lmm: nn.Module) -> str:
    """sha256 over an LMM's frozen parameters and its buffers: equal if and only if every bit is."""
    digest = hashlib.sha256()
    # LoRA moves the adapted weight to `base_layer`; the weight is the same.
    frozen = [
        (name.replace(".base_layer.", "."), p.detach())
        for name, p in lmm.named_parameters()
        if not p.requires_grad and not lora_group_of(name) and not is_added(name)
    ]
    for name, tensor in sorted([*frozen, *lmm.named_buffers()], key=lambda item: item[0]):
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def lmm_layout(lmm: LMMAdapter) -> dict[str, Any] | None:
    """For which layout of an LMM tensors of a model are trained.

    Args:
        lmm: The model's.

    Returns:
        :attr:`LMMAdapter.trained_layout`, and the heads of the attention stack where a ranking chose them: heads of a
        model read these channels, and no shape shows which they are. None where there is nothing to say.
    """
    heads = {"attention_pairs": [list(pair) for pair in lmm.attention_pairs]} if lmm.ranked_heads else {}
    return {**(lmm.trained_layout or {}), **heads} or None


def lmm_meta(lmm: LMMAdapter) -> dict[str, str]:
    """What the ``meta`` of a checkpoint says about an LMM: which it is, and its layout where it has one."""
    layout = lmm_layout(lmm)
    facts = {LAYOUT: None if layout is None else layout_text(layout), IDENTITY: lmm_identity(lmm)}
    return {key: text for key, text in facts.items() if text is not None}


def check_lmm(model: GroundingModule, content: object, source: str, *, start: bool = False) -> None:
    """Compares the LMM of a model, as it was built, with what a checkpoint records of its own.

    Args:
        model: Nothing trained is loaded into it yet.
        content: A :class:`Checkpoint`, or what a file holds.
        source: Named in messages.
        start: See :func:`~flmm_detseg.lmms.weights.trained_layout.check_layout`.

    Raises:
        CheckpointError: Another LMM, which the model does not allow, or another layout.
    """
    if not isinstance(content, Checkpoint):
        content = Checkpoint({}, _recorded(content, LAYOUT), _recorded(content, IDENTITY))
    check_layout(lmm_layout(model.lmm), content.layout, source, start=start)
    check_identity(model.lmm, content.identity, source, allow_other=model.allow_other_lmm)


def head_order(content: Mapping[str, object]) -> list[str]:
    """Heads of a checkpoint in the order of the model it was written by; where it does not say, of its tensors."""
    meta = content.get("meta")
    if isinstance(meta, Mapping) and HEADS in meta:
        return list(meta[HEADS])
    inner = (content.get(key) for key in ("state_dict", "module"))
    tensors = next((tensors for tensors in inner if isinstance(tensors, Mapping)), content)
    return list(dict.fromkeys(name.split(".")[1] for name in tensors if str(name).startswith("heads.")))


def _recorded(content: object, entry: str) -> str | None:
    """What a file's content records in its ``meta``; None: nothing."""
    meta = content.get("meta") if isinstance(content, Mapping) else None
    return meta.get(entry) if isinstance(meta, Mapping) else None


def load_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """The tensors of :func:`read_checkpoint`."""
    return read_checkpoint(path).tensors


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Reads a checkpoint without running code from it.

    Args:
        path: A ``.pth`` of ours, the ``.safetensors`` of a stored model, a bare state dict, ``{"state_dict": ...}``,
            or a DeepSpeed folder (``iter_N.pth/``, or the folder inside it).

    Returns:
        Its tensors (CPU, names as stored), and what it says of LMM and heads.

    Raises:
        CheckpointError: No such file, damaged, holds code, or holds no tensors.
    """
    path = find(path)
    if path.suffix == SAFETENSORS and path.is_file():
        return _read_safetensors(path)
    content = read_file(states_file(path), zero=path.is_dir())
    layout, identity = _recorded(content, LAYOUT), _recorded(content, IDENTITY)
    heads = tuple(head_order(content)) if isinstance(content, Mapping) else ()
    for key in ("state_dict", "module"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(f"{path}: no state dict in it (found {type(content).__name__})")
    other = [str(key) for key, value in content.items() if not isinstance(value, Tensor)]
    if other:
        raise CheckpointError(f"{path}: not a state dict, these entries are no tensors: {_list(other)}")
    return Checkpoint(dict(content), layout, identity, heads)


def write_safetensors(model: GroundingModule, path: Path, *, with_identity: bool = True) -> None:
    """Writes what a checkpoint holds of a model in safetensors: tensors, and texts that say what they belong to.

    Args:
        model: The model.
        path: File to write.
        with_identity: Also say on which LMM they were trained.
    """
    tensors = {name: value.cpu().clone().contiguous() for name, value in trainable_tensors(model).items()}
    facts = lmm_meta(model.lmm)
    if not with_identity:
        facts.pop(IDENTITY, None)
    write_tensors(tensors, path, {HEADS: list(model.heads), **facts})


def write_tensors(tensors: Mapping[str, Tensor], path: Path, facts: Mapping[str, Any]) -> None:
    """Writes a checkpoint of a model that has not been built.

    Args:
        tensors: By the model's names; on the CPU, contiguous.
        path: File to write, ``.safetensors``.
        facts: What they belong to: :data:`HEADS`, :data:`LAYOUT`, :data:`IDENTITY`.
    """
    # One entry: safetensors writes several in any order, and equal models are to be equal files.
    write_bytes(path, save(dict(tensors), {_META: dump_json(dict(facts))}))


def _read_safetensors(path: Path) -> Checkpoint:
    with _failures_named(path), safe_open(path, "pt") as content:
        facts = json.loads((content.metadata() or {}).get(_META, "{}"))
        tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118  # no mapping
        return Checkpoint(tensors, facts.get(LAYOUT), facts.get(IDENTITY), tuple(facts.get(HEADS, ())))


def read_file(path: Path, *, zero: bool = False) -> object:
    """``torch.load`` with ``weights_only=True`` on the CPU, failures named.

    Args:
        path: The file.
        zero: It is DeepSpeed's, see :mod:`flmm_detseg.models.zero_folder`.

    Returns:
        Its content, tensors on the CPU; of a DeepSpeed file, stand-ins in place of all that is neither tensor nor plain
        container.

    Raises:
        CheckpointError: See :func:`load_checkpoint`.
    """
    if not path.is_file():
        raise CheckpointError(f"checkpoint {path} does not exist ({places(path)})")
    with _failures_named(path):
        return read_model_states(path) if zero else torch.load(path, map_location="cpu", weights_only=True)


def check_folder(folder: Path) -> None:
    """Checks the files of a DeepSpeed folder before DeepSpeed, which would run what they hold, reads them.

    Args:
        folder: The one with the ``*_states.pt``.

    Raises:
        CheckpointError: A file is damaged or holds code.
    """
    for path in sorted(folder.glob("*.pt")):
        with _failures_named(path):
            check_states(path)


@contextmanager
def _failures_named(path: Path) -> Iterator[None]:
    try:
        yield
    except pickle.UnpicklingError as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f"{path} was refused: it holds more than tensors and plain containers, and loading it could run code "
            f"({reason}). Save it again as a plain state dict from a place you trust."
        ) from error
    except CheckpointError:
        raise
    except Exception as error:  # an unpickler of damaged bytes may raise anything: KeyError, IndexError, ...
        reason = f"{type(error).__name__}: {error}"
        raise CheckpointError(f"{path} cannot be read, it is damaged or no checkpoint ({reason})") from error


def states_file(path: Path) -> Path:
    """The file itself, or the one with the model states in a DeepSpeed folder.

    Args:
        path: Checkpoint file or folder.

    Returns:
        A file; it need not exist where ``path`` is no folder.

    Raises:
        CheckpointError: The folder holds none, or several.
    """
    if not path.is_dir():
        return path
    found = sorted(path.rglob(_ZERO_STATES))
    if not found:
        raise CheckpointError(f"{path} is a folder without {_ZERO_STATES}: not a DeepSpeed checkpoint")
    if len(found) > 1:
        raise CheckpointError(
            f"{path} holds several checkpoints ({_list([str(f) for f in found])}); name one"
        )
    return found[0]


def to_our_names(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Published F-LMM names become ours; ours stay as they are."""
    return {
        f"{PHRASE_PREFIX}{name}" if name.startswith(_FLMM_GROUPS) else name: value
        for name, value in state_dict.items()
    }


def check_tensors(model: nn.Module, state_dict: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """Compares names and shapes with the model's trainable tensors, without touching the model.

    Args:
        model: May be on the meta device.
        state_dict: Tensors by our names or published F-LMM names.
        source: Named in errors.

    Returns:
        Exactly the tensors to load, by our names; those of tasks that a gate distinguishes and of optional parts that
        heads have since the file was written are not among them.

    Raises:
        CheckpointError: Lists missing, unexpected and wrongly shaped keys, or tensors with NaN or infinities.
    """
    given = to_own_names(model, to_our_names(state_dict), source)
    wanted: Mapping[str, Tensor] = trainable_tensors(model)
    if later := rows_since(model, given):
        print_log(
            f"{source} was written before the gate knew these tasks; their rows stay as they begin: {_list(later)}",
            "current",
            logging.WARNING,
        )
    if parts := parts_since(model, given):
        print_log(f"{source} was written without {_list(list(parts))}", "current", logging.WARNING)
        later = [*later, *(name for names in parts.values() for name in names)]
    wanted = {name: tensor for name, tensor in wanted.items() if name not in later}
    given = {k: v for k, v in given.items() if k in wanted or not k.endswith(_OPTIONAL_SUFFIX)}
    published: frozenset[str] = getattr(model, "published", frozenset())
    missing = [name for name in wanted if name not in given and name not in published]
    unexpected = [name for name in given if name not in wanted]
    shapes = [
        f"{name} {tuple(given[name].shape)} (model: {tuple(wanted[name].shape)})"
        for name in wanted
        if name in given and given[name].shape != wanted[name].shape
    ]
    problems = [
        f"{len(names)} {what}: {_list(names)}"
        for what, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
        if names
    ]
    if problems:
        raise CheckpointError(
            f"{source} does not fit the model; {'; '.join(problems)}. Use the config the checkpoint was trained with."
        )
    check_finite(given, source)
    return given


def check_finite(tensors: Mapping[str, Tensor], source: str) -> None:
    """Refuses checkpoints of a run that went on after its loss was NaN.

    Args:
        tensors: By name.
        source: Where they come from, for the error.

    Raises:
        CheckpointError: Tensors hold NaN or infinities; lists them.
    """
    if broken := not_finite(tensors):
        raise CheckpointError(
            f"{source} holds NaN or infinities in {len(broken)} of {len(tensors)} tensors: {_list(broken)}. Take an "
            "earlier checkpoint of that run"
        )


@torch.no_grad()
def load_tensors(model: nn.Module, state_dict: Mapping[str, Tensor], source: str) -> None:
    """Copies checked tensors into the model's trainable parameters and state buffers.

    Args:
        model: Changed in place.
        state_dict: Checked by :func:`check_tensors`.
        source: Where it comes from, for the error.

    Raises:
        CheckpointError: See :func:`check_tensors`; nothing is changed then.
    """
    given, own = check_tensors(model, state_dict, source), trainable_tensors(model)
    for name, tensor in given.items():
        own[name].copy_(tensor)
    if isinstance(model, GroundingModule):
        model.unloaded -= frozenset(given)


def load_file(model: GroundingModule, path: str | Path) -> tuple[str, ...]:
    """Loads a checkpoint of the same model; nothing is changed unless LMM, layout, names and shapes fit.

    Args:
        model: Changed in place.
        path: See :func:`read_checkpoint`.

    Returns:
        Paths of the optional parts that the model has and the file has not (:func:`parts_since`): as they were.

    Raises:
        CheckpointError: It cannot be read or does not fit; lists what differs.
    """
    checkpoint = read_checkpoint(path)
    check_lmm(model, checkpoint, str(path))
    if model.balancer is not None and set(checkpoint.heads) == set(model.heads):
        model.order_heads(checkpoint.heads)  # a balancer's vectors follow it
    load_tensors(model, checkpoint.tensors, str(path))
    return tuple(parts_since(model, to_own_names(model, to_our_names(checkpoint.tensors), str(path))))


def _list(names: list[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


def _beside_lora(tensors: Mapping[str, Tensor], wanted: Container[str]) -> dict[str, Tensor]:
    """Weights trained before LoRA came beside them get the names they have there."""
    renamed = {}
    for name, value in tensors.items():
        module, _, leaf = name.rpartition(".")
        base = f"{module}{_BASE}{leaf}"
        renamed[base if name not in wanted and base in wanted else name] = value
    return renamed


def load_parts(model: GroundingModule, files: Sequence[str], new_parts: Sequence[str] = ()) -> frozenset[str]:
    """Loads several checkpoints into one model: the heads of other runs, or an earlier stage.

    Args:
        model: Receives the tensors.
        files: Checkpoints; each may hold only trainable tensors of the model. Where two hold the same one, the
            later file wins.
        new_parts: Prefixes, or patterns with ``*``, of trainable parameters that need not be in any file.

    Returns:
        Names of the tensors that were loaded.

    Raises:
        CheckpointError: A file holds a tensor that the model does not have or has in another shape, or was trained on
            another LMM or for another layout, or a parameter outside of ``new_parts`` is in none of them; lists them.
        ConfigError: A prefix of ``new_parts`` names no trainable parameter.
    """
    wanted = trainable_tensors(model)
    # `a*b` names everything that begins with a, something, b.
    patterns = [f"{part}*" for part in new_parts]
    for part, pattern in zip(new_parts, patterns):
        if not any(fnmatchcase(name, pattern) for name in wanted):
            raise ConfigError(f"`new_parts`: no trainable parameter starts with {part!r}")
    found: dict[str, Tensor] = {}
    for file in files:
        checkpoint = read_checkpoint(file)
        check_lmm(model, checkpoint, str(file), start=True)
        theirs = to_our_names(checkpoint.tensors)
        tensors = to_own_names(model, theirs, str(file))
        for name in tensors.keys() - theirs.keys():
            if name in found and not torch.equal(tensors[name], found[name]):
                raise CheckpointError(
                    f"{file} and an earlier file each hold a part that heads share here, and they differ ({name}); "
                    "start from one of them, or do not share the part"
                )
        tensors = _beside_lora(tensors, wanted)
        wrong = [name for name in tensors if name not in wanted and not name.endswith(_OPTIONAL_SUFFIX)]
        shapes = [
            f"{name} {tuple(value.shape)} (model: {tuple(wanted[name].shape)})"
            for name, value in tensors.items()
            if name in wanted and value.shape != wanted[name].shape
        ]
        if wrong or shapes:
            raise CheckpointError(
                f"{file} does not fit the model; unexpected: {_list(wrong) or 'none'}; of another shape: "
                f"{_list(shapes) or 'none'}"
            )
        check_finite(tensors, str(file))
        vectors = [name for name in tensors if name.startswith(_BY_HEAD)]
        if vectors and list(checkpoint.heads) != list(model.heads):
            raise CheckpointError(
                f"{file}: {', '.join(vectors)} go by the order of the heads, {', '.join(checkpoint.heads)} there and "
                f"{', '.join(model.heads)} here; give `model.heads` that order"
            )
        found.update({name: value for name, value in tensors.items() if name in wanted})
    parameters = dict(model.named_parameters())
    # A new run may begin with a state of its own.
    own = [name for name in state_buffers(model) if _BASE not in name and name not in parameters]
    later = [*rows_since(model, found), *(n for names in parts_since(model, found).values() for n in names)]
    missing = [
        name
        for name in wanted
        if name not in {*found, *own, *later, *model.published}
        and not any(fnmatchcase(name, p) for p in patterns)
    ]
    if missing:
        raise CheckpointError(
            f"{len(missing)} trainable parameters are in none of {', '.join(map(str, files))}: {_list(missing)}; add "
            "the checkpoint that holds them, or name their prefix in `new_parts`"
        )
    with torch.no_grad():
        for name, value in found.items():
            wanted[name].copy_(value)
    return frozenset(found)
