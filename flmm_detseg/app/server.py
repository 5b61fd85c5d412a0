"""The app's server: Gradio's page, the pictures that it shows, and nothing else of this machine."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import threading
import warnings
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

from flmm_detseg.app.service import Service
from flmm_detseg.errors import FlmmError, RunError

# Before Gradio is imported: it reads them then.
_QUIET = {"GRADIO_ANALYTICS_ENABLED": "False", "DO_NOT_TRACK": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
_SWEEP_SECONDS = 5.0


def bind(host: str, port: int) -> socket.socket:
    """Takes the port, before a model is loaded for minutes.

    Args:
        host: Name or address of this machine.
        port: 0 for any that is free.

    Returns:
        The listening socket.

    Raises:
        RunError: The port is taken, or the address is none of this machine's.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        taken = socket.create_server((host, port), family=family, backlog=256)
    except OSError as error:
        raise RunError(
            f"cannot listen on {host}:{port} ({error.strerror or error}); give another --port (0 takes a free one)"
        ) from error
    return taken


def serve(service: Service, listening: socket.socket, ready: Callable[[], None]) -> None:
    """Serves the page until the process is interrupted; then deletes what users sent.

    Args:
        service: What the page does.
        listening: Of :func:`bind`.
        ready: Called when the page can be opened.
    """
    import uvicorn

    config = uvicorn.Config(
        build_server(service, ready), log_level="warning", timeout_graceful_shutdown=3, server_header=False
    )
    logging.getLogger("uvicorn.error").addFilter(_worth_a_line)
    try:
        uvicorn.Server(config).run(sockets=[listening])
    except KeyboardInterrupt:  # the ordinary end
        pass
    finally:
        service.close()


def build_server(service: Service, ready: Callable[[], None]) -> Any:
    """The application that :func:`serve` runs.

    Args:
        service: What the page does.
        ready: Called when it has started.

    Returns:
        A FastAPI application.
    """
    os.environ.update(_QUIET, GRADIO_TEMP_DIR=str(service.uploads.folder))
    from fastapi import FastAPI
    from fastapi.responses import Response
    from gradio import mount_gradio_app, processing_utils

    from flmm_detseg.app.look import STYLE
    from flmm_detseg.app.page import build_page

    # A client may name an address in a file's place, and Gradio would fetch it: with no limit of size, from anywhere.
    vars(processing_utils)["async_ssrf_protected_download"] = _refuse_address
    # Gradio's use of Starlette; a line of the log for every request.
    warnings.filterwarnings("ignore", message=".*HTTP_422_UNPROCESSABLE_ENTITY.*")

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        stop = threading.Event()
        sweeper = threading.Thread(target=_sweep, args=(service, stop), daemon=True)
        sweeper.start()
        ready()
        yield
        stop.set()

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/flmm/{token}/{path:path}")
    def file(token: str, path: str, threshold: float = 0.0) -> Response:
        reply = reply_of(service, token, path, threshold)
        return Response(reply.content, reply.status, reply.headers, reply.kind)

    page = build_page(service)
    # Gradio takes a path in a file's place only from its own folder, but looks at that only after `launch()`. Without
    # this line a client could name any file of the server, and have it copied to where it is served.
    page.has_launched = True
    return mount_gradio_app(
        app,
        page,
        path="/",
        footer_links=[],
        allowed_paths=[],
        show_error=True,
        max_file_size=service.limits.file_bytes,
        ssr_mode=False,
        enable_monitoring=False,
        mcp_server=False,
        pwa=False,
        css=STYLE,
    )


class Reply(NamedTuple):
    """What the server answers where a picture or a download is asked for.

    Attributes:
        status: Of HTTP.
        content: The file, or a sentence.
        kind: Media type.
        headers: Further ones.
    """

    status: int
    content: bytes
    kind: str
    headers: dict[str, str]


def reply_of(service: Service, token: str, path: str, threshold: float) -> Reply:
    """A file of a user, or the sentence that says why there is none.

    Args:
        service: Keeps the users.
        token: Secret part of the address.
        path: The rest of it.
        threshold: Least score of detected objects in a download.

    Returns:
        The reply.
    """
    try:
        found = service.file(token, path, threshold)
    except FlmmError as error:
        return Reply(422, str(error).encode(), "text/plain; charset=utf-8", {"Cache-Control": "no-store"})
    if found is None:
        sentence = b"This picture is not kept any more. Open the page again."
        return Reply(404, sentence, "text/plain; charset=utf-8", {})
    content, kind, name = found
    headers = {"Cache-Control": "private, max-age=3600", "X-Content-Type-Options": "nosniff"}
    if name:
        headers = {"Cache-Control": "no-store", "Content-Disposition": f'attachment; filename="{name}"'}
    return Reply(200, content, kind, headers)


def _worth_a_line(record: logging.LogRecord) -> bool:
    """Pages that are open when the app ends keep a connection, whose end is no fault."""
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, asyncio.CancelledError) and "graceful shutdown" not in record.getMessage()


async def _refuse_address(url: str, cache_dir: str) -> str:
    from gradio import Error

    del cache_dir  # where Gradio would put it
    raise Error(f"{url[:80]}: addresses are not fetched; send the picture itself", print_exception=False)


def _sweep(service: Service, stop: threading.Event) -> None:
    """Deletes files that nobody asked to read, and forgets idle users."""
    while not stop.wait(_SWEEP_SECONDS):
        service.uploads.sweep()
        service.users.trim()
