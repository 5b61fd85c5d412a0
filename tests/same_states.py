"""States of two runs of an LMM, compared."""

from __future__ import annotations

import torch

from flmm_detseg.structures import CaptureSpec, LMMStates

EVERYTHING = CaptureSpec(attention=True, hidden="all", vision_layers=(0, 2, 3), logits=True, likelihood=True)


def assert_same(ours: LMMStates, theirs: LMMStates, atol: float = 1e-5) -> None:
    """Attention to 1e-5 absolutely; other states, of size 1 to 10, to 1e-5 of their size."""
    for index in range(len(ours.attention)):
        torch.testing.assert_close(ours.attention[index], theirs.attention[index], rtol=0, atol=atol)
        torch.testing.assert_close(
            ours.hidden[index].states, theirs.hidden[index].states, rtol=1e-5, atol=2 * atol
        )
        assert torch.equal(ours.hidden[index].phrase_ids, theirs.hidden[index].phrase_ids)
        torch.testing.assert_close(ours.logits[index], theirs.logits[index], rtol=1e-5, atol=2 * atol)
        # Probabilities, since a logarithm of almost nothing magnifies rounding.
        torch.testing.assert_close(
            ours.likelihood[index].exp(), theirs.likelihood[index].exp(), rtol=1e-4, atol=2 * atol
        )
        assert ours.logits_start[index] == theirs.logits_start[index]
        for layer in EVERYTHING.vision_layers:
            torch.testing.assert_close(
                ours.vision[index][layer], theirs.vision[index][layer], rtol=0, atol=atol
            )
