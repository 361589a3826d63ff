"""How each step looks to Kubeflow."""
