"""Readers: files and rows in any layout to conversations, with every unreadable row counted."""
