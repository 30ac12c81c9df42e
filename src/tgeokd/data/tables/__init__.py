"""Reading tables and encoding their columns."""
