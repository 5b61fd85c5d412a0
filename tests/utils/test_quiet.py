"""What other packages say when they are imported is dropped, and nothing else (see also test_first_mask.py)."""

from __future__ import annotations

import logging

import pytest

from flmm_detseg.utils.quiet import drop_import_noise


@pytest.mark.parametrize(
    ("name", "message", "kept"),
    [
        ("DeepSpeed", "Setting accelerator to CPU. If you have GPU or other accelerator, we were ...", False),
        ("DeepSpeed", "Attempting to get learning rate from scheduler before it has started", True),
        (
            "bitsandbytes.cextension",
            "The installed version of bitsandbytes was compiled without GPU support. 8-bit ...",
            False,
        ),
        ("bitsandbytes.cextension", "bitsandbytes library load error", True),
    ],
)
def test_only_what_an_import_says_is_dropped(name, message, kept, caplog):
    drop_import_noise()
    drop_import_noise()
    logger = logging.getLogger(name)
    assert sum(type(entry).__module__ == "flmm_detseg.utils.quiet" for entry in logger.filters) == 1
    logger.addHandler(caplog.handler)
    try:
        logger.warning(message)
    finally:
        logger.removeHandler(caplog.handler)
    assert (message in caplog.text) == kept
