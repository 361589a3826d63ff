"""The component that tells how a run has ended."""
