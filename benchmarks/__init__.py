"""Side-by-side speed measurements: ``python -m benchmarks NAME``, or all of them without a name."""
