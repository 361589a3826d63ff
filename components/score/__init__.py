"""The score step as Kubeflow sees it."""
