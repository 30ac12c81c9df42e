"""Teacher predictions on disk."""
