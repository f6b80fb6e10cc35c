"""Processes that the embedded Hub runs: Spaces, jobs, and inference endpoints."""
