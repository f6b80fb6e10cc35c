"""Conversations as data: read from any layout, filtered, split, curated, and stored as parquet."""
