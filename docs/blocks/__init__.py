"""Text that is computed from result files and from the schema: `tables.py` and `hooks.py` put it into pages."""
