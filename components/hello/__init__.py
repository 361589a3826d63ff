"""The component that proves a cluster with one tiny run."""
