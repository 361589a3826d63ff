"""The smallest kind of model and the smallest step, as docs/architecture.md says how they are added."""
