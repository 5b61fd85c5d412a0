"""The arguments by which a command's user chooses a grounding model, and the model."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flmm_detseg.errors import DataError
from flmm_detseg.utils.choices import PROMPT_TEMPLATES
from flmm_detseg.utils.cli import add_lmm_argument
from flmm_detseg.utils.configs import TINY_CONFIG, TINY_HEADS, config_file

if TYPE_CHECKING:
    from flmm_detseg.inference.grounder import Grounder


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares a config with its checkpoint, and an LMM without training in place of them."""
    parser.add_argument(
        "config", nargs="?",
        help=f"config of the model; without config and checkpoint: {TINY_CONFIG}, {TINY_HEADS}",
    )  # fmt: skip
    parser.add_argument("--checkpoint", help="what training wrote; default: load_from of the config")
    parser.add_argument(
        "--untrained", action="store_true", help="accept random heads when there is no checkpoint"
    )
    add_lmm_argument(parser)
    parser.add_argument(
        "--lmm", metavar="NAME",
        help="in place of a config: folder in hub layout, or hub name, of a model of any supported family",
    )  # fmt: skip
    parser.add_argument(
        "--ranking", metavar="FILE",
        help="with --lmm: its heads as rank-heads wrote them; default: head_ranking.json in its folder, else all heads",
    )  # fmt: skip
    parser.add_argument(
        "--heads", type=int, metavar="N", help="with --lmm: how many of the ranking's best heads to read (default 3)"
    )  # fmt: skip
    parser.add_argument(
        "--refiner", metavar="SAM",
        help="with --lmm: SAM file, or folder or hub name of a SAM 2.1; default: masks as coarse as patches",
    )  # fmt: skip
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="with --lmm; default: bfloat16 on a GPU",
    )
    add_prompt_template_argument(parser)
    parser.add_argument("--device", help='for example "cuda:0"; default: the GPU when there is one')


def add_prompt_template_argument(parser: argparse.ArgumentParser) -> None:
    """Declares what the chats of an LMM given by ``--lmm`` look like."""
    parser.add_argument(
        "--prompt-template", choices=PROMPT_TEMPLATES,
        help="with --lmm, of LLaVA and LLaVA-NeXT: how they were trained to be asked; default: mistral for LLaVA-NeXT "
        "over Mistral, else vicuna. Other families have their own",
    )  # fmt: skip


@dataclass(frozen=True)
class ChosenModel:
    """A model that is not loaded yet.

    Attributes:
        arguments: As declared by :func:`add_model_arguments`.
        config: Config; None: an LMM without training.
        checkpoint: Its trained parts; None: the config's ``load_from``.
    """

    arguments: argparse.Namespace
    config: str | None
    checkpoint: str | None

    @property
    def files(self) -> list[str | None]:
        """What is read, so that nothing is written over it; an error where there is no such config."""
        config = None if self.config is None else str(config_file(self.config))
        return [config, self.checkpoint, self.arguments.ranking]

    def load(self) -> Grounder:
        """Builds the model, which may take minutes.

        Returns:
            Its grounder.

        Raises:
            ConfigError: The config, or the LMM, cannot be used.
            CheckpointError: No checkpoint, an unsafe or damaged one, or one of another model.
        """
        from flmm_detseg.inference.grounder import Grounder

        given = self.arguments
        if self.config is not None:
            return Grounder.from_config(
                self.config,
                self.checkpoint,
                given.device,
                untrained=given.untrained,
                allow_other_lmm=given.allow_other_lmm,
            )
        return Grounder.from_lmm(
            given.lmm,
            ranking=given.ranking,
            heads=given.heads,
            refiner=given.refiner,
            dtype=given.dtype,
            device=given.device,
            prompt_template=given.prompt_template,
        )


def choose_model(arguments: argparse.Namespace) -> ChosenModel:
    """Which model is meant: a trained one, an LMM as it is, or the repository's tiny one where none is named.

    Args:
        arguments: As declared by :func:`add_model_arguments`.

    Returns:
        The choice; nothing heavy is imported.

    Raises:
        DataError: Arguments of both kinds of model, or a checkpoint without its config.
    """
    trained = {
        "CONFIG": arguments.config is not None,
        "--checkpoint": arguments.checkpoint is not None,
        "--untrained": arguments.untrained,
        "--allow-other-lmm": arguments.allow_other_lmm,
    }
    free = {
        "--ranking": arguments.ranking is not None,
        "--heads": arguments.heads is not None,
        "--refiner": arguments.refiner is not None,
        "--dtype": arguments.dtype is not None,
        "--prompt-template": arguments.prompt_template is not None,
    }
    if arguments.lmm is None and any(free.values()):
        raise DataError(f"{_given(free)} goes with --lmm, whose model needs no config; give --lmm NAME")
    if arguments.lmm is not None and any(trained.values()):
        raise DataError(
            f"--lmm takes an LMM without training, and {_given(trained)} is of a trained model; leave one of them out"
        )
    if arguments.lmm is not None:
        return ChosenModel(arguments, None, None)
    if arguments.config is not None:
        return ChosenModel(arguments, arguments.config, arguments.checkpoint)
    if arguments.checkpoint is not None or arguments.untrained:
        raise DataError("--checkpoint and --untrained need the config of their model: name it before them")
    print(
        "no config given: the repository's tiny model, which knows the pictures of TinyWorld and nothing else",
        file=sys.stderr,
    )
    return ChosenModel(arguments, TINY_CONFIG, TINY_HEADS)


def _given(options: dict[str, bool]) -> str:
    """Those that were given."""
    return ", ".join(name for name, given in options.items() if given)
