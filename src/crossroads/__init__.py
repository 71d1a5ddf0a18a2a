"""Token-level routing between a small and a large language model."""
