"""`tools/stream.py`: a stream of images from the shell."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flmm_detseg.cache import BackgroundCache, GivenRegions, NoRegions, UnitedRegions
from flmm_detseg.commands.stream import _reads_boxes, read_requests
from flmm_detseg.errors import DataError
from flmm_detseg.store.records import Match, PrefixKV

ROOT = Path(__file__).resolve().parents[2]
SCREENS = "configs/cache/tiny_stream_screens.py"


@pytest.fixture
def frames(tmp_path, monkeypatch) -> Path:
    """Six screens with a clock."""
    monkeypatch.chdir(ROOT)
    folder = tmp_path / "frames"
    folder.mkdir()
    rng = np.random.default_rng(0)
    wallpaper = rng.integers(0, 256, (14, 14, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    for index in range(6):
        picture = wallpaper.copy()
        picture[8:24, 40:72] = rng.integers(0, 256, (16, 32, 3), dtype=np.uint8)
        Image.fromarray(picture).save(folder / f"{index}.png")
    return folder


def stream(monkeypatch, capsys, *arguments: str) -> tuple[int, str, str]:
    """Exit status, output, errors."""
    words = ["stream.py", SCREENS, "--untrained", "--device", "cpu", "--max-new-tokens", "4", *arguments]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "tools" / "stream.py"), run_name="__main__")
    captured = capsys.readouterr()
    return ended.value.code, captured.out, captured.err


def test_a_folder_of_screens_is_answered_and_compared(frames, tmp_path, monkeypatch, capsys):
    figures_file = tmp_path / "deep" / "cache.prom"
    code, out, err = stream(
        monkeypatch, capsys, "--images", str(frames), "--question", "What is in the image?", "--static",
        "--compare", "--prometheus", str(figures_file), "--session", "kiosk",
    )  # fmt: skip
    assert code == 0, err
    figures = json.loads(out.splitlines()[-1])
    # The second frame shows what changes.
    assert figures["levels"] == {"miss": 2, "L2": 4}
    assert figures["hit_rate"] == 0.667
    assert (figures["requests"], figures["compared"], figures["different"]) == (6, 6, 0)
    assert set(figures["median_first_token_ms"]) == {"miss", "L2"}
    lines = [line for line in out.splitlines() if "ms to the first token" in line]
    assert [line.split()[0] for line in lines] == [f"{index}.png" for index in range(6)]
    assert [line.split()[1] for line in lines] == ["miss"] * 2 + ["L2"] * 4
    assert "separators" in out
    assert "sha256" in out
    assert "| requests | L2 | 4 |" in out
    assert "| hit rate |" in out
    assert 'flmm_cache_requests_total{level="L2"} 4' in figures_file.read_text()
    assert "stream" in err
    assert "without the cache" in err


def test_settings_are_overridden_and_tenants_share_nothing(frames, tmp_path, monkeypatch, capsys):
    def run(*arguments: str) -> dict:
        code, out, err = stream(
            monkeypatch, capsys, "--images", str(frames), "--question", "What?", "--static",
            "--cfg-options", f"stream_cache.folder={tmp_path / 'kept'}", *arguments,
        )  # fmt: skip
        assert code == 0, err
        return json.loads(out.splitlines()[-1])["levels"]

    # The folder outlives the process's first run; its owner alone finds what it holds.
    assert run("--tenant", "a") == {"miss": 2, "L2": 4}
    assert run("--tenant", "a") == {"L1": 2, "L2": 4}
    assert run("--tenant", "b") == {"miss": 2, "L2": 4}
    assert list((tmp_path / "kept" / "entries").iterdir())


def test_boxes_that_nothing_reads_are_named(frames, tmp_path, monkeypatch, capsys):
    file = tmp_path / "questions.jsonl"
    file.write_text(json.dumps({"image": "0.png", "text": "what ?", "boxes": [[1, 2, 3, 4]]}))
    words = ("--images", str(frames), "--questions", str(file))
    code, out, err = stream(monkeypatch, capsys, *words)
    assert code == 0, err
    assert f"the `boxes` of {file} are not used: groups come from FrameDifference" in out
    assert not _reads_boxes(GivenRegions("masks"))
    assert _reads_boxes(GivenRegions("masks", otherwise=GivenRegions("meta")))
    assert _reads_boxes(UnitedRegions([NoRegions(), GivenRegions("meta")]))
    assert not _reads_boxes(UnitedRegions([NoRegions(), GivenRegions("masks")]))


def test_questions_of_a_file_have_streams_of_their_own(frames, tmp_path, monkeypatch, capsys):
    lines = [
        {"image": f"{index}.png", "text": f"question {number} ?", "session": session}
        for session in ("a", "b")
        for index in range(2)
        for number in range(2)
    ]
    file = tmp_path / "questions.jsonl"
    file.write_text("\n".join(json.dumps(line) for line in lines) + "\n\n")
    code, out, err = stream(
        monkeypatch, capsys, "--images", str(frames), "--questions", str(file), "--compare", "--static"
    )
    assert code == 0, err
    figures = json.loads(out.splitlines()[-1])
    assert figures["requests"] == 8
    # Every stream sees its first frame as background; the second stream finds all of what the first one stored.
    assert figures["levels"]["L2"] >= 5
    off, out, _ = stream(
        monkeypatch, capsys, "--images", str(frames), "--questions", str(file), "--cache", "off"
    )
    figures = json.loads(out.splitlines()[-1])
    assert off == 0
    assert figures["levels"] == {"off": 8}
    assert figures["hit_rate"] is None
    assert "| requests |" not in out


def test_the_answer_to_a_single_question_is_streamed(frames, monkeypatch, capsys):
    code, out, err = stream(
        monkeypatch, capsys, "--images", str(frames / "0.png"), "--question", "What is in the image?"
    )
    assert code == 0, err
    lines = out.splitlines()
    place = next(index for index, line in enumerate(lines) if line.startswith("0.png  miss"))
    answer = lines[place].rpartition(" -> ")[2]
    assert answer
    assert lines[place - 1].strip() == answer


def test_another_answer_is_a_failure(frames, tmp_path, monkeypatch, capsys):
    match = BackgroundCache.match

    def forged(*arguments, **settings):
        found = match(*arguments, **settings)
        if found is None:
            return None
        prefix = PrefixKV([-key for key in found.prefix.keys], [3 * value for value in found.prefix.values])
        return Match(found.key, found.level, found.stale, found.features, prefix)

    monkeypatch.setattr(BackgroundCache, "match", forged)
    figures_file = tmp_path / "cache.prom"
    code, out, err = stream(
        monkeypatch, capsys, "--images", str(frames), "--question", "What is in the image?", "--static",
        "--compare", "--prometheus", str(figures_file),
    )  # fmt: skip
    assert code == 2
    figures = json.loads(out.splitlines()[-1])
    assert figures["different"] > 0
    assert f"RunError: {figures['different']} of 6 answers differ" in err
    assert figures_file.is_file()


def test_what_cannot_be_asked_is_named(frames, tmp_path, monkeypatch, capsys):
    file = tmp_path / "questions.jsonl"
    good = {"image": "0.png", "text": "what ?"}

    def problem(*lines: str, images: tuple[Path, ...] = (frames,)) -> str:
        file.write_text("\n".join(lines))
        with pytest.raises(DataError) as error:
            read_requests(list(images), None, file)
        return str(error.value)

    assert "line 2: no JSON object" in problem(json.dumps(good), "{")
    assert "line 1: `text`" in problem(json.dumps({"image": "0.png"}))
    assert "none.png not found" in problem(json.dumps(good | {"image": "none.png"}))
    assert "four numbers" in problem(json.dumps(good | {"boxes": [[1, 2, 3]]}))
    assert "list of boxes" in problem(json.dumps(good | {"boxes": 3}))
    assert "holds no questions" in problem("")
    assert "the one folder" in problem(json.dumps(good), images=(frames / "0.png",))
    file.write_text(json.dumps(good | {"boxes": [[1, 2, 3, 4]], "session": 7}))
    request = read_requests([frames], None, file)[0]
    assert (request.session, request.boxes) == ("7", ((1.0, 2.0, 3.0, 4.0),))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no image"):
        read_requests([tmp_path / "empty"], "what ?", None)
    code, _, err = stream(monkeypatch, capsys, "--images", "nowhere", "--question", "what ?")
    assert code == 2
    assert "nowhere not found" in err
    assert "Traceback" not in err
