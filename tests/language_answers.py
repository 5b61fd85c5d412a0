"""Answers for the tests of the language room: hypothesis strategies and a fast seeded generator."""

from __future__ import annotations

import random

from hypothesis import strategies as st

from flmm_detseg.language import BoxItem, JointAnswer, MaskItem

COORDINATE = st.integers(0, 999)
# Everything that means something to the parser turns up often.
NASTY = st.lists(
    st.one_of(
        st.sampled_from(list("[](){}<>;:,.\n -*0123456789aé；：，'\"")),
        st.characters(),
        st.sampled_from(
            ["<SEG>", "none", "Detections:", "answer:", "Segmentations :", "<TASK_DET>", "1, 2, 3, 4"]
        ),
    ),
    max_size=30,
).map("".join)
POINTS = st.lists(st.tuples(COORDINATE, COORDINATE), min_size=3, max_size=6).map(tuple)


@st.composite
def boxes(draw, labels=NASTY):
    x1, x2 = sorted([draw(COORDINATE), draw(COORDINATE)])
    y1, y2 = sorted([draw(COORDINATE), draw(COORDINATE)])
    return BoxItem(draw(labels), (x1, y1, x2, y2), draw(st.none() | st.floats(0, 1)))


@st.composite
def masks(draw, labels=NASTY):
    if draw(st.booleans()):
        return MaskItem(draw(labels), seg_index=draw(st.integers(0, 5)))
    return MaskItem(draw(labels), polygons=tuple(draw(st.lists(POINTS, min_size=1, max_size=3))))


def answers(labels=NASTY, words=NASTY):
    return st.builds(
        JointAnswer,
        st.none() | words,
        st.none() | st.lists(boxes(labels), max_size=5).map(tuple),
        st.none() | st.lists(masks(labels), max_size=4).map(tuple),
    )


LABELS = ("car", "traffic light", "dog", "person 2", "route 66", "bed , etc", "naïve café", "none", "t-shirt")


def random_answer(generator: random.Random) -> JointAnswer:
    def point() -> tuple[int, int]:
        return generator.randrange(1000), generator.randrange(1000)

    def box() -> BoxItem:
        (x1, y1), (x2, y2) = point(), point()
        return BoxItem(generator.choice(LABELS), (min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)))

    def mask(index: int) -> MaskItem:
        if generator.random() < 0.5:
            return MaskItem(generator.choice(LABELS), seg_index=index)
        parts = tuple(
            tuple(point() for _ in range(generator.randint(3, 5))) for _ in range(generator.randint(1, 2))
        )
        return MaskItem(generator.choice(LABELS), polygons=parts)

    return JointAnswer(
        generator.choice([None, "yes", "two cars are parked", "a red car: it turns\nleft (3)"]),
        None if generator.random() < 0.2 else tuple(box() for _ in range(generator.randint(0, 5))),
        None if generator.random() < 0.4 else tuple(mask(i) for i in range(generator.randint(0, 3))),
    )
