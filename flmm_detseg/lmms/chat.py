"""Chat templates: a conversation as text for a language model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from flmm_detseg.errors import ConfigError


@dataclass(frozen=True)
class ChatTemplate:
    """The form of a conversation, up to where the next answer begins.

    Attributes:
        first: The first question, with ``{image}`` (the images) and ``{prompt}``.
        later: Each further question, with ``{prompt}``.
        answer_lead: What stands between a question and its answer.
        turn_end: What ends an answer; None: the tokenizer's end token.
        image_join: What stands between two images.
        image_form: An image with what is around each, with ``{image}``.
    """

    first: str
    later: str
    answer_lead: str = " "
    turn_end: str | None = None
    image_join: str = "\n"
    image_form: str = "{image}"

    def prefix(self, image_text: str, num_images: int, prompts: Sequence[str], answers: Sequence[str]) -> str:
        """Everything up to where the next answer begins.

        Args:
            image_text: What stands for one image.
            num_images: How many there are.
            prompts: Questions, the last one without an answer.
            answers: Of all questions but the last, each with what ends it.

        Returns:
            The prompt of the whole conversation; the answer's text would be appended to it.
        """
        images = self.image_join.join([self.image_form.format(image=image_text)] * num_images)
        text = self.first.format(image=images, prompt=prompts[0])
        for answer, prompt in zip(answers, prompts[1:], strict=True):
            text += self.answer_lead + answer + self.later.format(prompt=prompt)
        return text


# The form of ChatML, which several families have; what stands before it or between images is theirs.
CHATML = ChatTemplate(
    first="<|im_start|>user\n{image}{prompt}<|im_end|>\n<|im_start|>assistant\n",
    later="\n<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n",
    answer_lead="",
    turn_end="<|im_end|>",
    image_join="",
)

_LLAVA_V1 = ChatTemplate(
    "A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the human's questions. USER: {image}\n{prompt} ASSISTANT:",
    "USER: {prompt} ASSISTANT:",
)
_LLAVA_LLAMA_2 = ChatTemplate(
    "[INST] <<SYS>>\nYou are a helpful language and vision assistant. You are able to understand the visual content "
    "that the user provides, and assist the user with a variety of tasks using natural language.\n<</SYS>>\n\n"
    "{image}\n{prompt} [/INST]",
    "<s>[INST] {prompt} [/INST]",
)
# Of models that were taught where an image begins and ends.
_MARKED = "<im_start>{image}<im_end>"
# Templates that a config names by `prompt_template`; other families bring their own.
TEMPLATES = {
    "vicuna": ChatTemplate("USER: {image}\n{prompt} ASSISTANT:", "USER: {prompt} ASSISTANT:"),
    "mistral": ChatTemplate("[INST] {image}\n{prompt} [/INST]", "[INST] {prompt} [/INST]"),
    "llava_v1": _LLAVA_V1,
    "llava_v1_marked": replace(_LLAVA_V1, image_form=_MARKED),
    "llava_llama_2": _LLAVA_LLAMA_2,
    "llava_llama_2_marked": replace(_LLAVA_LLAMA_2, image_form=_MARKED),
}


def find_template(name: str) -> ChatTemplate:
    """The template of a name.

    Args:
        name: As in a config.

    Returns:
        The template.

    Raises:
        ConfigError: There is none.
    """
    if name not in TEMPLATES:
        raise ConfigError(f"`prompt_template` is {name!r}; known: {sorted(TEMPLATES)}")
    return TEMPLATES[name]
