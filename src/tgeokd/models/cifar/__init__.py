"""Models for 32x32 images with the names of parameters of RepDistiller and mdistiller, whose teachers load unchanged."""
