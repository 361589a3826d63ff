"""The container image that every component runs in; `LATTE_IMAGE` replaces it where components are compiled."""

import os

from latte import __version__

IMAGE = os.environ.get("LATTE_IMAGE") or f"latte-pipelines:{__version__}"
