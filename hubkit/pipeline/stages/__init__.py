"""One module per stage: what it reads, what it builds, and what its card is rendered from."""
