"""The report step as Kubeflow sees it."""
