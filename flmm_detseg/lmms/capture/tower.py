"""Hidden states of a vision tower, captured while it runs."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from threading import get_ident
from typing import Any

from torch import Tensor, nn


@contextmanager
def tower_states(blocks: Sequence[nn.Module], layers: Collection[int]) -> Iterator[dict[int, Tensor]]:
    """Collects the outputs of blocks while the context is open.

    Only of passes of this thread: others may use the tower at the same time.

    Args:
        blocks: Of the tower, in order.
        layers: Wanted hidden states: 0 is what goes into the first block, i what block i - 1 gives.

    Yields:
        By layer; fills during the tower's pass.
    """
    found: dict[int, Tensor] = {}
    owner = get_ident()

    def keep_input(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if get_ident() == owner:
            found[0] = args[0] if args else kwargs["hidden_states"]

    with ExitStack() as stack:
        for layer in layers:
            if layer == 0:
                hook = blocks[0].register_forward_pre_hook(keep_input, with_kwargs=True)
            else:

                def keep(_: nn.Module, __: Any, output: Any, layer: int = layer) -> None:
                    if get_ident() == owner:
                        found[layer] = output[0] if isinstance(output, tuple) else output

                hook = blocks[layer - 1].register_forward_hook(keep)
            stack.callback(hook.remove)
        yield found
