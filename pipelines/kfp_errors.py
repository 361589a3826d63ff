"""Refusals of the API server of Kubeflow Pipelines, in words that say what to change."""

import json
from typing import Any

from latte.errors import LatteError, UserError

TOKEN_ENV = "KFP_TOKEN"  # noqa: S105


def explained(error: Any, host: str, what: str) -> LatteError:
    """The one line for an ApiException: who has to change what."""
    text = said(error)
    if error.status == 401:
        return UserError(f"{host}: not logged in, or the token has expired; set {TOKEN_ENV} to a new one")
    if error.status == 403:
        return UserError(f"{host}: {what}: not allowed ({text}); check the token's rights and --namespace")
    if error.status == 404:
        return UserError(f"{host}: {what}: not found there; check the host and the id ({text})")
    if error.status in (400, 409):
        return UserError(f"{host}: {what}: refused: {text}")
    return LatteError(f"{host}: {what}: the server failed ({error.status}): {text}")


def said(error: Any) -> str:
    """The server's own message, in at most 300 characters of one line."""
    text = error.body.decode(errors="replace") if isinstance(error.body, bytes) else str(error.body or "")
    try:
        value = json.loads(text)
        text = str(value.get("message") or value.get("error") or text) if isinstance(value, dict) else text
    except ValueError:
        text = text if not text.lstrip().startswith("<") else "a web page, not the API"
    return first_line(text.strip() or error.reason or f"status {error.status}, without a word")[:300]


def first_line(text: object) -> str:
    """The first line, or "" of nothing."""
    return next(iter(str(text).splitlines()), "")
