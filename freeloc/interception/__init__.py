"""Intercepts the attention calls of a running model: hooks, interceptors, and the state of a forward."""
