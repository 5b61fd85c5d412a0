"""A tiny random Grounding DINO and a tiny random SAM, stored in hub layout, for the tests of labelling."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    BertTokenizerFast,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    GroundingDinoImageProcessor,
    GroundingDinoProcessor,
    SamConfig,
    SamImageProcessor,
    SamModel,
    SamProcessor,
)

WORDS = "a cat dog red traffic light stop sign coffee cup tea ##pot".split()
# Where Grounding DINO looks for the marks that end a class: BERT's ids.
BERT_IDS = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, ".": 1012, "?": 1029}


def tiny_bert_tokenizer() -> BertTokenizerFast:
    """Wordpieces with BERT's special ids; other words are unknown."""
    known = {**BERT_IDS, **{word: 200 + number for number, word in enumerate(WORDS)}}
    word_of = {number: word for word, number in known.items()}
    vocab = {word_of.get(number, f"[unused{number}]"): number for number in range(1030)}
    core = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    core.normalizer = normalizers.BertNormalizer(lowercase=True)
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 101), ("[SEP]", 102)]
    )
    return BertTokenizerFast(tokenizer_object=core)


def save_detector(folder: Path) -> str:
    """Stores a Grounding DINO whose boxes lie all over the image."""
    torch.manual_seed(0)
    backbone = dict(
        model_type="swin",
        image_size=32,
        patch_size=4,
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 2, 2],
        window_size=4,
        out_indices=[2, 3, 4],
    )
    text = dict(
        model_type="bert",
        vocab_size=1030,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=64,
    )
    config = GroundingDinoConfig(
        backbone_config=backbone,
        text_config=text,
        num_queries=12,
        encoder_layers=1,
        encoder_ffn_dim=32,
        encoder_attention_heads=2,
        decoder_layers=2,
        decoder_ffn_dim=32,
        decoder_attention_heads=2,
        d_model=32,
        max_text_len=32,
        init_std=0.2,
    )
    GroundingDinoForObjectDetection(config).save_pretrained(folder)
    images = GroundingDinoImageProcessor(size={"shortest_edge": 48, "longest_edge": 80})
    GroundingDinoProcessor(images, tiny_bert_tokenizer()).save_pretrained(folder)
    return str(folder)


def save_segmenter(folder: Path) -> str:
    """Stores a SAM of 64 pixels."""
    torch.manual_seed(1)
    config = SamConfig(
        vision_config=dict(
            hidden_size=16,
            output_channels=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=64,
            patch_size=8,
            window_size=4,
            global_attn_indexes=[1],
            mlp_dim=32,
            num_pos_feats=8,
        ),
        prompt_encoder_config=dict(hidden_size=16, image_size=64, patch_size=8, mask_input_channels=4),
        mask_decoder_config=dict(
            hidden_size=16, mlp_dim=32, num_attention_heads=2, iou_head_hidden_dim=16, num_hidden_layers=1
        ),
    )
    model = SamModel(config)
    with torch.no_grad():  # logits of small random weights have the same sign everywhere
        for parameter in model.mask_decoder.parameters():
            parameter.mul_(8)
    model.save_pretrained(folder)
    images = SamImageProcessor(
        size={"longest_edge": 64},
        mask_size={"longest_edge": 16},
        pad_size={"height": 64, "width": 64},
        mask_pad_size={"height": 16, "width": 16},
    )
    SamProcessor(images).save_pretrained(folder)
    return str(folder)
