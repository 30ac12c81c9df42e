"""Losses, geometry, class means, metrics and how a model is called; pure functions wherever possible."""
