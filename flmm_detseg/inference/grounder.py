"""Grounds phrases of a caption in an image with a trained model."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from mmengine.config import Config
from PIL import Image

from flmm_detseg.datasets.images import ImageLike, read_image
from flmm_detseg.errors import ConfigError, DataError
from flmm_detseg.inference.domain_watch import watch_of
from flmm_detseg.inference.result import GroundingResult
from flmm_detseg.inference.samples import RegionLike, Span, located_phrases, question_sample
from flmm_detseg.language.noun_phrases import noun_phrases
from flmm_detseg.models.presence import MinPresence, check_presence, presence_limit, tasks_of_answer
from flmm_detseg.structures import (
    AnswerWithMasks,
    CaptureSpec,
    Generation,
    PatchGrid,
    Phrase,
    Prediction,
    Sample,
)

if TYPE_CHECKING:
    from flmm_detseg.models import GroundingLMM
    from flmm_detseg.refiners import Refiner


class Grounder:
    """A grounding LMM for use: image and caption in, masks and boxes of its phrases out.

    Args:
        model: A built model; put into eval mode.

    Example:
        >>> grounder = Grounder.from_config(
        ...     "configs/tiny/frozen_tiny_llava_refcoco_png.py", "work_dirs/quickstart/tiny/iter_1600.pth"
        ... )
        >>> result = grounder.ground("scene.png", "a star above a ring .", phrases=["a star", "a ring"])
        >>> result.save_overlay("overlay.png")
    """

    def __init__(self, model: GroundingLMM) -> None:
        self.model = model.eval()
        self._watch = watch_of(model.domain)

    @classmethod
    def from_config(
        cls,
        config: str | Path | Config,
        checkpoint: str | Path | None = None,
        device: str | torch.device | None = None,
        *,
        untrained: bool = False,
        allow_other_lmm: bool = False,
    ) -> Grounder:
        """Builds the model of a config and loads its trained parts.

        Args:
            config: Config file or loaded config. Relative paths count from the current folder, then from the
                repository.
            checkpoint: What training wrote. None takes the config's ``load_from``; without either the heads
                would be random, which is an error unless ``untrained``.
            device: For example ``"cuda:0"``; None takes the GPU when there is one.
            untrained: Accept random heads (to try a config, or only for :meth:`answer`).
            allow_other_lmm: Accept a checkpoint that was trained on another LMM.

        Returns:
            A grounder whose model is in eval mode.

        Raises:
            ConfigError: The config cannot be used.
            CheckpointError: No checkpoint, an unsafe or damaged one, or one of another model.
        """
        # Here, because the heads' frameworks take seconds to import.
        from flmm_detseg.models.from_config import model_from_config

        return cls(
            model_from_config(
                config, checkpoint, untrained=untrained, device=device, allow_other_lmm=allow_other_lmm
            )
        )

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        revision: str | None = None,
        base: str | None = None,
        device: str | torch.device | None = None,
        dtype: str | None = None,
        allow_other_lmm: bool = False,
    ) -> Grounder:
        """Loads a model that :meth:`save_pretrained` wrote; no code of it is run.

        Args:
            name: Folder, or name on the hub (``owner/name``, fetched into the local cache and from there without a
                network).
            revision: On the hub: branch, tag or commit.
            base: Another place of its LMM than the one it names: folder or hub name. It has to be the same LMM.
            device: For example ``"cuda:0"``; None takes the GPU when there is one.
            dtype: Of the LMM's weights; None: the one it was stored with.
            allow_other_lmm: Accept another LMM.

        Returns:
            A grounder whose model is in eval mode.

        Raises:
            ConfigError: No such model, or its config asks for what may not be built.
            CheckpointError: A file is missing or was changed, tensors are missing or too many, or the LMM (or SAM) is
                not the one that it was trained on.
        """
        from flmm_detseg.models.from_config import read_config
        from flmm_detseg.models.pretrained.reading import base_fields
        from flmm_detseg.utils.hub import model_folder

        config = read_config(model_folder(name, revision))
        fields = base_fields(config.model)
        if base is not None:
            fields["pretrained"] = base
        if dtype is not None:
            fields["dtype"] = dtype
        return cls.from_config(config, device=device, allow_other_lmm=allow_other_lmm)

    def save_pretrained(
        self,
        folder: str | Path,
        *,
        base: str | None = None,
        inside: bool = False,
        licence: str | None = None,
        command: str | None = None,
        results: Sequence[str | Path] = (),
        domain: str | Path | None = None,
    ) -> dict[str, Any]:
        """Stores the model as a folder that a hub can hold: trained tensors (safetensors), config (JSON without code),
        card, hashes. The LMM is stored by its name.

        Args:
            folder: Folder to make.
            base: Name of the LMM on the hub, where the config names a folder of this machine.
            inside: Also copy the frozen weights that the config names as files or folders (LMM, SAM).
            licence: Of what was trained, as the hub abbreviates it (``"apache-2.0"``), for the card.
            command: That trained it, for the card; None: the one that trains the config.
            results: Files of ``flmm-detseg evaluate``, for the card.
            domain: File of ``flmm-detseg export domain``: which pictures the model knows; None: the one beside the
                checkpoint.

        Returns:
            ``out``, ``num_tensors``, ``num_parameters``, ``megabytes``, ``references`` (weights that are needed beside
            the folder), ``left_out`` (data sets of evaluations at places of this machine).

        Raises:
            ConfigError: There is something at ``folder``, or the model has no config that can be stored.
            DataError: A results file cannot be used.
            CheckpointError: The file of ``domain`` cannot.
        """
        from flmm_detseg.models.pretrained.writing import save_pretrained

        return save_pretrained(
            self.model,
            folder,
            base=base,
            inside=inside,
            licence=licence,
            command=command,
            results=results,
            domain=domain,
        )

    @classmethod
    def from_lmm(
        cls,
        lmm: str,
        *,
        ranking: str | Path | None = None,
        heads: int | None = None,
        refiner: str | Path | Refiner | None = None,
        dtype: str | None = None,
        device: str | torch.device | None = None,
        prompt_template: str | None = None,
        max_length: int | None = None,
    ) -> Grounder:
        """Grounds with an LMM as it was published: no config, no checkpoint of ours, nothing trained.

        Masks are means of attention maps, cut half-way (:class:`~flmm_detseg.heads.AttentionMaskHead`).

        Args:
            lmm: Folder in hub layout, or hub name, of a model of any supported family.
            ranking: Which heads point at things: a file that ``flmm-detseg rank-heads`` wrote; None: the one called
                ``head_ranking.json`` in the LMM's folder. Where neither is there, masks come from the mean of all
                heads, and a warning says how to make one.
            heads: How many of the ranking's best heads; None: 3. For a ranking only.
            refiner: A SAM file (``sam_vit_l_0b3195.pth``), the folder or hub name of a SAM 2.1, or a built refiner
                without text prompts; None: masks are as coarse as the LMM's patches.
            dtype: Of the LMM's weights; None: bfloat16 on a GPU, float32 without.
            device: For example ``"cuda:0"``; None takes the GPU when there is one.
            prompt_template: Of LLaVA and LLaVA-NeXT, a name of its chat templates; None: ``"mistral"`` for
                LLaVA-NeXT over Mistral, else ``"vicuna"``. Other families have their own.
            max_length: Longest sequence in tokens; None: what the language model was built for.

        Returns:
            A grounder whose model is in eval mode.

        Raises:
            ConfigError: No such model, or none of a family that is known; the ranking is none, is of a model with
                other numbers of layers or heads (another name is a warning), or has fewer heads; ``heads`` without a
                ranking; ``prompt_template`` for a family that has its own; the refiner takes text.
            CheckpointError: Weights are absent, damaged, or do not fit.

        Example:
            >>> grounder = Grounder.from_lmm("Qwen/Qwen3-VL-2B-Instruct", refiner="facebook/sam2.1-hiera-large")
            >>> grounder.ground("cat.jpg", "a cat on a mat", phrases=["a cat"]).save_overlay("overlay.png")
        """
        from flmm_detseg.models.training_free import training_free_model

        return cls(
            training_free_model(
                lmm,
                ranking=ranking,
                heads=heads,
                refiner=refiner,
                dtype=dtype,
                device=device,
                prompt_template=prompt_template,
                max_length=max_length,
            )
        )

    def ground(
        self,
        image: ImageLike | Sequence[ImageLike],
        caption: str | Sequence[str],
        phrases: Sequence[str] | Sequence[Sequence[str]] | None = None,
        *,
        spans: Sequence[Span | Sequence[Span]] | Sequence[Sequence[Span | Sequence[Span]]] | None = None,
        prompt: str | None = None,
        keep_attention: bool = False,
        batch_size: int = 8,
        min_presence: MinPresence = None,
    ) -> GroundingResult | list[GroundingResult]:
        """Finds the pixels that phrases of a caption refer to.

        Args:
            image: Path, PIL image, or RGB uint8 array ``[H, W, 3]``; a list of them for several at once.
            caption: The text that the LMM reads as its own answer; a list for a list of images.
            phrases: Texts that occur in the caption as whole words; a list of lists for a list of images. A
                phrase that occurs several times means its first occurrence, and naming it again the next one.
            spans: Instead of phrases: character ranges ``(start, end)`` of the caption, half-open; for a
                phrase in several parts a list of ranges. A list of such lists for a list of images.
            prompt: The question before the caption; None takes the config's description prompt.
            keep_attention: Keep the attention stack in the result (for pictures; may be large).
            batch_size: Images per forward pass. Results do not depend on it (up to rounding).
            min_presence: Least probability that there is what a phrase names; below it the phrase is not found and its
                mask is empty. ``"stored"``: the threshold that was fitted with the head's presence head.

        Returns:
            One result, or a list of them for a list of images. Entries with the same image share its
            encoding.

        Raises:
            PhraseNotFoundError: A phrase is not in its caption; names both.
            DataError: An image cannot be read, or lists differ in length.
            ConfigError: ``min_presence`` with a model whose head for phrases has no presence head.
        """
        limit = presence_limit(self.model, min_presence)
        if (phrases is None) == (spans is None):
            raise DataError("ground() needs either phrases or spans")
        if batch_size < 1:
            raise DataError(f"batch_size is {batch_size}, at least 1 is needed")
        single = isinstance(image, str | Path | Image.Image | np.ndarray)
        # Of one image or of several: both look at what they are given.
        texts: tuple[Any, ...] = (image, caption, phrases, spans, prompt)
        samples = [_sample("image", *texts)] if single else self._samples(*texts)
        results: list[GroundingResult] = []
        for start in range(0, len(samples), batch_size):
            chunk = samples[start : start + batch_size]
            with torch.inference_mode():
                predictions = self.model.predict(chunk, keep_attention=keep_attention)
            results += [
                self._result(sample, found, limit) for sample, found in zip(chunk, predictions, strict=True)
            ]
        return results[0] if single else results

    def answer(
        self,
        image: ImageLike,
        question: str | None = None,
        *,
        turns: Sequence[tuple[str, str]] = (),
        more_images: Sequence[ImageLike] = (),
        modalities: Sequence[str] = (),
        regions: Sequence[RegionLike] = (),
        max_new_tokens: int = 128,
    ) -> str:
        """The LMM's own answer (greedy), not changed by grounding. With ``regions`` or ``modalities`` that the LMM
        cannot read by itself, that of the LMM with its part for them.

        Args:
            image: As in :meth:`ground`.
            question: Free text; None asks for a description, in the words of the config.
            turns: Earlier questions and their answers, in order.
            more_images: Further images of the conversation; all of them stand before its first question.
            modalities: What each image is, the first included (``["rgb", "depth"]``), for LMMs with projectors of
                their own for some; empty: photos.
            regions: What the question points at, in the order of its places for them (``<region>``): points ``(x, y)``,
                boxes ``(x0, y0, x1, y1)`` or bool masks ``[H, W]`` in pixels of ``image``; a
                :class:`~flmm_detseg.structures.Region` may name another image. For LMMs that have a part for them.
            max_new_tokens: Longest answer.

        Returns:
            The text, without white space around it.

        Raises:
            DataError: An image cannot be read, or a turn is no pair of texts; an image has no modality, or one that no
                part reads.
        """
        pixels = read_image(image, "image")
        sample = question_sample(
            pixels, question, turns=turns, more_images=more_images, modalities=modalities, regions=regions
        )
        self._watch.look(pixels)
        lmm = self.model.lmm
        own = nullcontext() if lmm.needs_parts(sample) else lmm.base_mode()
        with torch.inference_mode(), own:
            # A plain question: a part that reads images of phrases otherwise leaves those of questions alone.
            return lmm.generate(replace(sample, task="vqa"), max_new_tokens=max_new_tokens)

    def ask(
        self,
        image: ImageLike,
        question: str | None = None,
        phrases: Sequence[str] | None = None,
        *,
        spans: Sequence[Span | Sequence[Span]] | None = None,
        turns: Sequence[tuple[str, str]] = (),
        more_images: Sequence[ImageLike] = (),
        modalities: Sequence[str] = (),
        regions: Sequence[RegionLike] = (),
        reasoning: bool = False,
        keep_attention: bool = False,
        max_new_tokens: int = 128,
        min_presence: MinPresence = None,
    ) -> GroundingResult:
        """Lets the model answer, and grounds the answer's words with the states it had while it wrote them.

        Where the model has a head for mask tokens (``[SEG]``) and its answer holds some, masks and phrases are theirs.

        The LMM reads image and answer once, not twice as with :meth:`answer` and :meth:`ground`. The answer is that
        of the model's retention mode. Under ``"switched"`` the untouched LMM answers and the heads read its states,
        not the adapted ones they were trained on; ``ground(image, result.caption, spans=result.spans,
        prompt=question)`` reads those.

        Args:
            image: As in :meth:`ground`.
            question: Free text; None asks for a description, in the words of the config.
            phrases: Texts that the answer is expected to hold; None for its noun phrases
                (:func:`~flmm_detseg.language.noun_phrases.noun_phrases`), which may be none at all.
            spans: Instead of phrases: character ranges of the answer, as in :meth:`ground`.
            turns: As in :meth:`answer`.
            more_images: As in :meth:`answer`; masks are those of ``image``.
            modalities: As in :meth:`answer`.
            regions: As in :meth:`answer`.
            reasoning: Ask for mask tokens, and ground nothing else: under ``"switched"`` the question then goes to the
                adapted LMM, which alone has them.
            keep_attention: As in :meth:`ground`. Masks of mask tokens are not made of attention: there is none where
                the answer holds such tokens, and with ``reasoning`` it is refused.
            max_new_tokens: Longest answer.
            min_presence: As in :meth:`ground`; of mask tokens, that there is what was asked for.

        Returns:
            The result; its ``caption`` is the answer, its ``answer_presence`` the probability that there is what was
            asked for, where masks were asked for and the model says it: also where the answer has none.

        Raises:
            PhraseNotFoundError: A phrase is not in the answer; names both.
            DataError: An image cannot be read; a turn is no pair of texts; phrases and spans are both given, or
                empty, or given with ``reasoning``.
            ConfigError: The model has neither a head for phrases nor one for mask tokens, or the latter is asked for;
                ``min_presence`` where a head that may ground the answer says nothing of presence; ``keep_attention``
                with ``reasoning``.
        """
        if reasoning and keep_attention:  # before the LMM answers
            raise ConfigError(
                "`keep_attention` is for phrases, whose masks are made of attention; with `reasoning` they are made of "
                "the states of mask tokens: leave it out, or ground the answer's words with `ground`"
            )
        named = phrases is not None or spans is not None
        pixels = read_image(image, "image")
        sample = question_sample(
            pixels, question, turns=turns, more_images=more_images, modalities=modalities, regions=regions
        )
        # Before the LMM answers, for every head that its answer may need.
        plain = self.model.retention.plain(sample)
        tasks = tasks_of_answer(self.model, plain=plain, reasoning=reasoning, named=named)
        check_presence(self.model, min_presence, tasks)
        if reasoning:
            if named:
                raise DataError(
                    "with `reasoning` the masks are those of the answer's own tokens; leave out phrases and spans"
                )
            with torch.inference_mode():
                answer = self.model.answer_with_masks(
                    replace(sample, task="reasoning"), max_new_tokens=max_new_tokens
                )
            return self._result_of_tokens(pixels, answer, min_presence)
        with torch.inference_mode():
            generation = self.model.answer_with_states(sample, max_new_tokens=max_new_tokens)
        return self.ground_answer(
            pixels,
            generation,
            phrases,
            spans=spans,
            keep_attention=keep_attention,
            min_presence=min_presence,
        )

    def warning(self, image: ImageLike) -> str:
        """What is to be said of a picture before its masks are believed.

        Args:
            image: As in :meth:`ground`.

        Returns:
            A sentence where the picture is far from all that the model was trained on; empty where it is not, or where
            the model does not say what that was.

        Raises:
            DataError: The image cannot be read.
        """
        return self._watch.warning(read_image(image, "image"))

    def _has_head(self, task: str) -> bool:
        # Looks for mmcv, which the API can do without until a model is there.
        from flmm_detseg.heads import head_of

        return head_of(self.model.heads, task) is not None

    @property
    def capture(self) -> CaptureSpec:
        """What an answer has to keep for :meth:`ground_answer`.

        Raises:
            ConfigError: The model has no head for phrases, nor for mask tokens.
        """
        if not (self._has_head("phrase") or self._has_head("reasoning")):
            raise ConfigError(
                f"the model grounds no phrases: it has no head for them (heads: {', '.join(self.model.heads)})"
            )
        return self.model.answer_capture

    def ground_answer(
        self,
        image: ImageLike,
        generation: Generation | None,
        phrases: Sequence[str] | None = None,
        *,
        spans: Sequence[Span | Sequence[Span]] | None = None,
        keep_attention: bool = False,
        min_presence: MinPresence = None,
    ) -> GroundingResult:
        """Grounds words of an answer with the states that were kept while it was written; the LMM does not run again.

        The words of its mask tokens, where the model reads such tokens and the answer holds some (see :meth:`ask`).

        Args:
            image: The one that was asked about.
            generation: ``Answer.generation`` of :meth:`StreamSession.ask(..., capture=grounder.capture)
                <flmm_detseg.cache.StreamSession.ask>`, out of a cache or not.
            phrases: As in :meth:`ask`.
            spans: As in :meth:`ask`.
            keep_attention: As in :meth:`ground`.
            min_presence: As in :meth:`ground`.

        Returns:
            Masks, boxes (xyxy) and scores in pixels of ``image``, one of each per phrase or span.

        Raises:
            PhraseNotFoundError: A phrase is not in the answer; names both.
            DataError: The image cannot be read or is another one; nothing was kept; phrases and spans are both
                given, or empty.
            ConfigError: See :meth:`ground`; of the head that grounds the answer.
        """
        if phrases is not None and spans is not None:
            raise DataError("an answer is grounded by phrases or spans, not both")
        if generation is None:
            raise DataError("the answer kept no states to ground; ask with `capture=grounder.capture`")
        pixels = read_image(image, "image")
        if pixels.shape[:2] != generation.inputs.grid.image_size:
            raise DataError(
                f"the answer is about an image of {generation.inputs.grid.image_size} (height, width), this one has "
                f"{pixels.shape[:2]}; give the image that was asked about"
            )
        text = generation.text
        if phrases is None and spans is None and self._has_head("reasoning"):
            with torch.inference_mode():
                answer = self.model.masks_of_answer(Sample("answer", pixels, text, ()), generation)
            if answer.spans or not self._has_head("phrase"):
                return self._result_of_tokens(pixels, answer, min_presence)
        limit = presence_limit(self.model, min_presence)
        located = (
            noun_phrases(text)
            if phrases is None and spans is None
            else located_phrases("answer", text, phrases, spans)
        )
        sample = Sample("answer", pixels, text, located)
        with torch.inference_mode():
            prediction = self.model.predict_answer(sample, generation, keep_attention=keep_attention)
        return self._result(sample, prediction, limit, generation.inputs.grid)

    def _result_of_tokens(
        self, pixels: np.ndarray, answer: AnswerWithMasks, min_presence: MinPresence
    ) -> GroundingResult:
        """Phrases are the names of the mask tokens, or the token itself where nothing is named."""
        spans = [
            name if name[0] < name[1] else own
            for name, own in zip(answer.name_spans, answer.spans, strict=True)
        ]
        sample = Sample("answer", pixels, answer.text, tuple(Phrase((span,)) for span in spans))
        limit = presence_limit(self.model, min_presence, "reasoning")
        result = self._result(sample, answer.prediction, limit)
        return replace(result, answer_presence=answer.presence)

    def _samples(
        self,
        images: Sequence[ImageLike],
        captions: str | Sequence[str],
        phrases: Sequence[Sequence[str]] | None,
        spans: Sequence[Sequence[Span | Sequence[Span]]] | None,
        prompt: str | None,
    ) -> list[Sample]:
        given = {"captions": captions, "phrases": phrases, "spans": spans}
        for name, values in given.items():
            if values is not None and (isinstance(values, str) or len(values) != len(images)):
                count = "one text" if isinstance(values, str) else f"{len(values)} entries"
                raise DataError(f"{len(images)} images, but {name} has {count}: give one per image")
        none = [None] * len(images)
        rows = zip(images, captions, phrases or none, spans or none, strict=True)
        return [_sample(f"image {index}", *row, prompt) for index, row in enumerate(rows)]

    def _result(
        self,
        sample: Sample,
        prediction: Prediction,
        limit: float | None,
        grid: PatchGrid | None = None,
    ) -> GroundingResult:
        prediction = prediction.cpu()
        if limit is not None:
            prediction = prediction.only_present(limit)
        result = GroundingResult(
            image=sample.image,
            caption=sample.text,
            phrases=tuple(sample.phrase_text(index) for index in range(len(sample.phrases))),
            spans=tuple(phrase.spans for phrase in sample.phrases),
            boxes_xyxy=prediction.boxes_xyxy.numpy(),
            scores=prediction.scores.numpy(),
            coarse_logits=prediction.coarse_logits.numpy(),
            packed=prediction.packed,
            refined=prediction.refined,
            domain=self._watch.look(sample.image),
            presence=None if prediction.presence is None else prediction.presence.numpy(),
            min_presence=limit,
        )
        if prediction.attention is None:
            return result
        return replace(
            result,
            attention=prediction.attention.numpy(),
            grid=grid or self.model.lmm.prepare(sample).grid,
            attention_pairs=self.model.lmm.attention_pairs,
        )


def _sample(
    record: str,
    image: ImageLike,
    caption: str,
    phrases: Sequence[str] | None,
    spans: Sequence[Span | Sequence[Span]] | None,
    prompt: str | None,
) -> Sample:
    if not isinstance(caption, str):
        raise DataError(f"{record}: the caption is a {type(caption).__name__}; one image takes one text")
    located = located_phrases(record, caption, phrases, spans)
    pixels = read_image(image, record)
    key = hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()
    return Sample(record, pixels, caption, located, prompt=prompt, image_id=key)
