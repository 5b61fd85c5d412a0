"""A conversation line by line: what is typed, what is printed, and a picture for each turn."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from PIL import Image

from flmm_detseg.datasets.images import read_image
from flmm_detseg.errors import DataError
from flmm_detseg.inference.chat import Chat, ChatTurn
from flmm_detseg.inference.export.coco import CocoFile
from flmm_detseg.inference.grounder import Grounder
from flmm_detseg.inference.outline import Outliner
from flmm_detseg.inference.regions import Region
from flmm_detseg.models.presence import MinPresence
from flmm_detseg.utils.cli import in_one_line
from flmm_detseg.utils.outputs import refuse_folder_of_inputs
from flmm_detseg.utils.paths import image_file
from flmm_detseg.utils.values import printable, shown
from flmm_detseg.utils.whole_files import put_in_place, write_json

HELP = """Ask something about the picture, or say for example "detect the cars and segment the tree on the left".
:outline 40,60            what SAM outlines there (x,y in pixels; several places; !x,y: not this)
:outline 20,30,60,70      what it outlines in a box (x0,y0,x1,y1)
:image FILE               another picture, a new conversation
:save                     everything so far as a COCO file and a list of turns
:help                     this
:quit                     the end (so is the end of the input)"""
_INTERRUPTED = 130
_NUMBERED = re.compile(r"_(\d{3,9})\.(?:png|json)$")
_SCORES = {"mask": "mask", "detector": "detector", "quality": "SAM's estimate"}


class TerminalChat:
    """Answers lines; writes ``NAME_001.png``, ``NAME_002.png``, ... into a folder, and never over what is there.

    Args:
        grounder: Its model answers.
        image: Image file to begin with.
        out: Folder for the pictures; made when there is one to write.
        say: Prints a line.
        max_new_tokens: Longest answer.
        score_threshold: Least class probability of a detected object.
        boxes: Draw the boxes of masks too.
        min_presence: See :class:`~flmm_detseg.inference.chat.Chat`, as for the next one.
        answer_with_detections: What the LMM is given before questions.

    Raises:
        DataError: The image cannot be read.
        ConfigError: The image lies in ``out``.
    """

    def __init__(
        self,
        grounder: Grounder,
        image: str | Path,
        out: Path,
        *,
        say: Callable[[str], None] = print,
        max_new_tokens: int = 128,
        score_threshold: float = 0.3,
        boxes: bool = False,
        min_presence: MinPresence = None,
        answer_with_detections: bool | str = False,
    ) -> None:
        self._grounder = grounder
        self._out = out
        self._say = say
        self._max_new_tokens = max_new_tokens
        self._score_threshold = score_threshold
        self._boxes = boxes
        self._min_presence = min_presence
        self._answer_with_detections = answer_with_detections
        self._number = _last_number(out)
        self._first = self._number + 1
        # All turns, outlines among them, each with its picture's file and what was written.
        self._turns: list[tuple[Path, ChatTurn, Path]] = []
        self._saved: list[str] = []
        self._open(image, "--image")

    def talk(self, lines: Iterable[str], *, echo: bool = False) -> dict[str, Any]:
        """Answers lines until ``:quit`` or the end; an error is a sentence, and the conversation goes on.

        Args:
            lines: What is typed.
            echo: Print each line before what comes of it, where they come from a file.

        Returns:
            Figures: turns, phrases, files written.
        """
        self._say(f"{self._file.name}: ask something, or say what to detect or segment (:help, :quit).")
        for raw in lines:
            line = raw.strip()
            if echo and line:
                self._say(f"> {printable(line)}")
            try:
                if not self._handle(line):
                    break
            except Exception as error:
                ended = in_one_line(error)
                if ended is None or ended[1] == _INTERRUPTED:
                    raise
                # A sentence, without the name of its kind.
                self._say(ended[0].partition(": ")[2])
        return {
            "turns": len(self._turns),
            "phrases": sum(len(turn.phrases) for _, turn, _ in self._turns),
            "files": [*(str(written) for _, _, written in self._turns), *dict.fromkeys(self._saved)],
        }

    def _handle(self, line: str) -> bool:
        """Carries out a line; whether the conversation goes on."""
        command, _, rest = line.partition(" ")
        if command in (":quit", ":q", ":exit"):
            return False
        if command in (":help", ":h", ":?"):
            self._say(HELP)
        elif command == ":image":
            self._open(rest.strip(), ":image")
            self._say(f"{self._file.name}: a new conversation.")
        elif command == ":outline":
            self._outline(line, rest)
        elif command == ":save":
            self._save()
        elif command.startswith(":"):
            raise DataError(f"{shown(command)} is no command; :help lists those there are")
        elif line:
            turn = self._chat.say(line)
            self._say(turn.text)
            if turn.uninterpreted:
                self._say(f"  not understood: {'; '.join(turn.uninterpreted)}")
            if turn.not_found:
                self._say(f"  not found: {'; '.join(turn.not_found)}")
            self._record(turn)
        return True

    def _open(self, image: str | Path, argument: str) -> None:
        if not str(image):
            raise DataError(f"{argument} needs an image file")
        file = image_file(image, argument)
        refuse_folder_of_inputs(self._out, [file])
        pixels = read_image(file, argument)
        self._file = file
        self._chat = Chat(
            self._grounder,
            pixels,
            max_new_tokens=self._max_new_tokens,
            score_threshold=self._score_threshold,
            min_presence=self._min_presence,
            answer_with_detections=self._answer_with_detections,
        )
        self._outliner: Outliner | None = None

    def _outline(self, line: str, places: str) -> None:
        points, labels, box = read_places(places)
        if self._outliner is None:
            self._outliner = Outliner(self._grounder, self._chat.image)
        found = self._outliner.outline(points=points, labels=labels or None, box=box)
        phrase = Region("segment", places.strip(), found.score, found.box_xyxy, found.mask, found.score_of)
        text = "outlined." if found.mask.any() else "nothing is outlined there."
        self._say(text)
        self._record(ChatTurn(line, "instruction", text, (phrase,), self._chat.image))

    def _record(self, turn: ChatTurn) -> None:
        """Prints what a turn names, and writes its picture."""
        for index, phrase in enumerate(turn.phrases):
            where = " ".join(f"{side:.0f}" for side in phrase.box_xyxy)
            empty = "" if phrase.mask is None or phrase.mask.any() else "  (empty mask)"
            self._say(
                f"  {index + 1} {phrase.label}  {_SCORES[phrase.score_of]} {phrase.score:.2f}  box {where}{empty}"
            )
        picture = Image.fromarray(turn.overlay(boxes=self._boxes))
        self._out.mkdir(parents=True, exist_ok=True)
        self._number += 1
        file = self._out / f"{self._file.stem}_{self._number:03}.png"
        part = file.with_name(f"{file.name}.{os.getpid()}.tmp")
        picture.save(part, format="PNG")
        put_in_place(part, file)
        self._turns.append((self._file, turn, file))
        self._say(f"  picture: {file}")

    def _save(self) -> None:
        if not self._turns:
            raise DataError("nothing has been said yet: there is nothing to save")
        coco, entries = CocoFile(), []
        for image, turn, picture in self._turns:
            coco.add(turn, image.name)
            entries.append(
                {
                    "image": str(image),
                    "request": turn.request,
                    "kind": turn.kind,
                    "text": turn.text,
                    "uninterpreted": list(turn.uninterpreted),
                    "not_found": list(turn.not_found),
                    "picture": str(picture),
                    "phrases": [
                        {
                            "label": phrase.label,
                            "spans": [list(span) for span in phrase.spans],
                            "score": phrase.score,
                            "score_of": phrase.score_of,
                            "box_xyxy": list(phrase.box_xyxy),
                        }
                        for phrase in turn.phrases
                    ],
                }
            )
        # Named after the first turn, so that another conversation in the folder keeps its own.
        masks, said = (self._out / f"{name}_{self._first:03}.json" for name in ("masks", "turns"))
        write_json(masks, coco.content(), indent=None)
        write_json(said, entries)
        self._saved += [str(masks), str(said)]
        self._say(f"  {len(self._turns)} turns: {masks} (COCO), {said}")


def read_places(
    text: str,
) -> tuple[list[tuple[float, float]], list[bool], tuple[float, float, float, float] | None]:
    """Points and a box as they are typed.

    Args:
        text: Words of two numbers (a point; after ``!``: not this) or four (a box), with commas between the numbers.

    Returns:
        Points ``(x, y)``, for each whether it lies in what is meant, and the box ``(x0, y0, x1, y1)``.

    Raises:
        DataError: No word, one that is neither, or a second box.
    """
    points: list[tuple[float, float]] = []
    labels: list[bool] = []
    box: tuple[float, float, float, float] | None = None
    for word in text.split():
        try:
            numbers = [float(number) for number in word.removeprefix("!").split(",")]
        except ValueError:
            numbers = []
        if len(numbers) == 2:
            points.append((numbers[0], numbers[1]))
            labels.append(not word.startswith("!"))
        elif len(numbers) == 4 and box is None and not word.startswith("!"):
            box = (numbers[0], numbers[1], numbers[2], numbers[3])
        else:
            raise DataError(
                f"{shown(word)} is no place: x,y (or !x,y for what is not meant), or one box x0,y0,x1,y1, in pixels"
            )
    if not points and box is None:
        raise DataError(":outline needs a place: x,y or x0,y0,x1,y1, in pixels")
    return points, labels, box


def _last_number(out: Path) -> int:
    """The highest number of earlier conversations' files in a folder."""
    names = [file.name for file in out.iterdir()] if out.is_dir() else []
    return max((int(found[1]) for name in names if (found := _NUMBERED.search(name))), default=0)
