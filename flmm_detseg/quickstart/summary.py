"""What the quickstart's figures mean: the table, the acceptance checks, results.json and report.html."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from flmm_detseg.utils.provenance import versions
from flmm_detseg.utils.whole_files import write_json
from flmm_detseg.visualization import Report

MIN_COARSE_CIOU, MIN_REFINED_CIOU, MIN_GAP = 0.68, 0.75, 0.25
KINDS = ("coarse", "refined")
_STORY = """A tiny LLaVA reads a caption. It is frozen: its language model was trained on captions and questions of
a synthetic world, its vision tower and projector also saw labels of patches that were derived from masks. While it
reads the words of a phrase, its attention heads look at image patches. A U-Net turns these maps into a coarse mask, a
SAM refines it. Only the U-Net, SAM's decoder and a text projection are trained.

The control has the same vision tower but a language model with random weights, and heads trained in the same
way; it is scored at its best threshold. Wrong phrases: the trained model reads a phrase of another image.
Without training: three attention heads, chosen without masks, and the tiny SAM as it is."""
# A sentence for each column.
_REFERRING_TERMS = {
    "masks": "coarse: the U-Net's mask of the attention; refined: SAM's mask made of it.",
    "threshold": "Probability above which a pixel belongs to the mask.",
    "cIoU": "Cumulative IoU: pixels that mask and truth share, over pixels that either has, both summed over all "
    "phrases; large objects count more.",
    "gIoU": "The mean of every phrase's own IoU; all objects count alike.",
    "P@0.5, P@0.7, P@0.9": "Share of the phrases whose mask has an IoU of at least 0.5, 0.7 or 0.9.",
    "box acc@0.5": "Share of the phrases where the box around the mask has an IoU of at least 0.5 with the true box.",
}
_NARRATIVE_TERMS = {
    "all": "Average recall: the share of phrases above an IoU, averaged over all IoU from 0 to 1; it is the mean IoU.",
    "thing, stuff": "Phrases for countable objects, and for regions such as grass.",
    "singular, plural": "Phrases that name one object, and several.",
}
_GROUPS = ("all", "thing", "stuff", "singular", "plural")


@dataclass(frozen=True)
class Check:
    """One acceptance line: ``value`` must be at least ``limit``."""

    name: str
    value: float
    limit: float

    @property
    def ok(self) -> bool:
        """Whether it holds."""
        return self.value >= self.limit


@dataclass
class Summary:
    """All figures of a quickstart.

    Attributes:
        fast: A trial with few iterations and images; nothing is demanded of its figures.
        refcoco: Per run (``trained``, ``all sentences``, ``control``, ``wrong phrases``, ``without training``) and
            split the figures of ``RefSegMetric``.
        png: Per run the figures of ``PNGMetric``.
        trainings: Per run the last line of ``tools/train.py``.
        seconds: Per step.
        commands: What was run, in order.
    """

    fast: bool
    refcoco: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    png: dict[str, dict[str, float]] = field(default_factory=dict)
    trainings: dict[str, dict[str, Any]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    commands: list[str] = field(default_factory=list)

    def checks(self) -> list[Check]:
        """The acceptance lines, on RefCOCO val."""
        trained, control = self.refcoco["trained"]["val"], self.refcoco["control"]["val"]
        wrong = self.refcoco["wrong phrases"]["val"]
        checks = [
            Check("coarse cIoU", trained["coarse_cIoU"], MIN_COARSE_CIOU),
            Check("refined cIoU", trained["refined_cIoU"], MIN_REFINED_CIOU),
        ]
        for kind in KINDS:
            own = trained[f"{kind}_cIoU"]
            best = control[f"{kind}_best_threshold_cIoU"]
            checks.append(Check(f"{kind} cIoU above the control at its best threshold", own - best, MIN_GAP))
            other = wrong[f"{kind}_cIoU"]
            checks.append(Check(f"{kind} cIoU above wrong phrases", own - other, MIN_GAP))
        for run, figures in self.trainings.items():
            before = figures["lmm_sha256_before"]
            same = before is not None and before == figures["lmm_sha256_after"]
            checks.append(Check(f"LMM weights unchanged by the training ({run})", float(same), 1.0))
        return checks

    def failures(self) -> list[str]:
        """Acceptance lines that do not hold, in words; empty for a trial except for a changed LMM."""
        failed = [check for check in self.checks() if not check.ok]
        if self.fast:
            failed = [check for check in failed if check.name.startswith("LMM")]
        return [f"{check.name} is {check.value:.3f}, at least {check.limit:.2f} is asked" for check in failed]

    def table(self) -> tuple[list[str], list[list[Any]]]:
        """Header and rows of the referring table (RefCOCO)."""
        header = [
            "run",
            "split",
            "masks",
            "threshold",
            "cIoU",
            "gIoU",
            "P@0.5",
            "P@0.7",
            "P@0.9",
            "box acc@0.5",
        ]
        rows: list[list[Any]] = []
        for run, splits in self.refcoco.items():
            for split, figures in splits.items():
                for kind in KINDS:
                    rows.append(_row(run, split, kind, figures))
                    if f"{kind}_best_threshold_cIoU" in figures:
                        best = [figures[f"{kind}_best_threshold"], figures[f"{kind}_best_threshold_cIoU"]]
                        rows.append([run, split, kind, *best, None, None, None, None, None])
        return header, rows

    def png_table(self) -> tuple[list[str], list[list[Any]]]:
        """Header and rows of the PNG table."""
        rows = [
            [run, kind, *(figures.get(f"{kind}_average_recall_{group}") for group in _GROUPS)]
            for run, figures in self.png.items()
            for kind in KINDS
        ]
        return ["run", "masks", *_GROUPS], rows

    def to_json(self) -> dict[str, Any]:
        """Everything, JSON-ready."""
        checks = [asdict(check) | {"ok": check.ok} for check in self.checks()]
        return asdict(self) | {
            "passed": not self.failures(),
            "failures": self.failures(),
            "checks": checks,
            "versions": versions(),
            "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        }

    def write_json(self, path: Path) -> None:
        """Writes :meth:`to_json` to ``path``."""
        write_json(path, self.to_json(), indent=2)


def write_report(
    summary: Summary,
    path: Path,
    pictures: Mapping[str, Mapping[str, np.ndarray]],
    configs: Mapping[str, str],
) -> Path:
    """Writes the report.

    Args:
        summary: The figures.
        path: Where to.
        pictures: Per section title its pictures (caption -> RGB uint8).
        configs: Name -> text of the effective configs.

    Returns:
        ``path``.
    """
    minutes = sum(summary.seconds.values()) / 60
    title = "flmm_detseg quickstart" + (" (fast trial)" if summary.fast else "")
    report = Report(
        title, f"A frozen tiny LLaVA points at what it talks about. {minutes:.1f} minutes in all."
    )
    if summary.fast:
        report.paragraph("This was a trial with a few iterations and images. Its figures mean nothing.")
    sections = list(pictures.items())
    # The first thing to see is what the model does.
    for name, entries in sections[:1]:
        report.section(name)
        report.pictures(entries)
    report.section("What was done", _STORY)
    report.section("Checks", "On RefCOCO val of TinyWorld.")
    report.table(
        ["check", "value", "at least", "holds"], [[c.name, c.value, c.limit, c.ok] for c in summary.checks()]
    )
    report.section("Referring expressions (RefCOCO)")
    report.table(
        *summary.table(),
        "Fractions, 1 is perfect. One sentence per object, the first, as F-LMM evaluates; in TinyWorld that is mostly "
        "one of attributes. The run 'all sentences' reads every one, places and relations too.",
    )
    report.terms(_REFERRING_TERMS)
    report.section("Panoptic narrative grounding (PNG)")
    report.table(*summary.png_table(), "Average recall on val.")
    report.terms(_NARRATIVE_TERMS)
    for name, entries in sections[1:]:
        report.section(name)
        report.pictures(entries)
    report.section("How it was made")
    report.table(["step", "seconds"], [[name, seconds] for name, seconds in summary.seconds.items()])
    report.table(["package", "version"], list(versions().items()))
    report.code("\n".join(summary.commands), "commands")
    for name, text in configs.items():
        report.code(text, f"config {name}")
    return report.write(path)


def _row(run: str, split: str, kind: str, figures: Mapping[str, float]) -> list[Any]:
    names: Sequence[str] = ("cIoU", "gIoU", "P@0.5", "P@0.7", "P@0.9", "box_acc@0.5")
    return [run, split, kind, 0.5, *(figures.get(f"{kind}_{name}") for name in names)]
