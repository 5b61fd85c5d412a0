"""The page in a browser (``flmm-detseg app``): a conversation about a picture, pointing at it, and streams."""

from __future__ import annotations

import importlib.util

from flmm_detseg.errors import MissingDependencyError


def require_gradio() -> None:
    """Says what is missing before a model is loaded.

    Raises:
        MissingDependencyError: Gradio is not installed.
    """
    if importlib.util.find_spec("gradio") is None:
        raise MissingDependencyError(
            "the app needs Gradio, which is not installed: run `make install-app` in the repository, or "
            "`pip install 'flmm_detseg[app]'`"
        )
