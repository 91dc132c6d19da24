"""The service on Ray Serve and vLLM.

`app` puts the graph together: `api` is the HTTP interface, `engine` the replicas, and `worker` the single writer.
"""
