"""The studio: a page on which sentences are typed, masks are watched and corrected, and a gallery of drawn clips.

The page is static: ES modules in ``page/``, which talk to ``refervos.serving``.
"""

from refervos.studio.gallery import PAGE, samples

__all__ = ["PAGE", "samples"]
