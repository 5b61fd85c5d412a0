"""Shell lines of README and docs, as they stand: which are run by tests, and which are not and why.

A line that is new on a page must be put in one of the two tables (``test_launch_lines.py`` says so).
"""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "data" / "README.md"]
_BLOCK = re.compile(r"```(\w*)\n(.*?)```", re.DOTALL)
_COMMAND = re.compile(
    r"(?:[A-Z_]+=\S+ )*(?:\.venv/bin/)?"
    r"(?:(?:python|torchrun|accelerate launch)(?: --\S+(?: \d+)?)* (?:tools|benchmarks)/\w+\.py|xtuner train"
    r"|flmm-detseg|make)(?= |$)[^#]*"
)
TINY = "configs/tiny/frozen_tiny_llava_refcoco_png.py"
_SHORT = (
    "--cfg-options train_cfg.max_iters=2 train_dataloader.batch_size=2 train_dataloader.num_workers=0 "
    "train_dataloader.persistent_workers=False custom_hooks.1.interval=1000 default_hooks.logger.interval=1"
)
# What a page leaves open, by rule: what tests put in its place. Files are made in the folder of the run.
FILL = {
    r"\bCONFIG\b": TINY,
    r"\bQwen/Qwen3-VL-2B-Instruct\b": "data/models/tiny_llava",
}
# Line -> what is added to make it short. FILE and pictures are a tiny recipe's checkpoint and its world.
RUN = {
    "python tools/train.py CONFIG": _SHORT,
    "torchrun --nproc_per_node 2 tools/train.py CONFIG": _SHORT,
    "accelerate launch --multi_gpu --num_processes 2 tools/train.py CONFIG": _SHORT,
    "NPROC_PER_NODE=2 xtuner train CONFIG": _SHORT,
    "accelerate launch tools/eval_refcoco.py CONFIG --checkpoint FILE [--sentences first|all] [--mode split|concat]":
        "--splits val --limit 4",
    "accelerate launch tools/eval_refcoco.py CONFIG --checkpoint FILE": "--splits val --limit 4",
    "accelerate launch tools/eval_png.py CONFIG --checkpoint FILE": "--limit 4",
    "flmm-detseg evaluate refcoco CONFIG --checkpoint FILE": "--splits val --limit 4",
    "flmm-detseg evaluate png CONFIG --checkpoint FILE": "--limit 4",
    'python tools/ground.py CONFIG --checkpoint FILE --image cat.jpg --caption "a cat on a mat" --phrase "a cat" '
    '--phrase "a mat" --out overlay.png': "",
    'flmm-detseg ground CONFIG --checkpoint FILE --image photo.jpg --question "what is on the mat ?" '
    "--out masks.png": "",
    'flmm-detseg ground --lmm Qwen/Qwen3-VL-2B-Instruct --image photo.jpg --caption "a cat on a mat" --phrase "a cat" '
    "--out masks.png": "",
    "flmm-detseg rank-heads --lmm Qwen/Qwen3-VL-2B-Instruct --phrases phrases.jsonl --image-dir photos "
    "--out ranking.json": "",
    'flmm-detseg explain photo.jpg --lmm Qwen/Qwen3-VL-2B-Instruct --question "what is this ?" --out page.html': "",
    'flmm-detseg ground --image data/models/tiny_heads/scene.png --caption "a white ring is left of the orange ring ." '
    '--phrase "a white ring" --phrase "the orange ring" --format coco label-studio yolo panoptic '
    "--out work_dirs/exported": "",
    "flmm-detseg export onnx tiny/frozen_tiny_llava_refcoco_png --checkpoint data/models/tiny_heads/heads.pth "
    "--out work_dirs/onnx": "",
    "flmm-detseg explain data/models/tiny_heads/scene.png --features tiny/frozen_tiny_llava_refcoco_png "
    '--checkpoint data/models/tiny_heads/heads.pth --caption "a white ring is left of the orange ring ." '
    '--phrase "a white ring" --out work_dirs/features.html': "",
    f"flmm-detseg export pretrained {TINY} --checkpoint data/models/tiny_heads/heads.pth --out work_dirs/my_model "
    "--licence apache-2.0": "",
    "flmm-detseg ground work_dirs/my_model --image data/models/tiny_heads/scene.png --caption \"a white ring .\" "
    '--phrase "a white ring" --out ring.png': "",  # after export pretrained
    "flmm-detseg doctor": "--json",
    "flmm-detseg list-configs refcoco": "",
    "flmm-detseg copy-config tiny/frozen_tiny_llava_refcoco_png my_configs": "",
    "flmm-detseg show-config my_configs/frozen_tiny_llava_refcoco_png.py": "",  # after copy-config
    "flmm-detseg cost llava/frozen_llava15_7b_refcoco_png --gpu h100 --gpus 4": "",
    "flmm-detseg data tinyworld --out data/tinyworld --images 300": "--out data/another --images 60",
    "flmm-detseg data streams --out data/tinyworld_streams --train-streams 1 --val-streams 1 --frames 4": "",
    "flmm-detseg stream configs/cache/tiny_stream_screens.py --untrained --images data/tinyworld_streams "
    "--questions data/tinyworld_streams/val.jsonl --static --compare": "",  # after data streams
    "python tools/make_tinyworld.py --out data/tinyworld --images 2500": "--images 60",
    "python tools/make_tinyworld.py --out data/tinyworld --images 2500 --seed 0": "--images 60",
    # On a machine without a GPU these say which command to use, and leave the file FAILED.
    "NPROC_PER_NODE=8 xtuner train configs/llava/frozen_llava15_7b_refcoco_png.py --deepspeed deepspeed_zero2": "",
    "xtuner train configs/llava/frozen_llava15_7b_refcoco_png.py --deepspeed deepspeed_zero2": "",
    "xtuner train configs/llava/detseg_lora.py --deepspeed deepspeed_zero2": "",
    "xtuner train configs/cache/cached_llava15_7b.py --deepspeed deepspeed_zero2": "",
}  # fmt: skip
NEEDS_A_GPU = {line for line in RUN if "--deepspeed deepspeed_zero2" in line}

# Commands that a text speaks of, without what they are run on.
_NAMES = (
    "flmm-detseg cost",
    "flmm-detseg data voc",
    "flmm-detseg data vqav2",
    "xtuner train",
    "xtuner train --deepspeed",
    "python tools/train.py",
    "python tools/quickstart.py",
)
_LONG = "its whole run takes too long for a test"
_OWN = "names files that only the reader has"
# Beginning of a line -> why it is not run as it stands, and which test runs the tool instead.
NOT_RUN = {
    "make ": "makes an environment of its own or runs these very tests; `.ci/run` does",
    ".venv/bin/flmm-detseg doctor": "tests/test_doctor.py",
    ".venv/bin/flmm-detseg ground": "tests/test_first_mask.py",
    "flmm-detseg ground": "the same as tools/ground.py, which is run",
    "flmm-detseg app": "serves until it is stopped; tests/app/test_page.py",
    "flmm-detseg chat": "reads lines until its input ends; tests/commands/test_chat_command.py",
    "flmm-detseg cost --write": "computes every recipe, minutes; tests/models/test_cost.py",
    "flmm-detseg train": "the same as tools/train.py, which is run; tests/test_cli.py",
    "flmm-detseg stages configs/tiny/": f"{_LONG}; tests/experiments/test_stages.py",
    "flmm-detseg stages configs/llava/": "needs 7B weights; tests/models/test_shapes.py checks the chain",
    "flmm-detseg table": f"{_LONG}; tests/experiments/test_stages.py",
    "flmm-detseg import lisa": f"{_OWN}; tests/models/test_import_lisa.py",
    "flmm-detseg import": f"{_OWN}; tests/models/test_shapes.py",
    "flmm-detseg export heads": f"{_OWN}; tests/models/test_export_heads.py",
    "flmm-detseg export": "CONFIG must have LoRA; tests/models/test_merge.py",
    "flmm-detseg evaluate": "CONFIG must have the heads it measures; tests/engine/evaluation/test_eval_tasks.py",
    "flmm-detseg explain": f"{_OWN}; tests/inference/test_attention_reader.py",
    "flmm-detseg infer": "CONFIG must be the joint model; tests/inference/test_instructions.py",
    "flmm-detseg rank-heads": f"{_OWN}; tests/inference/test_rank_heads.py",
    "flmm-detseg label": "names a detector on the hub; tests/labelling/test_pseudo_label.py",
    "flmm-detseg data presence": f"{_LONG}; tests/datasets/test_tinyworld_presence.py",
    "flmm-detseg data streams": f"{_LONG}; tests/datasets/test_stream_files.py",
    "flmm-detseg data tinyworld --out data/tinyworld --reason": f"{_LONG}; tests/datasets/test_reason_files.py",
    "flmm-detseg data tinyworld": _LONG,
    "python benchmarks/reason_rules.py": f"{_LONG}; tests/datasets/test_reason_queries.py",
    "flmm-detseg data textvqa": f"{_OWN}; tests/datasets/test_textvqa.py",
    "flmm-detseg data ocrvqa": f"{_OWN}; tests/datasets/test_ocrvqa.py",
    "flmm-detseg data scienceqa": f"{_OWN}; tests/datasets/test_scienceqa_pope.py",
    "flmm-detseg data pope": f"{_OWN}; tests/datasets/test_scienceqa_pope.py",
    "flmm-detseg data check": f"{_OWN}; tests/engine/checks/test_data_check.py",
    "flmm-detseg stream": "FILE is a checkpoint of the ladder; tests/commands/test_stream.py",
    "flmm-detseg list-configs": "tests/commands/test_configs_commands.py",
    "flmm-detseg copy-config": "tests/commands/test_configs_commands.py",
    "flmm-detseg show-config": "tests/commands/test_configs_commands.py",
    "python tools/train_stages.py configs/tiny/": f"{_LONG}; tests/experiments/test_stages.py",
    "python tools/train_stages.py configs/llava/": "needs 7B weights; tests/models/test_shapes.py checks the chain",
    "python tools/ablation_table.py": f"{_LONG}; tests/experiments",
    "python tools/import_flmm_checkpoint.py": f"{_OWN}; tests/models/test_shapes.py",
    "python tools/export_heads.py": f"{_OWN}; tests/models/test_export_heads.py",
    "python tools/merge_lora.py": "CONFIG must have LoRA; tests/models/test_merge.py",
    "python tools/eval_": "CONFIG must have the heads it measures; tests/engine/evaluation",
    "python tools/ground.py": f"{_OWN}; the longer line of docs/python_api.md is run",
    "python tools/infer.py": "CONFIG must be the joint model; tests/inference/test_instructions.py",
    "python tools/pseudo_label.py": "names a detector on the hub; tests/labelling/test_pseudo_label.py",
    "python tools/make_streams.py": f"{_LONG}; tests/datasets/test_stream_files.py",
    "python tools/make_tinyworld.py --out data/tinyworld_large": _LONG,
    "python tools/stream.py": "FILE is a checkpoint of the ladder; tests/commands/test_stream.py",
    "python tools/train.py configs/cache/": "starts from the ladder's checkpoints; tests/models/test_kept_lmm.py",
    "python tools/train.py configs/my_boxes.py": "tests/datasets/test_own_data_docs.py",
    "python tools/check_data.py": f"{_OWN}; tests/engine/checks/test_data_check.py",
    "python tools/voc_to_coco.py": f"{_OWN}; tests/datasets/test_voc.py",
    "python tools/vqav2_to_jsonl.py": f"{_OWN}; tests/datasets/test_vqav2.py",
    "OMP_NUM_THREADS=1 python benchmarks/": "a measurement; tests/cache/test_cache_benchmarks.py",
    "python benchmarks/": "a measurement; tests/cache/test_cache_benchmarks.py and tests/lmms/test_benchmarks.py",
    "xtuner train ... --deepspeed": "no whole line",
    "xtuner train CONFIG": "the same as the line with NPROC_PER_NODE, which is run",
}


def lines() -> dict[str, str]:
    """Commands by text (blanks as one), each with the first page that shows it: in shell blocks, and in `...`."""
    found: dict[str, str] = {}
    for page in PAGES:
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        shown = [
            line for kind, block in _BLOCK.findall(text) if kind != "python" for line in block.splitlines()
        ]
        shown += [span.replace("\n", " ") for span in re.findall(r"`([^`]+)`", _BLOCK.sub("", text))]
        for line in shown:
            command = _COMMAND.match(line.strip())
            if command and " " in command[0].strip():
                found.setdefault(" ".join(command[0].split()).rstrip(" ,;"), page.name)
    return {line: page for line, page in found.items() if line not in _NAMES}


def filled(line: str) -> str:
    """A line with what it leaves open filled by :data:`FILL`, its optional parts (in brackets) left out."""
    plain = re.sub(r"\[[^]]*\]", "", line)
    for placeholder, value in FILL.items():
        plain = re.sub(placeholder, value, plain)
    return plain


def reason(line: str) -> str | None:
    """Why a line is not run; None: it is in no table."""
    return next((why for start, why in NOT_RUN.items() if line.startswith(start)), None)
