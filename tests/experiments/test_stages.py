"""Order, reuse and resumption of the runs of a plan; the table. Commands are recorded instead of run."""

from __future__ import annotations

from pathlib import Path

import pytest

from flmm_detseg.errors import ConfigError, DataError
from flmm_detseg.experiments import stages
from flmm_detseg.experiments.ablation import ablation_table, flatten

PLAN = """
stages = [
    dict(name="heads", runs=[
        dict(name="a", config="configs/tiny/detseg_detection.py"),
        dict(name="b", config="configs/tiny/detseg_segmentation.py", cfg_options=["train_cfg.max_iters=3"]),
    ]),
    dict(name="joint", runs=[
        dict(name="c", config="configs/tiny/detseg_joint.py", init_from=["a", "b"], new_parts=["lmm."]),
    ]),
]
evaluations = [dict(name="coco", tool="eval_coco.py", runs=["a", "c"], arguments=["--limit", "4"])]
columns = ["coco.AP50"]
title = "Test"
"""


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What would have been started; every training leaves a checkpoint."""
    calls: list[list[str]] = []

    def run(commands, folder: Path, progress, slots: int, on_done=None):
        figures = {}
        for command in commands:
            calls.append([command.name, *command.arguments[1:]])
            if command.name in "abc":
                checkpoint = folder / command.name / "iter_1.pth"
                checkpoint.parent.mkdir(parents=True, exist_ok=True)
                checkpoint.write_bytes(command.name.encode())
                (folder / command.name / "last_checkpoint").write_text(str(checkpoint))
                figures[command.name] = {"checkpoint": str(checkpoint), "iterations": 1, "seconds": 2.0}
            else:
                figures[command.name] = {"metrics": {"coco_val": {"AP50": 0.5, "AP": 0.25}}}
            if on_done is not None:
                on_done(command.name, figures[command.name])
        return figures

    monkeypatch.setattr(stages, "_run", run)
    return calls


def write(tmp_path: Path, text: str = PLAN) -> Path:
    path = tmp_path / "my_stages.py"
    path.write_text(text)
    return path


def test_later_runs_start_from_earlier_checkpoints(tmp_path: Path, recorded: list[list[str]]) -> None:
    figures = stages.run_plan(write(tmp_path), tmp_path / "work")
    assert [call[0] for call in recorded] == ["a", "b", "c", "coco.a", "coco.c"]
    joint = recorded[2]
    files = f'["{tmp_path}/work/a/iter_1.pth","{tmp_path}/work/b/iter_1.pth"]'
    assert joint[-2:] == [f"model.init_from={files}", 'model.new_parts=["lmm."]']
    assert recorded[1][-2:] == ["--cfg-options", "train_cfg.max_iters=3"]
    assert recorded[3][-2:] == ["--limit", "4"]
    assert figures["runs"]["c"].endswith("work/c/iter_1.pth")


def test_an_evaluation_gets_the_checkpoints_of_further_runs(
    tmp_path: Path, recorded: list[list[str]]
) -> None:
    own = 'evaluations = [dict(name="d", tool="eval_coco.py", run="c", checkpoints={"model.x": "a"})]\n'
    stages.run_plan(write(tmp_path, PLAN + own), tmp_path / "elsewhere")
    assert recorded[-1][-2:] == ["--cfg-options", f"model.x={tmp_path}/elsewhere/a/iter_1.pth"]
    with pytest.raises(ConfigError, match="no run 'z'"):
        stages.run_plan(write(tmp_path, PLAN + own.replace('"a"', '"z"')), tmp_path / "elsewhere")


def test_what_is_done_is_kept_until_something_it_depends_on_changes(
    tmp_path: Path, recorded: list[list[str]]
) -> None:
    plan = write(tmp_path)
    stages.run_plan(plan, tmp_path / "work")
    recorded.clear()
    stages.run_plan(plan, tmp_path / "work")
    assert [call[0] for call in recorded] == ["coco.a", "coco.c"], "trainings were repeated"
    recorded.clear()
    (tmp_path / "work" / "b" / "iter_1.pth").write_bytes(b"another")
    stages.run_plan(plan, tmp_path / "work")
    assert [call[0] for call in recorded][:1] == ["c"], "the run that starts from it must be repeated"
    recorded.clear()
    stages.run_plan(write(tmp_path, PLAN.replace("max_iters=3", "max_iters=4")), tmp_path / "work")
    assert [call[0] for call in recorded] == ["b", "c", "coco.a", "coco.c"]
    recorded.clear()
    stages.run_plan(plan, tmp_path / "work", fresh=True)
    assert [call[0] for call in recorded][:3] == ["a", "b", "c"]


def test_a_stopped_run_is_resumed_and_a_changed_one_is_not(tmp_path: Path, recorded: list[list[str]]) -> None:
    plan = write(tmp_path)
    stages.run_plan(plan, tmp_path / "work")
    for name in "ab":
        (tmp_path / "work" / name / stages.DONE_FILE).unlink()
    recorded.clear()
    stages.run_plan(write(tmp_path, PLAN.replace("max_iters=3", "max_iters=5")), tmp_path / "work")
    assert "--resume" in recorded[0], "a was stopped on its way"
    assert "--resume" not in recorded[1], "b is another run now"


@pytest.mark.case("model/empty_pointer")
@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[]", b"null"], ids=repr)
@pytest.mark.parametrize("file", ["started.json", stages.DONE_FILE])
def test_a_damaged_state_of_a_plan_is_named(
    file: str, content: bytes, tmp_path: Path, recorded: list[list[str]]
) -> None:
    plan = write(tmp_path)
    stages.run_plan(plan, tmp_path / "work")
    (tmp_path / "work" / "a" / stages.DONE_FILE).unlink()
    (tmp_path / "work" / "a" / file).write_bytes(content)
    with pytest.raises(
        DataError, match=rf"{file} is damaged.*delete it, and the run starts from the beginning"
    ):
        stages.run_plan(plan, tmp_path / "work")


def test_a_changed_run_that_is_stopped_at_once_does_not_go_on_from_the_old_one(
    tmp_path: Path, recorded: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    stages.run_plan(write(tmp_path), tmp_path / "work")
    changed = write(tmp_path, PLAN.replace("max_iters=3", "max_iters=5"))
    run = stages._run

    def killed(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(stages, "_run", killed)
    with pytest.raises(KeyboardInterrupt):
        stages.run_plan(changed, tmp_path / "work")
    monkeypatch.setattr(stages, "_run", run)
    recorded.clear()
    stages.run_plan(changed, tmp_path / "work")
    assert recorded[0][0] == "b"
    assert "--resume" not in recorded[0], "the checkpoint there is the old run's"


def test_other_data_or_weights_make_another_run(tmp_path: Path, recorded: list[list[str]]) -> None:
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(b"one")
    config = tmp_path / "mine.py"
    config.write_text(f"model = dict(lmm=dict(pretrained={str(weights)!r}))")
    plan = f"stages = [dict(name='s', runs=[dict(name='a', config={str(config)!r})])]"
    for content, wanted in ((b"one", ["a"]), (b"one", []), (b"other", ["a"])):
        if weights.read_bytes() != content:
            weights.write_bytes(content)
        recorded.clear()
        stages.run_plan(write(tmp_path, plan), tmp_path / "work")
        assert [call[0] for call in recorded] == wanted


def test_a_folder_that_overrides_cannot_carry_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, folder = write(tmp_path), tmp_path / "my work"
    with pytest.raises(ConfigError, match="blank"):
        stages.run_plan(plan, folder)
    folder.mkdir()
    monkeypatch.chdir(folder)
    with pytest.raises(ConfigError, match="blank"):  # checkpoints are named by absolute paths
        stages.run_plan(plan, "stages")


def test_the_table_has_a_row_per_run(tmp_path: Path, recorded: list[list[str]]) -> None:
    figures = ablation_table(write(tmp_path), tmp_path / "work")
    assert [row["run"] for row in figures["rows"]] == ["a", "b", "c"]
    assert [row["coco.AP50"] for row in figures["rows"]] == [0.5, None, 0.5]
    text = Path(figures["table"]).read_text()
    assert text.startswith("# Test\n")
    assert "| a | 0.5000 |" in text
    with pytest.raises(ConfigError, match=r"coco\.AP51"):
        ablation_table(write(tmp_path), tmp_path / "work", columns=["coco.AP51"])


def test_a_config_that_is_not_trained_has_a_row_before_the_runs(
    tmp_path: Path, recorded: list[list[str]]
) -> None:
    untrained = 'dict(name="coco.stock", tool="eval_coco.py", config="configs/tiny/detseg_detection.py"), '
    plan = write(tmp_path, PLAN.replace("evaluations = [", f"evaluations = [{untrained}"))
    figures = ablation_table(plan, tmp_path / "work")
    (call,) = [call for call in recorded if call[0] == "coco.stock"]
    assert "--untrained" in call
    assert "--checkpoint" not in call
    assert [row["run"] for row in figures["rows"]] == ["stock", "a", "b", "c"]
    assert figures["rows"][0]["coco.AP50"] == 0.5
    assert figures["rows"][0]["iterations"] is None


def test_flatten_names_numbers_by_their_place() -> None:
    assert flatten({"val": {"AP": 1, "per": {"x": 2.0, "y": 3.0}, "note": "no", "ok": True}}) == {
        "AP": 1.0, "per.x": 2.0, "per.y": 3.0,
    }  # fmt: skip
