"""Parts of the training engine: data position, seeds, checkpoints that survive a kill, config differences."""

from __future__ import annotations

import os
import random
from collections import deque
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.logging import HistoryBuffer, MessageHub
from mmengine.runner import Runner
from presence_parts import tiny_model as presence_model
from tiny import tiny_llava
from torch import nn
from torch.utils.data import DataLoader, Dataset
from train_parts import write_config

from flmm_detseg.cache.own_tensors import format_part_reports, part_reports
from flmm_detseg.datasets import EpochSampler
from flmm_detseg.engine import (
    GlobalLossHook,
    GroundingCheckpointHook,
    IterationSeedHook,
    ResumableTrainLoop,
)
from flmm_detseg.engine.checks.config_diff import diff_to_base
from flmm_detseg.engine.training import checkpoint_hook
from flmm_detseg.engine.training.loop import check_loaded, check_trainable, endless
from flmm_detseg.engine.training.report_hook import ParameterReportHook
from flmm_detseg.engine.training.start import prepare_start
from flmm_detseg.engine.training.trainer import write_gloo_config
from flmm_detseg.errors import CheckpointError, ConfigError
from flmm_detseg.models import GroundingLMM, load_checkpoint
from flmm_detseg.models.checkpoint import LAYOUT, load_file
from flmm_detseg.models.from_config import model_from_config


class Counting(Dataset):
    """Gives (epoch, index) and remembers what was read."""

    def __init__(self) -> None:
        self.epoch, self.reads = 0, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> tuple[int, int]:
        self.reads += 1
        return self.epoch, index


def loader(batch_size: int = 4) -> DataLoader:
    dataset = Counting()
    return DataLoader(dataset, batch_size, sampler=EpochSampler(dataset, seed=3), collate_fn=list)


def take(batches, count: int) -> list:
    return [next(batches) for _ in range(count)]


@pytest.mark.parametrize("start", [0, 1, 2, 3, 5, 7])
def test_a_resumed_run_gets_the_batches_the_interrupted_one_would_have_got(start):
    expected = take(endless(loader(), 0), 9)[start:]
    resumed = loader()
    batches = endless(resumed, start)
    first = next(batches)
    assert resumed.dataset.reads == len(first), "consumed records must not be read again"
    assert [first, *take(batches, 8 - start)] == expected


def test_an_epoch_is_a_permutation_and_epochs_differ():
    batches = take(endless(loader(), 0), 6)
    first, second = sum(batches[:3], []), sum(batches[3:], [])
    assert sorted(index for _, index in first) == sorted(index for _, index in second) == list(range(10))
    assert [index for _, index in first] != [index for _, index in second]
    assert ({epoch for epoch, _ in first}, {epoch for epoch, _ in second}) == ({0}, {1})


def draws() -> tuple[float, float, float]:
    return float(torch.rand(1)), float(np.random.rand()), random.random()


def test_every_iteration_has_its_own_seed():
    hook = IterationSeedHook()

    def at(iteration: int, seed: int = 1) -> tuple[float, float, float]:
        hook.before_train_iter(SimpleNamespace(seed=seed, iter=iteration), iteration)
        return draws()

    first = at(5)
    at(6)
    assert at(5) == first
    assert len({at(5), at(6), at(5, seed=2)}) == 3


def test_logged_figures_are_the_mean_over_processes(monkeypatch):
    module = "flmm_detseg.engine.training.hooks"
    monkeypatch.setattr(f"{module}.get_world_size", lambda: 2)
    monkeypatch.setattr(
        f"{module}.all_reduce_dict", lambda figures, op: figures.update(loss=torch.tensor(3.0))
    )
    monkeypatch.setattr(f"{module}.all_reduce", lambda bounds, op: None)
    outputs = {"loss": torch.tensor(2.0, requires_grad=True)}
    GlobalLossHook().after_train_iter(SimpleNamespace(), 0, outputs=outputs)
    assert float(outputs["loss"]) == 3.0


# A CachedLMM of which something is trained.
CACHED = dict(
    type="cached_parts.cached_llava",
    train=["separators"],
    partitioner=dict(
        type="flmm_detseg.cache.Partitioner", source=dict(type="flmm_detseg.cache.RandomRegions"), dilate=0
    ),
)


@pytest.fixture
def runner(tmp_path) -> Runner:
    """A run on tiny parts, stopped before its first iteration."""
    return make_runner(tmp_path)


def make_runner(tmp_path, **changes) -> Runner:
    config = Config.fromfile(write_config(tmp_path, max_iters=4, **changes))
    config.work_dir = str(tmp_path / "work")
    config.custom_hooks = []
    made = Runner.from_cfg(config)
    made._train_loop = made.build_train_loop(made._train_loop)
    made.optim_wrapper = made.build_optim_wrapper(made.optim_wrapper)
    made.param_schedulers = made.build_param_scheduler(made.param_schedulers)
    hook_of(made).before_train(made)
    return made


def hook_of(runner: Runner) -> GroundingCheckpointHook:
    return next(hook for hook in runner.hooks if isinstance(hook, GroundingCheckpointHook))


def save(runner: Runner, step: int) -> None:
    hook_of(runner)._save_checkpoint_with_step(runner, step, {"iter": step, "epoch": 0})


def test_a_kill_while_saving_leaves_the_last_checkpoint_usable(runner, tmp_path, monkeypatch):
    work = tmp_path / "work"
    hook_of(runner).max_keep_ckpts, hook_of(runner).keep_ckpt_ids = 1, deque([], 1)
    save(runner, 1)
    expected = load_checkpoint(work / "iter_1.pth")

    def killed(*args, **kwargs):
        (work / "saving_iter_2.pth").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "save_checkpoint", killed)
    with pytest.raises(KeyboardInterrupt):
        save(runner, 2)
    assert (work / "last_checkpoint").read_text() == str(work / "iter_1.pth")
    assert load_checkpoint(work / "iter_1.pth").keys() == expected.keys()
    assert not (work / "iter_2.pth").exists()
    assert "state_dict" not in vars(runner.model), "the model's own state_dict must be back"


@pytest.mark.case("model/empty_pointer")
def test_checkpoint_and_pointer_are_on_the_disk_before_they_are_renamed(runner, tmp_path, monkeypatch):
    steps: list[tuple[str, str]] = []
    names: dict[int, str] = {}
    opened, synced, renamed = os.open, os.fsync, os.replace

    def open_file(path, *args, **kwargs):
        descriptor = opened(path, *args, **kwargs)
        names[descriptor] = Path(path).name
        return descriptor

    def sync(descriptor):
        steps.append(("sync", names[descriptor]))
        synced(descriptor)

    def rename(source, target):
        steps.append(("rename", Path(target).name))
        renamed(source, target)

    for name, function in (("open", open_file), ("fsync", sync), ("replace", rename)):
        monkeypatch.setattr(os, name, function)
    save(runner, 1)
    pointer = f"last_checkpoint.{os.getpid()}.tmp"
    assert steps == [
        ("sync", "saving_iter_1.pth"), ("rename", "iter_1.pth"), ("sync", "work"),
        ("sync", pointer), ("rename", "last_checkpoint"), ("sync", "work"),
    ]  # fmt: skip


def test_a_killed_run_s_files_are_not_mixed_into_a_new_folder(runner, tmp_path, monkeypatch):
    """As DeepSpeed writes folders: several files, of which a killed run with more processes left some."""
    work = tmp_path / "work"

    def write_folder(out_dir, name, **options):
        assert not (work / "latest").exists() or (work / (work / "latest").read_text()).is_dir()
        folder = work / name
        folder.mkdir(exist_ok=True)
        (folder / "rank_0").write_text(str(options["meta"]["iter"]))

    monkeypatch.setattr(runner, "save_checkpoint", write_folder)
    (work / "saving_iter_2.pth").mkdir()
    (work / "saving_iter_2.pth" / "rank_1").write_text("left over")
    save(runner, 2)
    assert [path.name for path in (work / "iter_2.pth").iterdir()] == ["rank_0"]
    assert (work / "latest").read_text() == "iter_2.pth"

    def killed(out_dir, name, **options):
        write_folder(out_dir, name, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "save_checkpoint", killed)
    with pytest.raises(KeyboardInterrupt):
        save(runner, 4)
    assert (work / "latest").read_text() == "iter_2.pth"
    assert (work / "last_checkpoint").read_text() == str(work / "iter_2.pth")

    monkeypatch.setattr(runner, "save_checkpoint", write_folder)
    save(runner, 2)  # once more, after a validation
    assert sorted(path.name for path in work.glob("*.pth")) == ["iter_2.pth", "saving_iter_4.pth"]


def test_the_best_checkpoint_is_replaced_only_by_a_whole_better_one(runner, tmp_path, monkeypatch):
    work, hook = tmp_path / "work", hook_of(runner)
    hook.save_best, hook.key_indicators, hook.rules = "refseg/cIoU", ["refseg/cIoU"], ["greater"]
    hook.is_better_than = {"refseg/cIoU": hook.rule_map["greater"]}
    hook.best_ckpt_path = None

    def validated(done: int, score: float) -> list[str]:
        runner.train_loop._iter = done
        hook.after_val_epoch(runner, {"refseg/cIoU": score})
        return sorted(path.name for path in work.glob("*best*"))

    assert validated(2, 0.5) == ["best_refseg_cIoU_iter_2.pth"]
    assert validated(4, 0.4) == ["best_refseg_cIoU_iter_2.pth"]
    assert torch.load(work / "best_refseg_cIoU_iter_2.pth", weights_only=True)["meta"]["iter"] == 2

    whole = runner.save_checkpoint

    def killed(out_dir, name, **options):
        (work / name).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "save_checkpoint", killed)
    with pytest.raises(KeyboardInterrupt):
        validated(6, 0.6)
    load_checkpoint(work / "best_refseg_cIoU_iter_2.pth")
    assert not (work / "best_refseg_cIoU_iter_6.pth").exists()

    hook.best_ckpt_path = str(work / "best_refseg_cIoU_iter_2.pth")  # as a resumed run reads it
    monkeypatch.setattr(runner, "save_checkpoint", whole)
    assert validated(8, 0.7) == ["best_refseg_cIoU_iter_8.pth", "saving_best_refseg_cIoU_iter_6.pth"]
    with pytest.raises(
        ConfigError, match="`save_best` is 'refseg/cIoU', which is not measured; known: other"
    ):
        hook.after_val_epoch(runner, {"other": 1.0})


def test_checkpoints_say_how_the_run_cut_its_data(runner, tmp_path):
    save(runner, 2)
    meta = torch.load(tmp_path / "work" / "iter_2.pth", weights_only=True)["meta"]
    assert meta["batch"] == {"processes": 1, "batch_size": 4, "accumulation": 1}
    assert meta["iter"] == 2
    assert LAYOUT not in meta, "a plain LLaVA has none"


def test_the_loop_itself_refuses_keys_that_nothing_reads(runner):
    """What `xtuner train CONFIG` meets without our tool."""
    runner.cfg.optim_wrapper.clip_gradd = dict(max_norm=1.0)
    with pytest.raises(ConfigError, match=r"tiny_run\.py: `optim_wrapper` has no argument `clip_gradd`"):
        ResumableTrainLoop(runner, runner.cfg.train_dataloader, max_iters=4)


def test_load_from_reads_files_and_folders_strictly_before_the_model_is_wrapped(runner, tmp_path):
    expected = {name: torch.full_like(t, 0.5) for name, t in runner.model.trainable_state_dict().items()}
    torch.save({"state_dict": expected}, tmp_path / "file.pth")
    (tmp_path / "folder").mkdir()
    torch.save({"module": expected}, tmp_path / "folder" / "mp_rank_00_model_states.pt")
    # FlexibleRunner has a config at this point, and a strategy that builds from it.
    strategy = SimpleNamespace(build_model=lambda config: runner.model)
    flexible = SimpleNamespace(
        model={}, strategy=strategy, logger=runner.logger, _resume=False, _load_from=None, _has_loaded=False
    )
    runner._resume = False
    for one in (runner, flexible):
        for name in ("file.pth", "folder"):
            with torch.no_grad():
                for parameter in runner.model.parameters():
                    if parameter.requires_grad:
                        parameter.zero_()
            one._load_from, one._has_loaded = str(tmp_path / name), False
            prepare_start(one, runner.train_dataloader, max_iters=4)
            assert one._has_loaded, "MMEngine must not load again"
            for key, tensor in one.model.trainable_state_dict().items():
                assert torch.equal(tensor, expected[key]), key
    expected.popitem()
    torch.save({"module": expected}, tmp_path / "folder" / "mp_rank_00_model_states.pt")
    with pytest.raises(CheckpointError, match="1 missing"):
        prepare_start(runner, runner.train_dataloader, max_iters=4)


def test_checkpoints_record_the_layout_and_load_where_it_is_the_same(tmp_path):
    runner = make_runner(tmp_path, model__lmm=CACHED)
    save(runner, 2)
    path = tmp_path / "work" / "iter_2.pth"
    stored = torch.load(path, weights_only=True)
    assert '"positions": "raster"' in stored["meta"][LAYOUT]
    runner.resume(str(path))
    folder = tmp_path / "folder"
    folder.mkdir()
    states = {"module": stored["state_dict"], "meta": stored["meta"], "message_hub": stored["message_hub"]}
    torch.save(states, folder / "mp_rank_00_model_states.pt")
    runner._resume, runner._load_from = True, str(folder)
    hook_of(runner).before_train(runner)

    lmm = runner.model.lmm
    lmm.layout = replace(lmm.layout, positions="packed")
    refused = pytest.raises(CheckpointError, match=r"positions 'raster' \(model: 'packed'\)")
    with refused:
        hook_of(runner).before_train(runner)
    runner._load_from = None
    with torch.no_grad():
        lmm.separators.zero_()
    with refused:
        runner.resume(str(path))
    runner._resume, runner._load_from = False, str(path)
    with refused:
        prepare_start(runner, runner.train_dataloader, max_iters=4)
    assert not lmm.separators.any()


def test_a_run_logs_what_differs_from_the_unmodified_llava(tmp_path):
    runner = make_runner(tmp_path, model__lmm=CACHED)
    ParameterReportHook()._report(runner)
    (log,) = (tmp_path / "work").rglob("*.log")
    (report,) = part_reports(runner.model.lmm)
    assert report.name == "separators"
    assert format_part_reports([report]) in log.read_text()


def test_old_checkpoints_go_only_after_the_new_one_is_there(runner, tmp_path):
    hook = hook_of(runner)
    hook.max_keep_ckpts, hook.keep_ckpt_ids = 2, deque([], 2)
    for step in (1, 2, 3):
        save(runner, step)
    names = sorted(path.name for path in (tmp_path / "work").glob("iter_*"))
    assert names == ["iter_2.pth", "iter_3.pth"]
    assert (tmp_path / "work" / "last_checkpoint").read_text().endswith("iter_3.pth")


def test_log_history_and_tensors_come_back_on_resume(runner, tmp_path):
    runner.message_hub.update_scalars({"train/loss": 1.5})
    runner.message_hub.update_scalars({"train/loss": 0.5})
    save(runner, 2)
    stored = torch.load(tmp_path / "work" / "iter_2.pth", weights_only=True)
    assert stored["message_hub"]["log_scalars"]["train/loss"]["values"].tolist() == [1.5, 0.5]

    before = {name: value.clone() for name, value in runner.model.trainable_state_dict().items()}
    with torch.no_grad():
        for parameter in runner.model.parameters():
            if parameter.requires_grad:
                parameter.zero_()
    runner.message_hub.log_scalars.clear()
    runner.resume(str(tmp_path / "work" / "iter_2.pth"))
    assert runner.iter == 2
    history = runner.message_hub.get_scalar("train/loss")
    assert isinstance(history, HistoryBuffer)
    assert history.data[0].tolist() == [1.5, 0.5]
    for name, value in runner.model.trainable_state_dict().items():
        assert torch.equal(value, before[name]), name


def test_a_checkpoint_with_a_missing_tensor_is_refused_on_resume(runner, tmp_path):
    save(runner, 1)
    path = tmp_path / "work" / "iter_1.pth"
    content = torch.load(path, weights_only=True)
    del content["state_dict"]["heads.phrase.text_layer_weights"]
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=r"1 missing: heads\.phrase\.text_layer_weights"):
        runner.resume(str(path))


def test_plain_turns_objects_into_text_and_keeps_containers():
    value = {
        "a": (1, 2.5, None),
        "b": [np.float32(0.5), np.int64(3)],
        3: {"c": nn.ReLU()},
        "t": torch.ones(2),
    }
    plain = checkpoint_hook._plain(value)
    assert plain["a"] == (1, 2.5, None)
    assert plain["b"] == [0.5, 3]
    assert plain[3] == {"c": "ReLU()"}
    assert torch.equal(plain["t"], torch.ones(2))


def test_the_message_hub_survives_the_round_trip():
    hub = MessageHub("round_trip")
    hub.update_scalar("train/loss", 2.0)
    hub.update_info("keep_ckpt_ids", [4, 8])
    hub.update_info("cfg", "long text that a resumed run sets again")
    plain = checkpoint_hook._plain_message_hub(hub.state_dict())
    assert plain["runtime_info"] == {"keep_ckpt_ids": [4, 8]}
    other = MessageHub("round_trip_back")
    other.load_state_dict(checkpoint_hook._restore_message_hub(plain))
    assert other.get_scalar("train/loss").current() == 2.0


def test_deepspeed_json_with_auto_values_is_refused_without_a_gpu(tmp_path):
    config = Config.fromfile(write_config(tmp_path))
    auto = tmp_path / "auto.json"
    auto.write_text('{"bf16": {"enabled": "auto"}}')
    with pytest.raises(ConfigError, match=r"auto\.json: `bf16.enabled` must be false"):
        write_gloo_config(config, auto, tmp_path / "work")
    auto.write_text("{")
    with pytest.raises(ConfigError, match=r"auto\.json is no JSON"):
        write_gloo_config(config, auto, tmp_path / "work")


def test_differences_to_the_imported_configs(tmp_path):
    (tmp_path / "base.py").write_text("model = dict(head=dict(a=1, b=2), parts=[dict(c=3)])\nother = 4\n")
    (tmp_path / "child.py").write_text(
        "from mmengine.config import read_base\n\nwith read_base():\n    from .base import *\n\n"
        "model.update(head=dict(a=5))\nmodel['parts'][0].update(d=6)\n"
    )
    changed = {"model.head.a": (1, 5), "model.parts.0.d": (None, 6)}
    assert diff_to_base(tmp_path / "child.py") == changed
    overridden = Config.fromfile(tmp_path / "child.py")
    overridden.merge_from_dict({"other": 7})
    assert diff_to_base(tmp_path / "child.py", overridden) == {**changed, "other": (4, 7)}


def test_training_says_that_there_is_nothing_to_train():
    model = model_from_config("tiny/training_free", device="cpu")
    with pytest.raises(ConfigError, match="nothing of this model is trained.*evaluate refcoco"):
        check_trainable(model)
    model.heads["phrase"].text_proj = nn.Linear(2, 2)
    check_trainable(model)


def test_what_is_kept_as_it_is_has_to_come_from_somewhere(tmp_path):
    """A config whose `init_from` was left empty would train on random masks."""

    def start(model, **loaded):
        check_loaded(SimpleNamespace(model=model, **{"_resume": False, "_load_from": None, **loaded}))

    plain, file = presence_model(presence=False), tmp_path / "heads.pth"
    torch.save({"state_dict": plain.trainable_state_dict()}, file)
    random = presence_model()
    with pytest.raises(ConfigError, match=r"they are random \(heads.phrase.mask_head..*init_from"):
        start(random)
    start(plain)
    start(presence_model(init_from=[str(file)], new_parts=["heads.phrase.presence."]))
    whole = tmp_path / "whole.pth"
    torch.save({"state_dict": presence_model().trainable_state_dict()}, whole)
    start(random, _resume=True, _load_from="iter_5.pth")  # which holds them
    with pytest.raises(ConfigError, match="random"):
        start(random, _resume=True)  # nothing to go on from: a fresh run
    load_file(random, whole)
    start(random)
    lmm = tiny_llava(lora=dict(llm=dict(r=2, alpha=4)))
    kept = GroundingLMM(lmm, dict(phrase=plain.heads["phrase"]), train_lmm=False)
    with pytest.raises(ConfigError, match="lora"):
        start(kept)
