"""The encode step as Kubeflow sees it."""
