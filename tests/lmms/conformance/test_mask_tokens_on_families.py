"""``[SEG]`` on every family and kind of tokenizer: read as one token, kept whole, spoken, and read back by its id."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from multi_task_parts import objective
from seg_parts import HEADS, reasoning_sample, speak
from tiny import tiny_llava_config
from tiny_families import CORPUS, FAMILIES, build, lively
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from flmm_detseg.errors import PhraseWithoutTokensError
from flmm_detseg.language.segment_names import MASK_TOKEN, mask_token_spans
from flmm_detseg.lmms import LlavaAdapter
from flmm_detseg.lmms.lmm import LMM
from flmm_detseg.models import GroundingLMM
from flmm_detseg.structures import CaptureSpec, Phrase

TEXTS = ("the red circle [SEG] and the dog [SEG] .", "[SEG]", "[SEG][SEG] dog[SEG].", "é[SEG] ,[SEG]")
SPECIAL = ("<unk>", "<s>", "</s>", "<image>")
KINDS = [*FAMILIES, "sentencepiece"]


def sentencepiece() -> PreTrainedTokenizerFast:
    """As LLaMA's: space is a letter, every piece between added tokens begins with one, bytes for what is unknown."""
    words = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    words.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    words.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokens = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=[AddedToken(token, normalized=False) for token in tokens],
        show_progress=False,
    )
    words.train_from_iterator(CORPUS, trainer)
    words.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<unk>"
    )


def with_token(kind: str) -> LMM:
    if kind != "sentencepiece":
        return build(kind, added_tokens=[MASK_TOKEN])
    words, config = sentencepiece(), tiny_llava_config()
    config.image_token_index = words.convert_tokens_to_ids("<image>")
    config.text_config.vocab_size = len(words)
    torch.manual_seed(0)
    lmm = LlavaAdapter.from_config(config, tokenizer=words, added_tokens=[MASK_TOKEN])
    lively(lmm)
    return lmm


def assemble(lmm: LMM) -> GroundingLMM:
    torch.manual_seed(0)
    pointer = {**HEADS["pointer"]}
    pointer["neck"] = {**pointer["neck"], "vision_layers": (1, lmm.facts.vision.num_layers)}
    return GroundingLMM(lmm, dict(reasoning=HEADS["sam"], pointer=pointer))


def answer(text: str):
    spans = mask_token_spans(text)
    sample = reasoning_sample(0, min(len(spans), 3))
    return replace(
        sample, text=text, phrases=tuple(Phrase((span,)) for span in spans), masks=sample.masks[: len(spans)]
    )


@pytest.mark.parametrize("kind", KINDS)
def test_the_token_is_read_learned_and_spoken(kind):
    lmm = with_token(kind)
    token_id = lmm.token_id(MASK_TOKEN)
    assert token_id == lmm.added_ids[0] == lmm.processor.tokenizer.convert_tokens_to_ids(MASK_TOKEN)
    for text in TEXTS:
        item = lmm.prepare(answer(text))
        places = (item.input_ids == token_id).nonzero().flatten().tolist()
        assert len(places) == text.count(MASK_TOKEN), text
        # A phrase of exactly its characters is exactly its token, spaces of the tokenizer's own left out.
        assert [row.nonzero().flatten().tolist() for row in item.phrase_tokens] == [
            [place] for place in places
        ]
        back = lmm.processor.tokenizer.decode(item.input_ids[item.prefix_length :], skip_special_tokens=True)
        assert back.count(MASK_TOKEN) == len(places)

    model = assemble(lmm).train()
    head = model.heads["reasoning"]
    assert head.token_id == token_id
    objective(model, [answer(TEXTS[0]), answer(TEXTS[2])]).backward()
    for name, weight in model.heads.named_parameters():
        assert not weight.requires_grad or weight.grad.abs().sum() > 0, name

    model.eval()
    for text in TEXTS:
        speak(model, text)
        found = model.answer_with_masks(
            replace(answer(text), text="", phrases=(), masks=None), max_new_tokens=40
        )
        assert [found.text[slice(*span)] for span in found.spans] == [MASK_TOKEN] * text.count(MASK_TOKEN), (
            text
        )
        assert len(found.prediction.packed) == len(found.names) == len(found.spans)
        lmm.unembed._forward_hooks.clear()
    with torch.no_grad():
        (read,) = lmm.encode([found.generation.inputs], CaptureSpec(answer=True)).answer
    torch.testing.assert_close(found.generation.answer_states, read, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", ["llava", "qwen3_vl", "sentencepiece"])
def test_an_answer_that_loses_a_token_is_refused(kind):
    """Tokenizers of words, bytes and sentence pieces; cut within the answer, a token is there whole or not at all."""
    lmm = with_token(kind)
    sample = answer(TEXTS[0])
    item = lmm.prepare(sample)
    last = int((item.input_ids == lmm.token_id(MASK_TOKEN)).nonzero()[-1])
    lmm.processor.settings = replace(lmm.processor.settings, max_length=last + 1)
    assert len(lmm.prepare(sample).input_ids) == last + 1
    lmm.processor.settings = replace(lmm.processor.settings, max_length=last)
    with pytest.raises(PhraseWithoutTokensError, match=r"phrase 1 '\[SEG\]' keeps 0 of its 1 tokens"):
        lmm.prepare(sample)
