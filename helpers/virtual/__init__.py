"""The virtual tissue: anatomy, cells, expression, rendering and platforms, each grown from a seed with its truth kept.

Import the rooms, not this package: ``from helpers.virtual import anatomy, cells, rendering``.
"""
