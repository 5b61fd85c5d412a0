"""Small files in the published forms of TextVQA and OCR-VQA."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dataset_files import write_image


def textvqa_entry(question_id: int, image_id: str, question: str, answers: list[str]) -> dict[str, Any]:
    """A question as TextVQA 0.5.1 has it, with the keys that nobody here reads."""
    return {
        "question": question, "image_id": image_id, "image_classes": ["Sign"], "image_width": 1024,
        "flickr_original_url": "", "flickr_300k_url": "", "image_height": 768, "answers": answers,
        "question_tokens": question.split(), "question_id": question_id, "set_name": "val",
    }  # fmt: skip


def write_textvqa(folder: Path, entries: list[Any] | None = None) -> Path:
    """Two images with three questions; ten answers each."""
    if entries is None:
        said = ["dakota"] * 7 + ["Dakota."] + ["nikon"] * 2, ["7"] * 2 + ["seven"] + ["17"] * 7
        entries = [
            textvqa_entry(34602, "003a8ae2ef43b901", "what is the brand?", said[0]),
            textvqa_entry(34603, "003a8ae2ef43b901", "what does it say?", ["single-use"] * 10),
            textvqa_entry(34604, "00ad3c8b1f6ac1bb", "what is the number?", said[1]),
        ]  # fmt: skip
    content = {"dataset_type": "val", "dataset_name": "textvqa", "dataset_version": "0.5.1", "data": entries}
    file = folder / "TextVQA_0.5.1_val.json"
    file.write_text(json.dumps(content))
    for number, name in enumerate(("003a8ae2ef43b901", "00ad3c8b1f6ac1bb")):
        write_image(folder / "train_images" / f"{name}.jpg", number)
    return file


def book(split: int, name: str, answers: list[Any], /, **changes: Any) -> dict[str, Any]:
    """A book as OCR-VQA has it."""
    questions = ["Who wrote this book?", "What is the title of this book?", "Is this a comics book?"]
    entry = {
        "imageURL": f"http://ecx.images-amazon.com/images/I/{name}", "questions": questions[: len(answers)],
        "answers": answers, "title": "A title", "authorName": "Someone", "genre": "Travel", "split": split,
    }  # fmt: skip
    return {**entry, **changes}


def write_ocrvqa(folder: Path, books: dict[str, Any] | None = None) -> Path:
    """Books of all splits, with covers of two endings."""
    if books is None:
        books = {
            "1579905757": book(1, "a.jpg", ["Someone Else"]),
            "0195156706": book(3, "51l6XIoa3rL.jpg", ["Ann Bell", "The Long Road Home", "No"]),
            "0310259843": book(2, "b.jpg", ["Nobody"]),
            "068816112X": book(3, "c.png", ["Bo Li", "Soup"]),
        }
    file = folder / "dataset.json"
    file.write_text(json.dumps(books))
    for number, name in enumerate(("0195156706.jpg", "068816112X.png")):
        write_image(folder / "images" / name, number)
    return file
