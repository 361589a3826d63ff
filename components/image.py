"""The container image that every component runs in; `LATTE_IMAGE` replaces it where components are compiled."""

import os

IMAGE = os.environ.get("LATTE_IMAGE", "latte-pipelines:0.1.0")
