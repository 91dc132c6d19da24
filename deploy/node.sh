# The environment of every shell on a node: ~/.bashrc reads this file, so Ray starts with it.
export PATH="$HOME/errata/.venv/bin:$PATH"
export ERRATA_HOME=/mnt/errata # a folder that all nodes share
# Set on every machine, because the default depends on earlier commands. Only SSH may reach the nodes from outside.
export RAY_AUTH_MODE=disabled
export RAY_USAGE_STATS_ENABLED=0
