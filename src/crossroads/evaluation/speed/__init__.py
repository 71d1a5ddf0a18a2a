"""How fast a pair generates, beside each engine's own loops and beside what arithmetic allows."""
