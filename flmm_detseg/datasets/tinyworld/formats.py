"""One scene as records of the field's real formats (plain dictionaries, arrays for PNG files)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from flmm_detseg.datasets.tinyworld.language import GroundedText, narrate, referring_expressions
from flmm_detseg.datasets.tinyworld.questions import make_questions
from flmm_detseg.datasets.tinyworld.scene import KINDS, STUFF, Scene, mask_box
from flmm_detseg.utils.rle import encode_rle

CAPTION_REQUEST = "Please give me a description of the image."
# Category ids: things first, then stuff, 1-based as in COCO; the label maps use the same numbers (0 = nothing).
CATEGORIES: tuple[dict[str, Any], ...] = tuple(
    {
        "id": number,
        "name": name,
        "supercategory": "thing" if name in KINDS else "stuff",
        "isthing": int(name in KINDS),
    }
    for number, name in enumerate((*KINDS, *STUFF), start=1)
)
CATEGORY_ID = {category["name"]: int(category["id"]) for category in CATEGORIES}
# Panoptic segment ids inside an image: objects keep their id, stuff regions come after them.
_STUFF_SEGMENT_OFFSET = 100


@dataclass(frozen=True)
class ImageFile:
    """Where the image of a scene is: COCO id, split folder and file name."""

    image_id: int
    folder: str
    file_name: str

    def record(self, scene: Scene, with_folder: bool = False) -> dict[str, Any]:
        """COCO ``images`` entry."""
        name = f"{self.folder}/{self.file_name}" if with_folder else self.file_name
        return {
            "id": self.image_id,
            "file_name": name,
            "height": scene.image.shape[0],
            "width": scene.image.shape[1],
        }


def annotation_id(image: ImageFile, object_id: int) -> int:
    """Annotation id of an object, unique in the world."""
    return image.image_id * 10 + object_id


def instance_annotations(scene: Scene, image: ImageFile) -> list[dict[str, Any]]:
    """COCO instance annotations; masks are exact, so they are stored as compressed RLE instead of polygons."""
    out = []
    for obj in scene.objects:
        x0, y0, x1, y1 = obj.box_xyxy
        out.append(
            {
                "id": annotation_id(image, obj.object_id),
                "image_id": image.image_id,
                "category_id": CATEGORY_ID[obj.kind],
                "segmentation": encode_rle(obj.mask),
                "area": int(obj.mask.sum()),
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "iscrowd": 0,
            }
        )
    return out


def panoptic_annotation(scene: Scene, image: ImageFile) -> tuple[dict[str, Any], np.ndarray]:
    """COCO panoptic annotation and its PNG: uint8 ``[H, W, 3]``, segment id = R + 256 G + 65536 B."""
    ids = np.zeros(scene.image.shape[:2], dtype=np.int64)
    segments = []
    for obj in scene.objects:
        segments.append((obj.object_id, CATEGORY_ID[obj.kind], obj.mask))
    for region in scene.stuff:
        segments.append((_STUFF_SEGMENT_OFFSET + region.region_id, CATEGORY_ID[region.name], region.mask))
    infos = []
    for segment_id, category_id, mask in segments:
        ids[mask] = segment_id
        x0, y0, x1, y1 = mask_box(mask)
        box = [x0, y0, x1 - x0, y1 - y0]
        area = int(mask.sum())
        infos.append({"id": segment_id, "category_id": category_id, "area": area, "bbox": box, "iscrowd": 0})
    rgb = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1).astype(np.uint8)
    name = image.file_name.rsplit(".", 1)[0] + ".png"
    return {"image_id": image.image_id, "file_name": name, "segments_info": infos}, rgb


def label_map(scene: Scene) -> np.ndarray:
    """ADE20K-style class map, uint8 ``[H, W]``: category id of each pixel, 0 where nothing is labelled."""
    out = np.zeros(scene.image.shape[:2], dtype=np.uint8)
    for region in scene.stuff:
        out[region.mask] = CATEGORY_ID[region.name]
    for obj in scene.objects:
        out[obj.mask] = CATEGORY_ID[obj.kind]
    return out


def refcoco_refs(scene: Scene, image: ImageFile, seed: int) -> list[dict[str, Any]]:
    """RefCOCO references, one an object, with three or more sentences each."""
    sentences: dict[int, list[str]] = {}
    for expression in referring_expressions(scene, seed):
        sentences.setdefault(expression.object_id, []).append(expression.text)
    refs = []
    for obj in scene.objects:
        texts = sentences.get(obj.object_id, [])
        if not texts:
            continue
        ann_id = annotation_id(image, obj.object_id)
        entries = [
            {"sent_id": ann_id * 10 + number, "sent": text, "raw": text, "tokens": text.split()}
            for number, text in enumerate(texts)
        ]
        refs.append(
            {
                "ref_id": ann_id,
                "ann_id": ann_id,
                "image_id": image.image_id,
                "category_id": CATEGORY_ID[obj.kind],
                "split": scene.split,
                "file_name": f"{image.folder}/{image.file_name}",
                "sent_ids": [entry["sent_id"] for entry in entries],
                "sentences": entries,
            }
        )
    return refs


def png_narrative(scene: Scene, image: ImageFile, seed: int) -> dict[str, Any]:
    """Panoptic Narrative Grounding record: the caption cut into utterances, grounded ones with segment ids."""
    text: GroundedText = narrate(scene, seed)
    segments, position = [], 0

    def add(utterance: str, ids: list[str], plural: bool) -> None:
        if utterance.strip():
            noun = bool(ids)
            segments.append(
                {"utterance": utterance.strip(), "segment_ids": ids, "plural": plural, "noun": noun}
            )

    for phrase in text.phrases:
        ((start, end),) = phrase.spans
        add(text.text[position:start], [], False)
        ids = [str(i) for i in phrase.object_ids] + [
            str(_STUFF_SEGMENT_OFFSET + i) for i in phrase.region_ids
        ]
        add(text.text[start:end], ids, phrase.is_plural)
        position = end
    add(text.text[position:], [], False)
    return {"annotator_id": 0, "image_id": str(image.image_id), "caption": text.text, "segments": segments}


def llava_conversation(scene: Scene, image: ImageFile, seed: int) -> dict[str, Any]:
    """LLaVA conversation: the description, then questions with short answers."""
    turns = [(CAPTION_REQUEST, narrate(scene, seed).text)]
    turns += [(question.text, question.answer) for question in make_questions(scene, seed)]
    conversations = []
    for number, (question, answer) in enumerate(turns):
        value = f"<image>\n{question}" if number == 0 else question
        conversations += [{"from": "human", "value": value}, {"from": "gpt", "value": answer}]
    path = f"{image.folder}/{image.file_name}"
    return {"id": f"{image.image_id:012d}", "image": path, "conversations": conversations}
