"""The HTTP surface: each route reads, calls one service, and maps errors. The page is docs/spec/api.md."""

from .app import make_app

__all__ = ["make_app"]
