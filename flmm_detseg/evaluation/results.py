"""Result files that say where their numbers come from, and the records that make a run resumable."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

import flmm_detseg
from flmm_detseg.utils.whole_files import dump_json, write_text


def source_hash() -> str:
    """sha256 of this package's Python files: records of older code are never mixed with new ones (hex)."""
    root = Path(flmm_detseg.__file__).parent
    digest = hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        digest.update(str(file.relative_to(root)).encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


@torch.no_grad()
def weights_hash(model: nn.Module) -> str:
    """Hash of names, shapes, dtypes and two float64 checksums of every parameter and buffer (hex).

    Cheap enough for 7B weights, and changes with any training step or other base model.
    """
    digest = hashlib.sha256()
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name in sorted(tensors):
        tensor = tensors[name]
        values = tensor.double()
        sums = (values.sum().item(), values.abs().sum().item())
        digest.update(f"{name}|{tuple(tensor.shape)}|{tensor.dtype}|{sums[0]!r}|{sums[1]!r}\n".encode())
    return digest.hexdigest()


def fingerprint(facts: Mapping[str, Any]) -> str:
    """sha256 of JSON-ready facts (hex)."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


class RecordStore:
    """Facts of one evaluation, one line per sample; survives being killed at any point.

    Every process appends to a file of its own; :meth:`merge` (one process, while no other writes) unites
    them in ``records.jsonl``, sorted by record id. A line cut off by a kill is left out, so its sample is
    done again.

    Args:
        folder: Belongs to one fingerprint: same model, data and protocol.
        rank: Of this process.
    """

    def __init__(self, folder: str | Path, rank: int) -> None:
        self.folder = Path(folder)
        self.file = self.folder / "records.jsonl"
        self._own_file = self.folder / f"part-{rank}.jsonl"

    def append(self, samples: Iterable[tuple[str, Sequence[Mapping[str, Any]]]]) -> None:
        """Adds ``(record id, its facts)`` pairs and flushes them to the system."""
        with self._own_file.open("a", encoding="utf-8", errors="backslashreplace") as file:
            for record_id, facts in samples:
                line = dump_json({"record_id": record_id, "facts": list(facts)})
                file.write(line + "\n")

    def merge(self) -> dict[str, list[dict[str, Any]]]:
        """Unites all files in ``records.jsonl``; returns the facts by record id."""
        self.folder.mkdir(parents=True, exist_ok=True)
        parts = sorted(self.folder.glob("part-*.jsonl"))
        found: dict[str, list[dict[str, Any]]] = {}
        for file in [self.file, *parts]:
            found.update(self._read(file))
        lines = (
            dump_json({"record_id": record_id, "facts": found[record_id]}) + "\n"
            for record_id in sorted(found)
        )
        write_text(self.file, "".join(lines))
        for part in parts:
            part.unlink()
        return found

    def clear(self) -> None:
        """Forgets all records."""
        for file in [self.file, *self.folder.glob("part-*.jsonl")]:
            file.unlink(missing_ok=True)

    def read(self) -> dict[str, list[dict[str, Any]]]:
        """Facts by record id in ``records.jsonl``."""
        return self._read(self.file)

    def done(self) -> set[str]:
        """Record ids in ``records.jsonl``."""
        return set(self.read())

    @staticmethod
    def _read(file: Path) -> dict[str, list[dict[str, Any]]]:
        found = {}
        if file.is_file():
            for line in file.read_text(encoding="utf-8", errors="replace").split("\n"):
                # A line that was cut off by a kill, or is no record: its sample counts as not done.
                try:
                    entry = json.loads(line)
                    record_id, facts = entry["record_id"], entry["facts"]
                except (ValueError, TypeError, LookupError, RecursionError):
                    continue
                if isinstance(record_id, str) and _are_facts(facts):
                    found[record_id] = facts
        return found


def _are_facts(facts: Any) -> bool:
    return isinstance(facts, list) and all(isinstance(fact, dict) for fact in facts)
