"""Where stages run: in this process, or as Hub Jobs."""
