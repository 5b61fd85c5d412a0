"""The app as users meet it: a real server, a real browser, many clients. Long: `make test-long`, with Gradio."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from app_parts import SCENE, tiny_grounder
from browser import Page, browser, needs_browser
from PIL import Image

from flmm_detseg.app.limits import Limits
from flmm_detseg.app.uploads import read_picture
from flmm_detseg.datasets.tinyworld.render import make_scene
from flmm_detseg.inference.chat import Chat

ROOT = Path(__file__).resolve().parents[2]
SCREENSHOTS = ROOT / "work_dirs" / "app_screenshots"
REQUEST = "segment the white ring and the orange ring"

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(importlib.util.find_spec("gradio") is None, reason="no Gradio: make install-app"),
]


@dataclass
class Server:
    """A running app.

    Attributes:
        address: Without a slash at the end.
        process: Its process.
        folder: Where files of users go.
    """

    address: str
    process: subprocess.Popen[str]
    folder: Path

    def get(self, path: str) -> tuple[int, bytes]:
        """Status and content of an address."""
        try:
            with urllib.request.urlopen(f"{self.address}/{path}", timeout=60) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    @property
    def files(self) -> list[Path]:
        """What users sent and is still there. (Gradio makes an empty file beside each; they are swept later.)"""
        return [file for file in self.folder.rglob("*") if file.is_file() and file.stat().st_size]

    @property
    def memory(self) -> float:
        """Resident memory, MB."""
        return psutil.Process(self.process.pid).memory_info().rss / 1e6


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    temporary, frames = tmp_path_factory.mktemp("temporary"), tmp_path_factory.mktemp("frames")
    for index in range(2):
        shutil.copy(SCENE, frames / f"frame{index}.png")
    environment = os.environ | {"TMPDIR": str(temporary), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "flmm_detseg.cli", "app", "--port", "0", "--device", "cpu"],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, "the app ended before it was ready"
        (folder,) = temporary.glob("flmm_detseg_app_*")
        assert folder.stat().st_mode & 0o077 == 0
        yield Server(json.loads(line)["address"], process, folder)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        assert json.loads(process.stdout.read().splitlines()[-1])["requests"] > 0
        assert not folder.exists()
    finally:
        process.kill()
        process.wait()


def client(server: Server) -> Any:
    from gradio_client import Client

    return Client(server.address, verbose=False)


def send(one: Any, file: Path) -> str:
    from gradio_client import handle_file

    return str(one.predict(handle_file(str(file)), api_name="/open")[0])


def say(one: Any, text: str) -> str:
    return str(one.predict(text, 0.3, api_name="/say")[0])


def turns(board: str) -> list[str]:
    return board.split('<li class="flmm-turn"')[1:]


def open_tab(page: Page, name: str) -> None:
    page.value(
        f"[...document.querySelectorAll('button[role=tab]')].find(b => b.innerText == '{name}').click()"
    )


def save(page: Page, name: str) -> None:
    time.sleep(1)  # layers and fonts
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(SCREENSHOTS / f"{name}.png")


@needs_browser
def test_a_browser_uploads_asks_clicks_draws_and_switches_tabs(server: Server, tmp_path: Path) -> None:
    with browser(tmp_path) as page:
        page.open(server.address)
        page.wait("document.querySelector('#upload input[type=file]')", 120)
        save(page, "empty")
        page.choose_files("#upload input[type=file]", SCENE)
        page.wait("document.querySelector('.flmm-picture')?.naturalWidth == 112")
        page.write("#text textarea, #text input", REQUEST)
        page.click("#send")
        page.wait("document.querySelectorAll('.flmm-turn').length == 1", 120)
        # All masks of the turn, until one is pointed at.
        page.wait("document.querySelectorAll('.flmm-layers img').length == 2")
        save(page, "conversation")
        plain = page.picture(".flmm-stage").astype(int)
        page.point(".flmm-word")
        page.wait("document.querySelector('.flmm-layers img').src.includes('/0/mask.png')")
        page.wait("document.querySelectorAll('.flmm-layers img').length == 1")
        page.point("#about")
        page.wait("document.querySelectorAll('.flmm-layers img').length == 2")
        page.click(".flmm-phrase:nth-child(2)")
        page.point("#about")
        page.wait("document.querySelectorAll('.flmm-layers img').length == 1")
        assert "how sure the mask is of its pixels" in page.value(
            "document.querySelector('.flmm-what').innerText"
        )
        page.click("[data-layer=attention]")
        page.wait("document.querySelector('.flmm-layers img').src.includes('/1/attention.png')")
        page.wait("document.querySelector('.flmm-layers img').naturalWidth > 0")
        save(page, "attention")
        assert np.abs(page.picture(".flmm-stage").astype(int) - plain).mean() > 1
        page.click("[data-layer=outline]")
        for number, (tool, places) in enumerate(
            [
                ("brush", [(0.15, 0.33), (0.19, 0.27), (0.25, 0.3)]),
                ("point", [(0.63, 0.68)]),
                ("box", [(0.5, 0.6), (0.8, 0.95)]),
            ],
            2,
        ):
            page.click("[data-clear]")
            page.click("[data-tool=box]")
            page.drag(".flmm-stage canvas", [(0.5, 0.5)])  # draws no box, and spoils nothing that follows
            page.click(f"[data-tool={tool}]")
            page.drag(".flmm-stage canvas", places)
            page.wait(f"document.querySelectorAll('.flmm-turn').length == {number}", 120)
            save(page, f"outline_{tool}")
        said = page.value("[...document.querySelectorAll('.flmm-said')].map(e => e.innerText)")
        assert said[1:] == ["(pointed: 1 stroke)", "(pointed: 1 point inside)", "(pointed: a box)"]
        open_tab(page, "Stream")
        page.wait("document.querySelector('#ask')?.offsetParent")
        for number in range(1, 5):
            page.click("#ask")
            page.wait(f"document.querySelectorAll('.flmm-table tbody tr').length == {number}", 300)
        levels = page.value(
            "[...document.querySelectorAll('.flmm-table td:nth-child(5)')].map(e => e.innerText)"
        )
        assert levels[-1] == "miss"
        assert levels[0] == "L2"
        save(page, "stream")
        assert page.errors == []
        hosts = {address.split("/")[2] for address in page.requests if address.startswith("http")}
        assert {host.partition(":")[0] for host in hosts} == {"localhost"}
        open_tab(page, "Conversation")
        page.write("#text textarea, #text input", "   ")
        page.click("#send")
        page.wait("document.body.innerText.includes('there is no question; write one')")
        save(page, "sentence")
        photo = tmp_path / "photo.jpg"
        rows, columns = np.mgrid[:240, :320]
        noise = np.random.default_rng(0).integers(0, 60, (240, 320, 3))
        pixels = np.stack([rows, columns // 2, rows // 2], axis=2) + noise
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(photo)
        page.choose_files("#upload input[type=file]", photo)
        page.wait("document.querySelector('.flmm-warning')")
        assert "photo.jpg" in page.value("document.querySelector('.flmm-left').innerText")
        save(page, "warning")
    assert server.files == []


def test_fifty_clients_at_once_get_the_answers_to_their_own_pictures(server: Server, tmp_path: Path) -> None:
    files = []
    for index in range(50):
        files.append(tmp_path / f"picture{index}.png")
        Image.fromarray(make_scene(3, 90_000 + index).image).save(files[-1])

    def talk(file: Path) -> str:
        one = client(server)
        send(one, file)
        say(one, "what is at the bottom ?")
        return say(one, "segment the ring")

    with ThreadPoolExecutor(50) as pool:
        boards = list(pool.map(talk, files))
    texts = set()
    for file, board in zip(files, boards, strict=True):
        assert f'alt="{file.name}"' in board
        chat = Chat(tiny_grounder(), read_picture(file, Limits()).pixels)
        answer, found = chat.say("what is at the bottom ?"), chat.say("segment the ring")
        first, second = turns(board)
        assert f">{answer.text}<" in re.sub(r"<span[^>]*>|</span>", "", first)
        (box,) = re.findall(r'data-box="([^"]*)"', second)
        assert box == " ".join(f"{value:.1f}" for value in found.phrases[0].box_xyxy)
        texts.add((answer.text, box))
        layer = re.findall(r'data-mask="([^"]*)"', second)[0]
        status, content = server.get(layer)
        assert status == 200
        alpha = np.asarray(Image.open(io.BytesIO(content)).convert("RGBA"))[..., 3]
        mask = found.phrases[0].mask
        assert mask is not None
        assert ((alpha[2::4, 2::4] > 0) & mask).sum() >= 0.98 * mask.sum()
    # They are not all the same answer.
    assert len(texts) > 20
    assert server.files == []


def bomb() -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 9))
        + chunk(b"IEND", b"")
    )


def test_bombs_wrong_types_and_paths_get_a_sentence(server: Server, tmp_path: Path) -> None:
    from gradio_client.exceptions import AppError

    one = client(server)
    files = {
        "bomb.png": (bomb(), "too large"),
        "text.png": (b"hello", "cannot be decoded"),
        "page.html": (b"<script>", "only pictures are taken"),
        "cut.png": (SCENE.read_bytes()[:2000], "cannot be decoded"),
    }
    for name, (content, words) in files.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(AppError, match=words) as raised:
            send(one, tmp_path / name)
        assert str(server.folder) not in str(raised.value)
    (tmp_path / "heavy.png").write_bytes(b"0" * 21_000_000)
    with pytest.raises(Exception, match=r"413|exceeds|too large|size"):
        send(one, tmp_path / "heavy.png")
    with pytest.raises(AppError, match="choose one first"):
        say(one, "what is it ?")
    send(one, SCENE)
    for text, words in (("", "no question"), ("a" * 5000, "at most 2000")):
        with pytest.raises(AppError, match=words):
            say(one, text)
    for path in ("/etc/passwd", str(SCENE), f"{server.folder}/../../etc/passwd", "http://example.com/a.png"):
        answer = raw_call(server, "open", [{"path": path, "meta": {"_type": "gradio.FileData"}}])
        assert not answer["success"], path
        assert answer["output"]["error"], path
        assert server.files == [], path
    for path in (
        "gradio_api/file=/etc/passwd", f"gradio_api/file={SCENE}", "gradio_api/file=../../etc/passwd",
        "flmm/x/../../etc/passwd", "flmm/x/picture1", "flmm//etc/passwd", "monitoring", "gradio_api/monitoring/x",
    ):  # fmt: skip
        status, content = server.get(path)
        assert status >= 400, path
        assert b"root:" not in content
    refused = raw_call(server, "ask", ["../../etc/passwd", "what time is it ?"])
    assert refused["output"]["error"].startswith("there is no frame")
    # Whoever was refused goes on; what was sent and never asked about is swept.
    assert 'alt="scene.png"' in send(one, SCENE)


def raw_call(server: Server, name: str, data: list[Any]) -> dict[str, Any]:
    """A call without a client that looks at what it sends."""
    config = json.loads(server.get("config")[1])
    number = next(entry["id"] for entry in config["dependencies"] if entry["api_name"] == name)
    body = {"data": data, "fn_index": number, "session_hash": f"raw{time.monotonic_ns()}"}
    request = urllib.request.Request(
        f"{server.address}/gradio_api/queue/join",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    try:
        urllib.request.urlopen(request, timeout=60).read()
    except urllib.error.HTTPError as error:
        return {"success": False, "output": {"error": error.read().decode()}}
    with urllib.request.urlopen(
        f"{server.address}/gradio_api/queue/data?session_hash={body['session_hash']}", timeout=120
    ) as events:
        for line in events:
            if line.startswith(b"data:"):
                message = json.loads(line[5:])
                if message["msg"] == "process_completed":
                    return dict(message)
    raise AssertionError("no answer came")


def test_memory_is_flat(server: Server) -> None:
    """2,000 requests, or what fits into 9 minutes, of users who come and go; every tenth asks."""
    number, most_seconds, users = 2000, 540, 0
    after_a_quarter, start = 0.0, time.monotonic()
    done = 0
    while done < number and time.monotonic() - start < most_seconds:
        one = client(server)
        users += 1
        for index in range(20):
            if index % 10 == 9:
                say(one, "segment the ring")
            else:
                send(one, SCENE)
            done += 1
        if not after_a_quarter and (done >= number // 4 or time.monotonic() - start > most_seconds / 4):
            after_a_quarter = server.memory
    grown = server.memory - after_a_quarter
    seconds = time.monotonic() - start
    print(f"{done} requests of {users} users in {seconds:.0f} s, {grown:+.0f} MB since a quarter of them")
    assert done >= 200
    assert grown < 60, (
        f"{after_a_quarter:.0f} MB after a quarter of the requests, {server.memory:.0f} MB at the end"
    )
    assert server.files == []
