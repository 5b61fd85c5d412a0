"""A small model for the app's tests: the repository's tiny one, built once a process."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from flmm_detseg.app.frames import drawn_screen
from flmm_detseg.app.limits import Limits
from flmm_detseg.app.service import About, Service
from flmm_detseg.app.uploads import read_picture
from flmm_detseg.inference.grounder import Grounder
from flmm_detseg.utils.configs import TINY_CONFIG, TINY_HEADS

ROOT = Path(__file__).resolve().parents[1]
SCENE = ROOT / "data" / "models" / "tiny_heads" / "scene.png"


@cache
def tiny_grounder() -> Grounder:
    """The shipped tiny model, on the CPU."""
    return Grounder.from_config(TINY_CONFIG, TINY_HEADS, "cpu")


def service(limits: Limits | None = None) -> Service:
    """An app without a stream."""
    limits = limits or Limits()
    about = About("tiny", example=read_picture(SCENE, limits))
    return Service(tiny_grounder(), None, drawn_screen(2), limits, about)
