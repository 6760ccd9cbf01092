"""Side-by-side measurements: ``python -m benchmarks`` runs every ``bench_*.py`` here and prints one table of ratios."""
