"""Comparing methods: configs, single runs, comparisons over seeds, the demo."""
