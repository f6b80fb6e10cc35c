"""The HTTP API of the embedded Hub, one module per group of routes."""
