"""Gemma 3 with pan and scan."""

from functools import partial

import tiny_gemma3

from flmm_detseg.lmms.families.gemma3 import Gemma3PanAdapter

build = partial(tiny_gemma3.build, Gemma3PanAdapter)
