"""One file, or folder, per task."""
