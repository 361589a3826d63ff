"""A step's work done by a Volcano Job: its manifest, the step that launches it and waits, and what its pods run."""
