"""The steps as Kubeflow sees them."""
