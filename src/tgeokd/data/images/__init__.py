"""Image files: one way to read a file, and class folders."""
