"""Models for 32x32 images under the names used in distillation papers.

Parameter names and shapes are those of RepDistiller and mdistiller, so that their published teachers load unchanged
(:func:`tgeokd.models.weights.load_weights`).
"""
