"""Benchmarks with commands of their own (`make bench-NAME`); jobs/bench.py runs the comparison of editors.

Shared: report, measure, random_llama. Solve and targets: solver, solve_forms, sharing, episode, targets. Memory: accounting,
sized_training, memory_check, device_memory. GPU: device_rates, gpu_8b, gpu_edits, gpu_swaps. Streams: records, guarding,
ledger_growth, reverts, serving_load, load_figures.
"""
