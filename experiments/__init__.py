"""Everything that compares or measures: ``python -m experiments``."""
