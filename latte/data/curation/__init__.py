"""Curation of a dataset before it is encoded: which of its videos, and what of them, is worth training on."""
