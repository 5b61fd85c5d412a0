r"""Task tokens of prompts, and the one token of answers.

``<SEG>`` stands in answers only, for a mask that something else draws. Template and parser know it, but no head of this
package reads it and no tokenizer is given it: the joint data set writes masks as polygons unless set otherwise. (The
token that heads read is another one, ``[SEG]``, in answers of another form: :mod:`flmm_detseg.language.segment_names`.)
A head that reads the hidden state at its position needs it as ONE token, so such a head's tokenizer must add it. The
task tokens stand in prompts only and say which sections are wanted. They share the prefix ``<TASK_``: none contains, or
is contained in, ``<SEG>``, so neither a substring test nor a tokenizer's greedy match can take one for the other, and
one pattern finds them all.

Task tokens are plain text for the tokenizer (its ordinary pieces): no head reads their states, they work with a
frozen model whose embeddings are not trained, and ids that are not added need not be left out of the distillation to
the base model.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from flmm_detseg.errors import ConfigError

SEG_TOKEN = "<SEG>"

# In the order of the sections of an answer, which is also the order of the tokens in a prompt.
TASK_TOKENS = {
    "answer": "<TASK_VQA>",
    "detections": "<TASK_DET>",
    "segmentations": "<TASK_SEG>",
}

# The default request: in training (JointDataset) and in evaluation (eval_coco --boxes text).
OBJECTS_QUESTION = "List the objects in the image."

_SPECIAL = re.compile("|".join(map(re.escape, (SEG_TOKEN, *TASK_TOKENS.values()))))


def remove_special_tokens(text: str) -> str:
    """Replaces task tokens and ``<SEG>`` in a text by a space, so that no new one can form from the rest."""
    return _SPECIAL.sub(" ", text)


def build_prompt(question: str, sections: Iterable[str]) -> str:
    """Puts task tokens before a question: ``<TASK_DET><TASK_SEG> Where are the cars?``.

    Special tokens inside the question are removed: text typed by a user neither switches a task nor poses as a mask.

    Args:
        question: The user's words.
        sections: Wanted sections, names of :data:`TASK_TOKENS`, any order; none: the bare question.

    Returns:
        The prompt.

    Raises:
        ConfigError: Unknown section.
    """
    wanted = set(sections)
    if unknown := sorted(wanted - TASK_TOKENS.keys()):
        raise ConfigError(f"unknown sections {unknown}; there are {list(TASK_TOKENS)}")
    question = remove_special_tokens(question).strip()
    tokens = "".join(token for name, token in TASK_TOKENS.items() if name in wanted)
    return f"{tokens} {question}" if tokens else question
