"""The guard: limits on what an update may do to the model, and the measurements that they apply to.

The guard returns a verdict. It neither publishes nor rejects: the caller does.
"""
