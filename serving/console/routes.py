"""The routes of the console's files: one page, its styles and its script modules, under a strict Content-Security-Policy.

They need no key, because they hold no data: the page asks for a key and sends it with its requests to the public routes.
"""

from __future__ import annotations

import hashlib
import importlib.resources
from dataclasses import dataclass
from importlib.resources.abc import Traversable

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import RedirectResponse, Response

INDEX = "index.html"
MEDIA_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
# No inline script or style and nothing from elsewhere; with trusted types, no text becomes HTML even by mistake.
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",  # A browser asks whether its copy is current; `ETag` answers.
}


@dataclass(frozen=True)
class ConsoleFile:
    """A file of the console, read once: the release decides its bytes."""

    body: bytes
    media_type: str
    tag: str

    @classmethod
    def read(cls, file: Traversable) -> ConsoleFile:
        body = file.read_bytes()
        return cls(body, MEDIA_TYPES[file.name.rpartition(".")[2]], f'"{hashlib.sha256(body).hexdigest()[:32]}"')

    def answer(self, request: Request) -> Response:
        """Answer with the bytes, or with 304 to a browser that has them."""
        headers = {**HEADERS, "ETag": self.tag}
        if self.tag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(self.body, media_type=self.media_type, headers=headers)


def console_files() -> dict[str, ConsoleFile]:
    """Read the console's files by name; the colours are those of the reports."""
    own = importlib.resources.files("serving.console").joinpath("static")
    theme = importlib.resources.files("errata.reports").joinpath("theme.css")
    return {file.name: ConsoleFile.read(file) for file in (*own.iterdir(), theme)}


def install(app: FastAPI) -> None:
    """Add the console to an application, at `/console`."""
    files = console_files()

    @app.get("/console", include_in_schema=False)
    async def get_console() -> Response:
        return RedirectResponse("console/", headers=HEADERS)  # Relative, because the application may have a prefix.

    @app.get("/console/", include_in_schema=False)
    async def get_index(request: Request) -> Response:
        return files[INDEX].answer(request)

    @app.get("/console/{name}", include_in_schema=False)
    async def get_file(name: str, request: Request) -> Response:
        if name not in files:
            raise HTTPException(404, "the console has no such file")
        return files[name].answer(request)
