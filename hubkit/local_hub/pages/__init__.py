"""The same Hub for people: plain pages, made on the server, everything escaped, nothing from
elsewhere.
"""

from hubkit.local_hub.pages.routes import answer_error, route

__all__ = ["answer_error", "route"]
