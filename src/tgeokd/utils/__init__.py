"""Registry, validation, errors, files, memory: nothing here knows about distillation."""
