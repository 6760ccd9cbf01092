"""Helpers of the course: thin, tested functions that the notebooks stand on.

Importing this package is cheap on purpose: it caps the thread counts of the numerical libraries
(which must happen before they load) and imports nothing heavy.
"""

from helpers import settings as _settings

_settings.cap_threads()

__version__ = "0.1.0"
