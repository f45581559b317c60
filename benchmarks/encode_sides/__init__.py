"""One script for each side of `benchmarks.encode`; each runs in an interpreter and a process of its own.

None of them imports Trivec but `trivec_side`, and none imports another side's libraries.
"""
