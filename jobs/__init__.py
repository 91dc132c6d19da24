"""Training, tuning, measuring and benchmarking jobs on Ray, each a script.

No other folder imports Ray Train, Ray Tune or Ray Data. Plans and suites are named Python functions, with `field=value`
overrides from the command line.
"""
