"""Packing, patch labels, and a few seconds of training of a very small LLaVA."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from flmm_detseg.datasets.tinyworld import KINDS, STUFF, format_box, make_scene, narrate, vocabulary
from flmm_detseg.errors import CheckpointError, ConfigError, RunError
from flmm_detseg.pretrain.eval_llava import (
    answer_box_iou,
    collect_items,
    pair_mentions,
)
from flmm_detseg.pretrain.llava_chunks import (
    LABEL_GROUPS,
    TURN_KINDS,
    boxed_caption,
    build_chunk,
    cache_folder,
    patch_labels,
    prefix_ids,
    scene_turns,
    write_chunks,
)
from flmm_detseg.pretrain.llava_data import PackedStream, pick_turns, turn_weights
from flmm_detseg.pretrain.llava_frames import FRAME_KINDS
from flmm_detseg.pretrain.llava_objective import Trainee
from flmm_detseg.pretrain.llava_reason import REASON_KINDS
from flmm_detseg.pretrain.model_card import report_tiny_llava
from flmm_detseg.pretrain.probe_llava import groundability, phrase_maps
from flmm_detseg.pretrain.tiny_llava import (
    TinyLlavaSizes,
    build_model,
    build_tokenizer,
    image_features,
    load_tiny_llava,
)
from flmm_detseg.pretrain.train_llava import (
    LlavaTrainer,
    LlavaTrainSettings,
    lr_factor,
    train_tiny_llava,
)

SMALL = TinyLlavaSizes(
    vision_hidden=32, vision_layers=2, vision_heads=2, text_hidden=32, text_layers=2, text_heads=4
)


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(vocabulary())


@pytest.fixture(scope="module")
def cache(tokenizer, tmp_path_factory):
    work = tmp_path_factory.mktemp("work")
    write_chunks(cache_folder(work, tokenizer, 0, SMALL), tokenizer, 0, range(2), 8, SMALL)
    return work


def stream_of(work, tokenizer, batch_size=3):
    return PackedStream(
        cache_folder(work, tokenizer, 0, SMALL),
        num_chunks=2,
        batch_size=batch_size,
        prefix_length=len(prefix_ids(tokenizer, 196)),
        tokenizer=tokenizer,
        seed=5,
    )


def test_a_packed_turn_equals_the_turn_alone(cache, tokenizer):
    stream = stream_of(cache, tokenizer)
    batch = next(iter(stream))
    model = build_model(tokenizer, SMALL, seed=2).eval()
    trainee = Trainee(model, tokenizer).eval()
    prefix = prefix_ids(tokenizer, 196)
    with torch.no_grad():
        packed = model.lm_head(trainee.packed_hidden(image_features(model, batch.pixel_values), batch))
        for row in range(len(batch.text_ids)):
            positions = batch.position_ids[row, len(prefix) :]
            starts = torch.nonzero(positions == len(prefix)).flatten().tolist()
            num_turns = 0
            for start, stop in zip(starts, [*starts[1:], len(positions)]):
                turn = batch.text_ids[row, start:stop]
                if (turn == tokenizer.pad_token_id).any():
                    continue
                num_turns += 1
                alone = model(
                    input_ids=torch.cat([torch.tensor(prefix), turn])[None],
                    pixel_values=batch.pixel_values[row : row + 1],
                ).logits[0, len(prefix) :]
                assert torch.allclose(packed[row, start:stop], alone, atol=1e-5)
            assert num_turns >= 8


def test_targets_are_answers_only(cache, tokenizer):
    batch = next(iter(stream_of(cache, tokenizer)))
    supervised = batch.targets[batch.targets >= 0]
    prompt_words = {"what", "where", "how", "Please", "?", ":"}
    assert not prompt_words & set(tokenizer.convert_ids_to_tokens(supervised))
    assert (supervised == tokenizer.eos_token_id).sum() >= 8 * len(batch.targets)
    assert torch.equal(batch.targets >= 0, batch.weights > 0)


def test_bare_referring_sentences_do_not_start_descriptions():
    is_coordinate = np.arange(10) >= 8
    weights = turn_weights("refer", np.array([1, 2, 3, 4, 8, 9, 8, 9, 5, 0]), 2, is_coordinate)
    assert weights[:3].max() == 0
    assert (weights[4:8] == 1).all()
    assert 0 < weights[3] < 1


def test_chunks_are_deterministic_and_differ_by_scene(tokenizer):
    first, again = (build_chunk(tokenizer, 0, 3, 2, SMALL) for _ in range(2))
    for name, value in vars(first).items():
        assert np.array_equal(value, getattr(again, name)), name
    assert not np.array_equal(first.images[0], first.images[1])
    assert {TURN_KINDS[kind] for kind in first.kinds} == set(TURN_KINDS) - set(FRAME_KINDS) - set(
        REASON_KINDS
    )


def test_every_visit_has_a_caption_referring_sentences_and_questions(tokenizer):
    chunk = build_chunk(tokenizer, 0, 0, 6, SMALL)
    rng = np.random.default_rng(0)
    for scene in range(6):
        kinds = chunk.kinds[chunk.turns[:, 0] == scene]
        names = [TURN_KINDS[kind] for kind in kinds[pick_turns(kinds, rng, ("count",))]]
        assert sum(name.endswith("caption") for name in names) == 1
        assert "presence" in names
        if "count" in names and (kinds == TURN_KINDS.index("count")).sum() > 1:
            assert names.count("count") == 2


def test_patch_labels_name_what_the_patch_shows():
    names = (*KINDS, *STUFF)
    seen = 0
    for index in range(20):
        scene = make_scene(0, index, "train")
        labels = patch_labels(scene, 8)
        assert labels.shape == (196, len(LABEL_GROUPS))
        assert labels[:, -1].sum() <= len(scene.objects)
        for item in scene.objects:
            inside = item.mask.reshape(14, 8, 14, 8).all((1, 3)).reshape(-1)
            seen += inside.sum()
            assert (labels[inside, 0] == names.index(item.kind)).all()
            box = [int(word) // 10 for word in format_box(item.box_xyxy, (112, 112)).split()]
            assert (labels[inside, 4:8] == box).all()
    assert seen > 20


def test_boxed_caption_only_adds_boxes():
    for index in range(10):
        scene = make_scene(0, index, "train")
        caption = narrate(scene, 4)
        text = boxed_caption(caption, scene)
        single = [p for p in caption.phrases if p.is_thing and len(p.object_ids) == 1]
        coordinates = [word for word in text.split() if len(word) == 3 and word.isdigit()]
        assert len(coordinates) == 4 * len(single)
        assert [word for word in text.split() if word not in coordinates] == caption.text.split()


def test_turns_stay_in_the_vocabulary(tokenizer):
    for index in range(5):
        for _, prompt, answer in scene_turns(make_scene(0, index, "train"), index):
            ids = tokenizer(f"{prompt} {answer}", add_special_tokens=False).input_ids
            pieces = tokenizer.convert_ids_to_tokens(ids)
            assert not any(piece.startswith("##") or piece == "<unk>" for piece in pieces), (prompt, answer)


def test_answers_are_scored_as_documented():
    assert answer_box_iou("100 100 300 300", "100 100 300 300", 112) == pytest.approx(1.0)
    assert answer_box_iou("100 100 300 200", "100 100 300 300", 112) == pytest.approx(0.5)
    assert answer_box_iou("100 100 300", "100 100 300 300", 112) == 0.0
    assert pair_mentions("a small red star is left of the large blue striped ring .") == {
        ("red", "star"),
        ("blue", "ring"),
    }


def test_learning_rate_follows_the_clock():
    assert lr_factor(0, 0.0, 0.5) == pytest.approx(1 / 60)
    assert lr_factor(500, 0.5, 0.5) == 1.0
    assert lr_factor(500, 0.75, 0.5) == pytest.approx(0.5)
    assert lr_factor(500, 1.0, 0.5) == pytest.approx(0.0, abs=1e-9)


def test_evaluation_items_are_held_out_and_balanced():
    items, scenes = collect_items(0, 5, 112)
    kinds = [item.question.kind for item in items]
    assert {kinds.count(kind) for kind in set(kinds)} == {5}
    assert all(scene.split == "val" for scene in scenes.values())


def test_phrase_maps_are_attention_rows(tokenizer):
    model = build_model(tokenizer, SMALL, seed=1).eval()
    scenes = [make_scene(0, index, "val") for index in range(2)]
    maps, masks = phrase_maps(model, tokenizer, scenes, "caption")
    assert maps.shape[1:] == (8, 14, 14)
    assert masks.shape == (len(maps), 14, 14)
    assert masks.flatten(1).any(1).all()
    total = maps.flatten(2).sum(-1)
    assert ((total > 0.2) & (total <= 1)).all()
    assert model.config.text_config._attn_implementation == "sdpa"


def run_here(function, args, nprocs):
    assert nprocs == 1
    threads = torch.get_num_threads()
    try:
        function(0, *args)
    finally:
        torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def settings(cache, tmp_path_factory):
    return LlavaTrainSettings(
        out_dir=str(tmp_path_factory.mktemp("out")),
        work_dir=str(cache),
        minutes=0.1,
        warmup_minutes=0.02,
        threads=1,
        batch_size=2,
        num_chunks=2,
        chunk_size=8,
        export_minutes=0.05,
        eval_items=2,
        final_eval_items=2,
        sizes=SMALL,
    )


def test_train_export_report_and_resume(settings, tmp_path):
    status = tmp_path / "status"
    figures = train_tiny_llava(replace(settings, status_file=str(status)), launch=run_here)
    assert figures["step"] > 5
    assert figures["losses"]["text"] < 7
    assert len(status.read_text().splitlines()) >= 2
    model, _ = load_tiny_llava(settings.out_dir)
    untrained = build_model(build_tokenizer(vocabulary()), SMALL, settings.seed)
    assert not torch.equal(model.lm_head.weight, untrained.lm_head.weight)

    resumed = LlavaTrainer(replace(settings, resume=True, minutes=0.2), rank=0)
    assert resumed.step == figures["step"]
    assert torch.equal(resumed.average.lm_head.weight.half().float(), model.lm_head.weight)
    batch = next(iter(resumed.stream_ready()))
    resumed.train_step(batch)
    resumed.update(0.1)
    assert resumed.step == figures["step"] + 1

    started = LlavaTrainer(replace(settings, start=settings.out_dir, work_dir=str(tmp_path)), rank=0)
    assert started.step == 0
    for copy in (started.trainee.model, started.average):
        assert torch.equal(copy.lm_head.weight, model.lm_head.weight)

    report = report_tiny_llava(settings.out_dir, settings.work_dir)
    card = open(report["card"], encoding="utf-8").read()
    assert "Masks were seen" in card
    assert "--minutes 0.1" in card
    assert "--start" not in card, "a flag without a value"
    assert json.load(open(f"{settings.out_dir}/figures.json"))["scores"]["trained"]["items"] == 2


def test_resume_without_state_and_report_without_run_say_so(settings, tmp_path):
    with pytest.raises(CheckpointError, match="no state to resume"):
        LlavaTrainer(replace(settings, resume=True, work_dir=str(tmp_path)), rank=0)
    with pytest.raises(ConfigError, match="--start"):
        train_tiny_llava(replace(settings, resume=True, start=settings.out_dir), launch=run_here)
    with pytest.raises(RunError, match="no finished run"):
        report_tiny_llava(settings.out_dir, tmp_path)


def test_groundability_of_random_weights_is_low(tokenizer):
    model = build_model(tokenizer, SMALL, seed=1).eval()
    figures = groundability(model, tokenizer, seed=0, source="refer", num_scenes=6)
    assert 0 <= figures["best_head_iou"] < 0.4
    assert 0 <= figures["probe_iou"] < 0.4
