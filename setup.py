"""Package definition; tool settings are in pyproject.toml, pinned versions in requirements/."""

from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = "0.1.0"

setup(
    name="flmm_detseg",
    version=VERSION,
    description="Large multimodal models that point at what they talk about: masks and boxes for phrases.",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11,<3.13",
    packages=find_packages(include=["flmm_detseg", "flmm_detseg.*"]),
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
        "opencv-python-headless",
        "scipy",
        "tqdm",
        "matplotlib",
        "pillow",
    ],
    # Level L1 of the background cache, shared between machines.
    extras_require={"redis": ["redis>=5"]},
    entry_points={"console_scripts": ["flmm-detseg=flmm_detseg.cli:main"]},
)
