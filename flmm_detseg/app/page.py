"""The page: Gradio's parts, wired to the service. Only this module and the server beside it import Gradio."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gradio as gr

from flmm_detseg.app.board import EMPTY
from flmm_detseg.app.look import SCRIPT, SEND_THRESHOLD
from flmm_detseg.app.service import Service
from flmm_detseg.app.stream_view import StreamView
from flmm_detseg.utils.cli import in_one_line

_log = logging.getLogger(__name__)
_REGIONS = (
    '**Questions about a region** ("what is in this box ?") have no place in the page yet: an LMM needs a part that '
    "reads regions. In Python: `Grounder.ask(..., regions=[(x0, y0, x1, y1)])`, with a model such as "
    "`configs/tiny/region_questions.py`."
)


@contextmanager
def sentences() -> Iterator[None]:
    """What goes wrong becomes a sentence on the page; what nobody expected goes to the log, and not to the page.

    Raises:
        Error: Gradio's own.
    """
    try:
        yield
    except gr.Error:
        raise
    except Exception as error:
        known = in_one_line(error)
        if known is None:
            _log.exception("a request failed")
            text = "This failed by a fault of the app, which its log describes. Your other turns are as they were."
        else:
            text = known[0].partition(": ")[2]
        raise gr.Error(text, print_exception=False, title="Not possible") from error


def build_page(service: Service) -> gr.Blocks:
    """Builds the page.

    Args:
        service: What it shows, and what its buttons do.

    Returns:
        The page, with its queue: one request at a time, the others wait.
    """
    about, limits = service.about, service.limits
    # All that may use the model stands in one queue.
    queue: dict[str, Any] = {
        "concurrency_id": "model",
        "concurrency_limit": 1,
        "api_visibility": "undocumented",
    }
    with gr.Blocks(title="flmm_detseg", analytics_enabled=False, delete_cache=None) as page:
        gr.Markdown(about.headline, elem_id="about")
        with gr.Tabs(elem_id="tabs"):
            with gr.Tab("Conversation", id="conversation"):
                with gr.Row(equal_height=True):
                    # Which files are pictures `Uploads` says: Gradio's own check would leave what it refuses.
                    upload = gr.File(
                        label=f"Picture (at most {limits.file_bytes / 1e6:.0f} MB)",
                        type="filepath", height=130, elem_id="upload", scale=3,
                    )  # fmt: skip
                    example = gr.Button(
                        "Example picture", elem_id="example", scale=1, visible=about.example is not None
                    )
                board = gr.HTML(EMPTY, elem_id="board", js_on_load=SCRIPT)
                with gr.Row():
                    text = gr.Textbox(
                        about.question, label="Question or instruction", lines=1, scale=5, elem_id="text",
                        max_length=limits.text,
                        info='For example "what is above the ring ?" or "segment the white ring".',
                    )  # fmt: skip
                    send = gr.Button("Send", variant="primary", elem_id="send", scale=1)
                threshold = gr.Slider(
                    0, 1, 0.3, step=0.01, label="Least score of a detected object", elem_id="threshold",
                    visible=service.detects,
                    info="Hides objects of the detector below it at once; the next instruction counts from it.",
                )  # fmt: skip
                with gr.Accordion("Pointing at the picture", open=False, elem_id="pointing"):
                    gr.Markdown(
                        "Choose *point*, *not this*, *box* or *scribble* above the picture and draw: SAM outlines what "
                        "you mean. Further marks refine the outline until you press *clear*. The LMM takes no part in "
                        "it.\n\n" + _REGIONS
                    )
            if service.has_stream:
                with gr.Tab("Stream", id="stream"):
                    _stream_tab(service, queue)

        def entered(request: gr.Request) -> str:
            with sentences():
                return service.board(service.enter(request.session_hash))

        def opened(path: str | None, request: gr.Request) -> tuple[str, None]:
            with sentences():
                return service.board(service.open(request.session_hash, path)), None

        def shown_example(request: gr.Request) -> str:
            with sentences():
                return service.board(service.open_example(request.session_hash))

        def said(words: str, least: float, request: gr.Request) -> tuple[str, str]:
            with sentences():
                user, _ = service.say(request.session_hash, words, least)
                return service.board(user), ""

        def marked(event: gr.EventData, request: gr.Request) -> str:
            with sentences():
                data = event._data if isinstance(event._data, dict) else {}
                user, _ = service.outline(request.session_hash, data)
                return service.board(user)

        def left(request: gr.Request) -> None:
            service.users.forget(request.session_hash)

        page.load(entered, None, board, api_name="enter", show_progress="hidden", **queue)
        upload.upload(opened, upload, [board, upload], api_name="open", show_progress="minimal", **queue)
        example.click(shown_example, None, board, api_name="example", show_progress="minimal", **queue)
        gr.on(
            [send.click, text.submit], said, [text, threshold], [board, text], api_name="say",
            show_progress="minimal", show_progress_on=[text], **queue,
        )  # fmt: skip
        board.mark(marked, None, board, api_name="mark", show_progress="hidden", **queue)
        threshold.change(None, threshold, None, js=SEND_THRESHOLD)
        page.unload(left)
    # What Gradio itself keeps of a session: 10,000 of them would be more than the model.
    page.state_session_capacity = 2 * limits.users
    page.queue(max_size=limits.waiting, default_concurrency_limit=1, api_open=False)
    return page


def _stream_tab(service: Service, queue: dict[str, Any]) -> None:
    """Frames, a question, and what the background cache did."""
    names = service.frames.names
    gr.Markdown(service.stream_text, elem_id="about-stream")
    with gr.Row(equal_height=True):
        upload = gr.File(
            label=f"Frames of your own, in their order (at most {service.limits.frames})",
            file_count="multiple", type="filepath", height=150, elem_id="frames", scale=2,
        )  # fmt: skip
        frame = gr.Dropdown(
            names, value=names[0], label="Frame", elem_id="frame", scale=2, allow_custom_value=True,
            info="Goes on to the next one with every question.",
        )  # fmt: skip
    with gr.Row():
        text = gr.Textbox(
            service.about.stream_question, label="Question", lines=1, elem_id="stream-text", scale=5,
            max_length=service.limits.text,
        )  # fmt: skip
        ask = gr.Button("Ask", variant="primary", elem_id="ask", scale=1)
    shown = gr.HTML(StreamView.EMPTY, elem_id="stream-view", js_on_load=None)

    def sent(paths: list[str] | None, request: gr.Request) -> tuple[Any, None]:
        with sentences():
            stream = service.send_frames(request.session_hash, paths)
            return gr.update(choices=stream.names, value=stream.names[0]), None

    def asked(name: str, words: str, request: gr.Request) -> tuple[str, str]:
        with sentences():
            user, _ = service.ask_stream(request.session_hash, name, words)
            assert user.stream is not None  # it has answered
            return user.stream.html(f"flmm/{user.token}"), user.stream.after(name)

    upload.upload(sent, upload, [frame, upload], api_name="frames", show_progress="minimal", **queue)
    gr.on(
        [ask.click, text.submit], asked, [frame, text], [shown, frame], api_name="ask",
        show_progress="minimal", show_progress_on=[text], **queue,
    )  # fmt: skip
