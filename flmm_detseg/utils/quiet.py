"""Suppresses lines that other packages print when they are imported."""

from __future__ import annotations

import logging

# Logger -> beginnings of its messages. MMEngine imports both packages wherever they are installed.
_NOISE = {
    "bitsandbytes.cextension": (
        "The installed version of bitsandbytes was compiled without GPU support",
        "Could not find the bitsandbytes CUDA binary",
    ),
    "DeepSpeed": ("Setting accelerator to CPU", "Setting ds_accelerator to"),
}


def drop_import_noise() -> None:
    """Drops those messages, and no others, of both loggers. Call it before the packages are imported.

    Nothing here uses 8-bit optimizers, and what DeepSpeed can do on a machine is in `flmm-detseg doctor`.
    """
    for name, beginnings in _NOISE.items():
        logger = logging.getLogger(name)
        if not any(isinstance(entry, _Without) for entry in logger.filters):
            logger.addFilter(_Without(beginnings))


class _Without(logging.Filter):
    def __init__(self, beginnings: tuple[str, ...]) -> None:
        super().__init__()
        self._beginnings = beginnings

    def filter(self, record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(self._beginnings)
