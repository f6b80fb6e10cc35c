"""Engines that hubkit starts: child processes that serve a model for as long as a block lasts."""
