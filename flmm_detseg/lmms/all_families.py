"""Imports every family, so that the registry finds its adapter by name. Nothing else needs all of them."""

from __future__ import annotations

import importlib
import pkgutil

from flmm_detseg.lmms import families

for _module in pkgutil.iter_modules(families.__path__, f"{families.__name__}."):
    importlib.import_module(_module.name)
