"""The routes of the page: `/` for browsers and for programs, and the page's files."""

from importlib.metadata import version

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from coserve_server.api.page.files import read_files

_KEEP = {"Cache-Control": "public, max-age=31536000, immutable"}
"""For a year, the longest that caches must accept (RFC 9111, section 1.2.2)."""
_ASK = {"Cache-Control": "no-cache", "Vary": "Accept"}


class Landing(BaseModel):
    """What is here, for programs."""

    name: str = Field(examples=["Coserve"])
    version: str
    paths: dict[str, str] = Field(
        description="Paths of this server: `classify`, `models`, `open_inference_protocol`, `metrics`, "
        "`live`, `ready`, `documentation`, `openapi`."
    )


_PATHS = {
    "classify": "/v1/classify",
    "models": "/v1/models",
    "open_inference_protocol": "/v2",
    "metrics": "/metrics",
    "live": "/healthz",
    "ready": "/readyz",
    "documentation": "/docs",
    "openapi": "/openapi.json",
}


def create_router(show_page: bool) -> APIRouter:
    """Return a router that describes the server at `/`, to browsers with a page if it is to be shown."""
    router = APIRouter(tags=["page"])

    @router.get(
        "/",
        response_model=Landing,
        responses={200: {"content": {"text/html": {}}, "description": "The page for browsers, or JSON."}},
    )
    async def land(request: Request) -> Response:
        """Show browsers, which accept text/html, a page to try the server; tell programs what is here."""
        root = request.scope.get("root_path", "").rstrip("/")
        if show_page and prefers_html(request.headers.get("Accept", "")):
            return HTMLResponse(read_files().write_html(root), headers=_ASK)
        paths = {name: root + path for name, path in _PATHS.items()}
        landing = Landing(name="Coserve", version=version("coserve"), paths=paths)
        return JSONResponse(landing.model_dump(), headers=_ASK)

    if show_page:
        router.add_route("/page/{digest}/{name:path}", _send_file, include_in_schema=False)
    return router


async def _send_file(request: Request) -> Response:
    files = read_files()
    name = request.path_params["name"]
    if request.path_params["digest"] != files.digest or name not in files.contents:
        raise HTTPException(404, "the page has no such file; reload it")
    content, media_type = files.contents[name]
    return Response(content, media_type=media_type, headers=_KEEP)


def prefers_html(accept: str) -> bool:
    """Return whether a client names text/html, and does not prefer JSON (RFC 9110, section 12.5.1).

    Args:
        accept: the header Accept; programs often send none or */*.
    """
    weights: dict[str, float] = {}
    for item in accept.lower().split(","):
        media_type, *parameters = (part.strip() for part in item.split(";"))
        weights[media_type] = min((_read_weight(one) for one in parameters), default=1.0)
    return weights.get("text/html", 0) > 0 and weights["text/html"] >= weights.get("application/json", 0)


def _read_weight(parameter: str) -> float:
    name, _, value = parameter.partition("=")
    try:
        return float(value) if name.strip() == "q" else 1.0
    except ValueError:
        return 0.0
