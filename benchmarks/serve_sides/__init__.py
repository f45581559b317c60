"""The parts of `benchmarks.serve` and the programs that they run: load generator, library, peers' servers.

`load` imports the standard library only, and `flagembedding_server` nothing of Trivec: other interpreters
run them.
"""
