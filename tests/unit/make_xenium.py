"""Small virtual Xenium sections for the tests, made once per session, and damaged copies of their folders."""

import shutil
import tempfile
from functools import lru_cache
from pathlib import Path

SECTIONS = ("X1_a", "X2_a", "X3_b")  # analysis 1.0, 2.0 without warp, 4.0 mirrored


@lru_cache(maxsize=1)
def small() -> dict[str, Path]:
    """Return the folders of a small data set and of its null twin, by name."""
    import atexit

    import pytest

    from helpers.virtual import xenium

    home = Path(tempfile.mkdtemp(prefix="course-xenium-"))
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COURSE_VIRTUAL", str(home))
        return {
            name: xenium.ensure(name, size_um=380.0, sections=SECTIONS, workers=1) for name in xenium.NAMES
        }


def copy(target: Path, section: str = "X3_b") -> Path:
    """Return the ``outs`` of a fresh copy of one small section below ``target``, its H&E beside it."""
    place = target / section
    shutil.copytree(small()["virtual_xenium"] / "sections" / section, place)
    return place / "outs"
