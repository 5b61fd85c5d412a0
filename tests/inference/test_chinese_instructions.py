"""Instructions in Chinese mean what those in English mean."""

from __future__ import annotations

import pytest

from flmm_detseg.errors import DataError
from flmm_detseg.inference.instructions import parse_instruction

CARS = ("detect", "汽车")


@pytest.mark.parametrize(
    ("instruction", "wanted", "rest"),
    [
        ("检测汽车并分割左边的树", [CARS, ("segment", "左边的树")], ()),
        ("请检测汽车，然后把左边的树分割出来。", [CARS, ("segment", "左边的树")], ()),
        ("只分割动物", [("segment", "动物")], ()),
        ("只把动物分割出来", [("segment", "动物")], ()),
        ("仅检测车辆，只分割宠物", [("detect", "车辆"), ("segment", "宠物")], ()),
        # The object before its verb.
        ("请帮我把图中的汽车和行人都框出来，谢谢！", [("detect", "图中的汽车"), ("detect", "行人")], ()),
        ("把汽车全部检测出来", [CARS], ()),
        ("对汽车进行检测和分割", [CARS, ("segment", "汽车")], ()),
        ("麻烦您将圆环圈出来并分割三角形吧", [("detect", "圆环"), ("segment", "三角形")], ()),
        ("把检测框里的狗分割出来", [("segment", "检测框里的狗")], ()),
        ("检测汽车和把树分割出来", [CARS, ("segment", "树")], ()),
        # Verbs that share an object.
        ("检测并分割汽车", [CARS, ("segment", "汽车")], ()),
        ("检测、分割并标出汽车", [CARS, ("segment", "汽车"), CARS], ()),
        ("先找到最大的圆环，接着把它抠出来", [("detect", "最大的圆环"), ("segment", "它")], ()),
        # Lists, and what is none.
        ("检测汽车、行人以及狗", [CARS, ("detect", "行人"), ("detect", "狗")], ()),
        ("检测汽车，狗", [CARS, ("detect", "狗")], ()),
        ("分割红色和白色的汽车", [("segment", "红色和白色的汽车")], ()),
        ("分割汽车和树之间的狗", [("segment", "汽车和树之间的狗")], ()),
        ("分割猫、汽车和树之间的狗", [("segment", "猫"), ("segment", "汽车和树之间的狗")], ()),
        ("分割对面的树和并排的汽车", [("segment", "对面的树"), ("segment", "并排的汽车")], ()),
        ("检测一辆红色的汽车和两只狗", [("detect", "红色的汽车"), ("detect", "狗")], ()),
        # Politeness, and what belongs to no step.
        ("能不能帮我检测一下所有的汽车吗？", [CARS], ()),
        ("检测汽车，好吗？", [CARS], ()),
        ("在图中检测汽车", [CARS], ("在图中",)),
        ("在这张图片里，请找出狗", [("detect", "狗")], ("在这张图片里",)),
        ("你好。请分割圆环！", [("segment", "圆环")], ("你好",)),
        ("检测汽车，不要分割树", [CARS], ("不要分割树",)),
        ("检测。分割树", [("detect", "树"), ("segment", "树")], ()),
        # Questions.
        ("检测汽车，它们是什么颜色？", [CARS, ("answer", "它们是什么颜色？")], ()),
        ("左边的树，是什么颜色？检测汽车", [("answer", "左边的树，是什么颜色？"), CARS], ()),
        ("数一下有几辆车", [("answer", "数一下有几辆车")], ()),
        ("先检测汽车最后告诉我天空的颜色", [CARS, ("answer", "告诉我天空的颜色")], ()),
        ("描述图片，草地和树并检测汽车", [("answer", "描述图片，草地和树"), CARS], ()),
        # Without a verb in its place, all of it is a question.
        ("这是什么？", [("answer", "这是什么？")], ()),
        ("检测器是什么", [("answer", "检测器是什么")], ()),
        ("分割线在哪里", [("answer", "分割线在哪里")], ()),
        ("不要检测汽车", [("answer", "不要检测汽车")], ()),
        ("红色的星星", [("answer", "红色的星星")], ()),
        # Both languages.
        ("detect 汽车，分割树", [CARS, ("segment", "树")], ()),
        ("detect 汽车 and segment 左边的树", [CARS, ("segment", "左边的树")], ()),
        ("检测 cars 并 segment the tree on the left", [("detect", "cars"), ("segment", "the tree on the left")], ()),
        ("detect 汽车", [CARS], ()),
    ],
)  # fmt: skip
def test_steps(instruction: str, wanted: list[tuple[str, str]], rest: tuple[str, ...]) -> None:
    parsed = parse_instruction(instruction)
    assert [(step.kind, step.text) for step in parsed.steps] == wanted
    assert parsed.uninterpreted == rest
    assert all(instruction[slice(*step.span)] == step.text for step in parsed.steps)


@pytest.mark.parametrize("instruction", ["检测", "检测，分割", "请分割出来", "把检测"])
def test_an_instruction_that_asks_for_nothing_is_refused(instruction: str) -> None:
    with pytest.raises(DataError, match="names nothing to detect or segment"):
        parse_instruction(instruction)


@pytest.mark.case("security/parser")
@pytest.mark.parametrize(
    "instruction",
    [
        "检测并" * 9_000 + "汽车",
        "请" * 30_000 + "检测汽车",
        "检测" * 15_000,
        "检测汽车" + "和树" * 15_000,
        "检测汽车" + "，" * 30_000 + "树",
        "再" * 30_000 + "检测汽车",
        "检测汽车和" + "树和" * 9_000 + "之间",
        "检测汽车" + "谢谢" * 15_000,
        "和把" * 15_000 + "检测汽车",
        "在图中" * 30_000 + "检测汽车",
        "检测汽车" + "之间和" * 30_000,
        "把汽车" * 30_000 + "检测出来",
    ],
    ids=lambda text: text[:8],
)
def test_time_grows_with_the_length(instruction: str) -> None:
    """Each takes a fraction of a second; quadratic time would be minutes."""
    steps = parse_instruction(instruction).steps
    assert steps
    assert all(instruction[slice(*step.span)] == step.text for step in steps[:100])
