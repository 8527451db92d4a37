"""Task definitions in lm-evaluation-harness's YAML, for what it has none of."""
