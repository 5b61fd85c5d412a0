"""Turns a LoRA adapter of PEFT into a checkpoint that a training starts from (`model.init_from`), checked key by key.

flmm-detseg import lora FOLDER configs/llava/detseg_lora.py --out lora.pth
"""

from __future__ import annotations

import argparse
from typing import Any

from flmm_detseg.utils.configs import config_file


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of :func:`run`."""
    parser.add_argument("adapter", help="folder with adapter_model.safetensors and adapter_config.json")
    parser.add_argument("config", help="config whose LMM has LoRA on the same linears")
    parser.add_argument("--out", required=True, help="file to write")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Checks and stores the LoRA.

    Args:
        args: As declared by :func:`add_arguments`.

    Returns:
        Figures for the last line.

    Raises:
        FlmmError: Whatever the user can mend.
    """
    config_file(args.config)
    from flmm_detseg.models.peft_lora import import_lora

    return import_lora(args.adapter, args.config, args.out)
