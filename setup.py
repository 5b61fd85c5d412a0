"""Package definition; tool settings are in pyproject.toml, pinned versions in requirements/."""

import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
VERSION = "0.1.0"
# What an installed package needs of the repository beside its code: its configs, and the tiny models that they name.
# flmm_detseg/utils/paths.py looks for relative paths there.
MODELS = ("tiny_heads", "tiny_llava", "tiny_llava_reason", "tiny_llava_streams", "tiny_sam")
SHIPPED = {
    folder: f"flmm_detseg/_shipped/{folder}"
    for folder in ("configs", *(f"data/models/{name}" for name in MODELS))
}


class BuildWithConfigs(build_py):
    """Copies :data:`SHIPPED` into the wheel. An editable installation reads them where they are."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        for source, target in SHIPPED.items():
            folder = Path(self.build_lib, target)
            shutil.rmtree(folder, ignore_errors=True)  # of an earlier build
            shutil.copytree(ROOT / source, folder, ignore=shutil.ignore_patterns("__pycache__", "*.tmp"))

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        copied = [path for target in SHIPPED.values() for path in Path(self.build_lib, target).rglob("*")]
        return [
            *super().get_outputs(include_bytecode),
            *(str(path) for path in copied if path.is_file()),
        ]

    def get_source_files(self) -> list[str]:
        """Also what a source distribution has to hold."""
        found = (path for source in SHIPPED for path in (ROOT / source).rglob("*") if path.is_file())
        return [*super().get_source_files(), *(str(path.relative_to(ROOT)) for path in found)]


setup(
    name="flmm_detseg",
    version=VERSION,
    description="Large multimodal models that point at what they talk about: masks and boxes for phrases.",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11,<3.13",
    packages=find_packages(include=["flmm_detseg", "flmm_detseg.*"]),
    cmdclass={"build_py": BuildWithConfigs},
    # The pinned set that is tested lives in requirements/; xtuner's own metadata pins cannot be resolved together
    # with it, so it is installed by `make install` with --no-deps and not listed here.
    install_requires=[
        "torch>=2.6",
        "torchvision>=0.21",
        "transformers>=4.54,<5",
        "mmengine>=0.10.6,<0.11",
        "mmdet==3.3.0",
        "mmsegmentation==1.2.2",
        "segment-anything==1.0",
        "peft>=0.17",
        "accelerate>=1.0",
        "pycocotools>=2.0.8",
        "safetensors",
        "huggingface_hub>=0.34",
        "opencv-python-headless",
        "scipy",
        "tqdm",
        "matplotlib",
        "pillow",
    ],
    extras_require={
        "app": ["gradio==6.17.3"],  # the page of `flmm-detseg app`
        "onnx": ["onnx>=1.17", "onnxruntime>=1.20"],  # flmm-detseg export onnx
        "ocr": ["rapidocr==3.10.0", "onnxruntime>=1.20"],  # TextRegions, label --texts
        "redis": ["redis>=5"],  # level L1 of the background cache, shared between machines
        "supervision": ["supervision>=0.25"],  # result.to_supervision()
    },
    entry_points={"console_scripts": ["flmm-detseg=flmm_detseg.cli:main"]},
)
