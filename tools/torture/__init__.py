"""Kills, signals, full disks and damaged files: what the package promises in docs/reliability.md, tried many times."""
