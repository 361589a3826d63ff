"""The sample step as Kubeflow sees it."""
