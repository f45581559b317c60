"""One script for each side of `benchmarks.search`; each runs in an interpreter and a process of its own.

Only `trivec_side` imports Trivec. Every side makes the corpus itself, from a seed (`benchmarks.synthetic`).
"""
