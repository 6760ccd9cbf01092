"""The virtual Visium HD section: a square millimetre of colon with a tumour in it, its H&E and its 2 um bins.

Import the rooms: ``from helpers.virtual.hd import tissue``.
"""
