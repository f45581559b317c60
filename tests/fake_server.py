"""`python -m tests.fake_server --data-dir FOLDER`: the service on a free port, with the fake model."""

from __future__ import annotations

import sys
from pathlib import Path

import uvicorn

from app.main import create_app
from app.server import _AnnouncingServer
from app.settings import Settings
from tests.fakes import FakeModel


def main(folder: str) -> None:
    """Serve until told to stop; other settings come from the environment."""
    settings = Settings(data_dir=Path(folder), port=0)
    app = create_app(settings, model=FakeModel())
    config = uvicorn.Config(app, host=settings.host, port=settings.port, log_config=None, access_log=False)
    _AnnouncingServer(config, app).run()


if __name__ == "__main__":
    main(sys.argv[sys.argv.index("--data-dir") + 1])
