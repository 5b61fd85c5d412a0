from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from chat_parts import speaks_nouns
from presence_parts import some_absent, tiny_model
from seg_parts import make_model, reasoning_sample, speak
from tiny import make_sample, mixed_samples

from flmm_detseg.engine import PresenceCalibrationHook
from flmm_detseg.engine.evaluation.presence import PRESENCE, PresenceOptions
from flmm_detseg.errors import ConfigError
from flmm_detseg.evaluation import phrase_records
from flmm_detseg.heads import AnswerPresenceHead
from flmm_detseg.inference import Chat, Grounder, Instructor
from flmm_detseg.language.segment_names import MASK_TOKEN
from flmm_detseg.models.presence import presence_limit


@pytest.fixture(scope="module")
def grounder() -> Grounder:
    model = tiny_model()
    speaks_nouns(model.lmm)
    return Grounder(model)


def between(values: np.ndarray) -> float:
    """A threshold that divides two values."""
    low, high = sorted(map(float, values))
    return (low + high) / 2


def ground(grounder: Grounder, **changes):
    sample = make_sample(0)
    phrases = [sample.phrase_text(index) for index in range(2)]
    return grounder.ground(sample.image, sample.text, phrases, **changes)


def test_below_the_threshold_nothing_is_found(grounder):
    every = ground(grounder)
    limit = between(every.presence)
    some = ground(grounder, min_presence=limit)
    found = every.presence >= limit
    assert every.found.all()
    assert every.not_found == ()
    assert some.found.tolist() == found.tolist()
    lost = int(np.flatnonzero(~found)[0])
    assert some.not_found == (every.phrases[lost],)
    assert not some.mask(lost).any()
    assert some.scores[lost] == 0
    assert not some.boxes_xyxy[lost].any()
    kept = 1 - lost
    assert np.array_equal(some.mask(kept), every.mask(kept))
    assert [region.label for region in some.regions] == [every.phrases[kept]]
    np.testing.assert_array_equal(some.presence, every.presence)


def test_the_stored_threshold_is_the_heads(grounder):
    head = grounder.model.heads["phrase"]
    with pytest.raises(ConfigError, match="never calibrated"):
        ground(grounder, min_presence="stored")
    head.presence.temperature.fill_(2.0)
    head.presence.threshold.fill_(between(ground(grounder).presence))
    stored = ground(grounder, min_presence="stored")
    assert stored.min_presence == head.presence_threshold
    head.presence.temperature.fill_(1.0)
    assert stored.found.sum() == 1


def test_batches_equal_single_calls(grounder):
    samples = [make_sample(index) for index in range(3)]
    phrases = [[sample.phrase_text(0)] for sample in samples]
    together = grounder.ground([s.image for s in samples], [s.text for s in samples], phrases)
    for sample, names, result in zip(samples, phrases, together, strict=True):
        alone = grounder.ground(sample.image, sample.text, names)
        np.testing.assert_allclose(result.presence, alone.presence, rtol=1e-5)


def test_words_of_an_answer_have_presence_and_the_chat_says_what_is_not_found(grounder):
    image = make_sample(0).image
    result = grounder.ask(image, "what is near ?", max_new_tokens=4)
    spans = [(0, len(result.caption))]
    named = grounder.ask(image, "what is near ?", spans=spans, max_new_tokens=4)
    assert named.presence.shape == (1,)
    turn = Chat(grounder, image, max_new_tokens=4, min_presence=1.0).say("segment the red star")
    assert turn.text == "the red star: not found."
    assert turn.phrases == ()


def test_an_instructor_finds_what_is_there(grounder):
    image = make_sample(0).image
    every = Instructor(grounder.model).follow(image, "segment the red star")
    none = Instructor(grounder.model, min_presence=1.0).follow(image, "segment the red star")
    assert len(none.regions) == 0 <= len(every.regions)


def test_without_a_presence_head_a_threshold_is_refused():
    plain = Grounder(tiny_model(presence=False))
    assert ground(plain).presence is None
    for call in (
        lambda: ground(plain, min_presence=0.5),
        lambda: ground(plain, min_presence="stored"),
        lambda: plain.ask(make_sample(0).image, min_presence=0.5),
        lambda: Chat(plain, make_sample(0).image, min_presence=0.5),
        lambda: Instructor(plain.model, min_presence=0.5),
        lambda: PRESENCE.check(plain.model, None, PresenceOptions("config")),
    ):
        with pytest.raises(ConfigError, match="no presence head"):
            call()


@pytest.mark.parametrize("wrong", [1.5, -0.1, float("nan"), "high", True])
def test_a_threshold_is_a_probability(grounder, wrong):
    with pytest.raises(ConfigError, match="min_presence"):
        presence_limit(grounder.model, wrong)


def test_the_evaluation_counts_masks_below_the_threshold_as_empty(grounder):
    sample = make_sample(0)
    (prediction,) = grounder.model.predict([sample])
    limit = between(prediction.presence.numpy())
    lost = int((prediction.presence < limit).nonzero()[0, 0])
    every = phrase_records(sample, prediction, sweep=True)
    some = phrase_records(sample, prediction, sweep=True, min_presence=limit)
    assert some[1 - lost] == every[1 - lost]
    for kind in ("coarse", "refined"):
        assert some[lost][kind]["area"] == some[lost][kind]["intersection"] == 0
        assert set(some[lost][kind]["sweep_area"]) == {0}
    assert some[lost]["target_area"] == every[lost]["target_area"]


def test_the_evaluation_asks_the_lmm_and_reads_presence(grounder):
    samples = some_absent(mixed_samples()[:2])
    options = PresenceOptions("config", question="is there {phrase} ?")
    with pytest.raises(ConfigError, match="never calibrated"):
        PRESENCE.check(grounder.model, None, options)
    options = replace(options, min_presence=0.5)
    PRESENCE.check(grounder.model, None, options)
    facts = [fact for entries in PRESENCE.facts(grounder.model, samples, None, options) for fact in entries]
    assert [fact["there"] for fact in facts] == [False, True, False]
    assert all(isinstance(fact["answer"], str) for fact in facts)
    figures = PRESENCE.figures(facts, None, options)
    assert figures["threshold"] == 0.5
    assert {"N_acc", "T_acc", "AUROC", "ECE", "answer_T_acc", "mask_score_N_acc"} <= set(figures)
    silent = PresenceOptions("config", question="none", min_presence=0.25)
    facts = PRESENCE.facts(grounder.model, samples[:1], None, silent)[0]
    assert facts[0]["answer"] is None
    assert PRESENCE.figures(facts, None, silent)["threshold"] == 0.25
    for wrong in (dict(question="is it there ?"), dict(min_presence=2.0)):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            PresenceOptions("config", **wrong)


def run_of(model):
    return SimpleNamespace(
        model=model, iter=9, max_iters=10, _max_iters=10, logger=SimpleNamespace(info=print)
    )


def test_the_hook_calibrates_after_the_last_iteration():
    model = tiny_model(3)
    presence = model.heads["phrase"].presence
    data = some_absent([make_sample(index) for index in range(6)])
    # A head that knows the answer: the logit is read off the mask's index.
    model.heads["phrase"].presence_logits = lambda states, batch, coarse=None: [
        torch.tensor([-1.0, 2.0]) + 0.1 * torch.randn(2) for _ in batch.samples
    ]
    hook = PresenceCalibrationHook(data, batch_size=4)
    hook.before_train(run_of(model))
    early = run_of(model)
    early.iter = 3
    hook.after_train_iter(early, 3)
    assert float(presence.temperature) == 1.0
    model.train()
    hook.after_train_iter(run_of(model), 9)
    assert model.training
    assert float(presence.temperature) != 1.0
    logits = torch.tensor([-1.0, 2.0])
    low, high = presence.probability(logits).tolist()
    assert low < float(presence.threshold) <= high + 0.05
    assert hook.calibrate(model.eval()) == 12


def test_a_head_that_learned_nothing_is_a_warning():
    model = tiny_model(3)
    model.heads["phrase"].presence_logits = lambda states, batch, coarse=None: [
        torch.tensor([2.0, -1.0]) for _ in batch.samples
    ]
    said = []
    run = run_of(model)
    run.logger.warning = said.append
    PresenceCalibrationHook(some_absent([make_sample(index) for index in range(3)])).after_train_iter(run, 9)
    assert "do not grow with presence" in said[0]
    assert float(model.heads["phrase"].presence.temperature) == 1.0


def test_the_hook_needs_a_presence_head():
    with pytest.raises(ConfigError, match="phrase head with a presence head"):
        PresenceCalibrationHook([]).before_train(run_of(tiny_model(presence=False)))
    with pytest.raises(ConfigError, match="batch_size"):
        PresenceCalibrationHook([], batch_size=0)
    with pytest.raises(ConfigError, match="`task` is 'detection'"):
        PresenceCalibrationHook([], task="detection")
    with pytest.raises(ConfigError, match="reasoning head with a presence head"):
        PresenceCalibrationHook([], task="reasoning").before_train(run_of(make_model()))


def test_the_hook_calibrates_the_head_of_questions():
    model = make_model(presence=dict(type=AnswerPresenceHead, width=8))
    data = [reasoning_sample(k, k % 2) for k in range(6)]
    seen = []

    def logits_of(states, batch):
        seen.extend(sample.record_id for sample in batch.samples)
        return [torch.tensor([2.0 * len(s.phrases) - 1 + 0.1 * k]) for k, s in enumerate(batch.samples)]

    model.heads["reasoning"].presence_logits = logits_of
    PresenceCalibrationHook(data, batch_size=4, task="reasoning").after_train_iter(run_of(model), 9)
    assert seen == [sample.record_id for sample in data]
    part = model.heads["reasoning"].presence
    assert part.fitted
    assert float(part.probability(torch.tensor(-0.7))) < part.fitted_threshold


def test_the_evaluation_of_questions_reads_what_the_model_answers():
    model = make_model(presence=dict(type=AnswerPresenceHead, width=8)).eval()
    speak(model, f"the red star {MASK_TOKEN} .")
    absent = replace(reasoning_sample(1, 0), meta={"absent": "attribute", "query": "the blue star"})
    data = [reasoning_sample(0, 1, image_id="a"), absent]
    options = PresenceOptions("config", min_presence=0.5)
    PRESENCE.check(model, data, options)
    facts = [fact for entries in PRESENCE.facts(model, data, data, options) for fact in entries]
    assert [(fact["there"], fact["absent"], fact["answer"]) for fact in facts] == [
        (True, None, "yes"), (False, "attribute", "yes")
    ]  # fmt: skip
    assert (facts[0]["image_id"], facts[1]["text"]) == ("a", "the blue star")
    read = torch.cat(model.presence_logits("reasoning", data)).sigmoid()
    assert [fact["presence"] for fact in facts] == pytest.approx(read.tolist(), abs=1e-4)
    figures = PRESENCE.figures(facts, data, options)
    assert (figures["answer_N_acc"], figures["answer_T_acc"], figures["num_attribute"]) == (0.0, 1.0, 1)
    for wrong, message in (
        (replace(options, min_presence=None), "never calibrated"),
        (replace(options, question="is there {phrase} ?"), "`question` is for phrases"),
    ):
        with pytest.raises(ConfigError, match=message):
            PRESENCE.check(model, data, wrong)
    with pytest.raises(ConfigError, match="reasoning head has no presence head"):
        PRESENCE.check(make_model(), data, options)
