"""Flower's side of a deployment: the backend that asks SuperNodes, who they are, and records as tensors."""
