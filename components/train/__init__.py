"""The train step as Kubeflow sees it."""
