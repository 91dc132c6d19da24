# What every shell of a node has: cluster.yaml and deploy/cluster-local.yaml have ~/.bashrc read this, so Ray is started with it.
export PATH="$HOME/errata/.venv/bin:$PATH"
export ERRATA_HOME=/mnt/errata # a folder that all nodes share
export RAY_AUTH_MODE=disabled  # said everywhere, or it depends on who ran what before; only SSH may reach the nodes from outside
export RAY_USAGE_STATS_ENABLED=0
