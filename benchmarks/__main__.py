"""Run the benchmarks and print one table: ``python -m benchmarks [name ...]`` (without ``bench_``; default all)."""

from __future__ import annotations

import importlib
import pkgutil
import sys
import traceback

import benchmarks

COLUMNS = ("name", "ours", "other", "ratio", "unit", "note")


def table(rows) -> str:
    """Return rows (dicts with ``COLUMNS``) as an aligned text table; ``None`` shows as a dash."""

    def show(value) -> str:
        if value is None:
            return "-"
        return f"{value:.4g}" if isinstance(value, float) else str(value)

    cells = [COLUMNS] + [tuple(show(row.get(column)) for column in COLUMNS) for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(COLUMNS))]
    lines = ["  ".join(text.ljust(width) for text, width in zip(line, widths)).rstrip() for line in cells]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def main(wanted) -> int:
    """Run the named benchmarks (all without names); return 1 if one fails or is unknown, else 0."""
    found = sorted(m.name[6:] for m in pkgutil.iter_modules(benchmarks.__path__) if m.name.startswith("bench_"))
    unknown = [name for name in wanted if name not in found]
    if unknown:
        print(f"no benchmark {unknown[0]!r}; there are: {', '.join(found)}", file=sys.stderr)
        return 1
    rows, failed = [], 0
    for name in wanted or found:
        print(f"running {name} ...", file=sys.stderr, flush=True)
        try:
            rows += importlib.import_module(f"benchmarks.bench_{name}").run()
        except Exception:  # one broken benchmark must not hide the others
            traceback.print_exc()
            failed = 1
    print(table(rows))
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
