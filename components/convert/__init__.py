"""The convert step as Kubeflow sees it."""
