"""Compound instructions in Chinese: 检测汽车并分割左边的树, 请把左边的树分割出来, 只分割动物."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from flmm_detseg.inference.steps import Instruction, Kind, Step

_HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff]")
# What makes a verb of these also stands in nouns (检测器, 分割线) and in reports (检测到了).
_NOT_A_NOUN = r"(?!器|结果|框|线|算法|模型|任务|到了)"
_DETECT = (
    rf"(?:检测|识别|定位|探测){_NOT_A_NOUN}|检出|找(?:一?找|出来?|到|一下)?(?!不)|寻找|查找|框(?:出来?|选|住|起来|一下)"
    r"|圈(?:出来?|起来|住|一下)|标(?:出来?|记|注|示)|列出|指出|数(?:一?数|一下|出)|统计|detect\b|find\b|locate\b"
)
_SEGMENT = (
    rf"分割{_NOT_A_NOUN}|抠(?:出来?|图|取|一下)|勾(?:勒|画|出)|描(?:出来?|边)|高亮|突出显示|遮罩"
    r"|segment\b|outline\b"
)
_SUFFIX = r"(?:一下|出来?|到)?\s*"
_VERB = re.compile(rf"(?:(?P<detect>{_DETECT})|(?P<segment>{_SEGMENT})){_SUFFIX}", re.IGNORECASE)
# All patterns are tried at one place and repeat a limited number of times: a long text costs as many steps as it has
# characters.
_POLITE = re.compile(
    r"(?:(?:请|麻烦|劳驾)(?:你|您)?|帮(?:我|忙|我们)?|给我|替我|(?:你|您)?(?:能不能|能否|可不可以|可以|可否|能)(?:帮我)?"
    r"|我(?:想要?|要|希望你?)|首先|先|再|然后|接着|之后|接下来|最后|现在|同时|也|还|并|另外|只(?:需要?|要|想)?|仅仅?|就|\s"
    r"|please\b|only\b){0,8}",
    re.IGNORECASE,
)
# Where the picture as a whole is meant; 图中的汽车 is a car.
_PICTURE = r"(?:这|那|此|该)?[张幅个]?(?:图片|图像|照片|相片|画面|图)"
_WHERE = re.compile(rf"(?:在|从)?{_PICTURE}(?:中|里面|里|内|上|当中)?(?!的)")
_OBJECT_FIRST = re.compile(r"(?:把|将)(?!来)|对(?!面|方|角|称|象|不起)")
_DOING = re.compile(r"\s*(?:进行|做|作)?\s*$")
_LINK = re.compile(
    r"\s?(?:并且|并|而且|然后|接着|同时|再|最后|以及|还有|和|与|跟|及|、|也|\band\b|\bthen\b)|\s"
)
_MARK = re.compile(r"[，,。．.；;！!？?：:\n]")
_LIST_MARKS = "，,：:"
_QUESTION = re.compile(
    r"什么|啥|哪|谁|怎么|怎样|如何|为什么|为何|几[个只辆棵条位匹头张把朵颗种名]|多少|多大|是否|有没有|是不是|[吗呢]\s*$"
)
_REQUEST = re.compile(r"描述|解释|说明|告诉我|回答|介绍|说说|讲讲|说一下|describe\b|explain\b", re.IGNORECASE)
_NEGATION = re.compile(r"不|别|勿|没")
_TAILS = (
    "好不好", "好吗", "可以吗", "行吗", "谢谢您", "谢谢你", "谢谢", "多谢", "出来", "一下", "给我看看",
    "给我看", "给我", "吧", "吗", "了",
)  # fmt: skip
# After an object that stands before its verb: 把汽车都检测出来.
_ALL = ("全都", "全部", "都")
_SPLIT = re.compile(r"[、，,：:]|以及|还有|和|与|跟|及")
_RELATION = re.compile(r"之间|中间")
# A colour or the like: 红色和白色的汽车 is one thing.
_ATTRIBUTE = re.compile(r"^(?:[^的\s]{1,2}色|[红橙黄绿蓝紫黑白灰粉棕大小高矮新旧圆方])$")
_MEASURES = "个只辆棵条位匹头张把朵颗名台架艘座块片群"
_QUANTITY = re.compile(
    rf"(?:所有的?|全部的?|全体|每一?[{_MEASURES}]|任何|一些|某些|[一二两三四五六七八九十几\d]{{1,4}}[{_MEASURES}]|这[些{_MEASURES}]|那[些{_MEASURES}])"
)
_EDGES = " \t\r\n，,。．.；;！!：:、"


def has_chinese(text: str) -> bool:
    """Whether a text has a Chinese character."""
    return _HAN.search(text) is not None


@dataclass
class _Clause:
    """What one verb governs: ``start..end`` of the text, with the verb at ``verb``."""

    kind: Kind
    verb: tuple[int, int]
    start: int
    end: int
    object_first: bool = False


def parse_chinese(text: str) -> Instruction | None:
    """Splits an instruction in Chinese into steps, by its verbs.

    A verb stands at the beginning of a clause (检测汽车), or after its object (把汽车检测出来,
    对汽车进行检测). Clauses end at marks, and where a connective is followed by the next verb (并, 然后, 再, 和, 、).
    Politeness (请, 帮我, 能不能 ... 吗) and 只 before a verb are ignored. Objects are lists at 、, commas and 和;
    汽车和树之间的狗 stays whole. 检测并分割汽车 are two steps about the cars. What asks (什么, 几个, 吗, ...) goes to
    the LMM.

    Args:
        text: One or more sentences with Chinese in them.

    Returns:
        Steps and what belongs to none; no step where verbs have no object. None where no Chinese verb is in its place:
        then the text is a question, or an instruction in English.
    """
    clauses, rest = _clauses(text)
    if not any(clause.kind != "answer" for clause in clauses):
        return None
    steps: list[Step] = []
    for number, clause in enumerate(clauses):
        found = _steps(text, clause)
        if not found:
            shared = _shared(clauses, number)
            if shared is not None:
                found = _steps(text, _Clause(clause.kind, clause.verb, shared.start, shared.end))
        if not found:
            rest.append(clause.verb)
        steps += found
    words = [text[slice(*_trimmed(text, *span))] for span in sorted(rest)]
    return Instruction(tuple(steps), tuple(filter(None, words)))


def _shared(clauses: list[_Clause], number: int) -> _Clause | None:
    """Whose object a verb without one has: the next verb's, else that of the verb before, where it came first."""
    for other in clauses[number + 1 : number + 4]:
        if other.kind == "answer":
            break
        if other.end - other.start > 0:
            return other
    return clauses[number - 1] if number and clauses[number - 1].object_first else None


def _pieces(text: str) -> Iterator[tuple[int, int, str]]:
    """What lies between marks and connectives that a clause follows: start, end, and the mark after it."""
    verbs = [match.start() for match in _VERB.finditer(text)]
    start = 0
    for mark in (*_MARK.finditer(text), None):
        end = len(text) if mark is None else mark.start()
        for link in _LINK.finditer(text, start, end):
            if link.start() > start and _begins_clause(text, link.end(), end, verbs):
                yield start, link.start(), "、"
                start = link.end()
        yield start, end, "" if mark is None else mark[0]
        start = end if mark is None else mark.end()


def _begins_clause(text: str, start: int, end: int, verbs: list[int]) -> bool:
    start = _polite_end(text, start, end)
    if _VERB.match(text, start, end) is not None or _REQUEST.match(text, start, end) is not None:
        return True
    if _OBJECT_FIRST.match(text, start, end) is None:
        return False
    following = bisect_left(verbs, start)
    return following < len(verbs) and verbs[following] < end


def _polite_end(text: str, start: int, end: int) -> int:
    match = _POLITE.match(text, start, end)
    assert match is not None  # also nothing is polite
    return match.end()


def _clauses(text: str) -> tuple[list[_Clause], list[tuple[int, int]]]:
    """Clauses in order, and the ranges of words that belong to none."""
    clauses: list[_Clause] = []
    rest: list[tuple[int, int]] = []
    # A piece that may belong to what comes after it in its sentence.
    pending: tuple[int, int] | None = None
    goes_on = False
    for start, end, mark in _pieces(text):
        lead = _trimmed(text, start, end)
        place = _polite_end(text, lead[0], end)
        if (where := _WHERE.match(text, place, end)) is not None:
            place = _polite_end(text, where.end(), end)
        asks = mark in ("？", "?") or _QUESTION.search(text, place, end) is not None
        clause = _task(text, place, end)
        if clause is not None:
            if pending is not None:
                rest.append(pending)
            if where is not None:
                rest.append(where.span())
            clauses.append(clause)
            pending = None
        elif _is_tail(text, *lead):
            pass
        elif asks or _REQUEST.match(text, place, end) is not None:
            first = lead[0] if pending is None else pending[0]
            last = end + (1 if mark and mark in "？?" else 0)
            clauses.append(_Clause("answer", (first, first), first, last))
            pending = None
        elif (
            goes_on and clauses and _NEGATION.match(text, place, end) is None and not clauses[-1].object_first
        ):
            clauses[-1].end = end
        elif lead[0] < lead[1]:
            if pending is not None:
                rest.append(pending)
            pending = lead
        goes_on = mark in _LIST_MARKS or mark == "、"
        if not goes_on and pending is not None:
            rest.append(pending)
            pending = None
    if pending is not None:
        rest.append(pending)
    return clauses, rest


def _task(text: str, start: int, end: int) -> _Clause | None:
    """The clause of a verb that detects or segments, where one stands in its place."""
    if (verb := _VERB.match(text, start, end)) is not None:
        return _Clause(_kind(verb), verb.span(), verb.end(), end)
    first = _OBJECT_FIRST.match(text, start, end)
    if first is None:
        return None
    last = _without_tails(text, first.end(), end)
    verbs = list(_VERB.finditer(text, first.end(), end))
    # 把检测框里的狗分割出来: the last verb, with nothing after it.
    if not verbs or verbs[-1].end() < last:
        return None
    doing = _DOING.search(text, max(first.end(), verbs[-1].start() - 4), verbs[-1].start())
    assert doing is not None  # it may be empty
    return _Clause(_kind(verbs[-1]), verbs[-1].span(), first.end(), doing.start(), object_first=True)


def _kind(verb: re.Match[str]) -> Kind:
    return "detect" if verb["detect"] is not None else "segment"


def _steps(text: str, clause: _Clause) -> list[Step]:
    start, end = _trimmed(text, clause.start, clause.end)
    if clause.kind == "answer":
        return [Step("answer", text[start:end], (start, end))] if start < end else []
    end = _without_tails(text, start, end, (*_TAILS, *_ALL) if clause.object_first else _TAILS)
    if _QUESTION.search(text, start, end) is not None:
        first = min(clause.verb[0], start)
        return [Step("answer", text[first:end], (first, end))]
    relations = [match.start() for match in _RELATION.finditer(text, start, end)]
    pieces, position = [], start
    for cut in _SPLIT.finditer(text, start, end):
        if cut[0] in ("和", "与", "跟", "及"):
            related = bisect_left(relations, cut.end())
            # 汽车和树之间的狗, but not 汽车和树, 桌子和床之间的狗
            within = related < len(relations) and _SPLIT.search(text, cut.end(), relations[related]) is None
            if within or (cut.start() - position < 4 and _ATTRIBUTE.match(text[position : cut.start()])):
                continue
        pieces.append((position, cut.start()))
        position = cut.end()
    pieces.append((position, end))
    steps = []
    for first, last in pieces:
        first, last = _trimmed(text, first, last)
        if clause.kind == "detect" and (quantity := _QUANTITY.match(text, first, last)) is not None:
            # 检测所有: all there is.
            first = quantity.end() if quantity.end() < last else first
        if first < last:
            steps.append(Step(clause.kind, text[first:last], (first, last)))
    return steps


def _is_tail(text: str, start: int, end: int) -> bool:
    """Whether nothing is said but 好吗, 谢谢 and the like."""
    return start < end and _without_tails(text, start, end) == start


def _without_tails(text: str, start: int, end: int, tails: Sequence[str] = _TAILS) -> int:
    """Where ``text[start:end]`` ends without 谢谢, 出来, 吧 and the like."""
    while True:
        while end > start and text[end - 1] in _EDGES + "？?":
            end -= 1
        tail = next((word for word in tails if text.endswith(word, start, end)), None)
        if tail is None:
            return end
        end -= len(tail)


def _trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    while start < end and text[start] in _EDGES:
        start += 1
    while end > start and text[end - 1] in _EDGES:
        end -= 1
    return start, end
