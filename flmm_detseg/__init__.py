"""flmm_detseg: large multimodal models that point at what they talk about."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flmm_detseg.utils.lazy import lazy_names
from flmm_detseg.utils.quiet import drop_import_noise

__version__ = "0.1.0"
__all__ = ["AttentionMaps", "AttentionReader", "Grounder", "GroundingResult", "__version__"]

# Here, because every command and every script imports this before anything that prints them.
drop_import_noise()

if TYPE_CHECKING:
    from flmm_detseg.inference import AttentionMaps, AttentionReader, Grounder, GroundingResult


# On first use, so that `import flmm_detseg` (configs, the help of commands) costs nothing.
__getattr__, __dir__ = lazy_names(__name__)
