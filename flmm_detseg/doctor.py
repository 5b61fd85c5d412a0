"""What works on this machine, and what to do about each thing that does not: `flmm-detseg doctor`."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import json
import locale
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from importlib import metadata
from pathlib import Path

from flmm_detseg.utils.configs import TINY_HEADS
from flmm_detseg.utils.paths import find, places

INSTALL = "make install (or see requirements/lock.txt: pip install --no-deps -r ...)"
TINY_MODELS = {
    "tiny LLaVA weights": ("data/models/tiny_llava", "python tools/pretrain_tiny_llava.py"),
    "tiny LLaVA for streams": (
        "data/models/tiny_llava_streams",
        "python tools/pretrain_tiny_llava.py --start data/models/tiny_llava --stream-share 0.4",
    ),
    "tiny LLaVA for reasoning": (
        "data/models/tiny_llava_reason",
        "python tools/pretrain_tiny_llava.py --start data/models/tiny_llava --reason",
    ),
    "tiny SAM weights": ("data/models/tiny_sam", "python tools/pretrain_tiny_sam.py"),
}
# Not in setup.py, because their own pins or their build keep them out of a plain resolution.
EXTRA_PACKAGES = (
    "xtuner",
    "deepspeed",
    "mmcv",
    "mmcv-lite",
    "numpy",
    "tokenizers",
    "bitsandbytes",
    "tensorboard",
)
MIN_DISK_GB, MIN_MEMORY_GB, MIN_SHARED_MEMORY_GB = 2.0, 4.0, 0.25
_SHARED_MEMORY = Path("/dev/shm")


class AbsentError(Exception):
    """What a probe raises when something is absent; the text is the finding."""


@dataclass(frozen=True)
class Check:
    """One finding.

    Attributes:
        name: What was looked at.
        ok: Whether it works.
        core: Whether training, evaluation and inference on this machine need it.
        detail: What was found.
        remedy: What to do; empty when ``ok``.
    """

    name: str
    ok: bool
    core: bool
    detail: str
    remedy: str = ""


def examine() -> list[Check]:
    """Runs every probe; takes some seconds (imports)."""
    checks = [*_package_checks()]
    probes: list[tuple[str, bool, Callable[[], str], str]] = [
        ("Python", True, _python, "install Python 3.11 or 3.12 and run `make install PYTHON=python3.11`"),
        ("torch and torchvision", True, _torch, f"both must come from the same index: {INSTALL}"),
        ("transformers LLaVA classes", True, _transformers, INSTALL),
        ("mmcv, mmdet, mmseg", True, _openmmlab, INSTALL),
        ("segment-anything", True, _segment_anything, INSTALL),
        ("xtuner package", True, _xtuner, INSTALL),
        ("xtuner command", False, _xtuner_command, "use `python tools/train.py CONFIG`, it does the same"),
        (
            "locale",
            False,
            _locale,
            "export LC_ALL=C.UTF-8: file names and captions with other letters fail without",
        ),
        (
            "threads",
            False,
            _threads,
            "export OMP_WAIT_POLICY=passive (and OMP_NUM_THREADS=1 for many processes)",
        ),
        (
            "shared memory",
            False,
            _shared_memory,
            "num_workers=0 in the config's data loaders, or a larger one (docker run --shm-size=1g)",
        ),
        ("work_dirs", False, _work_dirs, "run from a folder of your own, or name one: --work-dir, --out"),
        ("disk", True, _disk, "free some space: a run keeps its checkpoints and pictures in work_dirs/"),
        ("memory", True, _memory, "close other programs, or lower the batch size in the config"),
        (
            "GPU",
            False,
            _gpu,
            "none needed for the tiny models; 7B models want one with 24 GB and its driver. Lines with "
            "`--deepspeed deepspeed_zero2` need one too; without: --deepspeed configs/deepspeed/zero2_cpu.json",
        ),
        ("bf16", False, _bf16, "use dtype='float32' in the config's lmm"),
        ("gloo (several CPU processes)", False, _gloo, INSTALL),
        ("DeepSpeed", False, _deepspeed, "DS_BUILD_OPS=0 pip install --no-build-isolation deepspeed==0.18.9"),
        (
            "compiler for DeepSpeed's CPU optimizer",
            False,
            _cpu_adam,
            "apt-get install g++; only offloading needs it",
        ),
    ]
    checks += [_probe(name, core, probe, remedy) for name, core, probe, remedy in probes]
    for name, (folder, tool) in TINY_MODELS.items():
        remedy = f"restore {folder} of the repository with git, or train it: {tool}"
        checks.append(_probe(name, False, partial(_weights_of, folder), remedy))
    remedy = "restore data/models/tiny_heads with git, or train it: make quickstart"
    checks.append(_probe("tiny heads", False, _heads, remedy))
    return checks


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of :func:`run`."""
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")


def run(arguments: argparse.Namespace) -> None:
    """Prints the findings; exits with 0 when the core works, else with 1."""
    checks = examine()
    works = all(check.ok for check in checks if check.core)
    if arguments.json:
        print(json.dumps({"ok": works, "checks": [asdict(check) for check in checks]}))
    else:
        print("\n".join(_lines(checks, works)))
    sys.exit(0 if works else 1)


def _lines(checks: list[Check], works: bool) -> Iterator[str]:
    width = max(len(check.name) for check in checks)
    for check in checks:
        mark = "ok  " if check.ok else "FAIL" if check.core else "-   "
        yield f"{mark} {check.name:<{width}}  {check.detail}"
        if not check.ok:
            yield f"     {'':<{width}}  -> {check.remedy}"
    if works:
        yield "The core works: training, evaluation and inference on this machine."
    else:
        failed = ", ".join(check.name for check in checks if check.core and not check.ok)
        yield f"The core does NOT work: {failed}."


def _probe(name: str, core: bool, probe: Callable[[], str], remedy: str) -> Check:
    """Runs one probe; its own output is dropped, whatever it raises is the finding."""
    try:
        with _silent():
            detail = probe()
    except AbsentError as error:
        return Check(name, False, core, str(error), remedy)
    except Exception as error:  # every failure is reported
        text = str(error).strip().splitlines() or [""]
        return Check(name, False, core, f"{type(error).__name__}: {text[0]}", remedy)
    return Check(name, True, core, detail)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    sink = io.StringIO()
    with contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
        yield


def _package_checks() -> Iterator[Check]:
    from packaging.requirements import Requirement

    try:
        requirements = [Requirement(text) for text in metadata.requires("flmm_detseg") or []]
        yield Check("flmm_detseg", True, True, metadata.version("flmm_detseg"))
    except metadata.PackageNotFoundError:
        yield Check("flmm_detseg", False, True, "not installed as a package", "pip install --no-deps -e .")
        requirements = []
    for requirement in requirements:
        version = _version(requirement.name)
        wanted = str(requirement.specifier) or "any version"
        fits = version is not None and requirement.specifier.contains(version, prereleases=True)
        detail = f"{version or 'not installed'} (wanted: {wanted})"
        # What only an extra asks for (its marker is false without one) is not needed to train or to answer.
        core = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        remedy = (
            INSTALL
            if core
            else f"only for what uses it: pip install '{requirement.name}{requirement.specifier}'"
        )
        yield Check(requirement.name, fits, core, detail, "" if fits else remedy)
    for name in EXTRA_PACKAGES:
        if version := _version(name):
            yield Check(name, True, False, version)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _python() -> str:
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    if not (3, 11) <= sys.version_info[:2] < (3, 13):
        raise AbsentError(f"{found}; 3.11 or 3.12 is needed")
    return found


def _torch() -> str:
    import torch
    from torchvision.ops import nms

    boxes = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 4], [8, 8, 9, 9]])
    kept = nms(boxes, torch.tensor([0.9, 0.8, 0.7]), 0.5).tolist()
    if kept != [0, 2]:
        raise AbsentError(f"torchvision's nms gives {kept} instead of [0, 2]")
    return f"operators run; {torch.get_num_threads()} CPU threads of {os.cpu_count()} cores"


def _transformers() -> str:
    from transformers import (
        AttentionInterface,
        LlavaForConditionalGeneration,
        LlavaNextForConditionalGeneration,
    )

    names = [
        c.__name__
        for c in (AttentionInterface, LlavaForConditionalGeneration, LlavaNextForConditionalGeneration)
    ]
    return ", ".join(names)


def _openmmlab() -> str:
    from flmm_detseg.compat import install, is_stand_in

    install()
    for name in ("mmdet.models.dense_heads", "mmseg.models.backbones.unet"):
        importlib.import_module(name)
    if is_stand_in():
        return "mmcv-lite with our stand-in for the compiled operators (torchvision's where there are any)"
    return "compiled mmcv"


def _segment_anything() -> str:
    from segment_anything import sam_model_registry

    return f"variants {', '.join(sorted(sam_model_registry))}"


def _xtuner() -> str:
    importlib.import_module("xtuner.engine.runner")  # what trains; the package alone leaves it out
    return "imports"


def _xtuner_command() -> str:
    places = (Path(sys.executable).parent, *map(Path, os.get_exec_path()))
    for place in places:
        if (place / "xtuner").is_file():
            where = "beside this Python" if place == places[0] else "on the PATH"
            return (
                f"{where}; it exits with 0 whatever happens: `python tools/train.py CONFIG` tells the truth"
            )
    raise AbsentError("neither beside this Python nor on the PATH")


def _locale() -> str:
    names = {sys.getfilesystemencoding(), locale.getpreferredencoding(False)}
    if {name.lower().replace("-", "") for name in names} != {"utf8"}:
        raise AbsentError(f"{', '.join(sorted(names))}, not UTF-8")
    return "UTF-8"


def _threads() -> str:
    cores, load = os.cpu_count() or 1, os.getloadavg()[0]
    found = f"{cores} cores, load {load:.1f}"
    if load > cores and os.environ.get("OMP_WAIT_POLICY", "").lower() != "passive":
        raise AbsentError(
            f"{found}: threads that wait for a core keep it busy, and runs take many times longer"
        )
    return found


def _shared_memory() -> str:
    if not _SHARED_MEMORY.is_dir():
        return "no /dev/shm on this system"
    free = shutil.disk_usage(_SHARED_MEMORY).free / 1e9
    if free < MIN_SHARED_MEMORY_GB:
        raise AbsentError(f"{free * 1000:.0f} MB free: workers of data loaders hand images over in it")
    return f"{free:.1f} GB free"


def _work_dirs() -> str:
    folder = Path("work_dirs") if Path("work_dirs").is_dir() else Path.cwd()
    if not os.access(folder, os.W_OK):
        raise AbsentError(f"{folder.resolve()} cannot be written to; runs and results go there")
    return f"{folder.resolve()} can be written to"


def _disk() -> str:
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    if free < MIN_DISK_GB:
        raise AbsentError(f"{free:.1f} GB free here, {MIN_DISK_GB:.0f} GB are needed")
    return f"{free:.0f} GB free here"


def _memory() -> str:
    import psutil

    memory = psutil.virtual_memory()
    found = f"{memory.available / 1e9:.1f} of {memory.total / 1e9:.1f} GB free"
    if memory.available / 1e9 < MIN_MEMORY_GB:
        raise AbsentError(f"{found}; {MIN_MEMORY_GB:.0f} GB are needed")
    return found


def _gpu() -> str:
    import torch

    if not torch.cuda.is_available():
        raise AbsentError("none: everything runs on the CPU")
    devices = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return ", ".join(f"{device.name} ({device.total_memory / 1e9:.0f} GB)" for device in devices)


def _bf16() -> str:
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_bf16_supported():
        raise AbsentError("the GPU has none")
    a = torch.ones(8, 8, dtype=torch.bfloat16, device=device)
    if (a @ a)[0, 0].item() != 8:
        raise AbsentError(f"wrong product on {device}")
    return f"works on {device}" + (
        "" if device == "cuda" else " (no faster than float32 for the tiny models)"
    )


def _gloo() -> str:
    import torch.distributed

    if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
        raise AbsentError("this torch was built without it")
    return "available"


def _deepspeed() -> str:
    os.environ.setdefault("DS_ACCELERATOR", "cpu" if not _has_gpu() else "cuda")
    deepspeed = importlib.import_module("deepspeed")
    accelerator = importlib.import_module("deepspeed.accelerator").get_accelerator()
    # A command for the CPU needs the project's own JSON; the presets of xtuner ask for a GPU.
    presets = "deepspeed_zero2 and the like" if _has_gpu() else "configs/deepspeed/zero2_cpu.json"
    return f"{deepspeed.__version__} imports, accelerator {accelerator.device_name()}; use {presets}"


def _cpu_adam() -> str:
    builder = importlib.import_module("deepspeed.ops.op_builder.cpu").CPUAdamBuilder()
    if shutil.which("g++") is None and shutil.which("c++") is None:
        raise AbsentError(
            "no C++ compiler: DeepSpeed's own CPU optimizer cannot be built; ours is torch's AdamW"
        )
    if not builder.is_compatible(verbose=False):
        raise AbsentError("DeepSpeed says its CPU optimizer cannot be built here; ours is torch's AdamW")
    return "DeepSpeed's CPU optimizer can be built (nothing here needs it)"


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _heads() -> str:
    file = find(TINY_HEADS)
    if not file.is_file():
        raise AbsentError(f"{TINY_HEADS} is missing ({places(TINY_HEADS)})")
    if file.stat().st_size < 1e5:
        raise AbsentError(f"{file} is no weights file (a pointer of git LFS?)")
    return f"{file}: {file.stat().st_size / 1e6:.1f} MB; `flmm-detseg ground` without a config uses them"


def _weights_of(name: str) -> str:
    return _weights(find(name))


def _weights(folder: Path) -> str:
    from safetensors import safe_open

    file = folder / "model.safetensors"
    if not file.is_file():
        raise AbsentError(f"{file} is missing ({places(file)})")
    with safe_open(file, framework="pt") as tensors:
        count = len(list(tensors.keys()))
    return f"{folder}: {count} tensors, {file.stat().st_size / 1e6:.1f} MB"


def main() -> None:
    """`python -m flmm_detseg.doctor`."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser)
    run(parser.parse_args())


if __name__ == "__main__":
    main()
