"""The tiny LLaVA learns the reasoning set's words: rows are added, texts are true, nothing held out is read."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from flmm_detseg.datasets.tinyworld import KINDS, make_scene, vocabulary
from flmm_detseg.datasets.tinyworld.reason.draw import draw_items
from flmm_detseg.datasets.tinyworld.reason.facts import facts
from flmm_detseg.datasets.tinyworld.reason.families import queries
from flmm_detseg.datasets.tinyworld.reason.query import View
from flmm_detseg.datasets.tinyworld.reason.spec import ReasonSpec
from flmm_detseg.datasets.tinyworld.reason.wordings import WORDINGS, held_out_wordings, reason_words
from flmm_detseg.errors import CheckpointError
from flmm_detseg.language.mask_wording import NOTHING_THERE, SENTENCE_QUESTIONS
from flmm_detseg.pretrain.eval_reason import REASON_FIGURES, collect, evaluate_reason, knows_reason_words
from flmm_detseg.pretrain.llava_chunks import TURN_KINDS, build_chunk, cache_folder, write_chunks
from flmm_detseg.pretrain.llava_data import pick_turns
from flmm_detseg.pretrain.llava_reason import (
    REASON_KINDS,
    TEXT_ONLY,
    TURNS_A_VISIT,
    answer_words,
    reason_turns,
)
from flmm_detseg.pretrain.model_card import command_line
from flmm_detseg.pretrain.settings import LlavaTrainSettings, TinyLlavaSizes
from flmm_detseg.pretrain.tiny_llava import (
    build_model,
    build_tokenizer,
    load_grown,
    load_tiny_llava,
    save_hub_layout,
)
from flmm_detseg.pretrain.train_llava import LlavaTrainer, chunk_folder

MODELS = Path(__file__).resolve().parents[2] / "data" / "models"
SMALL = TinyLlavaSizes(
    vision_hidden=32, vision_layers=2, vision_heads=2, text_hidden=32, text_layers=2, text_heads=4
)


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(vocabulary(), reason_words())


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    """A small stored model of the world's words."""
    known = build_tokenizer(vocabulary())
    return save_hub_layout(build_model(known, SMALL, seed=1), known, tmp_path_factory.mktemp("small"))


def test_ids_of_the_tiny_llava_stay_and_queries_are_words(tokenizer):
    stored = AutoTokenizer.from_pretrained(MODELS / "tiny_llava")
    before, after = stored.get_vocab(), tokenizer.get_vocab()
    assert {token: after[token] for token in before} == before
    added = [word for word in reason_words() if word not in before]
    assert [after[word] for word in added] == list(range(len(before), len(after)))
    assert set(reason_words()) - set(added) <= {"i"}, "one letter"
    items = list(draw_items(ReasonSpec(1, 1, 30, seed=9), "test"))
    old, new = (sum(len(t.tokenize(item.texts[0])) for item in items) for t in (stored, tokenizer))
    for item in items:
        for text in (*item.texts, SENTENCE_QUESTIONS[0].format(item.texts[0]), NOTHING_THERE):
            assert tokenizer.tokenize(text) == re.findall(r"[\w]+|[^\w\s]", text)
    assert new < 0.55 * old  # every other word was spelled in letters


def test_rows_are_added_and_those_that_were_there_are_kept(tokenizer, small):
    stored, _ = load_tiny_llava(small)
    model = build_model(tokenizer, SMALL, seed=7)
    load_grown(model, tokenizer, small)
    for name, rows in stored.state_dict().items():
        grown = model.state_dict()[name]
        assert torch.equal(grown[: len(rows)], rows), name
        if len(grown) > len(rows):
            assert len(grown) == len(tokenizer)
            assert (grown[len(rows) :] - rows.mean(0)).abs().max() < 0.15
            assert grown[len(rows) :].std(dim=0).min() > 0
    with pytest.raises(CheckpointError, match="or have other ids"):
        load_grown(model, build_tokenizer(reason_words(), vocabulary()), small)
    deep = build_model(tokenizer, replace(SMALL, text_layers=3), seed=0)
    with pytest.raises(CheckpointError, match="other sizes"):
        load_grown(deep, tokenizer, small)


def test_texts_are_true_and_nothing_held_out_is_read(tokenizer):
    known = {fact.text: fact.answer for fact in facts()}
    # Any words in the places that a wording leaves open.
    tested = [
        re.compile(r"[\w ]+".join(map(re.escape, re.split(r"{\w+}", text))))
        for family in WORDINGS
        for text in held_out_wordings(family)
    ]
    seen = dict.fromkeys(REASON_KINDS, 0)
    requests = [text.removeprefix("{} ") for text in SENTENCE_QUESTIONS]
    for index in range(25):
        scene = make_scene(2, index, "train")
        view, turns = View(scene), reason_turns(scene, index)
        assert turns == reason_turns(scene, index)
        asked = [query for family in WORDINGS if family not in TEXT_ONLY for query in queries(view, family)]
        answers: dict[str, set[str]] = {}
        for query in asked:
            for text in WORDINGS[query.family]:
                answers.setdefault(text.format(**query.slots), set()).add(answer_words(view, query))
        for kind, prompt, answer in turns:
            seen[kind] += 1
            ids = tokenizer(f"{prompt} {answer}", add_special_tokens=False).input_ids
            assert not any(piece.startswith("##") for piece in tokenizer.convert_ids_to_tokens(ids))
            if kind == "fact":
                assert known[prompt] == answer
            elif kind == "there":
                found = answers[f"{prompt} show it to me ."]
                assert (answer == "no") == (NOTHING_THERE in found)
            else:
                for request in requests:
                    prompt = prompt.removesuffix(request).strip()
                assert answer in answers[prompt]
                assert not any(pattern.fullmatch(prompt) for pattern in tested), prompt
    assert all(count > 50 for count in seen.values())


def test_only_a_run_that_asks_for_them_reads_them(tokenizer, tmp_path):
    plain = build_chunk(tokenizer, 0, 3, 4, SMALL)
    more = build_chunk(tokenizer, 0, 3, 4, SMALL, reason=True)
    names = [TURN_KINDS[kind] for kind in more.kinds]
    assert not {TURN_KINDS[kind] for kind in plain.kinds} & set(REASON_KINDS)
    assert set(REASON_KINDS) <= set(names)
    # Beside them the texts are the same.
    kept = [number for number, name in enumerate(names) if name not in REASON_KINDS]
    assert [more.kinds[number] for number in kept] == list(plain.kinds)
    assert cache_folder(tmp_path, tokenizer, 0, SMALL) != cache_folder(
        tmp_path, tokenizer, 0, SMALL, reason=True
    )
    for scene in range(4):
        kinds = more.kinds[more.turns[:, 0] == scene]
        chosen = [TURN_KINDS[kind] for kind in kinds[pick_turns(kinds, np.random.default_rng(scene), ())]]
        for name, most in TURNS_A_VISIT.items():
            assert chosen.count(name) == min(most, (kinds == TURN_KINDS.index(name)).sum())


def test_a_step_of_training_changes_the_new_rows(tokenizer, small, tmp_path):
    settings = LlavaTrainSettings(
        out_dir=str(tmp_path / "out"), work_dir=str(tmp_path), minutes=1, warmup_minutes=0, threads=1, batch_size=4,
        num_chunks=1, chunk_size=6, sizes=SMALL, reason=True, start=str(small),
    )  # fmt: skip
    trainer = LlavaTrainer(settings, rank=0)
    write_chunks(chunk_folder(settings, trainer.tokenizer), trainer.tokenizer, 0, [0], 6, SMALL, reason=True)
    before = trainer.trainee.model.get_input_embeddings().weight.clone()
    batch = next(iter(trainer.stream_ready()))
    trainer.train_step(batch)
    trainer.update(0.1)
    changed = (trainer.trainee.model.get_input_embeddings().weight != before).any(1)
    new = set(batch.text_ids.flatten().tolist()) & set(tokenizer.convert_tokens_to_ids(reason_words()))
    assert len(new) > 20
    assert changed[list(new)].all()


def test_the_card_shows_the_flag_of_a_run_that_has_it():
    run = {"minutes": 2.0, "reason": True, "resume": False, "start": "data/models/tiny_llava"}
    assert command_line(run).endswith("--minutes 2.0 --reason --start data/models/tiny_llava")
    assert "--reason" not in command_line({**run, "reason": False})


def test_items_of_the_evaluation_are_balanced_and_in_the_words_they_say():
    found = collect(0, 12, 112)
    assert tuple(found) == REASON_FIGURES
    assert {len(items) for items in found.values()} == {12}
    trained = {fact.text for fact in facts()}
    for name in ("facts", "there"):
        assert abs(sum(answer == "yes" for _, _, answer in found[name]) - 6) <= 3
    assert not {text for _, text, _ in found["facts"]} & trained
    assert all(set(text.split()) & set(KINDS) for _, text, _ in found["facts"])
    assert not {t for _, t, _ in found["queries"]} & {t for _, t, _ in found["queries in held-out words"]}


def test_the_stored_model_knows_its_words():
    model, tokenizer = load_tiny_llava(MODELS / "tiny_llava_reason")
    assert knows_reason_words(tokenizer)
    assert not knows_reason_words(load_tiny_llava(MODELS / "tiny_llava")[1])
    figures = evaluate_reason(model, tokenizer, seed=5, items=40)
    assert figures["facts"] >= 0.95  # half of the answers are yes
    assert figures["there"] >= 0.7  # the same
    assert figures["queries"] >= 0.2
