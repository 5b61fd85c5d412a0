"""From nothing to numbers and pictures: world, control, training, evaluation, report."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from flmm_detseg.errors import RunError
from flmm_detseg.quickstart.summary import Summary, write_report
from flmm_detseg.utils.paths import REPOSITORY
from flmm_detseg.utils.process import Command, Progress, run_commands

# Relative, as in the configs: everything is made below the current folder.
WORLD = Path("data/tinyworld")
WORK_DIR = Path("work_dirs/quickstart")
CONTROL_LMM = WORK_DIR / "control_lmm"
CONFIGS = {
    "trained": "configs/tiny/frozen_tiny_llava_refcoco_png.py",
    "control": "configs/tiny/frozen_tiny_llava_refcoco_png_control.py",
}
TRAINING_FREE = "configs/tiny/training_free.py"
SPLITS = ("val", "testA", "testB")
WORLD_IMAGES, WORLD_SEED = 2500, 0


@dataclass
class Quickstart:
    """State of one quickstart.

    Attributes:
        fast: A trial: few iterations and images, no demands on the figures.
        summary: Filled step by step.
        progress: Display.
        checkpoints: Per run, after training.
    """

    fast: bool
    summary: Summary
    progress: Progress
    checkpoints: dict[str, str] = field(default_factory=dict)
    pictures: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)

    def run(self, commands: Sequence[Command], slots: int) -> dict[str, dict[str, Any]]:
        """Runs commands in parallel, the machine's cores divided among them."""
        self.summary.commands.extend(map(str, commands))
        slots = min(slots, len(commands), os.cpu_count() or 1)
        threads = max(1, (os.cpu_count() or 1) // slots)
        return run_commands(commands, WORK_DIR / "logs", self.progress, slots=slots, threads=threads)


def tool(name: str, script: str, *arguments: str | Path) -> Command:
    """Command that runs one of the repository's tools with this Python."""
    path = REPOSITORY / "tools" / script
    shown = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    return Command(name, [sys.executable, str(shown), *map(str, arguments)])


def config_path(run: str) -> str:
    """Config of a run, relative where it lies below the current folder."""
    path = REPOSITORY / {**CONFIGS, "untrained": TRAINING_FREE}[run]
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def make_world(state: Quickstart) -> None:
    """Draws TinyWorld; a world that is there and equal is kept by the tool."""
    arguments = ("--out", WORLD, "--images", str(WORLD_IMAGES), "--seed", str(WORLD_SEED))
    state.run([tool("tinyworld", "make_tinyworld.py", *arguments)], slots=1)


def make_control(state: Quickstart) -> None:
    """Same tower, random language model."""
    state.run([tool("control_lmm", "make_control_lmm.py", "--out", CONTROL_LMM)], slots=1)


def train(state: Quickstart) -> None:
    """Trains the heads on the frozen LMM and on the control, side by side."""
    extra = ["--cfg-options", *FAST_TRAINING] if state.fast else []
    commands = [
        tool(f"train_{run}", "train.py", config_path(run), "--work-dir", WORK_DIR / folder(run), *extra)
        for run in CONFIGS
    ]
    figures = state.run(commands, slots=len(commands))
    for run in CONFIGS:
        state.summary.trainings[run] = figures[f"train_{run}"]
        state.checkpoints[run] = figures[f"train_{run}"]["checkpoint"]


def evaluate(state: Quickstart) -> None:
    """RefCOCO and PNG of both runs, the trained run with phrases of other images, and masks without training."""

    def command(name: str, script: str, run: str, *arguments: str) -> Command:
        limit = ["--limit", "8"] if state.fast else []
        where = ["--work-dir", str(WORK_DIR / "eval" / name)]
        checkpoint = ["--checkpoint", state.checkpoints[run]] if run in state.checkpoints else []
        return tool(name, script, config_path(run), *checkpoint, *where, *arguments, *limit)

    refcoco, sweep = "eval_refcoco.py", "--threshold-sweep"
    # The longest first, so that the processes end together.
    commands = [
        command("refcoco_trained", refcoco, "trained", "--splits", *SPLITS),
        command("refcoco_all_sentences", refcoco, "trained", "--splits", "val", "--sentences", "all"),
        command("refcoco_control", refcoco, "control", "--splits", "val", sweep),
        command("refcoco_wrong_phrases", refcoco, "trained", "--splits", "val", "--phrases", "shuffled"),
        command("refcoco_without_training", refcoco, "untrained", "--splits", "val"),
        command("png_trained", "eval_png.py", "trained"),
        command("png_control", "eval_png.py", "control"),
    ]
    figures = state.run(commands, slots=2)
    for run in ("trained", "all sentences", "control", "wrong phrases", "without training"):
        metrics = figures[f"refcoco_{run.replace(' ', '_')}"]["metrics"]
        state.summary.refcoco[run] = {
            name.removeprefix("refcoco_"): values for name, values in metrics.items()
        }
    for run in CONFIGS:
        (state.summary.png[run],) = figures[f"png_{run}"]["metrics"].values()


def draw(state: Quickstart) -> None:
    """Pictures of val: overlays, attention heads, coarse against refined, losses."""
    # Late: torch is loaded by the children only, until here.
    from flmm_detseg.models.from_config import model_from_config, read_config
    from flmm_detseg.quickstart.pictures import draw_all, save_all
    from flmm_detseg.registry import DATASETS

    config = read_config(config_path("trained"))
    samples = {}
    for kind, key, count in (("png", "png_eval", 4), ("refcoco", "refcoco_eval", 2)):
        dataset = DATASETS.build(next(iter(config[key].values())))
        chosen = np.linspace(0, len(dataset) - 1, count + 2)[1:-1].astype(int)
        samples[kind] = [dataset[int(index)] for index in chosen]
    models = {run: model_from_config(config_path(run), state.checkpoints[run]) for run in CONFIGS}
    state.pictures = draw_all(models, samples, {run: WORK_DIR / folder(run) for run in CONFIGS})
    save_all(state.pictures, WORK_DIR / "pictures")


def folder(run: str) -> str:
    """Name of a run's folder below the work folder."""
    return "tiny" if run == "trained" else run


# Title, seconds on two idle cores, what to do.
STEPS: tuple[tuple[str, float, Callable[[Quickstart], None]], ...] = (
    ("TinyWorld", 45, make_world),
    ("control: an LMM with the same eyes and a random language model", 10, make_control),
    ("training of the heads on the frozen LMM and on the control", 880, train),
    ("evaluation: RefCOCO, PNG, wrong phrases, control", 100, evaluate),
    ("pictures", 25, draw),
)
# A trial shrinks these values of the recipe: few iterations, no validation on the way.
FAST_TRAINING: tuple[str, ...] = (
    "train_cfg.max_iters=6",
    "default_hooks.logger.interval=2",
    "val_cfg=None",
    "val_dataloader=None",
    "val_evaluator=None",
)


def quickstart(*, fast: bool = False) -> dict[str, Any]:
    """Runs everything; writes ``work_dirs/quickstart/results.json`` and ``report.html``.

    Args:
        fast: A trial with few iterations and images; nothing is demanded of its figures.

    Returns:
        The main figures.

    Raises:
        RunError: A step failed, or an acceptance line does not hold (after everything was written); names it.
    """
    before = WORK_DIR.with_name(f"{WORK_DIR.name}_before")
    if WORK_DIR.exists():
        if (WORK_DIR / "results.json").exists() or not before.exists():
            shutil.rmtree(before, ignore_errors=True)
            WORK_DIR.rename(before)  # kept until the new one is whole
        else:  # left by a run that failed; what is kept is the last good one
            shutil.rmtree(WORK_DIR)
    WORK_DIR.mkdir(parents=True)
    progress = Progress([None if fast else seconds for _, seconds, _ in STEPS])
    state = Quickstart(fast, Summary(fast), progress)
    for title, _, step in STEPS:
        progress.start(title)
        step(state)
        progress.done()
    summary = state.summary
    summary.seconds = progress.seconds
    summary.write_json(WORK_DIR / "results.json")
    configs = {run: effective_config(run) for run in CONFIGS}
    report = write_report(summary, WORK_DIR / "report.html", state.pictures, configs)
    shutil.rmtree(before, ignore_errors=True)
    if failures := summary.failures():
        raise RunError(f"the quickstart ran, but {'; '.join(failures)} (see {report})")
    return figures_line(summary, report)


def effective_config(run: str) -> str:
    """Text of the config with everything it inherits."""
    from flmm_detseg.models.from_config import read_config

    return read_config(config_path(run)).pretty_text


def figures_line(summary: Summary, report: Path) -> dict[str, Any]:
    """The last line of the tool; its end is the command that opens the app with what was trained."""
    val = summary.refcoco["trained"]["val"]
    checkpoint = summary.trainings["trained"]["checkpoint"]
    return {
        "passed": True,
        "fast": summary.fast,
        "coarse_cIoU": round(val["coarse_cIoU"], 4),
        "refined_cIoU": round(val["refined_cIoU"], 4),
        "seconds": round(sum(summary.seconds.values())),
        "report": str(report),
        "results": str(WORK_DIR / "results.json"),
        "app": f"make install-app && .venv/bin/flmm-detseg app {CONFIGS['trained']} --checkpoint {checkpoint}",
    }
