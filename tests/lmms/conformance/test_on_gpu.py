"""What the engine reads on a GPU is what it reads on a CPU."""

from __future__ import annotations

import pytest
import torch
from tiny import mixed_samples
from tiny_families import FAMILIES, build

from flmm_detseg.structures import CaptureSpec, LMMStates

WANTED = CaptureSpec(attention=True, hidden="all", logits=True)


def states_on(family: str, device: str) -> LMMStates:
    """Five samples of three images, read in packed rows."""
    lmm, samples = build(family).to(device).eval(), mixed_samples()
    inputs = [lmm.prepare(sample) for sample in samples]
    # Convolutions round to 10 bits on a GPU unless set otherwise; matrix products do not.
    with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        return lmm.encode(inputs, WANTED, [sample.image_id for sample in samples])


@pytest.mark.gpu
@pytest.mark.parametrize("family", FAMILIES)
def test_rows_hidden_states_and_logits_are_those_of_a_cpu(family: str) -> None:
    there, here = states_on(family, "cuda"), states_on(family, "cpu")
    assert there.attention[0].is_cuda
    for index in range(len(mixed_samples())):
        ours, theirs = there.attention[index].cpu(), here.attention[index]
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
        ours, theirs = there.hidden[index].states.cpu(), here.hidden[index].states
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(there.logits[index].cpu(), here.logits[index], rtol=1e-3, atol=1e-3)
