"""A tiny LISA in its authors' layout, and LISA's computation written down a second time, without this package."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path

import numpy as np
import sentencepiece
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from segment_anything.utils.transforms import ResizeLongestSide
from torch import Tensor, nn
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

from flmm_detseg.refiners import VARIANTS, build_sam

SIDE, PATCH, WIDTH, TOWER_WIDTH, SAM = 56, 14, 32, 24, "tiny"
CORPUS = [
    "A chat between a curious human and an artificial intelligence assistant.",
    "The assistant gives helpful, detailed, and polite answers to the human's questions.",
    "You are a helpful language and vision assistant. USER: which star is red ? ASSISTANT: it is the red ring .",
    "Can you segment the thing that could roll in this image? Sure, the segmentation result is here.",
] * 4
ANSWER = "it is [SEG] and the ring [SEG] ."
QUESTION = "which star is red ?"
SYSTEM = {
    "llava_v1": "A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, "
    "detailed, and polite answers to the human's questions. USER: {} ASSISTANT:",
    "llava_llama_2": "[INST] <<SYS>>\nYou are a helpful language and vision assistant. You are able to understand the "
    "visual content that the user provides, and assist the user with a variety of tasks using natural language.\n"
    "<</SYS>>\n\n{} [/INST]",
}


@cache
def pieces() -> bytes:
    """A SentencePiece model as LLaMA's: byte-pairs, bytes for what is unknown, a blank before every text."""
    model = BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_writer=model,
        model_type="bpe",
        vocab_size=400,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=True,
        pad_id=-1,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        minloglevel=2,
    )
    return model.getvalue()


def lisa_ids(text: str, added: dict[str, int]) -> list[int]:
    """A text without an image in tokens, as transformers 4.31's slow tokenizer: white space at added tokens goes."""
    model = sentencepiece.SentencePieceProcessor(model_proto=pieces())
    ids: list[int] = []
    while text:
        starts = {text.index(token): token for token in added if token in text}
        first = min(starts, default=len(text))
        before, token = text[:first], starts.get(first)
        text = text[first + len(token) :].lstrip() if token else ""
        before = before.rstrip() if token else before
        ids += [*(model.encode(before) if before else []), *([added[token]] if token else [])]
    return ids


@dataclass
class TinyLisa:
    """The parts of a LISA, and how it is asked.

    Attributes:
        llama: Language model, its tables as large as the tokenizer.
        tower: CLIP.
        projector: A linear, or two with a GELU.
        sam: With a trained decoder.
        fcs: From states to prompts.
        added: Ids of added tokens.
        marked: Whether an image is put between two tokens.
    """

    llama: LlamaForCausalLM
    tower: CLIPVisionModel
    projector: nn.Module
    sam: nn.Module
    fcs: nn.Sequential
    added: dict[str, int]
    marked: bool

    def prompt_ids(self, question: str, template: str = "llava_v1") -> tuple[list[int], list[int]]:
        """Tokens before and after the image."""
        image = "<im_start><image><im_end>" if self.marked else "<image>"
        before, after = SYSTEM[template].format(f"{image}\n{question}").split("<image>")
        return [1, *lisa_ids(before, self.added)], lisa_ids(after, self.added)

    def embeds(self, image: np.ndarray, ids: tuple[list[int], list[int]]) -> Tensor:
        """What the decoder reads, ``[1, T, d]``."""
        processor = CLIPImageProcessor(
            size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}
        )
        pixels = processor(Image.fromarray(image), return_tensors="pt").pixel_values
        states = self.tower(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
        words = self.llama.get_input_embeddings()
        parts = [words(torch.tensor(ids[0])), self.projector(states)[0], words(torch.tensor(ids[1]))]
        return torch.cat(parts)[None]

    def states(self, embeds: Tensor) -> Tensor:
        """Last states after the norm, ``[T, d]``."""
        return self.llama(inputs_embeds=embeds, output_hidden_states=True, use_cache=False).hidden_states[-1][
            0
        ]

    @torch.no_grad()
    def teach(self, image: np.ndarray, answer: list[int]) -> None:
        """Chooses the output table so that the answer to :data:`QUESTION` about an image is this one."""
        words = self.llama.get_input_embeddings()
        embeds = self.embeds(image, self.prompt_ids(QUESTION))
        embeds = torch.cat([embeds, words(torch.tensor(answer))[None]], dim=1)
        states = self.states(embeds)[-len(answer) - 1 : -1]
        wanted = torch.zeros(len(answer), len(words.weight))
        wanted[torch.arange(len(answer)), torch.tensor(answer)] = 10
        self.llama.lm_head.weight.copy_((torch.linalg.pinv(states) @ wanted).T)

    @torch.no_grad()
    def evaluate(self, image: np.ndarray, room: int = 20) -> tuple[list[int], Tensor]:
        """Greedy answer, and mask logits ``[K, H, W]`` at the image's size, as LISA's ``evaluate``."""
        embeds = self.embeds(image, self.prompt_ids(QUESTION))
        answer: list[int] = []
        while len(answer) < room and (not answer or answer[-1] != 2):
            token = int(self.llama.lm_head(self.states(embeds)[-1]).argmax())
            answer.append(token)
            embeds = torch.cat([embeds, self.llama.get_input_embeddings()(torch.tensor([[token]]))], dim=1)
        # The state that predicts a token is one place before it.
        states = self.states(embeds)[-len(answer) - 1 : -1]
        prompts = self.fcs(states)[
            [index for index, token in enumerate(answer) if token == self.added["[SEG]"]]
        ]
        side = self.sam.image_encoder.img_size
        resized = ResizeLongestSide(side).apply_image(image)
        pixels = torch.as_tensor(resized).permute(2, 0, 1)[None].float()
        features = self.sam.image_encoder(self.sam.preprocess(pixels))
        encoder = self.sam.prompt_encoder
        dense = encoder.no_mask_embed.weight.reshape(1, -1, 1, 1)
        low, _ = self.sam.mask_decoder(
            image_embeddings=features,
            image_pe=encoder.get_dense_pe(),
            sparse_prompt_embeddings=prompts[:, None],
            dense_prompt_embeddings=dense.expand(len(prompts), -1, *encoder.image_embedding_size),
            multimask_output=False,
        )
        square = F.interpolate(low, (side, side), mode="bilinear", align_corners=False)
        inside = square[..., : resized.shape[0], : resized.shape[1]]
        return answer, F.interpolate(inside, image.shape[:2], mode="bilinear", align_corners=False)[:, 0]

    def tensors(self, *, tower: bool) -> dict[str, Tensor]:
        """By LISA's names."""
        found = {name: value for name, value in self.llama.state_dict().items()}
        found |= {f"model.mm_projector.{name}": value for name, value in self.projector.state_dict().items()}
        found |= {f"model.visual_model.{name}": value for name, value in self.sam.state_dict().items()}
        found |= {f"model.text_hidden_fcs.0.{name}": value for name, value in self.fcs.state_dict().items()}
        found["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
        if tower:
            found |= {
                f"model.vision_tower.vision_tower.{name}": value
                for name, value in clip_names(self.tower).items()
            }
        return {name: value.clone() for name, value in found.items()}


def clip_names(tower: nn.Module) -> dict[str, Tensor]:
    """A tower's tensors as files have them."""
    return {
        name if name.startswith("vision_model.") else f"vision_model.{name}": value
        for name, value in tower.state_dict().items()
    }


@torch.no_grad()
def tiny_lisa(*, two: bool = False, patch: bool = True, marked: bool = True) -> TinyLisa:
    """Random weights, lively enough that neither attention nor masks are uniform."""
    torch.manual_seed(0)
    size = sentencepiece.SentencePieceProcessor(model_proto=pieces()).vocab_size()
    names = [*(["<im_patch>"] if patch else []), *(["<im_start>", "<im_end>"] if marked else []), "[SEG]"]
    added = {name: size + index for index, name in enumerate(names)}
    llama = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=size + len(names), hidden_size=WIDTH, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=4, max_position_embeddings=512, rms_norm_eps=1e-5, initializer_range=0.2,
            tie_word_embeddings=False,
        )
    )  # fmt: skip
    tower = CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=TOWER_WIDTH, intermediate_size=48, num_hidden_layers=3, num_attention_heads=2,
            image_size=SIDE, patch_size=PATCH, projection_dim=16, initializer_range=0.2, initializer_factor=5.0,
        )
    )  # fmt: skip
    linear = nn.Linear(TOWER_WIDTH, WIDTH)
    projector = nn.Sequential(linear, nn.GELU(), nn.Linear(WIDTH, WIDTH)) if two else linear
    sam = build_sam(SAM)
    for parameter in sam.parameters():
        if parameter.ndim > 1:
            parameter.mul_(2)
    fcs = nn.Sequential(
        nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, VARIANTS[SAM].prompt_dim), nn.Dropout(0.0)
    )
    return TinyLisa(llama.eval(), tower.eval(), projector, sam.eval(), fcs.eval(), added, marked)


def write_lisa(
    lisa: TinyLisa, folder: Path, kind: str = "safetensors", shards: int = 2, *, tower: bool = False
) -> Path:
    """Writes the model as its authors do, and its CLIP tower beside it (``clip``).

    Args:
        lisa: The model.
        folder: To make.
        kind: ``"safetensors"`` or ``"bin"``.
        shards: Files of weights; with 1 there is no index.
        tower: Put the tower's weights into the model too.

    Returns:
        The model's folder.
    """
    clip = folder / "clip"
    clip.mkdir(parents=True)
    vision = {**lisa.tower.config.to_dict(), "model_type": "clip_vision_model"}
    (clip / "config.json").write_text(json.dumps({"model_type": "clip", "vision_config": vision}))
    CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=SIDE).save_pretrained(clip)
    if not tower:
        extra = {"logit_scale": torch.zeros(()), "text_model.embeddings.position_ids": torch.zeros(1, 4)}
        save_file({**clip_names(lisa.tower), **extra}, clip / "model.safetensors", metadata={"format": "pt"})
    model = folder / "lisa"
    model.mkdir()
    config = lisa.llama.config
    fields = dict(
        model_type="llava", architectures=["LISAForCausalLM"], hidden_size=WIDTH, intermediate_size=48,
        num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=512, rms_norm_eps=1e-5,
        hidden_act="silu", vocab_size=config.vocab_size, bos_token_id=1, eos_token_id=2, pad_token_id=0,
        mm_use_im_start_end=lisa.marked, mm_hidden_size=TOWER_WIDTH, mm_vision_select_layer=-2,
        mm_vision_select_feature="patch", mm_resampler_type=None, vision_tower=str(clip), out_dim=64,
        image_aspect_ratio="square", train_mask_decoder=True, tie_word_embeddings=False, torch_dtype="bfloat16",
    )  # fmt: skip
    if isinstance(lisa.projector, nn.Sequential):
        fields["mm_projector_type"] = "mlp2x_gelu"
    (model / "config.json").write_text(json.dumps(fields))
    (model / "tokenizer.model").write_bytes(pieces())
    (model / "added_tokens.json").write_text(json.dumps(lisa.added))
    special = dict(bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<unk>")
    (model / "special_tokens_map.json").write_text(json.dumps(special))
    (model / "tokenizer_config.json").write_text(
        json.dumps(
            {**special, "tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "model_max_length": 512}
        )
    )
    tensors = lisa.tensors(tower=tower)
    names = list(tensors)
    stem, end = ("model", "safetensors") if kind == "safetensors" else ("pytorch_model", "bin")
    places = {}
    for number in range(shards):
        own = names[number::shards]
        suffix = "" if shards == 1 else f"-{number + 1:05d}-of-{shards:05d}"
        file = model / f"{stem}{suffix}.{end}"
        part = {name: tensors[name] for name in own}
        if kind == "safetensors":
            save_file(part, file, metadata={"format": "pt"})
        else:
            torch.save(part, file)
        places.update(dict.fromkeys(own, file.name))
    if shards > 1:
        (model / f"{stem}.{end}.index.json").write_text(json.dumps({"weight_map": places}))
    return model
