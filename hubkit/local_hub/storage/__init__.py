"""What the embedded Hub stores: git repositories, large files, and settings."""
