"""The card of a stored model: what it is, what it was made of, what it reaches, and what it cannot do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from flmm_detseg.evaluation.stored_figures import StoredFigure
from flmm_detseg.models.domain import Domain

LIBRARY = "flmm_detseg"
_HUB_TASK = "image-segmentation"
# By the evaluation's name.
_TASKS = {"refcoco": "referring segmentation", "png": "panoptic narrative grounding"}
_FIGURES = {"cIoU": "cumulative IoU", "gIoU": "mean IoU per phrase"}


@dataclass(frozen=True)
class CardFacts:
    """What a card says.

    Attributes:
        name: Of the model.
        licence: Of the trained tensors, as the hub abbreviates it (``"apache-2.0"``); None: not stated.
        base: The LMM, as the model's config names it.
        base_on_hub: ``base`` is a hub name.
        adapted: LoRA groups, added tokens and parts of the LMM.
        heads: Heads by name, with their class.
        num_tensors: Of the trained ones.
        num_parameters: The same.
        trained_on: Data sets of the training.
        trained_by: Command of the training; None: not known.
        needed: Weights that stand elsewhere: the LMM's, SAM's.
        domain: Which pictures the model knows.
        figures: Of evaluations.
        same_weights: Hash of this model's weights, see :class:`StoredFigure`.
        files: sha256 by file.
    """

    name: str
    licence: str | None
    base: str
    base_on_hub: bool
    adapted: Sequence[str]
    heads: Mapping[str, str]
    num_tensors: int
    num_parameters: int
    trained_on: Sequence[str]
    trained_by: str | None
    needed: Sequence[str]
    domain: Domain | None
    figures: Sequence[StoredFigure]
    same_weights: str
    files: Mapping[str, str]


def model_card(facts: CardFacts) -> str:
    """Writes the card.

    Args:
        facts: Of the model.

    Returns:
        Markdown with a YAML header that the hub reads.
    """
    data = ModelCardData(
        license=facts.licence or "other",
        library_name=LIBRARY,
        pipeline_tag=_HUB_TASK,
        base_model=facts.base if facts.base_on_hub else None,
        base_model_relation="adapter" if facts.base_on_hub else None,
        tags=["phrase-grounding", "referring-segmentation", "attention"],
        model_name=facts.name,
        eval_results=[_result(figure) for figure in facts.figures] or None,
    )
    licence = facts.licence or "not stated by who stored it: ask before you use it"
    sections = [
        f"# {facts.name}",
        f"Heads of {LIBRARY} on `{facts.base}`: the model points at what it talks about. What was trained is here "
        f"({facts.num_parameters:,} parameters in {facts.num_tensors} tensors); the LMM is fetched by its name and is "
        "not changed on disk.",
        f'```python\nfrom flmm_detseg import Grounder\n\ngrounder = Grounder.from_pretrained("{facts.name}")\n'
        'result = grounder.ground("image.png", "a cat on a mat", phrases=["a cat"])\n```',
        "No code comes with the model, and none of it is run: the config names registered types. The hash of every "
        "file but this card is checked, and a file that the config does not list is refused.",
        "## What it is\n\n"
        + _lines(
            [
                f"Licence of what is here: {licence}. The LMM has its own.",
                f"LMM: `{facts.base}`"
                + (f", adapted by {', '.join(facts.adapted)}" if facts.adapted else ", frozen"),
                *(f"Head `{name}`: {kind}" for name, kind in facts.heads.items()),
                *(f"Needed beside it: {item}" for item in facts.needed),
            ]
        ),
        "## How it was trained\n\n"
        + (f"```\n{facts.trained_by}\n```\n\n" if facts.trained_by else "The command is not known.\n\n")
        + (_lines(f"Data: {item}" for item in facts.trained_on) or "The data are not known."),
        "## Scores\n\n" + _scores(facts),
        "## What it cannot do\n\n" + _lines(_limits(facts)),
        "## Files\n\n| file | sha256 |\n|---|---|\n"
        + "\n".join(f"| `{name}` | `{digest}` |" for name, digest in facts.files.items()),
    ]
    text = f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(section.rstrip() for section in sections) + "\n"
    return str(ModelCard(text))


def _result(figure: StoredFigure) -> EvalResult:
    return EvalResult(
        task_type=_HUB_TASK,
        task_name=_TASKS.get(figure.task, figure.task),
        dataset_type=figure.data_set,
        dataset_name=figure.data_set,
        metric_type=figure.name,
        metric_name=figure.name,
        metric_value=figure.value,
    )


def _scores(facts: CardFacts) -> str:
    if not facts.figures:
        return "No evaluation results: nobody gave any when the model was stored."
    rows = ["| data set | n | figure | value | 95 % interval |", "|---|---|---|---|---|"]
    for figure in facts.figures:
        bounds = "-" if figure.interval is None else "{:.4f} to {:.4f}".format(*figure.interval)
        rows.append(
            f"| {figure.data_set} | {figure.num_samples} | {figure.name} | {figure.value:.6g} | {bounds} |"
        )
    same = all(figure.weights == facts.same_weights for figure in facts.figures)
    proof = (
        "Measured with these very weights (their hashes are equal)."
        if same
        else "The hash of the measured weights is not that of these: another device or precision, or other weights."
    )
    text = "Intervals are bootstraps over samples; figures that are no mean over samples have none."
    meant = ", ".join(f"{name}: {meaning}" for name, meaning in _FIGURES.items())
    return "\n".join(rows) + f"\n\n{proof} {text} {meant}."


def _limits(facts: CardFacts) -> list[str]:
    limits = [
        "A score says how sure a mask is of its pixels, not whether the phrase is in the picture.",
        "It works on this LMM alone; on another one it is refused.",
    ]
    if facts.domain is None:
        return [*limits, "It does not say which pictures it knows, so it cannot warn of others."]
    return [
        *limits,
        f"It knows pictures like these: {facts.domain.source} ({facts.domain.num_pictures} were looked at). Of others "
        f"it warns; of pictures like these it takes at most about {facts.domain.false_alarms:.2%} for others.",
    ]


def _lines(items: Iterable[str]) -> str:
    return "\n".join(f"- {item}" for item in items)
