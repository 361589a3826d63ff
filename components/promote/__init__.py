"""The component of the promote step."""
