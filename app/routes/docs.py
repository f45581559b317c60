"""GET /docs: the interactive documentation, without the network where `fastapi-offline` is installed.

Of that package only the files of Swagger UI are used (Apache-2.0); its code is not imported. Without it
the page takes the same files from a public network, as FastAPI does by itself.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fastapi import APIRouter, HTTPException, Request
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import FileResponse, Response

router = APIRouter(include_in_schema=False)

PACKAGE = "fastapi_offline"
FILES = {
    "swagger-ui-bundle.js": "text/javascript",
    "swagger-ui.css": "text/css",
    "favicon.png": "image/png",
}
"""The only files served: a name in a path never reaches the file system."""


def files_folder() -> Path | None:
    """The folder of the page's files; None where the package is absent."""
    spec = find_spec(PACKAGE)
    places = [] if spec is None else spec.submodule_search_locations or []
    folders = [Path(place) / "static" for place in places]
    return next((one for one in folders if all((one / name).is_file() for name in FILES)), None)


@router.get("/docs")
async def docs(request: Request) -> Response:
    """The page itself."""
    root = request.scope.get("root_path", "")
    own: dict[str, Any] = {}
    if files_folder() is not None:
        own = {
            "swagger_js_url": f"{root}/docs/swagger-ui-bundle.js",
            "swagger_css_url": f"{root}/docs/swagger-ui.css",
            "swagger_favicon_url": f"{root}/docs/favicon.png",
        }
    return get_swagger_ui_html(openapi_url=f"{root}/openapi.json", title=request.app.title, **own)


@router.get("/docs/{file}")
async def docs_file(file: str) -> Response:
    """A script, a style sheet and an icon."""
    folder = files_folder()
    if folder is None or file not in FILES:
        raise HTTPException(404)
    return FileResponse(folder / file, media_type=FILES[file], headers={"Cache-Control": "max-age=86400"})
