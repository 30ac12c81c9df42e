"""The command `tgeokd`: one file per command."""
