"""Training, tuning, measuring and benchmarking jobs on Ray, each a script.

Plans: plan, plans, plan_json, arguments. Training: training_data, workers, mlflow_run, pretrain, train, moments. Sweeps: tune,
sweep_plots. Benchmarks: editor_settings, suites, bench. The demo: demo, demo_traffic, demo_report. All start in entry.
"""
